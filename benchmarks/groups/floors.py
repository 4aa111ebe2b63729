"""The lowest possible cost of each path."""

from __future__ import annotations

import os
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

import orjson

from benchmarks.events import REQUEST_ID, TIMESTAMP
from benchmarks.harness import Row, nothing_written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run

#: The buffer of the buffered floor, and of the sinks that are compared with it.
BUFFER_BYTES = 64 * 1024


@contextmanager
def _written(directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one system call for each event."""
    descriptor = os.open(directory / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    # As fast as Python can call them: no attribute lookups, and positional arguments for orjson.
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


#: The number of events put into a queue before it is emptied.
BURST = 500


def in_bursts(log: Callable[[int], object], drain: Callable[[], object]) -> Run:
    """Return a function that logs in bursts and calls *drain* after each; only the logging is timed."""

    def run(events: int) -> float:
        seconds = 0.0
        for first in range(0, events, BURST):
            burst = min(BURST, events - first)
            begin = perf_counter()
            log(burst)
            seconds += perf_counter() - begin
            drain()
        return seconds

    return run


@contextmanager
def _queued(_directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one ``SimpleQueue.put`` for each event; the queue is emptied after each burst."""
    queue: SimpleQueue[bytes] = SimpleQueue()
    put, dumps = queue.put, orjson.dumps
    put_in = 0

    def log(events: int) -> None:
        nonlocal put_in
        for number in range(events):
            put(
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
                    }
                )
            )
        put_in = events

    def drain() -> None:
        taken = emptied(queue.get_nowait)
        assert taken == put_in, f"{taken} of {put_in} events were in the queue"

    yield in_bursts(log, drain)


def emptied(get: Callable[[], object]) -> int:
    """Call *get* until it raises `queue.Empty`; return the number of items."""
    taken = 0
    try:
        while True:
            get()
            taken += 1
    except Empty:
        return taken


WRITTEN = Row("floor F: os.write(orjson.dumps)", _written)
BUFFERED = Row("floor B: the same, 64 KiB buffer", _buffered)
QUEUED = Row("floor Q: SimpleQueue.put(orjson.dumps)", _queued, proof=nothing_written)
