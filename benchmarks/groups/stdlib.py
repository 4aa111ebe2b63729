"""`logging` into a `FileSink`, beside its own `logging.FileHandler` with JSON, and loguru.

Compared are lines that say the same: there is a pair with and a pair without the call site, which `SinkHandler` adds
where it is asked to.
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

#: What SinkHandler adds of the call site for True, by the record's names.
_CALLSITE = ("pathname", "lineno", "funcName", "process", "processName", "thread", "threadName", "taskName")


class _JSONFormatter(logging.Formatter):
    """What people write by hand: the interpreter's own json over the record's main fields and its extra ones."""

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
    """Log to *handler* alone; close it at the end."""
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
    """Log by loguru's own calls, into a file that its *arguments* describe."""
    from loguru import logger

    with suppress(ValueError):  # it is gone the second time
        logger.remove(0)  # the handler on stderr that loguru begins with
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
