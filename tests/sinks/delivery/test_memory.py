"""BufferingSink and MemorySink keep events until it is time; CaptureSink keeps snapshots."""

from __future__ import annotations

import copy
import datetime as dt
import logging
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

import pytest

from outfall import (
    BufferingSink,
    CaptureSink,
    DeliveryError,
    FanoutSink,
    FileSink,
    MemorySink,
    PermanentDeliveryError,
    Sink,
    SinkFailure,
    SinkHandler,
    SysLogSink,
    TemporaryDeliveryError,
)
from outfall.sinks.testing import FailingSink, StuckSink, assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, check, events_of, in_fork, until

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def _numbers(events: Any) -> list[int]:
    return [event["number"] for event in events]


def _log(sink: Sink, *some: int, **fields: Any) -> None:
    for number in some:
        sink.handle({"event": "x", "level": "info", "number": number, **fields})


@pytest.fixture(autouse=True)
def _patience(monkeypatch) -> None:
    """Have what waits by default wait for a busy machine too."""
    monkeypatch.setattr(Sink, "drain_timeout", 60.0)


# -- BufferingSink


def test_it_buffers_up_to_capacity_and_then_flushes() -> None:
    """The buffer is emptied when the event arrives that makes it full, and what it held is counted as discarded."""
    sink = BufferingSink(3)
    _log(sink, 1, 2)
    assert _numbers(sink.buffer) == [1, 2]
    assert (sink.stats().accepted, sink.stats().pending) == (2, 2)
    _log(sink, 3)
    assert sink.buffer == []
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (3, 0, {"discarded": 3})
    assert_balanced(stats)


def test_should_flush_looks_at_the_capacity_of_the_moment() -> None:
    """capacity can be set; should_flush compares with it, as BufferingHandler's does."""
    sink = BufferingSink(10)
    _log(sink, 1, 2)
    assert sink.should_flush({"event": "x"}) is False
    sink.capacity = 2
    assert sink.should_flush({"event": "x"}) is True


def test_capacity_zero_flushes_each_event() -> None:
    """Nothing is kept with capacity 0."""
    target = CaptureSink()
    sink = MemorySink(0, target=target)
    _log(sink, 1, 2)
    assert _numbers(target.events) == [1, 2]


@pytest.mark.parametrize("capacity", [-1, 1.5, "3", True])
def test_a_capacity_that_is_no_number_of_events_is_refused(capacity) -> None:
    """It raises at construction, with the argument and the value."""
    with pytest.raises(ValueError, match=f"capacity={capacity!r}"):
        BufferingSink(capacity)


class _Mails(BufferingSink):
    """What the logging cookbook makes of BufferingHandler: flush() is overridden and empties the buffer itself."""

    def __init__(self, capacity: int, **options: Any) -> None:
        super().__init__(capacity, **options)
        self.mails: list[list[int]] = []
        self.error: Exception | None = None

    def flush(self, timeout: float | None = None) -> bool:
        if self.error is not None:
            raise self.error
        if self.buffer:
            self.mails.append(_numbers(self.buffer))
            self.buffer = []
        return True


def test_a_subclass_overrides_flush() -> None:
    """Its flush is called when the buffer is full, by flush and by close; what it takes out counts as delivered."""
    sink = _Mails(2)
    _log(sink, 1, 2, 3)
    assert sink.flush()
    _log(sink, 4)
    assert sink.close()
    assert sink.mails == [[1, 2], [3], [4]]
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (4, 4, {})
    assert_balanced(stats)


def test_a_failing_flush_of_a_subclass_is_told_and_loses_nothing() -> None:
    """The event that made it flush is in the buffer still, and in the ledger once."""
    failures: list[SinkFailure] = []
    sink = _Mails(2, on_error=failures.append)
    sink.error = OSError("no mail server")
    _log(sink, 1, 2)
    assert [(str(failure.error), failure.events) for failure in failures] == [("no mail server", 0)]
    assert (sink.stats().accepted, sink.stats().pending, sink.stats().dropped) == (2, 2, {})
    sink.error = None
    _log(sink, 3)
    assert sink.mails == [[1, 2, 3]]
    assert sink.emit_batch([sink.encode({"event": "x", "number": 4}), sink.encode({"event": "x", "number": 5})]) is None
    assert sink.mails == [[1, 2, 3], [4, 5]]


def test_a_flush_that_fails_in_close_costs_what_is_in_the_buffer() -> None:
    """It is counted and told, and close returns False."""
    failures: list[SinkFailure] = []
    sink = _Mails(10, on_error=failures.append)
    _log(sink, 1, 2)
    sink.error = OSError("no mail server")
    assert sink.close() is False
    assert sink.close() is False
    assert [(str(failure.error), failure.events) for failure in failures] == [("no mail server", 2)]
    assert sink.stats().dropped == {"closed": 2}
    assert_balanced(sink.stats())


def test_a_subclass_overrides_should_flush() -> None:
    """It is asked with the event in the buffer."""

    class OnDemand(MemorySink):
        def should_flush(self, event: dict[str, Any]) -> bool:
            assert self.buffer[-1] == event
            return bool(event.get("now"))

    target = CaptureSink()
    sink = OnDemand(10, target=target)
    sink.handle({"event": "x", "level": "critical", "number": 1})
    assert target.events == []
    _log(sink, 2, now=True)
    assert _numbers(target.events) == [1, 2]


