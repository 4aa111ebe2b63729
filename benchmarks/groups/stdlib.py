"""`logging` into a `FileSink`, next to its own `logging.FileHandler` with JSON, and loguru.

Lines with the same fields are compared: one pair with and one pair without the call site, which `SinkHandler` adds on
request.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from benchmarks.events import drive_logging, drive_loguru
from benchmarks.groups import floors
from benchmarks.harness import Group, Row
from outfall import FileSink, SinkHandler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

#: The call-site fields that SinkHandler adds for True, by the names of the record.
_CALLSITE = ("pathname", "lineno", "funcName", "process", "processName", "thread", "threadName", "taskName")


class _JSONFormatter(logging.Formatter):
    """A typical custom formatter: the interpreter's own json, with the record's main fields and its extra ones."""

    _standard = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        extra = {key: value for key, value in record.__dict__.items() if key not in self._standard}
        return json.dumps(line | extra)


@contextmanager
def drive_handler(handler: logging.Handler) -> Iterator[Run]:
    """Yield a function that logs to *handler* alone; close the handler at the end."""
    try:
        yield drive_logging(handler)
    finally:
        handler.close()


def _sink_handler(*, callsite: bool) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with (
            FileSink(directory / "events.jsonl", on_error="raise") as sink,
            drive_handler(SinkHandler(sink, callsite=callsite)) as run,
        ):
            yield run

    return setup


def _file_handler(directory: Path, formatter: logging.Formatter) -> AbstractContextManager[Run]:
    handler = logging.FileHandler(directory / "events.jsonl", encoding="utf-8")
    handler.setFormatter(formatter)
    return drive_handler(handler)


def _by_hand(directory: Path) -> AbstractContextManager[Run]:
    return _file_handler(directory, _JSONFormatter())


def _python_json_logger(*, callsite: bool) -> SetUp:
    def setup(directory: Path) -> AbstractContextManager[Run]:
        from pythonjsonlogger.orjson import OrjsonFormatter

        fields = ("message", "levelname", "name", *(_CALLSITE if callsite else ()))
        return _file_handler(directory, OrjsonFormatter(fields, timestamp=True))

    return setup


@contextmanager
def loguru_into_file(directory: Path, **arguments: Any) -> Iterator[Run]:
    """Log by loguru's own calls, into a file with the settings *arguments*."""
    from loguru import logger

    with suppress(ValueError):  # it was removed before
        logger.remove(0)  # loguru's initial handler on stderr
    handler = logger.add(directory / "events.jsonl", format="{message}", serialize=True, **arguments)

    try:
        yield drive_loguru(logger)
    finally:
        logger.remove(handler)


_PEER = "FileHandler + python-json-logger[orjson]"
_PEER_WITH_CALLSITE = f"{_PEER}, call site"

GROUP = Group(
    "stdlib",
    "logging and loguru, one call with seven extra fields",
    (
        floors.WRITTEN,
        Row(_PEER, _python_json_logger(callsite=False), floor=floors.WRITTEN.name),
        Row(
            "SinkHandler → FileSink, callsite=False",
            _sink_handler(callsite=False),
            floor=floors.WRITTEN.name,
            peer=_PEER,
        ),
        Row(_PEER_WITH_CALLSITE, _python_json_logger(callsite=True), floor=floors.WRITTEN.name),
        Row(
            "SinkHandler → FileSink",
            _sink_handler(callsite=True),
            floor=floors.WRITTEN.name,
            peer=_PEER_WITH_CALLSITE,
        ),
        Row("FileHandler + json", _by_hand, floor=floors.WRITTEN.name),
        Row("loguru, serialize=True", loguru_into_file, floor=floors.WRITTEN.name),
    ),
    rounds=30,
    events=1_000,
)
