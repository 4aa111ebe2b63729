"""Events delivered by a thread of the sink's own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from outfall import (
    BackgroundSink,
    BatchResult,
    CaptureSink,
    Encoded,
    FileSink,
    PermanentDeliveryError,
    RetryPolicy,
    Sink,
    SinkHandler,
    TemporaryDeliveryError,
)
from outfall.sinks.core import lifecycle
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.testing import FailingSink, SinkContract, StuckSink, assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, check, events_of, in_fork, run, until

if TYPE_CHECKING:
    from collections.abc import Sequence


class TestBackgroundSink(SinkContract):
    """A thread in between."""

    def make_sink(self, **options: Any) -> Sink:
        return BackgroundSink(CaptureSink(), **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, BackgroundSink)
        assert isinstance(sink.target, CaptureSink)
        return sink.target.events

    def test_a_batch_is_taken(self) -> None:
        """What is made for its target is what its target takes."""
        with self.make_sink() as sink:
            assert isinstance(sink, BackgroundSink)
            item = sink.make_item({"event": "batched"})
            assert item is not None
            assert sink.target.emit_batch([item]) is None
            self._assert_received(sink, [{"event": "batched"}])


class Gate(CaptureSink):
    """Holds back each batch until `open` is called, or fails as told."""

    def __init__(self, *, error: Exception | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.error = error
        self.attempts = 0
        self.batches: list[int] = []

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        self.attempts += 1
        self.entered.set()
        if self.error is not None:
            raise self.error
        assert self.opened.wait(PATIENCE_SECONDS)
        self.batches.append(len(batch))
        self.events += [item.event for item in batch]
        return None


def numbers(sink: CaptureSink) -> list[int]:
    """Return the number in each event that *sink* has."""
    return [event["n"] for event in sink.events]


@pytest.fixture
def gate():
    """Give a target that holds back what it is given, opened at the end."""
    made = Gate()
    yield made
    made.opened.set()


def stuck(gate: Gate, **options: Any) -> BackgroundSink:
    """Return a sink whose thread hangs in *gate* with the one event 0."""
    sink = BackgroundSink(gate, linger=0, **options)
    sink.handle({"event": "x", "level": "info", "n": 0})
    assert gate.entered.wait(PATIENCE_SECONDS)
    return sink


def feed(sink: Sink, count: int, start: int = 1, level: str = "info") -> None:
    """Hand *sink* so many events, numbered from *start*."""
    for number in range(start, start + count):
        sink.handle({"event": "x", "level": level, "n": number})


def _threads(sink: Sink) -> list[threading.Thread]:
    """Return the threads that deliver for *sink*, by its name."""
    return [thread for thread in threading.enumerate() if thread.name == f"outfall {sink.name}"]


# -- delivering


def test_events_arrive_in_order_and_in_batches():
    """Everything that was handled, oldest first, no more than batch_size at a time."""
    target = Gate()
    target.opened.set()
    with BackgroundSink(target, batch_size=100) as sink:
        feed(sink, 1_000)
        assert sink.flush()
        assert numbers(target) == list(range(1, 1_001))
        assert max(target.batches) <= 100
        assert sink.stats().delivered == 1_000


def test_handle_waits_for_nobody(gate):
    """While the target hangs, events are taken."""
    with stuck(gate) as sink:
        feed(sink, 100)
        assert sink.stats().pending == 101
        gate.opened.set()
    assert numbers(gate) == list(range(101))


def test_a_batch_waits_for_more_and_not_for_ever():
    """Events that come within the linger travel together; the last ones need no successor."""
    target = Gate()
    target.opened.set()
    with BackgroundSink(target, linger=0.05) as sink:
        feed(sink, 10)
        until(lambda: sink.stats().delivered == 10)
        assert len(target.batches) < 10


def test_a_full_batch_does_not_wait():
    """With batch_size events there is nothing to wait for."""
    target = Gate()
    target.opened.set()
    with BackgroundSink(target, linger=3_600, batch_size=10) as sink:
        feed(sink, 10)
        until(lambda: sink.stats().delivered == 10)


def test_no_thread_before_the_first_event():
    """A sink that is only made costs no thread."""
    with BackgroundSink(CaptureSink(), name="only made") as sink:
        assert not _threads(sink)
        feed(sink, 1)
        assert [thread.daemon for thread in _threads(sink)] == [True]


def test_usual_and_unusual_events_keep_their_order():
    """The short cut and the whole pipeline feed one queue."""
    target = CaptureSink()
    with BackgroundSink(target) as sink:
        for number in range(100):
            sink.handle({"event": "x", "level": "info" if number % 3 else "no-such", "n": number})
        assert sink.flush()
    assert numbers(target) == list(range(100))


def test_what_the_caller_changes_later_is_not_seen(gate):
    """An event is a snapshot, nested values too."""
    with stuck(gate) as sink:
        event = {"event": "x", "level": "info", "n": 1, "user": {"name": "a"}, "tags": ["a"]}
        sink.handle(event)
        event["user"]["name"] = "b"
        event["tags"].append("b")
        event["n"] = 2
        gate.opened.set()
        assert sink.flush()
    assert (gate.events[1]["user"], gate.events[1]["tags"], gate.events[1]["n"]) == ({"name": "a"}, ["a"], 1)


def test_the_target_s_chain_runs_in_the_caller_before_anything_is_stored(gate):
    """Its level and processors, with the caller's contextvars; what they remove is nowhere in the queue."""
    threads = []

    def redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        threads.append(threading.current_thread())
        del event["password"]
        return structlog.contextvars.merge_contextvars(None, "info", event)

    gate._processors = (redact,)
    gate.level = "info"
    with stuck(gate, processors=[lambda _l, _n, event: {**event, "password": "correct horse"}]) as sink:
        with structlog.contextvars.bound_contextvars(request="r1"):
            sink.handle({"event": "x", "level": "info", "n": 1})
        sink.handle({"event": "x", "level": "debug", "n": 2})
        assert b"correct horse" not in repr(sink._worker.items).encode()
        assert sink.stats().filtered == 1
        gate.opened.set()
        assert sink.flush()
    assert threads == [threading.current_thread()] * 2
    assert gate.events[1] == {"event": "x", "level": "info", "n": 1, "request": "r1"}