def test_the_buffer_passes_for_a_list() -> None:
    """It can be compared with lists, sliced, changed and set."""
    sink = BufferingSink(10)
    _log(sink, 1, 2, 3)
    assert sink.buffer != []
    assert _numbers(sink.buffer[1:]) == [2, 3]
    assert sink.buffer[0]["number"] == 1
    assert sink.buffer[:1] == [{"event": "x", "level": "info", "number": 1}]
    sink.buffer.pop()
    assert _numbers(sink.buffer) == [1, 2]
    sink.buffer = sink.buffer[:1]  # type: ignore[assignment]
    assert _numbers(sink.buffer) == [1]
    assert sink.buffer == copy.copy(sink.buffer)
    with pytest.raises(TypeError):
        hash(sink.buffer)


def test_a_plain_buffering_sink_discards_at_close() -> None:
    """close flushes, which throws away; that was asked for, so it returns True."""
    sink = BufferingSink(10)
    _log(sink, 1)
    assert sink.close() is True
    assert sink.stats().dropped == {"discarded": 1}
    assert sink.buffer == []


def test_a_plain_buffering_sink_can_be_told_not_to_flush_at_close() -> None:
    """What is in the buffer then is discarded all the same, and flush is not called."""
    sink = _Mails(10)
    sink.flush_on_close = False
    _log(sink, 1)
    assert sink.close() is True
    assert (sink.mails, sink.stats().dropped) == ([], {"discarded": 1})


# -- what waits is a snapshot


def test_what_waits_is_a_snapshot() -> None:
    """What the caller changes after handle, nested values included, does not reach the target."""
    target = CaptureSink()
    sink = MemorySink(10, target=target)
    event: dict[str, Any] = {"event": "x", "tags": ["a"], "user": {"name": "ada"}}
    sink.handle(event)
    event["tags"].append("b")
    event["user"]["name"] = "eve"
    event["more"] = 1
    assert sink.flush()
    assert target.events == [{"event": "x", "tags": ["a"], "user": {"name": "ada"}}]


def test_an_exception_being_handled_is_kept(tmp_path) -> None:
    """exc_info=True stands for the exception at the time of the event, not for one at the time of the flush."""
    with FileSink(tmp_path / "out") as target:
        sink = MemorySink(10, target=target)
        try:
            raise ValueError("the first")
        except ValueError:
            sink.handle({"event": "x", "exc_info": True})
        sink.handle({"event": "no exception", "exc_info": True})
        try:
            raise KeyError("another one")
        except KeyError:
            sink.flush()
    first, second = events_of(tmp_path / "out")
    assert first["exception"].endswith("ValueError: the first")
    assert "another one" not in first["exception"]
    assert "exception" not in second


def test_an_event_keeps_the_time_it_happened(udp_peer, time_machine_at) -> None:
    """An event without a timestamp is told with the time of handle, not that of the flush; it gets no field for it."""
    port, receive = udp_peer
    captured = CaptureSink()
    syslog = SysLogSink(("127.0.0.1", port), format="rfc5424")
    with FanoutSink(syslog, captured) as target:
        sink = MemorySink(10, target=target)
        with time_machine_at(dt.datetime(2026, 3, 14, 15, 9, 26, tzinfo=dt.timezone.utc)):
            sink.handle({"event": "then"})
        assert sink.flush()
    assert "2026-03-14T15:09:26" in receive()
    assert captured.events == [{"event": "then"}]


