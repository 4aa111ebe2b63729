"""The least that a path can cost."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from benchmarks.events import REQUEST_ID, TIMESTAMP
from benchmarks.harness import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.harness import Run

#: What the buffered floor, and the sinks compared with it, keep in memory.
BUFFER_BYTES = 64 * 1024


@contextmanager
def _written(directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one system call for each event."""
    descriptor = os.open(directory / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    # As fast as Python can call them: without attribute lookups, and orjson's arguments by position.
    write, dumps, option = os.write, orjson.dumps, orjson.OPT_APPEND_NEWLINE

    def run(events: int) -> None:
        for number in range(events):
            write(
                descriptor,
                dumps(
                    {
                        "timestamp": TIMESTAMP,
                        "level": "info",
                        "logger": "shop.orders",
                        "event": "request finished",
                        "request_id": REQUEST_ID,
                        "method": "GET",
                        "path": "/api/v1/orders",
                        "status": 200,
                        "duration_ms": 12.345,
                        "client": "203.0.113.7",
                        "order_id": number,
                    },
                    None,
                    option,
                ),
            )

    try:
        yield run
    finally:
        os.close(descriptor)


@contextmanager
def _buffered(directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` for each event, and a system call when the buffer is full."""
    with (directory / "events.jsonl").open("ab", buffering=BUFFER_BYTES) as file:
        write, dumps, option = file.write, orjson.dumps, orjson.OPT_APPEND_NEWLINE

        def run(events: int) -> None:
            for number in range(events):
                write(
                    dumps(
                        {
                            "timestamp": TIMESTAMP,
                            "level": "info",
                            "logger": "shop.orders",
                            "event": "request finished",
                            "request_id": REQUEST_ID,
                            "method": "GET",
                            "path": "/api/v1/orders",
                            "status": 200,
                            "duration_ms": 12.345,
                            "client": "203.0.113.7",
                            "order_id": number,
                        },
                        None,
                        option,
                    )
                )
            file.flush()

        yield run


WRITTEN = Row("floor F: os.write(orjson.dumps)", _written)
BUFFERED = Row("floor B: the same, 64 KiB buffer", _buffered)