def test_a_level_set_later_counts_at_once():
    """Here and in the target, also where the usual event takes a short cut."""
    target = CaptureSink()
    with BackgroundSink(target) as sink:
        feed(sink, 1)
        target.level = "warning"
        feed(sink, 1, 2)
        target.level = "notset"
        sink.level = "error"
        feed(sink, 1, 3)
        sink.level = "notset"
        feed(sink, 1, 4)
        sink.flush()
        assert sink.stats().filtered == 2
    assert numbers(target) == [1, 4]


def test_an_item_carries_the_time_it_was_handled(gate):
    """It is the event's own timestamp, or that of the call where it has none that can be read."""
    times: list[float] = []
    gate.emit_batch = lambda batch: times.extend(item.time for item in batch)  # type: ignore[method-assign]
    before = time.time()
    with BackgroundSink(gate) as sink:
        sink.handle({"event": "x", "level": "info"})
        sink.handle({"event": "x", "level": "info", "timestamp": "2026-01-01T00:00:00Z"})
        sink.handle({"event": "x", "level": "info", "timestamp": "yesterday"})
        sink.handle({"event": "x", "timestamp": 17.5})
        after = time.time()
        time_of_delivery = after + 1
        sink.flush()
    assert before <= times[0] <= after < time_of_delivery
    assert times[1] == 1767225600
    assert before <= times[2] <= after
    assert times[3] == 17.5


def test_a_byte_sink_gets_its_own_bytes(tmp_path):
    """A file behind it has the file's renderer and line ends."""
    with BackgroundSink(FileSink(tmp_path / "plain.jsonl")) as sink:
        feed(sink, 3)
    assert [event["n"] for event in events_of(tmp_path / "plain.jsonl")] == [1, 2, 3]
    with BackgroundSink(FileSink(tmp_path / "text", renderer=lambda _l, name, event: f"{name} {event['n']}")) as sink:
        feed(sink, 2)
    assert (tmp_path / "text").read_text() == "info 1\ninfo 2\n"


