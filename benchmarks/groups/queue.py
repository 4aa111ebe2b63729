"""Putting events into a queue or a buffer: `QueueSink` and `MemorySink`, next to `logging`'s `QueueHandler` and loguru.

Only the caller's side is measured. Events come in bursts, and the queue is emptied between them, which is not timed.
`MemorySink` flushes every 100 events to a target that does nothing; this is a part of the caller's side.
"""

from __future__ import annotations

import logging.handlers
from contextlib import contextmanager
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Any

from benchmarks.events import drive
from benchmarks.groups import background, floors
from benchmarks.groups.stdlib import drive_handler
from benchmarks.harness import Group, Row, nothing_written
from outfall import MemorySink, NullSink, QueueSink, SinkHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.harness import Run, SetUp
    from outfall import Sink

#: The capacity of MemorySink and MemoryHandler.
CAPACITY = 100


def _driven(sink: Sink) -> AbstractContextManager[Run]:
    @contextmanager
    def driven() -> Iterator[Run]:
        yield drive(sink.handle)

    return driven()


def _handled(sink: Sink) -> AbstractContextManager[Run]:
    return drive_handler(SinkHandler(sink, callsite=False))


def _queue_sink(
    made: Callable[[], Any], driver: Callable[[Sink], AbstractContextManager[Run]] = _driven, **options: Any
) -> SetUp:
    @contextmanager
    def setup(_directory: Path) -> Iterator[Run]:
        queue = made()
        logged = 0

        def drain() -> None:
            taken = floors.emptied(queue.get_nowait)
            assert taken == logged, f"{taken} of {logged} events were in the queue"

        with QueueSink(queue, on_error="raise", **options) as sink, driver(sink) as log:

            def log_burst(events: int) -> None:
                nonlocal logged
                logged = events
                log(events)

            yield floors.in_bursts(log_burst, drain)

    return setup


@contextmanager
def _memory_sink(_directory: Path) -> Iterator[Run]:
    target = NullSink()
    with MemorySink(CAPACITY, target=target, on_error="raise") as sink:
        log = drive(sink.handle)
        logged = 0

        def log_burst(events: int) -> None:
            nonlocal logged
            logged += events
            log(events)

        def drain() -> None:
            assert sink.flush(60)
            assert target.stats().delivered == logged, f"{target.stats().delivered} of {logged} were handed on"

        yield floors.in_bursts(log_burst, drain)


@contextmanager
def _memory_handler(_directory: Path) -> Iterator[Run]:
    handler = logging.handlers.MemoryHandler(CAPACITY, target=logging.NullHandler())
    with drive_handler(handler) as log:

        def drain() -> None:
            handler.flush()
            assert not handler.buffer

        yield floors.in_bursts(log, drain)


def _row(name: str, setup: SetUp, budget: float | None = None) -> Row:
    return Row(name, setup, floor=floors.QUEUED.name, budget=budget, proof=nothing_written)


_PEERS = {row.name: row for row in background.GROUP.rows}

GROUP = Group(
    "queue",
    "event dicts into a queue or a buffer; the handlers are given records; the caller's side",
    (
        floors.QUEUED,
        _row("QueueSink", _queue_sink(SimpleQueue), 1.4),
        _row("QueueSink, level set", _queue_sink(SimpleQueue, level="info")),
        _row("QueueSink into a queue.Queue", _queue_sink(Queue)),
        _row("SinkHandler → QueueSink", _queue_sink(SimpleQueue, _handled)),
        _PEERS["QueueHandler"],
        _PEERS["loguru, enqueue=True"],
        _row("MemorySink", _memory_sink),
        _row("MemoryHandler", _memory_handler),
    ),
    rounds=60,
    events=2_000,
)
