"""The drop-in handlers for streams and files, each next to its original: the same records and formatter."""

from __future__ import annotations

import logging
import logging.handlers
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.groups.rotating import BACKUPS, MAX_BYTES, every_line_rotated
from benchmarks.groups.stdlib import drive_handler
from benchmarks.harness import Group, Row, every_line_written
from outfall.adapters import handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

_FORMAT = (
    "%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s %(method)s %(path)s %(status)s %(duration_ms)s "
    "%(client)s %(order_id)s"
)


def _formatted(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


def _file(make: Callable[..., logging.Handler], **arguments: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        handler = make(directory / "events.jsonl", encoding="utf-8", **arguments)
        with drive_handler(_formatted(handler)) as run:
            yield run

    return setup


def _stream(make: Callable[..., logging.Handler]) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with (
            (directory / "events.jsonl").open("a", encoding="utf-8") as stream,
            drive_handler(_formatted(make(stream))) as run,
        ):
            yield run

    return setup


def _pair(
    name: str,
    original: Callable[..., logging.Handler],
    setup: Callable[..., SetUp],
    proof: Callable[[Path, int], float | None] = every_line_written,
    **arguments: Any,
) -> tuple[Row, Row]:
    row = Row(f"logging's {name}", setup(original, **arguments), proof=proof)
    return row, Row(name, setup(getattr(handlers, name), **arguments), peer=row.name, proof=proof)


GROUP = Group(
    "handlers-files",
    "the drop-in handlers for streams and files beside their originals",
    (
        *_pair("StreamHandler", logging.StreamHandler, _stream),
        *_pair("FileHandler", logging.FileHandler, _file),
        # Its file is not emptied, since the handler would notice and report it.
        *_pair("WatchedFileHandler", logging.handlers.WatchedFileHandler, _file, every_line_rotated),
        *_pair(
            "RotatingFileHandler",
            logging.handlers.RotatingFileHandler,
            _file,
            every_line_rotated,
            maxBytes=MAX_BYTES,
            backupCount=BACKUPS,
        ),
        *_pair(
            "TimedRotatingFileHandler",
            logging.handlers.TimedRotatingFileHandler,
            _file,
            every_line_rotated,
            when="midnight",
        ),
    ),
    rounds=30,
    events=1_000,
)
