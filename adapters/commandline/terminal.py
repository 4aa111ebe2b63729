"""Output of the command line: lines for people, JSON for programs, tables, and progress."""

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
    """Write *text* to stdout as a line for people, with control characters escaped.

    Raises:
        OSError: If stdout cannot be written.
    """
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """Write *text*, an error message, to stderr; never raises."""
    with contextlib.suppress(OSError, ValueError):
        _write(sys.stderr, f"outfall: {text}")


def say_json(data: bytes) -> None:
    """Write *data*, JSON in UTF-8, to stdout as one line of UTF-8, whatever the terminal's encoding is.

    Raises:
        OSError: If stdout cannot be written.
    """
    stream: TextIO | None = sys.stdout
    if stream is not None:
        stream.flush()
        stream.buffer.write(f"{json_text(data)}\n".encode("utf-8", "replace"))
        stream.flush()


def json_text(data: bytes) -> str:
    """Return *data*, JSON in UTF-8, as text in which the control characters that JSON allows are escaped."""
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", data.decode("utf-8", "replace"))


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:  # None if the descriptor was closed before the process started
        encoding = stream.encoding or "utf-8"
        stream.write(f"{escaped(text)}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def silence() -> None:
    """Redirect stdout to the null device after a failed write, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # Before the null device is opened: this raises if stdout has no descriptor.
        stdout = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)
        os.close(nowhere)


def escaped(text: str) -> str:
    """Return *text* with non-printable characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def pretty(item: Encoded) -> str:
    """Return an event as a line for people: time, level, message, and the other fields."""
    event = item.event
    message = message_key(event)
    fields = {key: value for key, value in event.items() if key not in {"timestamp", "level", message}}
    shown = " ".join(f"{key}={short(value)}" for key, value in fields.items())
    level = level_name(item.level) if item.level < float("inf") else str(event.get("level"))
    return f"{moment(item.time)} {level:<8} {event.get(message, '')}{'  ' if shown else ''}{shown}"


def short(value: object) -> str:
    """Return a field's value as text: a string without blanks as it is, everything else as JSON."""
    if isinstance(value, str) and value and " " not in value:
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, for one
        return str(value)


@contextlib.contextmanager
def progress(total: int, *, quiet: bool, unit: str = "events") -> Generator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar if stderr is a terminal and rich is installed, else a line every few seconds.

    Yields a function that takes the number done and the total.
    """
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
            with contextlib.suppress(OSError, ValueError):  # a closed stderr does not stop the work
                _write(sys.stderr, f"{done} of {total} {self._unit}")


_LINE_SECONDS = 5.0


def counted(number: int, noun: str) -> str:
    """Return *number* and *noun*, in the plural unless *number* is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(number: float) -> str:
    """Return *number*, a size in bytes, in bytes, KiB, MiB or GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def moment(seconds: float) -> str:
    """Return a time in epoch seconds as date and time in UTC."""
    try:
        return dt.datetime.fromtimestamp(seconds, tz=dt.timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError, TypeError):
        return "an unknown time"


def line_ranges(numbers: list[int], most: int = 20) -> str:
    """Return ascending line *numbers* in words, such as ``"lines 2 to 4 and 9"``, with at most *most* ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [f"{first}" if first == last else f"{first} to {last}" for first, last in ranges[:most]]
    left = sum(last - first + 1 for first, last in ranges[most:])
    parts += [f"{left:,} more"] if left else []
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return f"line {text}" if len(numbers) == 1 else f"lines {text}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write *rows* below *head* to stdout: by rich on a terminal, else as plain text in columns.

    Raises:
        OSError: If stdout cannot be written.
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
