"""FanoutSink: all children are tried, whatever one does. FallbackSink: the first that takes it."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from structlog import DropEvent

from outfall import (
    BackgroundSink,
    BatchResult,
    CaptureSink,
    DeliveryError,
    FallbackSink,
    FanoutSink,
    FileSink,
    MemorySink,
    PausedDeliveryError,
    PermanentDeliveryError,
    RetryPolicy,
    SinkFailure,
    SpoolSink,
    StreamSink,
    TemporaryDeliveryError,
)
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import Batch, Encoded
from outfall.sinks.errors import OversizeDeliveryError, ReentrantEventError
from outfall.sinks.routing.parts import Routed
from outfall.sinks.testing import FailingSink, StuckSink, assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outfall import Sink

AT_ONCE = RetryPolicy(start_seconds=0, pause_start_seconds=0)


def _numbers(events: Any) -> list[int]:
    return [event["number"] for event in events]


class _Scripted(CaptureSink):
    """Answers each batch with what it was told to, raising exceptions, and takes the batches after that."""

    def __init__(self, *answers: Any, **options: Any) -> None:
        super().__init__(**options)
        self.answers = list(answers)
        self.batches: list[list[int]] = []
        self.keys: list[str] = []

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        self.batches.append(_numbers(item.event for item in batch))
        assert isinstance(batch, Batch)
        self.keys.append(batch.key)
        answer = self.answers.pop(0) if self.answers else None
        if callable(answer):
            answer = answer(batch)
        if isinstance(answer, BaseException):
            raise answer
        taken = set(range(len(batch)))
        if answer is not None:
            taken -= {*answer.retry, *answer.rejected}
        self.events += [batch[index].event for index in sorted(taken)]
        return answer


def _items(sink: Sink, *numbers: int, **fields: Any) -> list[Encoded]:
    made = [sink.make_item({"event": "x", "level": "info", "number": number, **fields}) for number in numbers]
    return [item for item in made if item is not None]


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
    assert first.stuck.wait(60)
    started = time.monotonic()
    assert fanout.flush(0.05) is False
    assert fanout.close(0.05) is False
    assert time.monotonic() - started < PATIENCE_SECONDS / 2
    assert (first.closed, second.closed, fanout.closed) == (True, True, True)
    first.release()
    thread.join(60)


def test_a_slow_child_does_not_lock_other_threads_out() -> None:
    """While one thread hangs in one child, another thread's events reach the other children."""
    slow, quick = StuckSink(), CaptureSink()
    fanout = FanoutSink(quick, slow)
    threads = [threading.Thread(target=fanout.handle, args=({"event": "x"},)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert slow.stuck.wait(60)
    until(lambda: len(quick.events) == 2)
    slow.release()
    for thread in threads:
        thread.join(60)


def test_bad_children_are_refused() -> None:
    """None, no sinks and the same sink twice raise at construction."""
    sink = CaptureSink()
    with pytest.raises(ValueError, match="at least one"):
        FanoutSink()
    with pytest.raises(TypeError, match="'file' is not a Sink"):
        FanoutSink("file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twice"):
        FanoutSink(sink, sink)


# -- FanoutSink behind a wrapper


def test_each_child_prepares_its_own_part_once_in_the_thread_that_logs() -> None:
    """Levels, processors and renderers of the children run in make_item; emit_batch gives each what it made."""
    import io

    threads: list[int] = []

    def redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        threads.append(threading.get_ident())
        event["secret"] = "***"
        return event

    redacted, stream = CaptureSink(processors=[redact]), io.StringIO()
    text = StreamSink(stream, renderer=lambda _logger, _name, event: f"say {event['number']}")
    errors = CaptureSink(level="error")
    fanout = FanoutSink(redacted, text, errors)
    event = {"event": "x", "level": "info", "number": 1, "secret": "s"}
    item = fanout.make_item(event)
    assert isinstance(item, Routed)
    assert threads == [threading.get_ident()]
    assert b'"s"' not in item.data
    assert item.event["number"] == 1
    assert errors.stats().filtered == 1
    assert fanout.emit_batch(Batch([item])) is None
    assert redacted.events == [{"event": "x", "level": "info", "number": 1, "secret": "***"}]
    assert stream.getvalue() == "say 1\n"
    assert errors.events == []
    assert len(threads) == 1
    assert event["secret"] == "s"
    first, second, third = fanout.stats().targets
    assert (first.delivered, second.delivered, third.delivered, third.filtered) == (1, 1, 0, 1)


def test_an_event_that_all_children_filter_is_filtered() -> None:
    """The sink around the fanout counts it as filtered, and so do the children; its own level comes first."""
    child = CaptureSink(level="error")
    with BackgroundSink(FanoutSink(child)) as sink:
        sink.handle({"event": "x", "level": "info"})
        assert (sink.stats().accepted, sink.stats().filtered, child.stats().filtered) == (0, 1, 1)
    assert FanoutSink(child, level="critical").make_item({"event": "x", "level": "error"}) is None
    assert child.stats().filtered == 1


def test_a_child_whose_processor_fails_costs_the_others_nothing_there_either() -> None:
    """It has counted the loss, its own on_error and the fanout's are told, and the others get the event."""

    def fail(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("refused")

    own: list[SinkFailure] = []
    outer: list[SinkFailure] = []
    broken, healthy = CaptureSink(processors=[fail], on_error=own.append), CaptureSink()
    fanout = FanoutSink(broken, healthy, on_error=outer.append)
    assert fanout.emit_batch(_items(fanout, 1)) is None
    assert _numbers(healthy.events) == [1]
    assert broken.stats().dropped == {"error": 1}
    assert [(str(failure.error), failure.events) for failure in own] == [("refused", 1)]
    assert [(str(failure.error), failure.events) for failure in outer] == [("refused", 0)]


def test_if_all_children_fail_at_that_the_event_is_the_outer_sink_s_to_count() -> None:
    """make_item raises what the one child raised, or all their errors as one."""

    def fail(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("refused")

    one, two = CaptureSink(processors=[fail], name="one"), CaptureSink(processors=[fail], name="two")
    with pytest.raises(ValueError, match="refused"):
        FanoutSink(one).make_item({"event": "x"})
    with pytest.raises(DeliveryError, match="2 of 2 sinks failed: one: ValueError: refused; two: ValueError: refused"):
        FanoutSink(one, two).make_item({"event": "x"})


def test_a_child_that_failed_temporarily_is_tried_again_alone() -> None:
    """The others do not see the events twice; when it has taken them, the batch is done."""
    away = _Scripted(TemporaryDeliveryError("away", 7), TemporaryDeliveryError("away"))
    healthy = _Scripted()
    fanout = FanoutSink(away, healthy)
    batch = Batch(_items(fanout, 1, 2, 3))
    assert fanout.emit_batch(batch) == BatchResult(retry=[0, 1, 2], retry_after=7)
    with pytest.raises(TemporaryDeliveryError, match="away"):
        fanout.emit_batch(batch)
    assert fanout.emit_batch(batch) is None
    assert away.batches == [[1, 2, 3]] * 3
    assert len(set(away.keys)) == 1
    assert healthy.batches == [[1, 2, 3]]
    assert healthy.keys != away.keys[:1]
    assert [(stats.delivered, stats.dropped) for stats in fanout.stats().targets] == [(3, {}), (3, {})]


def test_all_parts_of_a_divided_batch_go_to_all_children() -> None:
    """Also to one that has failed at another part: what is noted about that says nothing about these events."""
    away = _Scripted(TemporaryDeliveryError("away"))
    healthy = _Scripted()
    fanout = FanoutSink(away, healthy)
    batch = Batch(_items(fanout, 1, 2, 3))
    first, second = batch[:1], batch[1:]
    assert fanout.emit_batch(first) == BatchResult(retry=[0])
    assert fanout.emit_batch(second) is None
    assert fanout.emit_batch(first) is None
    assert (away.batches, healthy.batches) == ([[1], [2, 3], [1]], [[1], [2, 3]])


def test_a_child_that_took_a_part_is_given_the_rest() -> None:
    """What it wants again is retried, under another key, and what it refuses is not."""
    partial = _Scripted(BatchResult(retry=[2], rejected={0: "bad"}, retry_after=3), name="partial")
    healthy = _Scripted()
    fanout = FanoutSink(partial, healthy)
    batch = Batch(_items(fanout, 1, 2, 3))
    assert fanout.emit_batch(batch) == BatchResult(retry=[2], rejected={0: "partial: bad"}, retry_after=3)
    assert fanout.emit_batch(batch.part([2])) is None
    assert (partial.batches, healthy.batches) == ([[1, 2, 3], [3]], [[1, 2, 3]])
    assert partial.keys[0] != partial.keys[1]
    assert [(stats.delivered, stats.dropped) for stats in fanout.stats().targets] == [(2, {"rejected": 1}), (3, {})]


def test_what_one_child_refuses_while_another_waits_is_told_when_both_have_settled() -> None:
    """An event is not dead-lettered while a child may still take it."""
    refusing = _Scripted(BatchResult(rejected={0: "bad"}), name="refusing")
    away = _Scripted(TemporaryDeliveryError("away"))
    fanout = FanoutSink(refusing, away)
    batch = Batch(_items(fanout, 1, 2))
    assert fanout.emit_batch(batch) == BatchResult(retry=[0, 1])
    assert fanout.emit_batch(batch) == BatchResult(rejected={0: "refusing: bad"})
    assert refusing.batches == [[1, 2]]


def test_a_poisoned_batch_is_halved_for_that_child_alone() -> None:
    """A child that refuses a batch for one event gets the others; the healthy child sees the batch once."""

    def fussy(batch: Batch) -> Any:
        return PermanentDeliveryError("bad") if 3 in _numbers(item.event for item in batch) else None

    def small(batch: Batch) -> Any:
        return OversizeDeliveryError("too large") if len(batch) > 2 else None

    picky, narrow, healthy = _Scripted(*[fussy] * 9, name="picky"), _Scripted(*[small] * 9), _Scripted()
    own: list[SinkFailure] = []
    picky.on_error = own.append
    fanout = FanoutSink(picky, narrow, healthy)
    assert fanout.emit_batch(Batch(_items(fanout, 1, 2, 3, 4, 5))) == BatchResult(rejected={2: "picky: bad"})
    assert _numbers(picky.events) == [1, 2, 4, 5]
    assert _numbers(narrow.events) == [1, 2, 3, 4, 5]
    assert healthy.batches == [[1, 2, 3, 4, 5]]
    assert [(str(failure.error), failure.events) for failure in own] == [("bad", 1)]


def test_a_child_that_always_raises_is_no_reason_for_the_others_to_wait() -> None:
    """Any other exception refuses the events it comes with; its text holds no value of theirs."""

    def leak(batch: Batch) -> Any:
        return ValueError(f"cannot take {batch[0].event}")

    broken, healthy = _Scripted(*[leak] * 9), _Scripted()
    fanout = FanoutSink(broken, healthy)
    result = fanout.emit_batch(Batch(_items(fanout, 1, 2, secret="hunter2hunter2")))
    assert result is not None
    assert sorted(result.rejected) == [0, 1]
    assert "hunter2" not in str(result.rejected)
    assert healthy.batches == [[1, 2]]


def test_a_connection_s_error_is_temporary_and_a_pause_is_kept() -> None:
    """An OSError is tried again; if every child wants a pause the sink around it makes one."""
    paused = PausedDeliveryError("no such address")
    fanout = FanoutSink(_Scripted(paused, paused), _Scripted(paused, OSError("reset")))
    batch = Batch(_items(fanout, 1))
    with pytest.raises(PausedDeliveryError, match="no such address"):
        fanout.emit_batch(batch)
    with pytest.raises(OSError, match="reset"):
        fanout.emit_batch(batch)


def test_what_a_child_refuses_without_saying_which_is_passed_on() -> None:
    """The number is, and the child counts it."""
    vague, healthy = _Scripted(BatchResult(rejected_unknown=2)), _Scripted()
    fanout = FanoutSink(vague, healthy)
    assert fanout.emit_batch(Batch(_items(fanout, 1, 2, 3))) == BatchResult(rejected_unknown=2)
    assert [(stats.delivered, stats.dropped) for stats in fanout.stats().targets] == [(1, {"rejected": 2}), (3, {})]


def test_a_buffer_among_the_children_keeps_its_own_account() -> None:
    """A child that keeps what it is given counts it once."""
    target = CaptureSink()
    memory = MemorySink(10, target=target)
    fanout = FanoutSink(memory, CaptureSink())
    assert fanout.emit_batch(Batch(_items(fanout, 1, 2))) is None
    assert (memory.stats().accepted, memory.stats().pending, memory.stats().delivered) == (2, 2, 0)
    memory.flush()
    assert _numbers(target.events) == [1, 2]
    assert_balanced(memory.stats())


@pytest.mark.parametrize("router", [FanoutSink, FallbackSink])
def test_an_item_survives_as_bytes(router, tmp_path) -> None:
    """Its data is one line of JSON with a part for each child, from which restore_item makes the item again."""
    odd = "caf\udce9".encode("utf-8", "surrogateescape")

    def render(_logger: object, _name: str, event: dict[str, Any]) -> bytes:
        if event["number"] == 4:
            return b"{no json}"
        return odd if event.get("odd") else f"say {event['number']}".encode()

    json_lines, text, captured = tmp_path / "json", tmp_path / "text", CaptureSink()
    sinks: list[Sink] = [captured, FileSink(json_lines), FileSink(text, renderer=render), CaptureSink(level="error")]
    if router is FallbackSink:
        sinks = sinks[2:] + sinks[:2]
    with router(*sinks) as sink:
        items = [
            *_items(sink, 1, 12345678901234567890123, timestamp="2026-03-14T15:09:26Z"),
            *_items(sink, 3, odd=True),
            sink.make_item({"event": "x", "level": "no-such-level", "number": 4}),
        ]
        for item in items:
            assert item is not None
            assert b"\n" not in item.data
            parts = json.loads(item.data)[router._kind]
            assert len(parts) == 4
            again = sink.restore_item(item.data, item.level, item.time)
            assert again == item
            assert isinstance(again, Routed)
            assert again.parts == item.parts
        first = json.loads(items[0].data)[router._kind]
        plain = first[0] if router is FanoutSink else first[2]
        assert plain["event"] == {"event": "x", "level": "info", "number": 1, "timestamp": "2026-03-14T15:09:26Z"}
        assert plain["level"] == 20
        restored = [sink.restore_item(item.data, item.level, item.time) for item in items if item is not None]
        assert sink.emit_batch(Batch(restored)) is None
    assert text.read_bytes().splitlines() == [b"say 1", b"say 12345678901234567890123", odd, b"{no json}"]
    if router is FanoutSink:
        assert _numbers(captured.events) == [1, 12345678901234567890123, 3, 4]
        assert _numbers(map(json.loads, json_lines.read_bytes().splitlines())) == _numbers(captured.events)


@pytest.mark.parametrize("router", [FanoutSink, FallbackSink])
@pytest.mark.parametrize(
    "data",
    [
        b'{"event":"x","number":1}',
        b'{"fanout":[{"level":20,"time":1,"event":{"event":"x","number":1}}]}',
        b'{"fanout":3,"number":1}',
        b'{"fanout":[{"level":20,"time":1},null],"number":1}',
        b'{"fallback":[{"level":20,"time":1},null],"number":1}',
        b"[1]",
        b"text",
    ],
)
def test_what_was_kept_for_another_sink_is_given_to_all(router, data) -> None:
    """Data of another shape is an event that each child encodes anew."""
    first, second = CaptureSink(), CaptureSink()
    sink = router(first, second)
    assert sink.emit_batch([Encoded(data, 20, 1.0)]) is None
    expected = [Encoded(data, 20, 1.0).event]
    assert first.events == expected
    assert second.events == (expected if router is FanoutSink else [])


def test_a_child_that_filters_while_encoding_is_left_out_of_what_was_kept_for_others() -> None:
    """DropEvent from a child's encode is no failure of the batch."""

    class Fussy(CaptureSink):
        def encode(self, event: dict[str, Any]) -> Encoded:
            raise DropEvent

    fussy, other = Fussy(), CaptureSink()
    sink = FanoutSink(fussy, other)
    assert sink.emit_batch([Encoded(b'{"event":"x"}', 20, 1.0)]) is None
    assert (fussy.events, other.events) == ([], [{"event": "x"}])


def test_behind_a_background_sink_nothing_comes_twice_and_nothing_is_missing() -> None:
    """With one child that fails now and then, both get each event once."""
    flaky = _Scripted(
        TemporaryDeliveryError("away"), None, BatchResult(retry=[0]), OSError("reset"), BatchResult(retry=[0, 1])
    )
    healthy = _Scripted()
    fanout = FanoutSink(flaky, healthy)
    with BackgroundSink(fanout, batch_size=7, linger=0, retry=AT_ONCE, on_error=lambda failure: None) as sink:
        for number in range(100):
            sink.handle({"event": "x", "level": "info", "number": number})
        assert sink.flush(60)
        assert sink.stats().delivered == 100
        assert_balanced(sink.stats())
    assert sorted(_numbers(flaky.events)) == list(range(100))
    assert _numbers(healthy.events) == list(range(100))
    for child in fanout.stats().targets:
        assert child.delivered == 100
        assert_balanced(child)


def test_an_event_that_a_child_refuses_is_dead_lettered_as_that_child_s() -> None:
    """The dead letter sink gets the event and not the item around it."""
    letters = CaptureSink()
    fanout = FanoutSink(_Scripted(BatchResult(rejected={0: "bad"})), _Scripted())
    with BackgroundSink(fanout, dead_letter=letters, linger=0, on_error=lambda failure: None) as sink:
        sink.handle({"event": "x", "level": "info", "number": 1})
        assert sink.flush(60)
        assert sink.stats().dead_lettered == 1
    assert letters.events == [{"event": "x", "level": "info", "number": 1}]


@pytest.mark.parametrize("router", [FanoutSink, FallbackSink])
def test_behind_a_spool_the_children_share_one_file(router, tmp_path) -> None:
    """What was spooled is delivered by the next start, to each child what it prepared; none sees it twice."""

    def redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        event["secret"] = "***"
        return event

    def make(*answers: Any) -> tuple[_Scripted, _Scripted, Sink]:
        first, second = _Scripted(*answers, processors=[redact]), _Scripted(processors=[redact])
        return first, second, router(first, second, on_error=lambda failure: None)

    def spool(sink: Sink) -> SpoolSink:
        return SpoolSink(sink, tmp_path / "spool", retry=AT_ONCE, linger=0, on_error=lambda failure: None)

    away = [TemporaryDeliveryError("away", 3600)]
    first, second, sink = make(*away * 1000)
    if router is FallbackSink:
        second.answers = away * 1000
    with spool(sink) as spooled:
        for number in range(50):
            spooled.handle({"event": "x", "level": "info", "number": number, "secret": "hunter2"})
        spooled.close(0)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file())
    assert b"hunter2" not in kept
    assert b"***" in kept
    first, second, sink = make(OSError("reset"), BatchResult(retry=[0]))
    with spool(sink) as spooled:
        # With its first event it takes over what the other has left.
        spooled.handle({"event": "x", "level": "info", "number": 50, "secret": "hunter2"})
        until(lambda: spooled.stats().adopted == 50)
        assert spooled.flush(60)
    if router is FanoutSink:
        assert sorted(_numbers(first.events)) == list(range(51))
        assert sorted(_numbers(second.events)) == list(range(51))
    else:
        assert sorted(_numbers(first.events) + _numbers(second.events)) == list(range(51))


def test_a_fanout_is_silent_about_what_a_child_refuses_as_reentrant() -> None:
    """The other children take it."""
    failures: list[SinkFailure] = []
    child = CaptureSink()
    fanout = FanoutSink(FailingSink(ReentrantEventError("busy")), child, on_error=failures.append)
    fanout.handle({"event": "x"})
    fanout.emit({"event": "y"})
    assert (len(child.events), failures) == (2, [])
    with pytest.raises(OSError, match="down"):
        FanoutSink(FailingSink(OSError("down"))).emit({"event": "z"})


def test_a_processor_of_a_child_may_drop_the_event_for_it() -> None:
    """It is filtered there, and the others have it."""

    def drop(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        raise DropEvent

    dropping, child = CaptureSink(processors=[drop]), CaptureSink()
    fanout = FanoutSink(dropping, child)
    assert fanout.emit_batch(_items(fanout, 1)) is None
    assert (dropping.stats().filtered, _numbers(child.events)) == (1, [1])
    assert repr(fanout) == "<FanoutSink to CaptureSink, CaptureSink>"
    assert fanout._reads_metadata()


@pytest.mark.parametrize("router", [FanoutSink, FallbackSink])
@pytest.mark.parametrize("options", [{}, {"level": "info"}], ids=["shared", "parts"])
def test_an_event_has_the_same_key_at_every_attempt(router, options) -> None:
    """By it a target such as Elasticsearch recognises what it has already; other events are not in the way."""
    keys: list[list[str]] = []

    def note(batch: Batch) -> BatchResult | None:
        keys.append(batch.item_keys)
        return BatchResult(retry=[1, 2]) if len(batch) == 3 else None

    target = _Scripted(note, note, **options)
    with router(target) as sink:
        batch = Batch(_items(sink, 1, 2, 3), "root")
        first, second = sink.emit_batch(batch), sink.emit_batch(batch[1:])
    assert first is not None
    assert list(first.retry) == [1, 2]
    assert not second
    assert keys[1] == keys[0][1:]
    assert len({*keys[0]}) == 3


def test_a_fanout_in_a_fallback_gives_nobody_anything_twice() -> None:
    """When the whole is tried again, the child that has taken the events is left out."""
    taking, later = _Scripted(), _Scripted(TemporaryDeliveryError("later"))
    with BackgroundSink(FallbackSink(FanoutSink(taking, later, level="debug")), retry=AT_ONCE) as sink:
        for number in range(3):
            sink.handle({"event": "x", "level": "info", "number": number})
        assert sink.flush(PATIENCE_SECONDS)
    assert _numbers(taking.events) == _numbers(later.events) == [0, 1, 2]


def test_an_item_without_parts_is_the_event_in_its_data() -> None:
    """So it may be told and dead-lettered like any other."""
    assert Routed(b'{"event":"x"}', 20, 1.0).event == {"event": "x"}


# -- FallbackSink


def test_the_primary_gets_the_events_while_it_takes_them() -> None:
    """The others see nothing of them."""
    primary, other = CaptureSink(), CaptureSink()
    sink = FallbackSink(primary, other)
    sink.handle({"event": "x"})
    assert (len(primary.events), len(other.events)) == (1, 0)
    assert [stats.delivered for stats in sink.stats().targets] == [1, 0]
    assert_balanced(sink.stats())


def test_the_next_one_takes_what_the_primary_fails_at() -> None:
    """Nothing is lost: it is delivered here, dropped at the primary, and told as a failure that cost nothing."""
    failures: list[SinkFailure] = []
    own: list[SinkFailure] = []
    primary, broken = FailingSink(OSError("down"), times=1, on_error=own.append), FailingSink(OSError("down too"))
    last = CaptureSink()
    sink = FallbackSink(primary, broken, last, on_error=failures.append)
    sink.handle({"event": "x", "number": 1})
    sink.handle({"event": "x", "number": 2})
    assert (_numbers(primary.events), _numbers(last.events)) == ([2], [1])
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (2, 2, {})
    assert [target.dropped for target in stats.targets] == [{"error": 1}, {"error": 1}, {}]
    assert [(str(failure.error), failure.events) for failure in failures] == [("down", 0), ("down too", 0)]
    assert [(failure.sink, failure.events) for failure in own] == [("FailingSink", 1)]
    assert stats.last_error == "OSError: down too"


def test_if_all_fail_the_event_is_lost_and_their_errors_are_told_as_one() -> None:
    """deliver raises, naming each; with one sink it raises what that raised."""
    first, second = FailingSink(OSError("a"), name="first"), FailingSink(ValueError("b"), name="second")
    sink = FallbackSink(first, second)
    with pytest.raises(DeliveryError, match="2 of 2 sinks failed: first: OSError: a; second: ValueError: b") as caught:
        sink.deliver({"event": "x"})
    assert not isinstance(caught.value, TemporaryDeliveryError)
    assert (sink.stats().accepted, sink.stats().dropped) == (1, {"error": 1})
    with pytest.raises(OSError, match="a"):
        FallbackSink(FailingSink(OSError("a"))).deliver({"event": "x"})


def test_if_one_of_them_may_take_it_later_so_may_the_fallback() -> None:
    """The error raised is temporary then, with the shortest of their waits."""
    sink = FallbackSink(
        FailingSink(TemporaryDeliveryError("busy", 9)),
        FailingSink(TemporaryDeliveryError("busy", 5)),
        FailingSink(OSError("b")),
    )
    with pytest.raises(TemporaryDeliveryError, match="3 of 3") as caught:
        sink.deliver({"event": "x"})
    assert caught.value.retry_after == 5


@pytest.mark.parametrize("in_doubt", [True, False])
def test_what_the_primary_refuses_for_good_does_not_wait_for_a_sink_in_doubt(in_doubt: bool) -> None:
    """Where it is open whether events or set-up are to blame, the primary has shown it; another pause is waited for."""
    doubt = PausedDeliveryError("400")
    doubt.in_doubt = in_doubt
    primary, other = _Scripted(BatchResult(rejected={0: "bad", 2: "bad"}), name="a"), _Scripted(doubt, name="b")
    sink = FallbackSink(primary, other, on_error=lambda _: None)
    result = sink.emit_batch(Batch(_items(sink, 1, 2, 3)))
    assert result is not None
    if in_doubt:
        assert (list(result.retry), result.rejected) == ([], dict.fromkeys((0, 2), "a: bad; b: 400"))
    else:
        assert (list(result.retry), result.rejected) == ([0, 2], {})
    assert other.batches == [[1, 3]]


def test_a_sink_that_filters_an_event_has_taken_it() -> None:
    """Filters say what belongs where: the next sink is not for what the primary does not want."""
    primary, other = CaptureSink(level="error"), CaptureSink()
    sink = FallbackSink(primary, other)
    sink.handle({"event": "x", "level": "info"})
    assert other.events == []
    assert (sink.stats().delivered, primary.stats().filtered) == (1, 1)
    with pytest.raises(DropEvent):
        sink.make_item({"event": "x", "level": "info"})
    assert primary.stats().filtered == 2


def test_a_closed_primary_is_one_that_fails() -> None:
    """Its SinkClosedError leads to the next sink."""
    primary, other = CaptureSink(), CaptureSink()
    sink = FallbackSink(primary, other, on_error=lambda failure: None)
    primary.close()
    sink.handle({"event": "x"})
    assert len(other.events) == 1


def test_with_raise_a_failure_that_cost_nothing_is_not_raised(capsys) -> None:
    """An audit log whose fallback took the event goes on; if none took it, the application learns of it."""
    primary, other = FailingSink(OSError("fallback test: down")), FailingSink(OSError("down too"), times=0)
    sink = FallbackSink(primary, other, on_error="raise", name="audit trail")
    sink.handle({"event": "x"})
    assert len(other.events) == 1
    assert sink.stats().last_error == "OSError: fallback test: down"
    other.times = None
    with pytest.raises(DeliveryError, match="2 of 2"):
        sink.handle({"event": "x"})


def test_an_event_born_in_a_delivery_goes_to_who_takes_it_in_silence() -> None:
    """A primary that refuses it as reentrant is passed by without a report; if all do, it is reentrant here too."""
    failures: list[SinkFailure] = []
    refusing = FailingSink(ReentrantEventError("busy"), on_error=failures.append)
    other = CaptureSink()
    FallbackSink(refusing, other, on_error=failures.append).handle({"event": "x"})
    assert len(other.events) == 1
    sink = FallbackSink(refusing, FailingSink(ReentrantEventError("busy")), on_error=failures.append)
    sink.handle({"event": "x"})
    assert sink.stats().dropped == {"reentrant": 1}
    assert failures == []


def test_what_a_fanout_has_put_out_in_part_is_taken() -> None:
    """A primary that raises for an event that is settled nevertheless has taken it."""
    failures: list[SinkFailure] = []
    half, other = CaptureSink(), CaptureSink()
    sink = FallbackSink(FanoutSink(FailingSink(OSError("down")), half), other, on_error=failures.append)
    sink.handle({"event": "x"})
    assert (len(half.events), len(other.events)) == (1, 0)
    assert [(str(failure.error), failure.events) for failure in failures] == [("down", 0)]
    assert sink.stats().delivered == 1


def test_it_owns_its_sinks() -> None:
    """flush and close reach all of them within one timeout."""
    first, second = StuckSink(), CaptureSink()
    sink = FallbackSink(first, second)
    thread = threading.Thread(target=sink.handle, args=({"event": "x"},))
    thread.start()
    assert first.stuck.wait(60)
    began = time.monotonic()
    assert sink.flush(0.05) is False
    assert sink.close(0.05) is False
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    assert (first.closed, second.closed) == (True, True)
    first.release()
    thread.join(30)


def test_bad_sinks_are_refused_by_a_fallback_too() -> None:
    """No sink at all, something else, and the same twice raise at construction."""
    sink = CaptureSink()
    with pytest.raises(TypeError):
        FallbackSink()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'file' is not a Sink"):
        FallbackSink(sink, "file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twice"):
        FallbackSink(sink, sink)


# -- FallbackSink behind a wrapper


def test_a_batch_goes_to_the_first_that_takes_it() -> None:
    """What the primary wants again or refuses goes to the next; both keep their account."""
    failures: list[SinkFailure] = []
    primary = _Scripted(None, BatchResult(retry=[1], rejected={0: "bad"}), TemporaryDeliveryError("away"))
    other = _Scripted()
    sink = FallbackSink(primary, other, on_error=failures.append)
    assert sink.emit_batch(Batch(_items(sink, 1, 2))) is None
    assert other.batches == []
    assert sink.emit_batch(Batch(_items(sink, 3, 4, 5))) is None
    assert other.batches == [[3, 4]]
    assert sink.emit_batch(Batch(_items(sink, 6))) is None
    assert other.batches == [[3, 4], [6]]
    assert _numbers(primary.events) == [1, 2, 5]
    assert [(stats.delivered, stats.dropped) for stats in sink.stats().targets] == [(3, {"rejected": 1}), (3, {})]
    assert {failure.events for failure in failures} == {0}
    assert [str(failure.error) for failure in failures] == ["bad", "the target took a part of a batch", "away"]


def test_what_none_takes_is_tried_again_or_refused() -> None:
    """If one of them may take it later it is retried, from the primary on; else it is refused, with each reason."""
    primary = _Scripted(BatchResult(rejected={0: "bad", 1: "bad"}), name="primary")
    other = _Scripted(BatchResult(rejected={0: "no"}, retry=[1], retry_after=4), name="other")
    sink = FallbackSink(primary, other, on_error=lambda failure: None)
    batch = Batch(_items(sink, 1, 2, 3))
    assert sink.emit_batch(batch) == BatchResult(retry=[1], rejected={0: "primary: bad; other: no"}, retry_after=4)
    assert sink.emit_batch(batch.part([1])) is None
    assert (primary.batches, other.batches) == ([[1, 2, 3], [2]], [[1, 2]])


def test_if_no_sink_takes_anything_the_wrapper_waits() -> None:
    """emit_batch raises: a pause only if all want one."""
    paused = PausedDeliveryError("no such address")
    sink = FallbackSink(_Scripted(paused, paused), _Scripted(paused, TemporaryDeliveryError("away")))
    batch = Batch(_items(sink, 1))
    with pytest.raises(PausedDeliveryError):
        sink.emit_batch(batch)
    with pytest.raises(TemporaryDeliveryError, match="away"):
        sink.emit_batch(batch)


def test_a_part_that_the_next_sink_filters_is_taken_by_it() -> None:
    """As in deliver: it is counted there as filtered."""
    other = CaptureSink(level="error")
    sink = FallbackSink(_Scripted(TemporaryDeliveryError("away")), other, on_error=lambda failure: None)
    assert sink.emit_batch(Batch(_items(sink, 1))) is None
    assert (other.events, other.stats().filtered) == ([], 1)


def test_a_primary_whose_processor_fails_leaves_the_event_to_the_next() -> None:
    """Also after the item was bytes on disk; if the next one filters it, it is filtered; if all fail, it raises."""

    def fail(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("refused")

    failures: list[SinkFailure] = []
    broken, other = CaptureSink(processors=[fail]), _Scripted(TemporaryDeliveryError("away"))
    sink = FallbackSink(broken, other, on_error=failures.append)
    [item] = _items(sink, 1)
    assert [(str(failure.error), failure.events) for failure in failures] == [("refused", 0)]
    restored = sink.restore_item(item.data, item.level, item.time)
    with pytest.raises(TemporaryDeliveryError):
        sink.emit_batch(Batch([restored]))
    assert sink.emit_batch(Batch([restored])) is None
    assert _numbers(other.events) == [1]
    assert broken.stats().dropped == {"error": 1}
    refusing = FallbackSink(broken, _Scripted(PermanentDeliveryError("no"), name="next"), on_error=failures.append)
    result = refusing.emit_batch(Batch(_items(refusing, 1)))
    assert result == BatchResult(rejected={0: "CaptureSink: ValueError: refused; next: no"})
    with pytest.raises(DropEvent):
        FallbackSink(broken, CaptureSink(level="error"), on_error=failures.append).make_item({"event": "x"})
    with pytest.raises(ValueError, match="refused"):
        FallbackSink(broken).make_item({"event": "x"})


def test_behind_a_background_sink_each_event_is_somewhere() -> None:
    """Whatever the primary does, one of the two has each event, once."""
    primary = _Scripted(
        TemporaryDeliveryError("away"), None, BatchResult(retry=[0]), OSError("reset"), PermanentDeliveryError("bad")
    )
    other = _Scripted(None, TemporaryDeliveryError("away too"))
    sink = FallbackSink(primary, other, on_error=lambda failure: None)
    with BackgroundSink(sink, batch_size=7, linger=0, retry=AT_ONCE, on_error=lambda failure: None) as background:
        for number in range(100):
            background.handle({"event": "x", "level": "info", "number": number})
        assert background.flush(60)
        assert background.stats().delivered == 100
    assert sorted(_numbers(primary.events) + _numbers(other.events)) == list(range(100))
    assert sum(child.delivered for child in sink.stats().targets) == 100


# -- what all children of a fanout share


class Flaky(CaptureSink):
    """Takes batches as its plan says: None takes all, a BatchResult says more, an exception is raised."""

    def __init__(self, *plan: Any) -> None:
        super().__init__()
        self.plan = list(plan)
        self.keys: list[str] = []
        self.lines: list[list[bytes]] = []

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Any) -> BatchResult | None:
        self.keys.append(batch.key)
        self.lines.append(batch.data)
        step = self.plan.pop(0) if self.plan else None
        if isinstance(step, Exception):
            raise step
        left = set() if step is None else {*step.retry, *step.rejected}
        super().emit_batch([item for at, item in enumerate(batch) if at not in left])
        return step


def _lines(count: int) -> list[bytes]:
    return [b'{"event":"x","level":"info","number":%d}' % number for number in range(count)]


def test_children_that_want_the_same_share_one_encoding():
    """The very bytes go to each, and nothing is decoded; each has keys of its own."""
    one, two = Flaky(), Flaky()
    fanout = FanoutSink(one, two)
    assert fanout.plain
    assert not fanout.needs_moment
    assert fanout.takes_any_number
    batch = Batch(_lines(3))
    assert fanout.emit_batch(batch) is None
    assert (
        [id(line) for line in one.lines[0]] == [id(line) for line in two.lines[0]] == [id(line) for line in batch.data]
    )
    assert one.keys != two.keys
    assert [stats.delivered for stats in fanout.stats().targets] == [3, 3]


@pytest.mark.parametrize(
    "change", [{"level": "error"}, {"processors": [lambda _logger, _name, event: event]}], ids=["level", "processors"]
)
def test_children_that_want_different_things_share_nothing(change):
    """A level or a processor of one of them is asked for each event, by a background around them too."""
    target = Flaky()
    assert not FanoutSink(target, CaptureSink(**change)).plain
    other = Flaky()
    with BackgroundSink(FanoutSink(target, other), linger=0) as sink:
        sink.handle({"event": "x", "level": "info", "number": 1})
        assert sink.flush()
        other.level = "error"
        sink.handle({"event": "x", "level": "info", "number": 2})
        assert sink.flush()
    assert [event["number"] for event in target.events] == [1, 2]
    assert [event["number"] for event in other.events] == [1]


@pytest.mark.parametrize(
    "failing",
    [
        [TemporaryDeliveryError("away"), BatchResult(retry=[1, 2]), None],
        [BatchResult(retry=[0, 3]), TemporaryDeliveryError("away"), None],
        [ConnectionResetError("gone"), None],
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_child_that_fails_is_given_again_what_it_has_not(failing, place):
    """The others see nothing twice, under the same keys where it is the same again."""
    children = [Flaky(), Flaky(), Flaky()]
    children[place].plan = list(failing)
    fanout = FanoutSink(children[0], FanoutSink(children[1], children[2]))
    told: list[SinkFailure] = []
    retry = RetryPolicy(start_seconds=0)
    with BackgroundSink(fanout, linger=0, retry=retry, on_error=told.append) as sink:
        for number in range(4):
            sink.handle({"event": "x", "level": "info", "number": number})
        assert sink.flush(60)
        assert sink.stats().delivered == 4
    for child in children:
        assert sorted(event["number"] for event in child.events) == [0, 1, 2, 3]


def test_what_one_child_refuses_is_refused_when_the_others_have_it():
    """For good, with the child's reason, also when another child had to be asked again first."""
    one = Flaky(BatchResult(rejected={1: "no"}))
    two = Flaky(BatchResult(retry=[0, 1]), None)
    dead = CaptureSink()
    told: list[SinkFailure] = []
    fanout = FanoutSink(one, two)
    sink = BackgroundSink(fanout, linger=60, retry=RetryPolicy(start_seconds=0), dead_letter=dead, on_error=told.append)
    for number in range(3):
        sink.handle({"event": "x", "level": "info", "number": number})
    assert sink.close(60)
    assert [event["number"] for event in dead.events] == [1]
    assert sorted(event["number"] for event in two.events) == [0, 1, 2]
    assert [event["number"] for event in one.events] == [0, 2]
    assert (sink.stats().delivered, sink.stats().dead_lettered) == (2, 1)
    assert "CaptureSink" not in str(told[-1].error)
    assert "Flaky: no" in str(told[-1].error)


def test_shared_items_and_those_with_parts_come_in_one_batch():
    """An event with an exception is prepared for each child; it is asked again with the others, and nothing twice."""
    one, two = Flaky(), Flaky(TemporaryDeliveryError("away"), None)
    told: list[SinkFailure] = []
    with BackgroundSink(
        FanoutSink(one, two), linger=60, retry=RetryPolicy(start_seconds=0), on_error=told.append
    ) as sink:
        sink.handle({"event": "x", "level": "info", "number": 0})
        sink.handle({"event": "x", "level": "info", "number": 1, "exc_info": ValueError("v")})
        sink.handle({"event": "x", "level": "info", "number": 2})
        assert sink.flush(60)
    for child in (one, two):
        assert [event["number"] for event in child.events] == [0, 1, 2]


def test_what_all_share_is_restored_as_it_is():
    """A spool's line is the item's data; one with a part for each child is taken apart."""
    fanout = FanoutSink(CaptureSink(), CaptureSink())
    kept = fanout.restore_item(b'{"event":"x"}', 20, 1.5)
    assert kept == Encoded(b'{"event":"x"}', 20, 1.5)
    assert type(fanout.make_item({"event": "x", "level": "info"})) is Encoded
    made = fanout.make_item({"event": "x", "level": "info", "exc_info": ValueError("v")})
    again = fanout.restore_item(made.data, made.level, made.time)
    assert again.parts == made.parts


# -- one line for files


def _fanout_of_files(tmp_path: Any, count: int = 3, **options: Any) -> FanoutSink:
    return FanoutSink(*(FileSink(tmp_path / f"{number}", **options) for number in range(count)))


def _written(tmp_path: Any, count: int = 3) -> list[list[int]]:
    return [[json.loads(line)["n"] for line in (tmp_path / f"{n}").read_text().splitlines()] for n in range(count)]


def test_files_are_written_to_at_once_and_each_counts(tmp_path):
    """Plain events, events with an exception, and filtered ones; the files are the same."""
    with _fanout_of_files(tmp_path) as sink:
        sink.level = "info"
        for number in range(6):
            sink.handle({"event": "x", "level": "info" if number % 2 else "debug", "n": number})
        sink.handle({"event": "x", "level": "error", "n": 6, "exc_info": ValueError("v")})
        sink.handle({"event": "x", "level": "no such", "n": 7})
        stats = sink.stats()
    assert _written(tmp_path) == [[1, 3, 5, 6, 7]] * 3
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(3)}) == 1
    assert (stats.delivered, stats.filtered) == (5, 3)
    assert [each.delivered for each in stats.targets] == [5, 5, 5]


def test_a_file_whose_level_is_set_later_gets_less(tmp_path):
    """The others get all; the short way is for children that want the same."""
    with _fanout_of_files(tmp_path) as sink:
        sink.handle({"event": "x", "level": "info", "n": 1})
        sink.sinks[1].level = "error"
        sink.handle({"event": "x", "level": "info", "n": 2})
        sink.sinks[1].level = "notset"
        sink.handle({"event": "x", "level": "info", "n": 3})
    assert _written(tmp_path) == [[1, 2, 3], [1, 3], [1, 2, 3]]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_that_fails_costs_the_others_nothing(tmp_path, place):
    """They have each event once; the failure is told, and counted where it happened."""
    told: list[SinkFailure] = []
    sink = _fanout_of_files(tmp_path)
    sink.on_error = told.append
    sink.handle({"event": "x", "level": "info", "n": 1})
    sink.sinks[place].close()
    sink.handle({"event": "x", "level": "info", "n": 2})
    assert _written(tmp_path) == [[1] if number == place else [1, 2] for number in range(3)]
    assert [failure.events for failure in told] == [0]
    assert sink.sinks[place].stats().dropped == {"closed": 1}
    assert (sink.stats().delivered, dict(sink.stats().dropped)) == (2, {})
    assert sink.close()


def test_a_file_that_fails_in_the_midst_is_the_only_one_that_the_pipeline_is_asked_for(tmp_path, monkeypatch):
    """What was written before it is not written again."""
    told: list[SinkFailure] = []
    sink = _fanout_of_files(tmp_path)
    sink.on_error = told.append
    failing = sink.sinks[1]
    monkeypatch.setattr(failing, "_fd", -1)
    monkeypatch.setattr(failing, "base_filename", str(tmp_path / "no" / "such" / "place"))
    sink.handle({"event": "x", "level": "info", "n": 1})
    monkeypatch.undo()
    sink.handle({"event": "x", "level": "info", "n": 2})
    assert sink.close()
    assert _written(tmp_path) == [[1, 2], [2], [1, 2]]
    assert len(told) == 1
    assert failing.stats().dropped == {"error": 1}


def test_eight_threads_write_to_all_files_in_one_order(tmp_path):
    """One thread at a time: the files are the same, and none lacks an event."""
    sink = _fanout_of_files(tmp_path)

    def work(first: int) -> None:
        for number in range(first, first + 500):
            sink.handle({"event": "x", "level": "info", "n": number})

    threads = [threading.Thread(target=work, args=(number * 500,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.close()
    first, *others = _written(tmp_path)
    assert sorted(first) == list(range(4000))
    assert others == [first, first]
    assert sink.stats().delivered == 4000
