"""The caller's cost if a thread delivers: `BackgroundSink`, the `QueueHandler` of `logging`, and loguru.

The target does nothing. Events come in bursts. Between bursts the waiting events are delivered, which is not timed.
"""

from __future__ import annotations

import logging.handlers
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from benchmarks.events import drive, drive_loguru
from benchmarks.groups import floors
from benchmarks.groups.stdlib import drive_handler
from benchmarks.harness import Group, Row, nothing_written
from outfall import BackgroundSink, Sink, SinkHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.harness import Run, SetUp
    from outfall import Encoded


class _Counting(Sink):
    """A target that only counts events."""

    taken = 0

    def emit_batch(self, batch: Sequence[Encoded]) -> None:
        self.taken += len(batch)


@contextmanager
def _background(drive_sink: Callable[[Sink], AbstractContextManager[Run]], **arguments: Any) -> Iterator[Run]:
    target = _Counting()
    with BackgroundSink(target, on_error="raise", **arguments) as sink, drive_sink(sink) as log:
        logged = 0

        def log_burst(events: int) -> None:
            nonlocal logged
            logged += events
            log(events)

        def drain() -> None:
            assert sink.flush(60), sink.stats()
            assert target.taken == logged, f"{target.taken} of {logged} events were delivered"

        yield floors.in_bursts(log_burst, drain)


@contextmanager
def _driven(sink: Sink) -> Iterator[Run]:
    yield drive(sink.handle)


def _handled(sink: Sink) -> AbstractContextManager[Run]:
    return drive_handler(SinkHandler(sink, callsite=False))


def _sink(**arguments: Any) -> SetUp:
    def setup(_directory: Path) -> AbstractContextManager[Run]:
        return _background(_driven, **arguments)

    return setup


def _sink_handler(_directory: Path) -> AbstractContextManager[Run]:
    return _background(_handled)


@contextmanager
def _queue_handler(_directory: Path) -> Iterator[Run]:
    """The standard library's handler, which formats records and puts them into the queue."""
    queue: SimpleQueue[Any] = SimpleQueue()
    logged = 0

    def drain() -> None:
        taken = floors.emptied(queue.get_nowait)
        assert taken == logged, f"{taken} of {logged} records were in the queue"

    with drive_handler(logging.handlers.QueueHandler(queue)) as log:

        def log_burst(events: int) -> None:
            nonlocal logged
            logged = events
            log(events)

        yield floors.in_bursts(log_burst, drain)


@contextmanager
def _loguru(_directory: Path) -> Iterator[Run]:
    """Loguru with its own thread, into a function that counts."""
    from loguru import logger

    taken = logged = 0

    def count(_message: object) -> None:
        nonlocal taken
        taken += 1

    with suppress(ValueError):  # it was removed before
        logger.remove(0)  # loguru's initial handler on stderr
    handler = logger.add(count, format="{message}", serialize=True, enqueue=True)
    run = drive_loguru(logger)

    def log(events: int) -> None:
        nonlocal logged
        logged += events
        run(events)

    def drain() -> None:
        logger.complete()
        assert taken == logged, f"{taken} of {logged} messages came out"

    try:
        yield floors.in_bursts(log, drain)
    finally:
        logger.remove(handler)


def _row(name: str, setup: SetUp, budget: float | None = None) -> Row:
    return Row(name, setup, floor=floors.QUEUED.name, budget=budget, proof=nothing_written)


GROUP = Group(
    "background",
    "event dicts to a sink that a thread of its own delivers for; the caller's side",
    (
        floors.QUEUED,
        _row("BackgroundSink", _sink(), 1.7),
        _row("BackgroundSink, level set", _sink(level="info")),
        _row("SinkHandler → BackgroundSink", _sink_handler),
        _row("QueueHandler", _queue_handler),
        _row("loguru, enqueue=True", _loguru),
    ),
    rounds=60,
    events=2_000,
)