@pytest.fixture
def udp_peer():
    """Give the port of a UDP peer, and what waits for a datagram."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(30)
        yield peer.getsockname()[1], lambda: peer.recv(65_536).decode()


@pytest.fixture
def time_machine_at():
    """Give what stops the clock at a moment."""
    import time_machine

    return lambda moment: time_machine.travel(moment, tick=False)


def test_the_level_of_the_method_called_is_kept() -> None:
    """An event whose level is not among its fields is filtered by it at the target, and flushes by it."""
    from structlog import DropEvent

    target = CaptureSink(level="warning")
    sink = MemorySink(10, target=target)
    for method in ("info", "error"):
        with pytest.raises(DropEvent):
            sink(None, method, {"event": method})
    assert target.events == [{"event": "error"}]


# -- MemorySink: when it flushes


def test_it_flushes_at_capacity() -> None:
    """The event that makes the buffer full makes it go to the target, itself included."""
    target = CaptureSink()
    sink = MemorySink(3, target=target)
    _log(sink, 1, 2)
    assert target.events == []
    _log(sink, 3)
    assert _numbers(target.events) == [1, 2, 3]
    assert sink.buffer == []
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.pending) == (3, 3, 0)
    assert stats.targets[0].delivered == 3
    assert_balanced(stats)


@pytest.mark.parametrize("flush_level", ["warning", "WARN", logging.WARNING])
def test_it_flushes_at_the_flush_level(flush_level) -> None:
    """An event at that level or above makes it flush, whatever it is called; a lower one does not."""
    target = CaptureSink()
    sink = MemorySink(100, flush_level, target)
    _log(sink, 1)
    sink.handle({"event": "x", "level": "warning", "number": 2})
    assert _numbers(target.events) == [1, 2]
    _log(sink, 3)
    sink.handle({"event": "x", "level_number": 35, "level": "info", "number": 4})
    assert _numbers(target.events) == [1, 2, 3, 4]


def test_the_flush_level_is_error_by_default_and_can_be_set() -> None:
    """Without one, errors flush and warnings do not; it can be set to a name or a number."""
    target = CaptureSink()
    sink = MemorySink(100, target=target)
    assert sink.flush_level == logging.ERROR
    sink.handle({"event": "x", "level": "warning", "number": 1})
    assert target.events == []
    sink.flush_level = "warning"
    sink.handle({"event": "x", "level": "warning", "number": 2})
    assert _numbers(target.events) == [1, 2]


def test_the_documented_parameters_keep_their_order() -> None:
    """capacity, flush_level, target, flush_on_close, as MemoryHandler has them; the rest is keyword-only."""
    target = CaptureSink()
    sink = MemorySink(5, "critical", target, False)
    assert (sink.capacity, sink.flush_level, sink.target, sink.flush_on_close) == (5, 50, target, False)
    with pytest.raises(TypeError):
        MemorySink(5, "critical", target, False, True)  # type: ignore[misc]


def test_bad_arguments_are_refused() -> None:
    """A flush level that is none and a target that is no sink raise, at construction and when they are set."""
    with pytest.raises(ValueError, match="flush_level='loud'"):
        MemorySink(5, "loud")
    with pytest.raises(TypeError, match="target='file' is not a Sink"):
        MemorySink(5, target="file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block_timeout=-1"):
        MemorySink(5, block_timeout=-1)
    sink = MemorySink(5)
    with pytest.raises(TypeError, match="target=42"):
        sink.set_target(42)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flush_level='loud'"):
        sink.flush_level = "loud"


def test_level_and_processors_of_the_target_apply() -> None:
    """It hands on through deliver, so a target filters and redacts as it does elsewhere; its own come first."""

    def redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        event["secret"] = "***"
        return event

    target = CaptureSink(level="warning", processors=[redact])
    sink = MemorySink(2, target=target, level="info")
    sink.handle({"event": "x", "level": "debug", "number": 0})
    sink.handle({"event": "x", "level": "info", "number": 1, "secret": "s"})
    sink.handle({"event": "x", "level": "warning", "number": 2, "secret": "s"})
    assert target.events == [{"event": "x", "level": "warning", "number": 2, "secret": "***"}]
    assert (sink.stats().filtered, sink.stats().delivered) == (1, 2)
    assert sink.stats().targets[0].filtered == 1


# -- without a target


def test_without_a_target_the_buffer_is_kept_and_bounded() -> None:
    """Beyond capacity the oldest events are dropped, counted and told; a target set later gets the others."""
    failures: list[SinkFailure] = []
    sink = MemorySink(3, on_error=failures.append)
    _log(sink, 1, 2, 3)
    assert sink.flush() is False
    assert _numbers(sink.buffer) == [1, 2, 3]
    assert failures == []
    _log(sink, 4, 5)
    assert _numbers(sink.buffer) == [3, 4, 5]
    assert sink.stats().dropped == {"overflow": 2}
    assert sum(failure.events for failure in failures) == 2
    assert "has no target" in str(failures[0].error)
    target = CaptureSink()
    sink.set_target(target)
    assert sink.flush() is True
    assert _numbers(target.events) == [3, 4, 5]
    assert_balanced(sink.stats())


def test_overflow_raises_if_told_to() -> None:
    """With on_error="raise" the application learns that an event was lost; the new one is kept."""
    sink = MemorySink(1, on_error="raise")
    _log(sink, 1)
    with pytest.raises(DeliveryError, match="beyond capacity=1"):
        _log(sink, 2)
    assert _numbers(sink.buffer) == [2]
    assert (sink.stats().accepted, sink.stats().dropped, sink.stats().pending) == (2, {"overflow": 1}, 1)


def test_close_without_a_target_gives_up() -> None:
    """What is in the buffer is counted and told, and close returns False."""
    failures: list[SinkFailure] = []
    sink = MemorySink(3, on_error=failures.append)
    _log(sink, 1, 2)
    assert sink.close() is False
    assert sink.stats().dropped == {"closed": 2}
    assert [failure.events for failure in failures] == [2]
    assert sink.buffer == []
    assert_balanced(sink.stats())


def test_the_target_can_be_taken_away() -> None:
    """set_target(None) makes it keep what comes; target may be assigned as well."""
    target = CaptureSink()
    sink = MemorySink(1, target=target)
    _log(sink, 1)
    sink.set_target(None)
    assert sink.target is None
    _log(sink, 2)
    assert _numbers(target.events) == [1]
    sink.target = target
    sink.flush()
    assert _numbers(target.events) == [1, 2]


# -- ring


def test_a_ring_keeps_the_newest_and_flushes_at_the_level_alone() -> None:
    """What led to an error goes to the target with it; what led to none is discarded, without a report."""
    failures: list[SinkFailure] = []
    target = CaptureSink()
    sink = MemorySink(3, target=target, ring=True, on_error=failures.append)
    _log(sink, *range(10))
    assert target.events == []
    assert _numbers(sink.buffer) == [7, 8, 9]
    sink.handle({"event": "x", "level": "error", "number": 10})
    assert _numbers(target.events) == [7, 8, 9, 10]
    _log(sink, 11)
    assert len(target.events) == 4
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped, stats.pending) == (12, 4, {"discarded": 7}, 1)
    assert failures == []


def test_a_ring_hands_on_at_close_unless_told_not_to() -> None:
    """flush_on_close decides, as without a ring."""
    target = CaptureSink()
    for flush_on_close in (True, False):
        sink = MemorySink(3, "error", target, flush_on_close, ring=True)
        _log(sink, int(flush_on_close))
        assert sink.close() is True
    assert _numbers(target.events) == [1]


# -- a target that fails


class _Picky(CaptureSink):
    """Fails at some events, and remembers all that it was given."""

    def __init__(self, errors: dict[int, Exception], **options: Any) -> None:
        super().__init__(**options)
        self.errors = errors
        self.given: list[int] = []

    def emit(self, event: dict[str, Any]) -> None:
        self.given.append(event["number"])
        error = self.errors.pop(event["number"], None)
        if error is not None:
            raise error
        super().emit(event)


def test_a_target_that_fails_midway_sees_no_event_twice() -> None:
    """What it refuses is lost, counted and told; what comes after is handed on; nothing is handed on again."""
    failures: list[SinkFailure] = []
    target = _Picky({2: OSError("disk full"), 4: PermanentDeliveryError("bad")})
    sink = MemorySink(5, target=target, on_error=failures.append)
    _log(sink, 1, 2, 3, 4, 5)
    assert sink.flush() is True
    assert target.given == [1, 2, 3, 4, 5]
    assert _numbers(target.events) == [1, 3, 5]
    assert [(str(failure.error), failure.events) for failure in failures] == [("disk full", 1), ("bad", 1)]
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (5, 3, {"error": 2})
    assert stats.last_error == "PermanentDeliveryError: bad"
    assert_balanced(stats)


def test_each_event_leaves_the_buffer_as_it_is_delivered() -> None:
    """While the target has one event, those behind it are in the buffer and those before it are not."""
    seen: list[tuple[int, list[int], int]] = []

    class Looking(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            seen.append((event["number"], _numbers(sink.buffer), sink.stats().pending))

    sink = MemorySink(3, target=Looking())
    _log(sink, 1, 2, 3)
    assert seen == [(1, [2, 3], 3), (2, [3], 2), (3, [], 1)]


def test_a_temporary_failure_keeps_the_event_and_those_behind_it() -> None:
    """They are handed on by the next flush, in order, and none that was taken is given again."""
    failures: list[SinkFailure] = []
    target = _Picky({2: TemporaryDeliveryError("away")})
    sink = MemorySink(3, target=target, on_error=failures.append)
    _log(sink, 1, 2, 3)
    assert _numbers(target.events) == [1]
    assert _numbers(sink.buffer) == [2, 3]
    assert [(str(failure.error), failure.events) for failure in failures] == [("away", 0)]
    assert (sink.stats().pending, sink.stats().dropped) == (2, {})
    _log(sink, 4)
    assert _numbers(target.events) == [1, 2, 3, 4]
    assert_balanced(sink.stats())


def test_while_a_target_is_away_the_buffer_stays_bounded() -> None:
    """Beyond capacity the oldest are dropped, as without a target."""
    failures: list[SinkFailure] = []
    target = FailingSink(TemporaryDeliveryError("away"))
    sink = MemorySink(3, target=target, on_error=failures.append)
    _log(sink, *range(10))
    assert _numbers(sink.buffer) == [7, 8, 9]
    assert sink.stats().dropped == {"overflow": 7}
    assert "cannot hand them on" in str(failures[-1].error)
    assert sink.flush() is False
    target.times = 0
    assert sink.flush() is True
    assert _numbers(target.events) == [7, 8, 9]
    assert_balanced(sink.stats())


def test_a_target_that_wants_to_be_left_alone_is_until_its_time(monkeypatch) -> None:
    """Events do not flush before retry_after has passed; flush does."""
    now = [100.0]
    monkeypatch.setattr("outfall.sinks.delivery.memory.now", lambda: now[0])
    target = _Picky({1: TemporaryDeliveryError("busy", retry_after=30)})
    sink = MemorySink(1, target=target, on_error=lambda failure: None)
    _log(sink, 1)
    _log(sink, 2)
    assert target.given == [1]
    now[0] += 31
    _log(sink, 3)
    assert target.given == [1, 2, 3]
    target.errors[4] = TemporaryDeliveryError("busy", retry_after=30)
    _log(sink, 4)
    assert sink.flush()
    assert target.given == [1, 2, 3, 4, 4]


def test_a_failure_is_told_to_the_target_s_own_on_error_too() -> None:
    """A target that was given an on_error hears of its failures."""
    own: list[SinkFailure] = []
    outer: list[SinkFailure] = []
    target = FailingSink(OSError("down"), on_error=own.append, name="target")
    sink = MemorySink(1, target=target, on_error=outer.append)
    _log(sink, 1)
    assert [failure.sink for failure in own] == ["target"]
    assert [failure.sink for failure in outer] == ["MemorySink"]


def test_a_failure_raises_if_told_to_and_the_others_are_handed_on() -> None:
    """With on_error="raise" handle and flush raise what the target raised, after the others have had their turn."""
    target = _Picky({1: OSError("first"), 3: OSError("third")})
    sink = MemorySink(2, target=target, on_error="raise")
    _log(sink, 1)
    with pytest.raises(OSError, match="first"):
        _log(sink, 2)
    _log(sink, 3)
    with pytest.raises(OSError, match="third"):
        sink.flush()
    assert _numbers(target.events) == [2]
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (3, 1, {"error": 2})
    assert_balanced(stats)


def test_close_raises_if_told_to_after_it_has_closed() -> None:
    """The failure reaches who closes; the sink is closed all the same."""
    sink = MemorySink(5, target=FailingSink(OSError("down")), on_error="raise")
    _log(sink, 1)
    with pytest.raises(OSError, match="down"):
        sink.close()
    assert sink.closed
    assert sink.close() is False
    assert_balanced(sink.stats())


def test_an_event_that_a_fanout_has_put_out_in_part_counts_as_delivered() -> None:
    """A fanout raises for a child that failed, though the event is settled: it is told and not lost."""
    failures: list[SinkFailure] = []
    healthy = CaptureSink()
    fanout = FanoutSink(FailingSink(TemporaryDeliveryError("down")), healthy)
    sink = MemorySink(1, target=fanout, on_error=failures.append)
    _log(sink, 1)
    assert sink.flush()
    assert _numbers(healthy.events) == [1]
    assert [failure.events for failure in failures] == [0]
    assert (sink.stats().delivered, sink.stats().dropped) == (1, {})


def test_a_closed_target_costs_the_events() -> None:
    """They are counted as closed, as the target counts them."""
    target = CaptureSink()
    target.close()
    sink = MemorySink(1, target=target, on_error=lambda failure: None)
    _log(sink, 1)
    assert sink.stats().dropped == {"closed": 1}


def test_an_interrupt_in_the_target_passes_and_is_counted_once() -> None:
    """KeyboardInterrupt from the target reaches the caller; one event is lost to it, the others wait."""
    target = FailingSink(KeyboardInterrupt(), times=1)
    sink = MemorySink(3, target=target)
    _log(sink, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        _log(sink, 3)
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped, stats.pending) == (3, 0, {"interrupted": 1}, 2)
    assert sink.flush()
    assert _numbers(target.events) == [2, 3]
    assert_balanced(sink.stats())


def test_an_interrupt_in_flush_passes_too() -> None:
    """Also where another thread hands on for flush."""
    target = FailingSink(SystemExit(3), times=1)
    sink = MemorySink(10, target=target)
    _log(sink, 1, 2)
    with pytest.raises(SystemExit):
        sink.flush()
    assert sink.stats().dropped == {"interrupted": 1}
    assert sink.flush()
    assert_balanced(sink.stats())


# -- re-entrancy


def test_what_the_target_s_failure_makes_somebody_log_is_refused_or_buffered() -> None:
    """A target whose failure is logged to the very sink does not keep it busy for ever."""
    target = FailingSink(OSError("down"))
    sink = MemorySink(1, target=target, on_error=lambda failure: sink.handle({"event": "failed", "number": 0}))
    _log(sink, 1, 2)
    assert (sink.stats().accepted, sink.stats().dropped) == (4, {"error": 2, "reentrant": 2})


def test_what_the_target_itself_logs_waits_for_the_next_flush() -> None:
    """An event that the target logs while it is given another is buffered, and not handed on at once for ever."""

    class Chatty(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)
            sink.handle({"event": "took one", "level": "error", "number": 0})

    target = Chatty()
    sink = MemorySink(1, target=target)
    _log(sink, 1)
    assert _numbers(target.events) == [1]
    assert _numbers(sink.buffer) == [0]
    assert sink.flush() is True
    assert _numbers(target.events) == [1, 0]
    assert sink.stats().pending == 1


def test_flush_within_the_target_does_not_wait_for_itself() -> None:
    """A target that flushes the sink it is given events by gets False at once."""
    answers: list[bool] = []

    class Flushing(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            answers.append(sink.flush())

    sink = MemorySink(2, target=Flushing())
    _log(sink, 1, 2)
    assert answers == [False, False]
    assert_balanced(sink.stats())


def test_what_a_network_target_s_delivery_logs_is_refused() -> None:
    """Before a target that drops what its own delivery logs, the same is dropped here: it would come back later."""

    class Network(CaptureSink):
        delivers_through_loggers = True

        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)
            sink.handle({"event": "connecting", "number": 0})

    target = Network()
    sink = MemorySink(1, target=target)
    _log(sink, 1)
    assert (_numbers(target.events), sink.buffer) == ([1], [])
    assert sink.stats().dropped == {"reentrant": 1}


def test_events_of_others_are_not_lost_to_a_delivering_thread() -> None:
    """If the target refuses what a thread hands on that delivers for another sink, the event stays."""
    from outfall.sinks.core.reentrancy import delivering

    class Network(CaptureSink):
        delivers_through_loggers = True

    target = Network()
    sink = MemorySink(5, target=FanoutSink(target))
    sink.set_target(target)
    _log(sink, 1)
    with delivering():
        sink._flush_buffer()
    assert (target.events, _numbers(sink.buffer)) == ([], [1])
    assert sink.flush()
    assert _numbers(target.events) == [1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer's own lock is not for signal handlers")
def test_signal_handlers_may_log() -> None:
    """An event from a signal handler that interrupts the target or the buffer is kept, in any place it comes."""
    target = CaptureSink()
    sink = MemorySink(7, target=target)
    handled = [0]

    def handler(*_: object) -> None:
        handled[0] += 1
        sink.handle({"event": "signal", "level": "error", "number": -1})

    before = signal.signal(signal.SIGVTALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005, 0.0005)
        number = 0
        deadline = time.monotonic() + 60
        while handled[0] < 50 and time.monotonic() < deadline:
            _log(sink, number)
            number += 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert sink.close()
    assert _numbers(event for event in target.events if event["number"] >= 0) == list(range(number))
    assert sum(event["number"] == -1 for event in target.events) == handled[0]
    assert_balanced(sink.stats())


class _Interrupted:
    """A lock that raises a signal once, as soon as it is held."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._signals = [signal.SIGUSR1]

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._signals:
            signal.raise_signal(self._signals.pop())

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def test_an_event_from_a_signal_handler_does_not_wait_for_room_that_it_keeps_from_being_made() -> None:
    """It interrupts an event under the lock that the thread needs which hands on, so it is taken at once."""
    target = StuckSink()
    sink = MemorySink(1, target=target, block_timeout=60)
    first = threading.Thread(target=_log, args=(sink, 1))
    first.start()
    assert target.stuck.wait(60)
    _log(sink, 2)
    before = signal.signal(signal.SIGUSR1, lambda *_: _log(sink, 100))
    opening = threading.Timer(0.1, target.release)
    opening.start()
    sink._left = _Interrupted(sink._left)
    try:
        _log(sink, 3)
    finally:
        signal.signal(signal.SIGUSR1, before)
        opening.join()
        first.join(30)
    assert (_numbers(target.events), sink.stats().dropped) == ([1, 2, 100, 3], {})
    assert sink.close()


