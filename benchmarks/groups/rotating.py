"""Files that roll over, with a rollover for every mebibyte, next to those of other libraries.

The sinks get ready event dicts; `SinkHandler` and other libraries' handlers get `logging` calls; loguru its own calls.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.events import drive
from benchmarks.groups import floors
from benchmarks.groups.stdlib import drive_handler, loguru_into_file
from benchmarks.harness import Group, Row
from outfall import RotatingFileSink, Sink, SinkHandler, TimedRotatingFileSink, WatchedFileSink

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

MAX_BYTES = 1024 * 1024
#: More than are made between two proofs, which remove the rotated files.
BACKUPS = 100

#: The number of lines that the last proof left in the current file, by directory.
_left: dict[Path, int] = {}


def every_line_rotated(directory: Path, events: int) -> None:
    """Assert that all files together got *events* lines since the last call; remove the rotated files."""
    lines = {path: path.read_bytes().count(b"\n") for path in directory.glob("events*")}
    came = sum(lines.values()) - _left.get(directory, 0)
    if came != events:
        msg = f"{came} lines of {events} events in {directory}"
        raise AssertionError(msg)
    for path in lines:
        if path.name != "events.jsonl":
            path.unlink()
    _left[directory] = lines.get(directory / "events.jsonl", 0)


def _sink(make: Callable[..., Sink], **arguments: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with make(directory / "events.jsonl", on_error="raise", **arguments) as sink:
            yield drive(sink.handle)

    def made(directory: Path) -> AbstractContextManager[Run]:
        return setup(directory)

    return made


def _sink_handler(directory: Path) -> AbstractContextManager[Run]:
    @contextmanager
    def setup() -> Iterator[Run]:
        with (
            RotatingFileSink(
                directory / "events.jsonl", max_bytes=MAX_BYTES, backup_count=BACKUPS, on_error="raise"
            ) as sink,
            drive_handler(SinkHandler(sink, callsite=False)) as run,
        ):
            yield run

    return setup()


def _handler(make: Callable[[str], logging.Handler]) -> SetUp:
    def setup(directory: Path) -> AbstractContextManager[Run]:
        from pythonjsonlogger.orjson import OrjsonFormatter

        handler = make(str(directory / "events.jsonl"))
        handler.setFormatter(OrjsonFormatter(("message", "levelname", "name"), timestamp=True))
        return drive_handler(handler)

    return setup


def _rotating(path: str) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    return RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")


def _timed(path: str) -> logging.Handler:
    from logging.handlers import TimedRotatingFileHandler

    return TimedRotatingFileHandler(path, when="midnight", encoding="utf-8")


def _watched(path: str) -> logging.Handler:
    from logging.handlers import WatchedFileHandler

    return WatchedFileHandler(path, encoding="utf-8")


def _concurrent(path: str) -> logging.Handler:
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    return ConcurrentRotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")


def _loguru(directory: Path) -> AbstractContextManager[Run]:
    return loguru_into_file(directory, rotation=MAX_BYTES)


_FLOOR = floors.WRITTEN.name
_PEER = "RotatingFileHandler + python-json-logger[orjson]"


def _row(name: str, setup: SetUp, **arguments: Any) -> Row:
    return Row(name, setup, floor=_FLOOR, proof=every_line_rotated, **arguments)


GROUP = Group(
    "rotating",
    "files that roll over at 1 MiB or at midnight",
    (
        floors.WRITTEN,
        _row("RotatingFileSink", _sink(RotatingFileSink, max_bytes=MAX_BYTES, backup_count=BACKUPS), budget=1.4),
        _row("TimedRotatingFileSink", _sink(TimedRotatingFileSink, when="midnight"), budget=1.45),
        _row(
            "RotatingFileSink, multiprocess=True",
            _sink(RotatingFileSink, max_bytes=MAX_BYTES, backup_count=BACKUPS, multiprocess=True),
            budget=2.5,
        ),
        _row("WatchedFileSink", _sink(WatchedFileSink)),
        _row(_PEER, _handler(_rotating)),
        _row("logging → SinkHandler → RotatingFileSink", _sink_handler, peer=_PEER, budget=0.38),
        _row("TimedRotatingFileHandler + the same", _handler(_timed)),
        _row("WatchedFileHandler + the same", _handler(_watched)),
        _row("loguru, serialize=True, rotation=", _loguru),
        _row("concurrent-log-handler + the same", _handler(_concurrent)),
    ),
    rounds=20,
    events=1_000,
)