def test_ten_threads_lose_and_repeat_nothing():
    """Each thread's events arrive once and in its order."""
    target = CaptureSink()
    with BackgroundSink(target, capacity=500, block_timeout=PATIENCE_SECONDS) as sink:

        def log(thread: int) -> None:
            for number in range(500):
                sink.handle({"event": "x", "level": "info", "thread": thread, "n": number})

        threads = [threading.Thread(target=log, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sink.flush(PATIENCE_SECONDS)
        assert_balanced(sink.stats())
    for thread in range(10):
        assert [event["n"] for event in target.events if event["thread"] == thread] == list(range(500))


# -- bounds


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_what_is_in_memory_is_bounded_by_count(gate, overflow):
    """Those being delivered count; what was dropped is in the ledger, and told."""
    failures: list[SinkFailure] = []
    sink = stuck(gate, capacity=10, overflow=overflow, block_timeout=0, on_error=failures.append)
    feed(sink, 20)
    stats = sink.stats()
    assert (stats.pending, stats.dropped) == (10, {"overflow": 11})
    gate.opened.set()
    assert sink.close()
    assert numbers(gate) == ([0, *range(12, 21)] if overflow == "drop_oldest" else list(range(10)))
    assert_balanced(sink.stats())
    assert sum(failure.events for failure in failures) == 11


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_what_is_in_memory_is_bounded_by_bytes(gate, overflow):
    """The sum of the encoded events and 160 bytes for each, those being delivered included."""
    sink = stuck(gate, capacity_bytes=2_000, overflow=overflow, on_error=lambda _: None)
    for number in range(1, 21):
        sink.handle({"event": "x" * 100, "level": "info", "n": number})
    pending = sink.stats().pending
    assert pending == 1 + (2_000 - 160 - 35) // (160 + 136)
    gate.opened.set()
    assert sink.close()
    assert_balanced(sink.stats())
    rest = range(1, pending) if overflow == "drop_newest" else range(22 - pending, 21)
    assert numbers(gate) == [0, *rest]


def test_an_event_larger_than_the_whole_capacity_evicts_nobody(gate):
    """It is dropped itself, whatever the policy."""
    sink = stuck(gate, capacity_bytes=1_000, overflow="drop_oldest", on_error=lambda _: None)
    feed(sink, 3)
    sink.handle({"event": "x" * 2_000, "level": "critical", "n": 99})
    gate.opened.set()
    assert sink.close()
    assert numbers(gate) == [0, 1, 2, 3]
    assert sink.stats().dropped == {"overflow": 1}


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_errors_survive_while_debug_is_dropped(gate, overflow):
    """An event at keep_level takes the place of a lower one, and of no other as long as there is one."""
    sink = stuck(gate, capacity=11, overflow=overflow, on_error=lambda _: None)
    feed(sink, 10, 1, "debug")
    feed(sink, 5, 100, "error")
    feed(sink, 10, 200, "debug")
    feed(sink, 3, 300, "critical")
    gate.opened.set()
    assert sink.close()
    kept = numbers(gate)
    assert [number for number in kept if 100 <= number < 200] == [100, 101, 102, 103, 104]
    assert [number for number in kept if number >= 300] == [300, 301, 302]
    assert len(kept) == 11
    assert kept == sorted(kept)
    assert_balanced(sink.stats())


def test_a_queue_full_of_errors_drops_by_its_policy(gate):
    """Among those to be kept the policy decides; a lower one never takes their place."""
    for overflow, expected in (("drop_newest", [1, 2, 3]), ("drop_oldest", [2, 3, 4])):
        target = Gate()
        sink = stuck(target, capacity=4, overflow=overflow, on_error=lambda _: None)
        feed(sink, 3, 1, "error")
        feed(sink, 1, 50, "info")
        feed(sink, 1, 4, "error")
        target.opened.set()
        assert sink.close()
        assert numbers(target)[1:] == expected


def test_keep_level_can_be_chosen(gate):
    """A warning is kept when asked for."""
    sink = stuck(gate, capacity=2, overflow="drop_newest", keep_level="warning", on_error=lambda _: None)
    feed(sink, 1, 1, "info")
    feed(sink, 1, 2, "warning")
    gate.opened.set()
    assert sink.close()
    assert numbers(gate) == [0, 2]


def test_block_waits_for_room(gate):
    """An event that finds no room is taken as soon as there is some."""
    sink = stuck(gate, capacity=1, block_timeout=PATIENCE_SECONDS)
    thread = threading.Thread(target=feed, args=(sink, 1))
    thread.start()
    until(lambda: len(sink._worker.bells))
    gate.opened.set()
    thread.join(PATIENCE_SECONDS)
    assert sink.close()
    assert numbers(gate) == [0, 1]
    assert sink.stats().dropped == {}


def test_an_outage_holds_up_nobody_twice(gate):
    """Once the block_timeout has passed, events are dropped at once, until there is room again."""
    sink = stuck(gate, capacity=1, block_timeout=0.2, on_error=lambda _: None)
    before = time.monotonic()
    feed(sink, 1)
    first = time.monotonic() - before
    feed(sink, 300)
    rest = time.monotonic() - before - first
    assert first >= 0.2
    assert rest < 300 * 0.2 / 2
    gate.opened.set()
    assert sink.flush()
    gate.opened.clear()
    gate.entered.clear()
    feed(sink, 1, 60)
    assert gate.entered.wait(PATIENCE_SECONDS)
    before = time.monotonic()
    feed(sink, 1, 61)
    assert time.monotonic() - before >= 0.2
    gate.opened.set()
    sink.close()


def test_overflow_is_told_at_once_and_then_not_of_each(gate):
    """A callable on_error is no second load in an overload; the numbers are complete at the end."""
    failures: list[SinkFailure] = []
    sink = stuck(gate, capacity=1, overflow="drop_newest", on_error=failures.append, name="mine")
    feed(sink, 1_000)
    assert 1 <= len(failures) < 100
    assert failures[0].sink == "mine"
    gate.opened.set()
    sink.close()
    assert sum(failure.events for failure in failures) == sink.stats().dropped["overflow"] == 1_000


def test_an_audit_sink_raises_what_the_caller_can_know(gate):
    """Full and closed are raised to it; what the thread meets is reported."""
    sink = stuck(gate, capacity=1, overflow="drop_newest", on_error="raise")
    with pytest.raises(TemporaryDeliveryError, match="is full"):
        feed(sink, 1)
    gate.opened.set()
    sink.close()
    with pytest.raises(Exception, match="closed"):
        feed(sink, 1)


def test_what_the_thread_meets_is_reported_by_an_audit_sink(capfd):
    """There is nobody to raise it to."""
    with BackgroundSink(FailingSink(PermanentDeliveryError("no")), on_error="raise", name="audit-background") as sink:
        feed(sink, 1)
        assert sink.flush()
        assert sink.stats().dropped == {"rejected": 1}
        assert sink.stats().last_error is not None
    assert "audit-background to FailingSink lost 1 event: PermanentDeliveryError: no" in capfd.readouterr().err


def test_memory_is_flat_under_overload(gate):
    """A target that takes nothing for a long time costs what capacity_bytes says, and little more."""
    limit = 4 * 2**20
    event = {"event": "x" * 200, "level": "info"}
    sink = stuck(gate, capacity_bytes=limit, capacity=10**9, overflow="drop_oldest", on_error=lambda _: None)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(15_000):
            sink.handle(event)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit * 1.1
    gate.opened.set()
    sink.close()


# -- failures of the target


def test_a_temporary_failure_loses_nothing():
    """The batch is tried again until it is taken."""
    target = FailingSink(TemporaryDeliveryError("busy"), times=3)
    with BackgroundSink(target, retry=RetryPolicy(start_seconds=0)) as sink:
        feed(sink, 10)
        assert sink.flush()
        stats = sink.stats()
        assert (stats.delivered, stats.retried, stats.dropped) == (10, 3, {})
        assert stats.last_error is not None
    assert numbers(target) == list(range(1, 11))


def test_flush_makes_the_next_attempt_at_once():
    """Whoever flushes does not wait for a wait of half an hour."""
    target = Gate(error=TemporaryDeliveryError("busy", retry_after=1_800))
    with BackgroundSink(target, linger=0, on_error=lambda _: None) as sink:
        feed(sink, 1)
        until(lambda: target.attempts)
        target.error = None
        target.opened.set()
        assert sink.flush()
        assert numbers(target) == [1]


def test_a_target_that_ends_the_thread_does_not():
    """SystemExit from a target costs its batch and is told; later events are delivered."""
    target = FailingSink(SystemExit(3), times=1)
    failures: list[SinkFailure] = []
    with BackgroundSink(target, linger=0, on_error=failures.append) as sink:
        feed(sink, 1)
        assert sink.flush()
        feed(sink, 1, 2)
        assert sink.flush()
        assert_balanced(sink.stats())
        assert sink.stats().dropped == {"error": 1}
    assert numbers(target) == [2]
    assert sum(failure.events for failure in failures) == 1


def test_what_its_own_delivery_logs_is_dropped():
    """A target that logs does not feed itself, nor another sink of its kind; files take it."""
    log = logging.getLogger("tests.background")
    log.propagate = False
    log.setLevel("DEBUG")

    class Chatty(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            log.debug("sending")
            return super().emit_batch(batch)

    kept = CaptureSink()
    with BackgroundSink(Chatty()) as one, BackgroundSink(Chatty()) as other:
        log.handlers = [SinkHandler(one), SinkHandler(other), SinkHandler(kept)]
        try:
            one.handle({"event": "x", "level": "info"})
            one.handle({"event": "x"})
            assert one.flush()
            assert other.flush()
        finally:
            log.handlers = []
        for sink in (one, other):
            assert sink.stats().dropped == {"reentrant": len(kept.events)}
            assert_balanced(sink.stats())
    assert {event["event"] for event in kept.events} == {"sending"}


def test_what_a_delivery_logs_into_a_closed_sink_is_no_loss_to_tell_of():
    """Closing a tree of sinks in any order makes no noise about what the last delivery logs."""
    failures: list[SinkFailure] = []
    closed = CaptureSink(on_error=failures.append)
    closed.close()

    class Chatty(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            closed.handle({"event": "sending"})
            return super().emit_batch(batch)

    with BackgroundSink(Chatty()) as sink:
        feed(sink, 1)
    assert closed.stats().dropped == {"reentrant": 1}
    assert failures == []


def test_on_error_may_log_to_others():
    """What the thread's report logs is taken by other sinks, background ones too, and refused by this one."""
    kept = CaptureSink()
    with BackgroundSink(kept) as other:

        def log_it(failure: SinkFailure) -> None:
            other.handle({"event": "lost", "level": "error", "n": failure.events})
            sink.handle({"event": "lost", "level": "error"})

        with BackgroundSink(FailingSink(PermanentDeliveryError("no")), on_error=log_it) as sink:
            feed(sink, 1)
            assert sink.flush()
            assert sink.stats().dropped == {"rejected": 1, "reentrant": 1}
        assert other.flush()
    assert numbers(kept) == [1]


# -- flush and close


def test_flush_and_close_return_in_time_though_the_target_hangs(gate):
    """Within the timeout; what hangs is unconfirmed, the rest closed."""
    failures: list[SinkFailure] = []
    sink = stuck(gate, batch_size=3, on_error=failures.append)
    feed(sink, 10)
    for call in (sink.flush, sink.close):
        before = time.monotonic()
        assert not call(0.3)
        assert 0.3 <= time.monotonic() - before < PATIENCE_SECONDS / 2
    assert sink.stats().dropped == {"unconfirmed": 1, "closed": 10}
    assert_balanced(sink.stats())
    assert sum(failure.events for failure in failures) == 11
    gate.opened.set()
    until(lambda: gate.events)
    until(lambda: not _threads(sink))
    assert_balanced(sink.stats())
    assert sink.stats().delivered == 0


def test_close_ends_a_flush_that_waits(gate):
    """Another thread's flush has nothing to wait for any more: all is settled, though not delivered."""
    sink = stuck(gate)
    results: list[bool] = []
    flushing = threading.Thread(target=lambda: results.append(sink.flush(600)))
    flushing.start()
    until(lambda: len(sink._worker.bells))
    assert not sink.close(0.1)
    flushing.join(PATIENCE_SECONDS)
    assert results == [True]
    gate.opened.set()


def test_close_while_waiting_for_a_retry_counts_what_is_left_as_closed():
    """Nothing is unconfirmed when no attempt is running; and close tries before it gives up."""
    target = Gate(error=TemporaryDeliveryError("down"))
    sink = BackgroundSink(
        target, linger=0, retry=RetryPolicy(start_seconds=1_000, jitter=False), on_error=lambda _: None
    )
    feed(sink, 5)
    until(lambda: target.attempts)
    before = target.attempts
    assert not sink.close(0.3)
    assert target.attempts > before
    assert sink.stats().dropped == {"closed": 5}
    assert_balanced(sink.stats())


def test_close_delivers_what_waits_and_closes_the_target():
    """With a target that keeps up nothing is given up."""
    target = CaptureSink()
    sink = BackgroundSink(target, linger=3_600)
    feed(sink, 10)
    assert sink.close()
    assert target.closed
    assert numbers(target) == list(range(1, 11))
    assert sink.close()


def test_events_that_come_during_close_are_counted(gate):
    """From the first moment of close on, each is dropped as closed, one that waits for room too."""
    sink = stuck(gate, capacity=1, block_timeout=PATIENCE_SECONDS, on_error=lambda _: None)
    blocked = threading.Thread(target=feed, args=(sink, 1))
    blocked.start()
    until(lambda: len(sink._worker.bells))
    closing = threading.Thread(target=sink.close, args=(PATIENCE_SECONDS,))
    closing.start()
    until(lambda: sink.closed)
    feed(sink, 1, 2)
    blocked.join(PATIENCE_SECONDS)
    gate.opened.set()
    closing.join(PATIENCE_SECONDS)
    assert sink.stats().dropped == {"closed": 2}
    assert_balanced(sink.stats())
    assert numbers(gate) == [0]


def test_close_ends_the_thread():
    """Whoever makes many sinks does not gather threads, nor do children that have closed theirs."""
    sinks = [BackgroundSink(CaptureSink(), name=f"one of five, {number}") for number in range(5)]
    for sink in sinks:
        feed(sink, 1)
    workers = [thread for sink in sinks for thread in _threads(sink)]
    assert len(workers) == 5
    assert all(sink.close() for sink in sinks)
    for worker in workers:
        worker.join(PATIENCE_SECONDS)
        assert not worker.is_alive()


def test_flush_from_the_delivering_thread_does_not_wait_for_itself():
    """A target that flushes the sink around it gets False at once."""
    results = []

    class Flushing(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            results.append(sink.flush(PATIENCE_SECONDS))
            return super().emit_batch(batch)

    with BackgroundSink(Flushing()) as sink:
        feed(sink, 1)
        assert sink.flush()
    assert results == [False]


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer's own lock is not for signal handlers")
def test_an_event_from_a_signal_handler_is_taken():
    """Wherever it interrupts this very thread."""
    target = CaptureSink()
    taken = fed = 0
    with BackgroundSink(target) as sink:

        def log(*_: object) -> None:
            nonlocal taken
            taken += 1
            sink.handle({"event": "signal", "level": "info", "n": -1})

        before = signal.signal(signal.SIGVTALRM, log)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
            while taken < 10:  # the clock is that of the CPU, which stands still while this thread waits
                feed(sink, 1_000, fed + 1)
                fed += 1_000
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        assert sink.flush(PATIENCE_SECONDS)
        assert_balanced(sink.stats())
        stats = sink.stats()
    got = numbers(target)
    assert set(stats.dropped) <= {"overflow"}
    assert len(got) + stats.dropped.get("overflow", 0) == fed + taken
    own = [number for number in got if number > 0]
    assert own == sorted(set(own))


def test_an_event_from_a_signal_handler_does_not_wait_for_room_that_it_keeps_from_being_made(gate):
    """It interrupts an event that looks for room under the lock that the thread needs, so it is taken at once."""
    sink = stuck(gate, capacity=10, batch_size=5, block_timeout=PATIENCE_SECONDS)
    feed(sink, 9)
    buffer = sink._worker
    has_room, signals = buffer.has_room, [signal.SIGUSR1]

    def look(size: int) -> bool:
        if signals and buffer.lock._is_owned():
            signal.raise_signal(signals.pop())
        return has_room(size)

    buffer.has_room = look
    before = signal.signal(signal.SIGUSR1, lambda *_: feed(sink, 1, 100))
    opening = threading.Timer(0.1, gate.opened.set)
    opening.start()
    try:
        feed(sink, 1, 10)
    finally:
        signal.signal(signal.SIGUSR1, before)
        opening.join()
    assert sink.flush(PATIENCE_SECONDS)
    assert (sink.stats().delivered, sink.stats().dropped) == (12, {})
    assert [number for number in numbers(gate) if number > 10] == [100]
    assert sink._worker.room == sink._worker.capacity_bytes
    sink.close()


# -- arguments


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"capacity": 1.5}, "capacity=1.5"),
        ({"capacity_bytes": -1}, "capacity_bytes=-1"),
        ({"overflow": "wait"}, "overflow='wait'"),
        ({"block_timeout": -1}, "block_timeout=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"linger": "one"}, "linger='one'"),
        ({"keep_level": "no-such"}, "keep_level='no-such'"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name(options, told):
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=told):
        BackgroundSink(CaptureSink(), **options)


def test_a_target_that_is_no_sink_is_refused():
    """A handler, for example."""
    with pytest.raises(TypeError, match="is not a Sink"):
        BackgroundSink(logging.NullHandler())


def test_its_repr_names_the_target():
    """Who finds it in a debugger knows where it leads."""
    with BackgroundSink(CaptureSink(name="kept")) as sink:
        assert "kept" in repr(sink)


# -- processes


def test_a_forked_child_has_an_empty_queue_and_a_thread_of_its_own(gate):
    """What waited is the parent's; nothing is delivered twice."""
    sink = stuck(gate)
    feed(sink, 5)

    def child() -> None:
        assert sink.stats().pending == 0
        gate.opened = threading.Event()
        gate.opened.set()
        feed(sink, 1, 77)
        assert sink.close(PATIENCE_SECONDS)
        assert numbers(gate) == [77]
        assert sink.stats().delivered == 1

    in_fork(child)
    gate.opened.set()
    assert sink.close()
    assert numbers(gate) == list(range(6))


def test_forks_under_load_from_many_threads_never_deadlock(tmp_path):
    """Children log and close; every event of parent and children is in the file once."""
    path = tmp_path / "app.jsonl"
    sink = BackgroundSink(FileSink(path), linger=0.001, capacity=1_000_000)
    stop = threading.Event()
    counts = [0] * 4

    def log(thread: int) -> None:
        while not stop.is_set():
            sink.handle({"event": "parent", "level": "info", "who": thread, "n": counts[thread]})
            counts[thread] += 1
            time.sleep(0)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):

            def child(number: int = number) -> None:
                for event in range(10):
                    sink.handle({"event": "child", "level": "info", "who": number, "n": event})
                assert sink.close(PATIENCE_SECONDS)

            in_fork(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sink.close(PATIENCE_SECONDS)
    events = events_of(path)
    for thread in range(4):
        got = [event["n"] for event in events if event["event"] == "parent" and event["who"] == thread]
        assert got == list(range(counts[thread]))
    for number in range(20):
        assert [e["n"] for e in events if e["event"] == "child" and e["who"] == number] == list(range(10))


def test_what_waits_is_delivered_at_exit(tmp_path):
    """Without close or flush."""
    path = tmp_path / "app.jsonl"
    check(
        """
        import sys
        from outfall import BackgroundSink, FileSink
        sink = BackgroundSink(FileSink(sys.argv[1]), linger=3600)
        for number in range(1000):
            sink.handle({"event": "x", "level": "info", "n": number})
        """,
        path,
    )
    assert [event["n"] for event in events_of(path)] == list(range(1_000))


def test_what_comes_after_the_drain_is_delivered_by_who_logs_it(tmp_path):
    """Exit hooks that run later still log, also into a sink that has never had a thread."""
    path = tmp_path / "app.jsonl"
    result = run(
        """
        import atexit, sys
        atexit.register(lambda: sink.handle({"event": "late", "level": "info", "n": 2}))
        atexit.register(lambda: fresh.handle({"event": "late", "n": 3}))
        from outfall import BackgroundSink, FileSink
        sink = BackgroundSink(FileSink(sys.argv[1]), linger=3600)
        fresh = BackgroundSink(FileSink(sys.argv[1]), linger=3600)
        sink.handle({"event": "x", "level": "info", "n": 1})
        """,
        path,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert [event["n"] for event in events_of(path)] == [1, 3, 2]


def test_threads_that_log_after_the_drain_wait_for_one_another(gate):
    """What one delivers meanwhile costs the other no event."""
    sink = BackgroundSink(gate)
    sink.drain(0)
    one, other = threads = [threading.Thread(target=feed, args=(sink, 1, number)) for number in (1, 2)]
    one.start()
    until(gate.entered.is_set)
    other.start()
    until(lambda: len(sink._worker.bells) or not other.is_alive())
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sink.close()
    assert numbers(gate) == [1, 2]
    assert sink.stats().dropped == {}


def test_a_target_that_hangs_holds_up_the_exit_no_longer_than_the_deadline():
    """And what was lost is told."""
    before = time.monotonic()
    result = run(
        """
        import threading
        from outfall import BackgroundSink
        from outfall.sinks.core import lifecycle
        from outfall.sinks.testing import StuckSink
        lifecycle.EXIT_DEADLINE_SECONDS = 0.5
        sink = BackgroundSink(StuckSink(), linger=0)
        for number in range(10):
            sink.handle({"event": "x", "level": "info", "n": number})
        """,
    )
    assert result.returncode == 0
    assert time.monotonic() - before < PATIENCE_SECONDS / 2
    assert "the process ends before StuckSink has taken everything" in result.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_children_of_multiprocessing_drain(tmp_path, method):
    """No atexit runs there; what waits is delivered all the same."""
    path = tmp_path / "app.jsonl"
    script = tmp_path / "program.py"  # a file, which the spawned children import
    script.write_text(
        f"""
import multiprocessing, sys
from outfall import BackgroundSink, FileSink

def work(number):
    sink = BackgroundSink(FileSink({str(path)!r}), linger=3600)
    for event in range(100):
        sink.handle({{"event": "x", "level": "info", "who": number, "n": event}})

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=work, args=(number,)) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    sys.exit(any(child.exitcode for child in children))
"""
    )
    subprocess.run([sys.executable, os.fspath(script)], check=True, timeout=PATIENCE_SECONDS)
    events = events_of(path)
    for number in range(2):
        assert [event["n"] for event in events if event["who"] == number] == list(range(100))


def test_a_thread_that_cannot_start_means_delivery_in_the_caller(monkeypatch):
    """As at the end of the interpreter, or with too many threads."""

    def refuse(_self: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    target = CaptureSink()
    sink = BackgroundSink(target)
    feed(sink, 2)
    assert numbers(target) == [1, 2]
    monkeypatch.undo()
    feed(sink, 1, 3)
    assert sink.close()
    assert numbers(target) == [1, 2, 3]


def test_an_interrupt_while_the_thread_starts_costs_no_event(monkeypatch):
    """The next event tries again, and one thread delivers both in their order."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        monkeypatch.undo()
        thread._started.clear()  # as if it had not begun when the interrupt came
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    target = CaptureSink()
    sink = BackgroundSink(target, linger=0)
    with pytest.raises(KeyboardInterrupt):
        feed(sink, 1)
    feed(sink, 1, 2)
    assert sink.close()
    assert numbers(target) == [1, 2]
    assert not any(sink.stats().dropped.values())
    assert_balanced(sink.stats())


def test_the_default_report_is_used(capfd):
    """One line on stderr for what the target refuses."""
    with BackgroundSink(FailingSink(PermanentDeliveryError("no")), name="default-background") as sink:
        assert sink.on_error is report
        feed(sink, 1)
        sink.flush()
    assert "default-background to FailingSink lost 1 event" in capfd.readouterr().err


def test_a_stuck_target_does_not_hold_up_the_stats(gate):
    """Whoever looks at the ledger gets it, whatever the target does."""
    sink = stuck(gate)
    assert json.dumps(sink.stats().pending) == "1"
    gate.opened.set()
    sink.close()


def test_a_stuck_sink_double_behaves_like_the_gate():
    """The public double for such tests works with it."""
    target = StuckSink()
    sink = BackgroundSink(target, linger=0, on_error=lambda _: None)
    feed(sink, 3)
    assert target.stuck.wait(PATIENCE_SECONDS)
    assert not sink.flush(0.05)
    target.release()
    assert sink.close()
    assert numbers(target) == [1, 2, 3]


# -- sinks that nobody refers to any more, clocks, and asyncio


def forget(sinks: list[BackgroundSink]) -> None:
    """Refer to none of them any more, and wait for their threads, the last that may."""
    sinks.clear()
    until(lambda: not any(thread.name.startswith("outfall forgotten") for thread in threading.enumerate()))


def test_a_sink_that_nobody_refers_to_delivers_and_its_thread_ends():
    """Whoever forgets to close it is warned, and loses nothing."""
    targets = [CaptureSink() for _ in range(20)]
    sinks = [BackgroundSink(target, linger=3_600, name=f"forgotten {n}") for n, target in enumerate(targets)]
    for number in range(20):
        feed(sinks[number], 3)
    with pytest.warns(ResourceWarning, match="unclosed sink <BackgroundSink to <CaptureSink") as warned:
        forget(sinks)
    assert len(warned) == 20
    assert [numbers(target) for target in targets] == [[1, 2, 3]] * 20


def test_a_forgotten_sink_whose_target_takes_nothing_gives_up_after_the_exits_deadline(monkeypatch):
    """Its on_error is told how many events that cost."""
    monkeypatch.setattr(lifecycle, "EXIT_DEADLINE_SECONDS", 0.2)
    failures: list[SinkFailure] = []
    target = FailingSink(TemporaryDeliveryError("away"))
    sinks = [BackgroundSink(target, linger=0, name="forgotten for nothing", on_error=failures.append)]
    feed(sinks[0], 3)
    until(lambda: failures)
    with pytest.warns(ResourceWarning):
        forget(sinks)
    assert (failures[-1].sink, failures[-1].events) == ("forgotten for nothing", 3)


def test_what_a_forgotten_sink_has_left_is_delivered_at_exit(tmp_path):
    """A program that ends at once waits for it, as for any other."""
    path = tmp_path / "app.jsonl"
    check(
        """
        import sys, time, warnings
        from outfall import BackgroundSink, FileSink
        class Slow(FileSink):
            def emit_batch(self, batch):
                time.sleep(0.3)
                return super().emit_batch(batch)
        warnings.simplefilter("ignore", ResourceWarning)
        sink = BackgroundSink(Slow(sys.argv[1]), linger=3600)
        sink.handle({"event": "x", "level": "info", "n": 1})
        del sink
        """,
        path,
    )
    assert [event["n"] for event in events_of(path)] == [1]


def test_a_sink_without_a_thread_is_forgotten_without_a_word(recwarn):
    """One that no event came to holds nothing, nor does one that is closed."""
    BackgroundSink(CaptureSink())
    sink = BackgroundSink(CaptureSink())
    feed(sink, 1)
    assert sink.close()
    del sink
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def test_waits_end_where_the_clock_stands_still(gate, monkeypatch):
    """Tests that freeze time are not held up: flush, a full buffer and close keep their time."""
    sink = stuck(gate, capacity=2, block_timeout=0.05, on_error=lambda _: None)
    instant = time.monotonic()
    for module in [module for name, module in sys.modules.items() if name.startswith("outfall")]:
        if hasattr(module, "monotonic"):
            monkeypatch.setattr(module, "monotonic", lambda: instant)
    monkeypatch.setattr(time, "monotonic", lambda: instant)
    done = threading.Event()

    def work() -> None:
        feed(sink, 3)
        sink.flush(0.05)
        sink.close(0.05)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(PATIENCE_SECONDS)
    assert sink.stats().dropped == {"overflow": 2, "unconfirmed": 1, "closed": 1}
    gate.opened.set()


def test_asyncio_waits_whatever_its_pool_does():
    """aflush and aclose use no thread of the application's, and run where there is none left."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        release = threading.Event()
        busy = loop.run_in_executor(None, release.wait, PATIENCE_SECONDS)
        sink = BackgroundSink(CaptureSink(), linger=3_600)
        feed(sink, 1)
        assert await sink.aflush(PATIENCE_SECONDS)
        assert not busy.done()
        release.set()
        await loop.shutdown_default_executor()
        assert await sink.aclose(PATIENCE_SECONDS)

    asyncio.run(main())


def test_what_a_flush_raises_comes_to_the_task_that_awaits_it():
    """A time that is none is refused there too."""

    async def main() -> None:
        with BackgroundSink(CaptureSink()) as sink, pytest.raises(ValueError, match="timeout=-1"):
            await sink.aflush(-1)

    asyncio.run(main())


def test_a_task_that_gives_up_waiting_is_let_go():
    """The flush goes on in its thread, and nothing is said of its end."""

    async def main() -> None:
        sink = BackgroundSink(gate, linger=0)
        feed(sink, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sink.aflush(PATIENCE_SECONDS), 0.05)
        gate.opened.set()
        assert await sink.aclose(PATIENCE_SECONDS)

    gate = Gate()
    asyncio.run(main())


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer's own lock is not for signal handlers")
def test_an_interrupt_of_a_caller_that_waits_for_room_comes_through():
    """Whenever it comes, and each event is accounted for."""
    # In a program of its own: what pytest's plug-ins do when garbage is collected would swallow one now and then.
    check(
        """
        import signal, time
        from outfall import BackgroundSink, CaptureSink
        from outfall.sinks.testing import assert_balanced

        class Slow(CaptureSink):
            def emit_batch(self, batch):
                time.sleep(0.000_1)  # so that callers wait and are woken all the time

        failures, fired, came = [], [], 0
        sink = BackgroundSink(Slow(), capacity=2, linger=0, batch_size=1, block_timeout=0.05, on_error=failures.append)

        def interrupt(_number, _frame):
            fired.append(1)
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        for number in range(300):
            fired.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.000_1 + 0.000_003 * (number % 100))
                while True:  # a condition here would jump back outside the try from Python 3.12 on
                    if fired:
                        break
                    sink.handle({"event": "x", "level": "info"})
            except KeyboardInterrupt:
                came += 1
        assert sink.close()
        assert came == 300, came
        assert not [failure for failure in failures if isinstance(failure.error, RuntimeError)], failures
        assert_balanced(sink.stats())
        """
    )