# -- threads


def test_no_lock_is_held_while_the_target_is_called() -> None:
    """While the target hangs, other threads log on, and what there is room for is handed on when it comes back."""
    target = StuckSink()
    sink = MemorySink(2, target=target, block_timeout=0.01)
    thread = threading.Thread(target=_log, args=(sink, 1, 2))
    thread.start()
    assert target.stuck.wait(60)
    other = threading.Thread(target=_log, args=(sink, 3, 4, 5))
    other.start()
    other.join(30)
    assert not other.is_alive()
    # Two is the capacity, and one is with the target.
    assert _numbers(sink.buffer) == [4, 5]
    assert sink.stats().dropped == {"overflow": 2}
    assert sink.stats().pending == 3
    target.release()
    thread.join(30)
    assert _numbers(target.events) == [1, 4, 5]
    assert_balanced(sink.stats())


def test_a_slow_target_costs_no_event() -> None:
    """While another thread hands on, an event for which there is no room waits until there is."""
    target = StuckSink()
    sink = MemorySink(1, target=target, block_timeout=60)
    first = threading.Thread(target=_log, args=(sink, 1))
    first.start()
    assert target.stuck.wait(60)
    second = threading.Thread(target=_log, args=(sink, *range(2, 10)))
    second.start()
    until(lambda: len(sink.buffer) == 2)
    target.release()
    for thread in (first, second):
        thread.join(30)
    assert _numbers(target.events) == list(range(1, 10))
    assert sink.stats().dropped == {}


