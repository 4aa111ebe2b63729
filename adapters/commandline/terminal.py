"""What the command line shows to people: numbers, moments, events, and how far it is."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
import time
from typing import TYPE_CHECKING, TextIO

import orjson

from outfall.sinks.event.event import message_key
from outfall.sinks.event.levels import level_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from outfall.sinks.core.item import Encoded


def pretty(item: Encoded) -> str:
    """Return an event as a line for people: time, level, message, and the other fields."""
    event = item.event
    message = message_key(event)
    fields = {key: value for key, value in event.items() if key not in {"timestamp", "level", message}}
    told = " ".join(f"{key}={_short(value)}" for key, value in fields.items())
    level = level_name(item.level) if item.level < float("inf") else str(event.get("level"))
    return f"{moment(item.time)} {level:<8} {_escaped(str(event.get(message, '')))}{'  ' if told else ''}{told}"


def _short(value: object) -> str:
    return _escaped(value) if isinstance(value, str) and value and " " not in value else orjson.dumps(value).decode()


def _escaped(text: str) -> str:
    # A terminal would obey what an event may hold.
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextlib.contextmanager
def progress(total: int, *, quiet: bool, unit: str = "events") -> Generator[Callable[[int, int], None]]:
    """Show how far it is on stderr: a bar, with rich on a terminal; else a line now and then. Give what tells it."""
    if quiet:
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
    yield _Lines(sys.stderr, unit)


class _Lines:
    """Progress as lines of text, one every few seconds."""

    def __init__(self, stream: TextIO, unit: str) -> None:
        self._stream = stream
        self._unit = unit
        self._due = time.monotonic() + _LINE_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _LINE_SECONDS
            print(f"{done} of {total} {self._unit}", file=self._stream, flush=True)


_LINE_SECONDS = 5.0


def complain(text: str) -> None:
    """Write *text* to stderr, as what the command line has to say of a failure."""
    print(f"outfall: {text}", file=sys.stderr, flush=True)  # noqa: T201 - it is a command line


def say(text: str) -> None:
    """Write *text* to stdout."""
    print(text, flush=True)  # noqa: T201 - it is a command line


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
