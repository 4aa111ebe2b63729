"""What the command line writes: lines for people, JSON for programs, and how far it is."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import sys
import time
from typing import TYPE_CHECKING, TextIO

import orjson

from outfall.sinks.event.event import message_key
from outfall.sinks.event.levels import level_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from outfall.sinks.core.item import Encoded


def say(text: str) -> None:
    """Write *text* to stdout as a line for people: what could command a terminal is escaped.

    Raises:
        OSError: If it cannot be written.
    """
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """Write *text* to stderr, as what the command line has to say of a failure; never raises."""
    with contextlib.suppress(OSError, ValueError):
        _write(sys.stderr, f"outfall: {text}")


def say_json(data: bytes) -> None:
    """Write *data*, JSON in UTF-8, to stdout as one line of UTF-8, whatever the terminal's encoding is.

    Raises:
        OSError: If it cannot be written.
    """
    # JSON may hold these as they are; a terminal would obey them.
    text = re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", data.decode("utf-8", "replace"))
    stream: TextIO | None = sys.stdout
    if stream is not None:
        stream.flush()
        stream.buffer.write(f"{text}\n".encode("utf-8", "replace"))
        stream.flush()


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:  # as it is where the descriptor was closed
        encoding = stream.encoding or "utf-8"
        stream.write(f"{escaped(text)}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def silence() -> None:
    """Let the interpreter's last flush of stdout go nowhere, after it has failed once."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # Asked for first: a stream that is no file raises.
        stdout = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)
        os.close(nowhere)


def escaped(text: str) -> str:
    """Return *text* with escapes in the place of what cannot be seen and what commands a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def pretty(item: Encoded) -> str:
    """Return an event as a line for people: time, level, message, and the other fields."""
    event = item.event
    message = message_key(event)
    fields = {key: value for key, value in event.items() if key not in {"timestamp", "level", message}}
    told = " ".join(f"{key}={short(value)}" for key, value in fields.items())
    level = level_name(item.level) if item.level < float("inf") else str(event.get("level"))
    return f"{moment(item.time)} {level:<8} {event.get(message, '')}{'  ' if told else ''}{told}"


def short(value: object) -> str:
    """Return a field's value as one word: text without blanks as it is, all else as JSON."""
    if isinstance(value, str) and value and " " not in value:
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, for one
        return str(value)


@contextlib.contextmanager
def progress(total: int, *, quiet: bool, unit: str = "events") -> Generator[Callable[[int, int], None]]:
    """Show how far it is on stderr: a bar, with rich on a terminal; else a line now and then. Give what tells it."""
    if quiet or sys.stderr is None:
        yield lambda _done, _total: None
        return
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            pass
        else:
            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task("delivering", total=total)
                yield lambda done, total: bar.update(task, completed=done, total=total)
            return
    yield _Lines(unit)


class _Lines:
    """Progress as lines of text, one every few seconds."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._due = time.monotonic() + _LINE_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _LINE_SECONDS
            with contextlib.suppress(OSError, ValueError):  # nobody reads it: no reason to stop
                _write(sys.stderr, f"{done} of {total} {self._unit}")


_LINE_SECONDS = 5.0


def counted(number: int, noun: str) -> str:
    """Return *number* with *noun*, in the plural where it has to be."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(number: float) -> str:
    """Return *number* of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def moment(seconds: float) -> str:
    """Return a time in seconds since the epoch as date and time, in UTC."""
    try:
        return dt.datetime.fromtimestamp(seconds, tz=dt.timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError, TypeError):
        return "an unknown time"


def line_ranges(numbers: list[int], most: int = 20) -> str:
    """Return ascending line *numbers* in words, such as ``"lines 2 to 4 and 9"``; *most* ranges at most."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    told = [f"{first}" if first == last else f"{first} to {last}" for first, last in ranges[:most]]
    left = sum(last - first + 1 for first, last in ranges[most:])
    told += [f"{left:,} more"] if left else []
    text = ", ".join(told[:-1]) + (" and " if len(told) > 1 else "") + told[-1]
    return f"line {text}" if len(numbers) == 1 else f"lines {text}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write *rows* below their *head* to stdout: with rich on a terminal, else in columns that programs can read too.

    Raises:
        OSError: If it cannot be written.
    """
    cells: list[Sequence[str]] = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            made = Table(box=None, header_style="bold", pad_edge=False)
            for name in head:
                made.add_column(name, overflow="fold")
            for row in cells:
                made.add_row(*map(Text, row))
            Console().print(made)
            return
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (head, *cells):
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