def test_a_target_that_hangs_holds_up_an_event_once() -> None:
    """After one event has waited in vain the next drop the oldest at once; when there is room, one waits anew."""
    target = StuckSink()
    sink = MemorySink(1, target=target, block_timeout=60)
    first = threading.Thread(target=_log, args=(sink, 1))
    first.start()
    assert target.stuck.wait(60)
    sink.block_timeout = 0.01
    _log(sink, 2, 3)
    assert sink._impatient
    sink.block_timeout = 60
    _log(sink, *range(4, 100))
    assert sink.stats().dropped == {"overflow": 97}
    target.release()
    first.join(30)
    _log(sink, 100)
    assert not sink._impatient
    assert _numbers(target.events) == [1, 99, 100]


def test_two_threads_that_flush_at_once_keep_the_order() -> None:
    """One hands on and the other waits for it; no event is given twice, none overtakes another."""
    target = StuckSink()
    sink = MemorySink(100, target=target)
    _log(sink, *range(10))
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(sink.flush(30))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert target.stuck.wait(60)
    _log(sink, 10)
    target.release()
    for thread in threads:
        thread.join(30)
    assert answers == [True, True]
    assert sink.flush()
    assert _numbers(target.events) == list(range(11))


def test_events_of_each_thread_stay_in_order() -> None:
    """Many threads that log and flush: nothing is lost, nothing comes twice, and each thread's events are in order."""
    target = CaptureSink()
    # Six threads that fight for five places may not be fair to each other on a busy machine.
    sink = MemorySink(5, target=target, block_timeout=60)

    def work(worker: int) -> None:
        for number in range(200):
            _log(sink, number, worker=worker)
            if number % 50 == worker:
                sink.flush()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sink.close()
    assert sink.stats().dropped == {}
    for worker in range(6):
        assert _numbers(event for event in target.events if event["worker"] == worker) == list(range(200))
    assert_balanced(sink.stats())


