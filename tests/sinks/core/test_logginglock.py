"""Waiting while `logging`'s own lock is held."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from outfall import BackgroundSink, FileSink, MemorySink, QueueListener, QueueSink, Sink, SpoolSink
from outfall.sinks.core.logginglock import held, released
from tests.sinks._processes import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from outfall import Encoded

_names = count()


@contextmanager
def logging_lock() -> Iterator[None]:
    """Hold the lock as `dictConfig` does."""
    lock: Any = logging._lock  # type: ignore[attr-defined]
    with lock, lock:
        yield
        assert held()


class LoggingSink(Sink):
    """Needs logging's lock for each batch: it asks for a logger that there is not yet."""

    delivers_through_loggers = True

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def emit(self, event: dict[str, Any]) -> None:
        logging.getLogger(f"{__name__}.{next(_names)}").debug("delivering %s", event)
        self.taken += 1

    def emit_batch(self, batch: Sequence[Encoded]) -> None:
        for item in batch:
            self.emit(item.event)


@pytest.mark.parametrize("end", ["flush", "close"])
@pytest.mark.parametrize("kind", ["background", "memory", "spool"])
def test_a_flush_under_loggings_lock_waits_for_a_thread_that_needs_it(tmp_path, kind, end):
    """The thread gets the lock meanwhile; all is delivered, and the lock is held again afterwards."""
    target = LoggingSink()
    made = {
        "background": lambda: BackgroundSink(target, linger=3600),
        "memory": lambda: MemorySink(1000, target=target),
        "spool": lambda: SpoolSink(target, tmp_path, linger=3600),
    }
    sink = made[kind]()
    for number in range(3):
        sink.handle({"event": "x", "level": "info", "n": number})
    with logging_lock():
        assert getattr(sink, end)(PATIENCE_SECONDS)
    assert target.taken == 3
    sink.close()


def test_an_event_under_loggings_lock_waits_for_room():
    """Room is made by a thread that needs the lock."""
    target = LoggingSink()
    with BackgroundSink(target, capacity=2, linger=0, block_timeout=PATIENCE_SECONDS) as sink:
        with logging_lock():
            for number in range(20):
                sink.handle({"event": "x", "level": "info", "n": number})
        assert sink.flush(PATIENCE_SECONDS)
    assert target.taken == 20
    assert not any(sink.stats().dropped.values())


def test_a_listener_is_stopped_under_loggings_lock():
    """Its threads hand on what is in the queue, for which they need the lock."""
    target = LoggingSink()
    waiting: queue.Queue[Any] = queue.Queue()
    listener = QueueListener(waiting, target)
    listener.start()
    sink = QueueSink(waiting)
    for number in range(3):
        sink.handle({"event": "x", "level": "info", "n": number})
    with logging_lock():
        listener.stop()
    assert target.taken == 3


def test_who_waits_for_the_turn_of_a_sink_gives_the_lock_away():
    """Another thread delivers directly, needs the lock, and is waited for."""
    entered, asked = threading.Event(), threading.Event()

    class Slow(LoggingSink):
        def emit(self, event: dict[str, Any]) -> None:
            entered.set()
            asked.wait(PATIENCE_SECONDS)
            super().emit(event)

    sink = Slow()
    thread = threading.Thread(target=sink.handle, args=({"event": "x"},))
    thread.start()
    assert entered.wait(PATIENCE_SECONDS)
    with logging_lock():
        asked.set()
        assert sink.flush(PATIENCE_SECONDS)
    thread.join(PATIENCE_SECONDS)
    assert sink.taken == 1


def test_an_interrupt_while_waiting_leaves_the_lock_as_it_was():
    """As often held as before."""

    def interrupted() -> None:
        assert not held()
        raise KeyboardInterrupt

    with logging_lock(), pytest.raises(KeyboardInterrupt):
        released(interrupted)
    assert not held()


def test_without_the_lock_it_only_waits():
    """Nothing is given up, and nothing taken."""
    assert released(lambda number: number + 1, 1) == 2
    assert not held()


def test_a_file_sink_needs_no_lock_of_logging(tmp_path):
    """Nothing is given up where nobody is waited for."""
    sink = FileSink(tmp_path / "a.jsonl")
    with logging_lock():
        sink.handle({"event": "x"})
        assert sink.flush()
        assert sink.close()
