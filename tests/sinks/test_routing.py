"""FanoutSink: all children are tried, whatever one does."""

from __future__ import annotations

import threading
import time

import pytest

from outfall import CaptureSink, DeliveryError, FanoutSink, SinkFailure
from outfall.sinks.testing import FailingSink, StuckSink, assert_balanced


def test_each_child_has_its_own_level_and_processors() -> None:
    """Three sinks, three levels and redactions, on one event."""

    def redact(_logger: object, _name: str, event: dict[str, object]) -> dict[str, object]:
        event["secret"] = "***"
        return event

    everything, warnings = CaptureSink(), CaptureSink(level="warning", processors=[redact])
    fanout = FanoutSink(everything, warnings)
    fanout.handle({"event": "low", "level": "info", "secret": "x"})
    fanout.handle({"event": "high", "level": "error", "secret": "x"})
    assert [event["secret"] for event in everything.events] == ["x", "x"]
    assert warnings.events == [{"event": "high", "level": "error", "secret": "***"}]
    first, second = fanout.stats().targets
    assert (first.delivered, second.delivered, second.filtered) == (2, 1, 1)


def test_a_failing_child_costs_the_others_nothing() -> None:
    """The children after it get the event; the loss is in the child's ledger, and told."""
    failures: list[SinkFailure] = []
    after = CaptureSink()
    fanout = FanoutSink(FailingSink(OSError("down")), after, on_error=failures.append)
    fanout.handle({"event": "x"})
    assert after.events == [{"event": "x"}]
    assert [str(failure.error) for failure in failures] == ["down"]
    stats = fanout.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (1, 1, {})
    assert stats.targets[0].dropped == {"error": 1}
    assert_balanced(stats)


def test_a_childs_own_on_error_is_told_too() -> None:
    """A child that was given an on_error hears of its failures also behind a fanout."""
    own: list[SinkFailure] = []
    outer: list[SinkFailure] = []
    fanout = FanoutSink(FailingSink(OSError("down"), on_error=own.append, name="child"), on_error=outer.append)
    fanout.handle({"event": "x"})
    assert [failure.sink for failure in own] == ["child"]
    assert [failure.sink for failure in outer] == ["FanoutSink"]


def test_several_failures_are_raised_as_one() -> None:
    """deliver names each child that failed."""
    fanout = FanoutSink(FailingSink(OSError("a"), name="first"), CaptureSink(), FailingSink(OSError("b"), name="third"))
    with pytest.raises(DeliveryError, match=r"2 of 3 sinks failed: first: OSError: a; third: OSError: b"):
        fanout.deliver({"event": "x"})


def test_an_audit_child_raises_through_an_audit_fanout() -> None:
    """on_error="raise" on both lets the error out when all were tried."""
    after = CaptureSink()
    fanout = FanoutSink(FailingSink(OSError("down"), on_error="raise"), after, on_error="raise")
    with pytest.raises(OSError, match="down"):
        fanout.handle({"event": "x"})
    assert len(after.events) == 1


def test_it_owns_its_children() -> None:
    """flush and close reach every child, also when one fails."""
    first, second = StuckSink(), CaptureSink()
    fanout = FanoutSink(first, second)
    thread = threading.Thread(target=fanout.handle, args=({"event": "x"},))
    thread.start()
    assert first.stuck.wait(5)
    started = time.monotonic()
    assert fanout.flush(0.05) is False
    assert fanout.close(0.05) is False
    assert time.monotonic() - started < 2
    assert (first.closed, second.closed, fanout.closed) == (True, True, True)
    first.release()
    thread.join(5)


def test_a_slow_child_does_not_lock_other_threads_out() -> None:
    """While one thread hangs in one child, another thread's events reach the other children."""
    slow, quick = StuckSink(), CaptureSink()
    fanout = FanoutSink(quick, slow)
    threads = [threading.Thread(target=fanout.handle, args=({"event": "x"},)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert slow.stuck.wait(5)
    for _ in range(500):
        if len(quick.events) == 2:
            break
        time.sleep(0.01)
    assert len(quick.events) == 2
    slow.release()
    for thread in threads:
        thread.join(5)


def test_bad_children_are_refused() -> None:
    """None, no sinks and the same sink twice raise at construction."""
    sink = CaptureSink()
    with pytest.raises(ValueError, match="at least one"):
        FanoutSink()
    with pytest.raises(TypeError, match="'file' is not a Sink"):
        FanoutSink("file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twice"):
        FanoutSink(sink, sink)