def test_an_error_while_another_thread_hands_on_is_handed_on_too() -> None:
    """The thread that is at it goes on until what others asked for is done."""
    target = StuckSink()
    sink = MemorySink(100, target=target)
    thread = threading.Thread(target=sink.handle, args=({"event": "x", "level": "error", "number": 1},))
    thread.start()
    assert target.stuck.wait(60)
    _log(sink, 2)
    sink.handle({"event": "x", "level": "error", "number": 3})
    _log(sink, 4)
    target.release()
    thread.join(30)
    assert _numbers(target.events) == [1, 2, 3]
    assert _numbers(sink.buffer) == [4]


# -- ending


def test_flush_and_close_keep_their_timeout_with_a_target_that_hangs() -> None:
    """They return False in time; what could not be handed on is counted, and a late answer changes nothing."""
    failures: list[SinkFailure] = []
    target = StuckSink()
    sink = MemorySink(10, target=target, on_error=failures.append)
    _log(sink, 1, 2, 3)
    began = time.monotonic()
    assert sink.flush(0.1) is False
    assert sink.close(0.1) is False
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    expected = {"unconfirmed": 1, "closed": 2}
    assert sink.stats().dropped == expected
    assert [failure.events for failure in failures] == [3]
    assert_balanced(sink.stats())
    target.release()
    until(lambda: sink._flushing is None)
    assert sink.stats().dropped == expected
    assert _numbers(target.events) == [1]
    assert_balanced(sink.stats())


@pytest.mark.parametrize("error", [TemporaryDeliveryError("away"), OSError("broken")])
def test_an_answer_that_is_a_failure_changes_nothing_after_close_either(error) -> None:
    """The event that close had to give up does not come back into the buffer."""

    class Late(StuckSink):
        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)
            raise error

    target = Late()
    sink = MemorySink(10, target=target, on_error=lambda failure: None)
    _log(sink, 1)
    assert sink.close(0) is False
    assert target.stuck.wait(60)
    target.release()
    until(lambda: sink._flushing is None)
    assert (sink.buffer, sink.stats().dropped) == ([], {"unconfirmed": 1})
    assert_balanced(sink.stats())


def test_what_flush_could_not_wait_for_is_handed_on_afterwards() -> None:
    """The handing on continues when flush has given up waiting."""
    target = StuckSink()
    sink = MemorySink(10, target=target)
    _log(sink, 1, 2, 3)
    assert sink.flush(0.01) is False
    target.release()
    until(lambda: len(target.events) == 3)
    until(sink.flush)
    assert_balanced(sink.stats())


def test_a_flush_that_waits_for_another_thread_gives_up_in_time() -> None:
    """While a handle hangs in the target, flush returns False when its time is up."""
    target = StuckSink()
    sink = MemorySink(1, target=target)
    thread = threading.Thread(target=_log, args=(sink, 1))
    thread.start()
    assert target.stuck.wait(60)
    assert sink.flush(0.05) is False
    target.release()
    thread.join(30)
    assert sink.flush()


def test_flush_works_where_no_thread_can_start(monkeypatch) -> None:
    """As at the end of the interpreter: then the caller hands on itself."""

    def refuse(_self: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    target = CaptureSink()
    sink = MemorySink(10, target=target)
    _log(sink, 1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert sink.flush()
    assert _numbers(target.events) == [1]


def test_close_flushes_and_forgets_the_target() -> None:
    """As documented: the buffer is handed on, then the target is set to None; it is not closed."""
    target = CaptureSink()
    sink = MemorySink(10, target=target)
    _log(sink, 1)
    assert sink.close() is True
    assert _numbers(target.events) == [1]
    assert sink.target is None
    assert target.closed is False
    _log(sink, 2)
    assert _numbers(target.events) == [1]
    assert sink.stats().dropped == {"closed": 1}


def test_flush_on_close_false_discards() -> None:
    """What is in the buffer at close is not handed on, but counted; that was asked for, so close returns True."""
    target = CaptureSink()
    sink = MemorySink(10, target=target, flush_on_close=False)
    _log(sink, 1, 2)
    assert sink.close() is True
    assert target.events == []
    assert sink.stats().dropped == {"discarded": 2}
    assert_balanced(sink.stats())


def test_the_buffer_can_be_discarded_by_hand() -> None:
    """BufferingSink.flush empties the buffer of a MemorySink without handing on, as the logging cookbook does it."""
    target = CaptureSink()
    sink = MemorySink(10, target=target)
    _log(sink, 1, 2)
    assert BufferingSink.flush(sink)
    assert (target.events, sink.buffer) == ([], [])
    assert sink.stats().dropped == {"discarded": 2}


def test_flush_says_in_which_context_the_caller_is() -> None:
    """Context variables are the caller's in the thread that hands on for flush."""
    import contextvars

    request = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    class Looking(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            seen.append(request.get())

    sink = MemorySink(10, target=Looking())
    _log(sink, 1)
    token = request.set("r1")
    try:
        sink.flush()
    finally:
        request.reset(token)
    assert seen == ["r1"]


@pytest.mark.parametrize(("arguments", "expected"), [("", [1, 2]), (", flush_on_close=False", [])])
def test_the_buffer_is_flushed_at_exit(tmp_path, arguments, expected) -> None:
    """What waits when the interpreter ends is handed on, unless flush_on_close is False; later events are at once."""
    check(
        f"""
        import atexit, sys
        from outfall import FileSink, MemorySink
        target = FileSink(sys.argv[1])
        sink = MemorySink(100, target=target{arguments})
        # Registered before the hook that drains: it runs after it.
        sink.handle({{"event": "x", "number": 1}})
        import logging
        class Late(logging.Handler):
            def close(self):
                sink.handle({{"event": "x", "number": 2}})
        late = Late()
        """,
        tmp_path / "out",
    )
    found = events_of(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert _numbers(found) == expected


@pytest.mark.parametrize(("arguments", "expected"), [("", [1]), (", flush_on_close=False", [])])
def test_a_handler_around_it_does_what_it_says_at_exit(tmp_path, arguments, expected) -> None:
    """logging.shutdown flushes every handler, but not a buffer that is not to be flushed at the end."""
    check(
        f"""
        import logging, sys
        from outfall import FileSink, MemorySink, SinkHandler
        target = FileSink(sys.argv[1])
        sink = MemorySink(100, target=target{arguments})
        logging.getLogger().addHandler(SinkHandler(sink))
        logging.getLogger().warning("x", extra={{"number": 1}})
        """,
        tmp_path / "out",
    )
    found = events_of(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert _numbers(found) == expected


def test_a_handler_around_it_flushes_when_it_is_told_to(tmp_path) -> None:
    """Also with flush_on_close=False; closing the handler does not."""
    target = CaptureSink()
    handler = SinkHandler(MemorySink(100, target=target, flush_on_close=False), callsite=False)
    handler.handle(logging.makeLogRecord({"number": 1, "levelno": 20, "levelname": "INFO"}))
    handler.flush()
    handler.handle(logging.makeLogRecord({"number": 2, "levelno": 20, "levelname": "INFO"}))
    handler.close()
    assert _numbers(target.events) == [1]


@needs_fork
def test_a_forked_child_begins_with_an_empty_buffer(tmp_path) -> None:
    """The parent hands on what it buffered, once; the child what it buffers itself; a lock held by another is fresh."""
    target = FileSink(tmp_path / "out")
    sink = MemorySink(100, target=target)
    _log(sink, 1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with sink._ledger.lock:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(30)

    def child() -> None:
        assert (sink.buffer, sink.stats().accepted) == ([], 0)
        _log(sink, 2)
        assert sink.close()

    try:
        in_fork(child)
    finally:
        leave.set()
        thread.join(30)
    assert sink.close()
    target.close()
    assert _numbers(events_of(tmp_path / "out")) == [2, 1]


@needs_fork
def test_a_child_forked_while_the_target_is_called_hands_on_itself() -> None:
    """That a thread of the parent is handing on does not concern the child."""
    target = StuckSink()
    sink = MemorySink(1, target=target)
    thread = threading.Thread(target=_log, args=(sink, 1))
    thread.start()
    assert target.stuck.wait(60)
    target.release()
    thread.join(30)
    sink._flushing = -1

    def child() -> None:
        _log(sink, 2)
        assert _numbers(target.events) == [2]

    in_fork(child)


def test_a_batch_is_buffered() -> None:
    """emit_batch, by which a wrapper hands on, buffers each event, and a failing target is none of the batch's."""
    failures: list[SinkFailure] = []
    target = FailingSink(OSError("down"), times=1)
    sink = MemorySink(2, target=target, on_error=failures.append)
    batch = [sink.encode({"event": "x", "number": number}) for number in range(3)]
    assert sink.emit_batch(batch) is None
    assert _numbers(target.events) == [1]
    assert _numbers(sink.buffer) == [2]
    assert [failure.events for failure in failures] == [0, 1] or [failure.events for failure in failures] == [1]


def test_a_batch_is_taken_whatever_the_target_raises(capfd) -> None:
    """With on_error="raise" there is nobody to raise to in a batch: it is reported, and the batch is taken."""
    sink = MemorySink(1, target=FailingSink(OSError("down")), on_error="raise", name="a batch taken")
    assert sink.emit_batch([sink.encode({"event": "x", "number": 1})]) is None
    assert sink.stats().last_error == "OSError: down"
    assert "a batch taken" in capfd.readouterr().err
    assert_balanced(sink.stats())


def test_a_subclass_of_memory_sink_may_override_flush() -> None:
    """Its flush is what is called when the buffer is full."""
    calls: list[int] = []

    class Mine(MemorySink):
        def flush(self, timeout: float | None = None) -> bool:
            calls.append(len(self.buffer))
            return super().flush(timeout)

    target = CaptureSink()
    sink = Mine(2, target=target)
    _log(sink, 1, 2)
    assert (calls, _numbers(target.events)) == ([2], [1, 2])


def test_only_a_target_that_looks_at_records_is_given_them() -> None:
    """SinkHandler leaves the record out of the event, unless the target, or one that may yet come, may look at it."""
    assert MemorySink(5, target=FileSink("never opened", delay=True))._reads_metadata() is False
    assert MemorySink(5, target=CaptureSink())._reads_metadata() is True
    assert MemorySink(5)._reads_metadata() is True


def test_it_tells_what_it_holds() -> None:
    """The repr names how full it is and the target."""
    sink = MemorySink(5, target=CaptureSink(name="captured"))
    _log(sink, 1)
    assert repr(sink) == "<MemorySink with 1 of 5 events for captured>"
    with pytest.raises(TypeError, match="MemorySink cannot be pickled"):
        pickle.dumps(sink)


# -- CaptureSink


def test_events_are_snapshots_without_metadata() -> None:
    """What the caller changes later is not seen; metadata is not kept."""
    sink = CaptureSink()
    event = {"event": "x", "tags": ["a"], "_record": object(), "_from_structlog": False}
    sink.handle(event)
    event["tags"].append("b")  # type: ignore[attr-defined]
    assert sink.events == [{"event": "x", "tags": ["a"]}]


def test_clear_forgets() -> None:
    """clear() empties the list; the ledger goes on."""
    sink = CaptureSink()
    sink.handle({"event": "x"})
    sink.clear()
    assert (sink.events, sink.stats().delivered) == ([], 1)


def test_text_is_kept_as_an_event() -> None:
    """Rendered text is kept as an event of one field."""
    sink = CaptureSink()
    sink.handle("done")
    assert sink.events == [{"event": "done"}]
