"""The pipeline, the error policy and the ledger, where the contract of all sinks does not show them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog import DropEvent

from outfall import (
    BatchResult,
    ByteSink,
    CaptureSink,
    Encoded,
    PermanentDeliveryError,
    ReentrantEventError,
    RotatingFileSink,
    Sink,
    SinkClosedError,
    SinkError,
    SinkFailure,
    TemporaryDeliveryError,
)
from outfall.sinks.event.event import TextEvent
from outfall.sinks.testing import FailingSink, StuckSink, assert_balanced

if TYPE_CHECKING:
    from collections.abc import Callable


class ListSink(ByteSink):
    """A byte sink that keeps what it is told to write."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


# -- level, processors


def test_a_missing_level_counts_as_info() -> None:
    """An event without any level passes INFO and is kept out by WARNING."""
    sink = CaptureSink(level="info")
    sink.handle({"event": "no level"})
    sink.level = "warning"
    sink.handle({"event": "no level"})
    assert len(sink.events) == 1


def test_processors_run_in_order_and_get_logger_and_name() -> None:
    """Each gets what the one before returned, the logger's metadata where there is some, and the level's name."""
    calls: list[tuple[object, str]] = []

    def first(logger: object, name: str, event: dict[str, Any]) -> dict[str, Any]:
        calls.append((logger, name))
        return {"event": event["event"] + "!", "replaced": True}

    def second(logger: object, name: str, event: dict[str, Any]) -> dict[str, Any]:
        calls.append((logger, name))
        event["event"] += "?"
        return event

    sink = CaptureSink(processors=[first, second])
    sink.handle({"event": "a", "level": "WARN"})
    marker = object()
    sink.handle({"event": "b", "_logger": marker, "_name": "critical"})
    assert [event["event"] for event in sink.events] == ["a!?", "b!?"]
    assert calls == [(None, "warning")] * 2 + [(marker, "critical")] * 2


def test_a_processor_chain_may_end_in_a_renderer() -> None:
    """Text that a sink's own chain makes is written as it is."""
    sink = ListSink(processors=[structlog.processors.LogfmtRenderer()])
    sink.handle({"event": "x", "n": 1})
    assert sink.written == [b"event=x n=1"]


def test_processors_do_not_see_each_others_sinks() -> None:
    """Two sinks on one event, each with its own redaction of a nested value, see the same event."""

    def redact(key: str) -> Callable[..., dict[str, Any]]:
        def processor(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
            event["user"][key] = "***"
            return event

        return processor

    first, second = CaptureSink(processors=[redact("name")]), CaptureSink(processors=[redact("mail")])
    event = {"event": "x", "user": {"name": "n", "mail": "m"}}
    first.handle(event)
    second.handle(event)
    assert first.events[0]["user"] == {"name": "***", "mail": "m"}
    assert second.events[0]["user"] == {"name": "n", "mail": "***"}


def test_structlog_chains_may_share_a_sink() -> None:
    """A sink that ends two chains takes the events of both."""
    sink = CaptureSink()
    for number in range(2):
        structlog.wrap_logger(structlog.PrintLogger(), processors=[sink]).info("hello", number=number)
    assert sink.events == [{"event": "hello", "number": 0}, {"event": "hello", "number": 1}]


def test_a_processor_that_returns_something_else_is_an_error() -> None:
    """The loss is counted and told."""
    failures: list[SinkFailure] = []
    sink = CaptureSink(processors=[lambda *_: 42], on_error=failures.append)
    sink.handle({"event": "x"})
    assert sink.stats().dropped == {"error": 1}
    assert "int" in str(failures[0].error)


def test_what_is_no_event_is_counted_as_an_error() -> None:
    """Something that is no dict at all does not raise into the application."""
    sink = CaptureSink(on_error=lambda _: None)
    sink.handle(42)  # type: ignore[arg-type]
    assert sink.stats().dropped == {"error": 1}


# -- locks


def test_processors_and_renderer_run_outside_the_lock() -> None:
    """Another thread can log to the sink, flush it and read its stats while a value is being shown."""
    sink: ListSink
    done = threading.Event()

    class Waiting:
        def __repr__(self) -> str:
            other = threading.Thread(target=self.log)
            other.start()
            assert done.wait(60), "the lock is held while rendering"
            return "waited"

        def log(self) -> None:
            sink.handle({"event": "other thread"})
            assert sink.flush(1)
            sink.stats()
            done.set()

    sink = ListSink()
    sink.handle({"event": "x", "value": Waiting()})
    assert [json.loads(line).get("value") for line in sink.written] == [None, "waited"]


def test_on_error_is_called_without_the_lock() -> None:
    """Another thread can use the sink meanwhile."""
    taken: list[bool] = []

    def use_it_elsewhere(_failure: SinkFailure) -> None:
        thread = threading.Thread(target=lambda: taken.append(sink.flush(1)))
        thread.start()
        thread.join(60)

    sink = FailingSink(OSError("down"), on_error=use_it_elsewhere)
    sink.handle({"event": "x"})
    assert taken == [True]


def test_emit_is_serialised() -> None:
    """No two threads are in emit at once."""
    inside: list[int] = []
    most: list[int] = []

    class Watching(Sink):
        def emit(self, event: dict[str, Any]) -> None:
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.001)
            inside.pop()

    sink = Watching()
    threads = [threading.Thread(target=sink.handle, args=({"event": "x"},)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_flush_and_close_give_up_at_their_deadline() -> None:
    """With emit stuck both return False in time; the event that hangs is not lost."""
    sink = StuckSink()
    thread = threading.Thread(target=sink.handle, args=({"event": "slow"},))
    thread.start()
    assert sink.stuck.wait(60)
    assert sink.flush(0.05) is False
    assert sink.close(0.05) is False
    assert sink.close() is False
    sink.release()
    thread.join(60)
    assert sink.stats().delivered == 1


# -- failures


def test_emit_errors_are_told_as_they_are() -> None:
    """An error that gives nothing away reaches on_error itself, and stats in words."""
    failures: list[SinkFailure] = []
    error = OSError(28, "No space left on device")
    sink = FailingSink(error, times=1, on_error=failures.append)
    sink.handle({"event": "lost"})
    sink.handle({"event": "kept"})
    assert failures[0].error is error
    assert "No space left" in str(sink.stats().last_error)
    assert (sink.stats().delivered, sink.stats().dropped) == (1, {"error": 1})


def test_deliver_raises_what_handle_would_report() -> None:
    """deliver() raises the target's own exception and counts the loss once."""
    sink = FailingSink(OSError("down"))
    with pytest.raises(OSError, match="down"):
        sink.deliver({"event": "x"})
    assert sink.stats().dropped == {"error": 1}


def test_drop_event_from_emit_or_renderer_filters() -> None:
    """A renderer that raises DropEvent has filtered the event."""

    def render(*_: object) -> str:
        raise DropEvent

    sink = ListSink(renderer=render)
    sink.handle({"event": "x"})
    assert (sink.stats().filtered, sink.stats().accepted) == (1, 0)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_interrupts_in_emit_are_counted(interrupt: type[BaseException]) -> None:
    """What is no Exception passes through handle and deliver."""
    sink = FailingSink(interrupt())
    with pytest.raises(interrupt):
        sink.handle({"event": "x"})
    assert sink.stats().dropped == {"interrupted": 1}


def test_handle_error_can_be_overridden() -> None:
    """The hook is what decides; a raise in it stays in the sink."""
    seen: list[SinkFailure] = []

    class Own(FailingSink):
        def handle_error(self, failure: SinkFailure) -> None:
            seen.append(failure)
            msg = "from the hook"
            raise ValueError(msg)

    Own(OSError("down")).handle({"event": "x"})
    assert len(seen) == 1


def test_on_error_of_one_sink_may_log_to_another() -> None:
    """From within on_error only the failing sink refuses."""
    other = CaptureSink()
    sink = FailingSink(OSError("down"), on_error=lambda failure: other.handle({"event": failure.sink}))
    sink.handle({"event": "x"})
    assert other.events == [{"event": "FailingSink"}]


# -- re-entrancy


class LoggingTarget(Sink):
    """A network sink whose library logs, into another network sink."""

    delivers_through_loggers = True

    def __init__(self, other: Sink | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.other = other
        self.seen: list[Any] = []

    def emit(self, event: dict[str, Any]) -> None:
        self.seen.append(event["event"])
        if self.other is not None:
            self.other.handle({"event": f"sent {event['event']}"})


def test_network_sinks_do_not_feed_each_other() -> None:
    """While one delivers, every such sink drops that thread's events as reentrant, without a report."""
    failures: list[SinkFailure] = []
    second = LoggingTarget(on_error=failures.append)
    first = LoggingTarget(second)
    second.other = first
    first.handle({"event": "x"})
    second.handle({"event": "y"})
    assert (first.seen, second.seen) == (["x"], ["y"])
    assert (first.stats().dropped, second.stats().dropped) == ({"reentrant": 1}, {"reentrant": 1})
    assert failures == []


def test_deliver_tells_a_router_that_an_event_was_reentrant() -> None:
    """It raises, so that a router can try another sink."""
    raised: list[BaseException] = []

    class Router(Sink):
        delivers_through_loggers = True

        def emit(self, event: dict[str, Any]) -> None:
            with pytest.raises(ReentrantEventError) as caught:
                LoggingTarget().deliver(event)
            raised.append(caught.value)

    Router().handle({"event": "x"})
    assert len(raised) == 1


def test_other_sinks_take_events_born_in_a_delivery() -> None:
    """Files and streams take what a network sink's library logs."""
    capture = CaptureSink()
    LoggingTarget(capture).handle({"event": "x"})
    assert capture.events == [{"event": "sent x"}]


def test_another_thread_is_not_reentrant() -> None:
    """Only the delivering thread's own events are dropped."""
    second = LoggingTarget()

    class Elsewhere(Sink):
        delivers_through_loggers = True

        def emit(self, event: dict[str, Any]) -> None:
            thread = threading.Thread(target=second.handle, args=(event,))
            thread.start()
            thread.join()

    Elsewhere().handle({"event": "x"})
    assert second.seen == ["x"]


# -- batches


def _batch(sink: Sink, count: int) -> list[Encoded]:
    return [sink.encode({"event": "x", "n": number, "level": "error", "timestamp": 12.5}) for number in range(count)]


class Picky(Sink):
    """Raises what it is told to for the events it is told."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        super().__init__()
        self.errors = errors
        self.taken: list[int] = []

    def emit(self, event: dict[str, Any]) -> None:
        if event["n"] in self.errors:
            raise self.errors[event["n"]]
        self.taken.append(event["n"])


def test_the_default_emit_batch_loops() -> None:
    """Each item is emitted; None says all were taken."""
    sink = Picky({})
    assert sink.emit_batch(_batch(sink, 3)) is None
    assert sink.taken == [0, 1, 2]


def test_one_bad_event_of_a_batch_is_rejected_alone() -> None:
    """The others are emitted, and the reason is told."""
    sink = Picky({1: PermanentDeliveryError("too odd"), 2: ValueError("bad")})
    result = sink.emit_batch(_batch(sink, 4))
    assert result == BatchResult(rejected={1: "too odd", 2: "ValueError: bad"})
    assert sink.taken == [0, 3]


def test_a_temporary_failure_leaves_the_rest_of_a_batch_for_a_retry() -> None:
    """What was emitted is not named; what was not is to be retried, after the time the target asked for."""
    sink = Picky({1: TemporaryDeliveryError("busy", retry_after=7)})
    assert sink.emit_batch(_batch(sink, 3)) == BatchResult(retry=range(1, 3), retry_after=7)
    sink = Picky({0: TemporaryDeliveryError("busy")})
    with pytest.raises(TemporaryDeliveryError):
        sink.emit_batch(_batch(sink, 3))


def test_an_encoded_event_has_level_and_time() -> None:
    """They are the event's own, or the moment's."""
    item = _batch(CaptureSink(), 1)[0]
    assert (item.level, item.time) == (40, 12.5)
    assert item.event == {"event": "x", "n": 0, "level": "error", "timestamp": 12.5}


# -- byte sinks


def test_a_renderer_gets_a_copy_without_metadata() -> None:
    """A renderer that pops, as structlog's do, changes nothing; metadata is not rendered."""
    event = {
        "event": "x",
        "n": 1,
        "_record": object(),
        "_name": "info",
        "_logger": None,
        "_from_structlog": True,
    }
    before = dict(event)

    def render(_logger: object, name: str, event_dict: dict[str, Any]) -> str:
        return f"{name}:{event_dict.pop('event')}:{sorted(event_dict)}"

    sink = ListSink(renderer=render, terminator="|")
    sink.handle(event)
    assert sink.written == [b"info:x:['n']|"]
    assert event == before


@pytest.mark.parametrize("rendered", ["x", b"x", bytearray(b"x"), memoryview(b"x")])
def test_a_renderer_may_return_text_or_bytes(rendered: Any) -> None:
    """Text is encoded, bytes go as they are, both with the terminator."""
    sink = ListSink(renderer=lambda *_: rendered, terminator="\n")
    sink.handle({"event": "x"})
    assert sink.written == [b"x\n"]


def test_a_renderer_that_returns_something_else_is_an_error() -> None:
    """It is told by type."""
    failures: list[SinkFailure] = []
    sink = ListSink(renderer=lambda *_: {"not": "text"}, on_error=failures.append)
    sink.handle({"event": "x"})
    assert "dict" in str(failures[0].error)


def test_text_is_encoded_as_asked() -> None:
    """encoding and errors are those of str.encode; by default nothing is lost."""
    for options, written in (
        ({}, "é\\ud800".encode()),
        ({"encoding": "latin-1"}, b"\xe9\\ud800"),
        ({"encoding": "ascii", "errors": "replace"}, b"??"),
    ):
        sink = ListSink(renderer=lambda *_: "é\ud800", **options)
        sink.handle({"event": "x"})
        assert sink.written == [written]


def test_text_errors_do_not_give_the_text_away() -> None:
    """A strict encoding error names the place but not the text."""
    failures: list[SinkFailure] = []
    sink = ListSink(renderer=lambda *_: "geheim é", encoding="ascii", errors="strict", on_error=failures.append)
    sink.handle({"event": "x"})
    assert isinstance(failures[0].error, UnicodeEncodeError)
    assert "geheim" not in repr(failures[0].error.args)


def test_renderer_and_terminator_can_be_set() -> None:
    """They act at the next event."""
    sink = ListSink()
    sink.handle({"event": "x"})
    sink.renderer = structlog.processors.KeyValueRenderer()
    sink.terminator = "\0"
    sink.handle({"event": "y"})
    assert sink.written == [b'{"event":"x"}', b"event='y'\x00"]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"renderer": 1}, "renderer"),
        ({"encoding": "no-such"}, "encoding"),
        ({"encoding": "base64"}, "encoding"),
        ({"errors": "no-such"}, "errors"),
        ({"terminator": b"\n"}, "terminator"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], argument: str) -> None:
    """The message has the argument and the value."""
    with pytest.raises((ValueError, TypeError), match=re.escape(f"{argument}={options[argument]!r}")):
        ListSink(**options)


def test_a_sink_writer_may_override_emit_of_a_byte_sink() -> None:
    """emit wins over write."""

    class Own(ListSink):
        def emit(self, event: dict[str, Any]) -> None:
            self.write(b"own")

    sink = Own()
    sink.handle({"event": "x"})
    assert sink.written == [b"own"]


def test_what_a_sink_writer_forgot_is_told() -> None:
    """A sink without emit, and a byte sink without write, say what to implement."""
    failures: list[SinkFailure] = []
    Sink(on_error=failures.append).handle({"event": "x"})
    ByteSink(on_error=failures.append).handle({"event": "x"})
    assert ["emit(event)" in str(failures[0].error), "write(data)" in str(failures[1].error)] == [True, True]


# -- ending


def test_closing_between_admission_and_the_lock_is_no_loss_in_silence() -> None:
    """An event that passed the level just before close() is counted as closed, not written."""
    sink: ListSink

    def close_meanwhile(_logger: object, _name: str, event: dict[str, Any]) -> str:
        sink.close()
        return "late"

    sink = ListSink(renderer=close_meanwhile, on_error=lambda _: None)
    sink.handle({"event": "x"})
    assert sink.written == []
    assert sink.stats().dropped == {"closed": 1}
    with pytest.raises(SinkClosedError):
        sink.deliver({"event": "y"})


def test_asyncio_can_flush_and_close() -> None:
    """aflush and aclose do what flush and close do."""

    async def use() -> tuple[bool, bool]:
        sink = CaptureSink()
        sink.handle({"event": "x"})
        return await sink.aflush(1), await sink.aclose(1)

    assert asyncio.run(use()) == (True, True)


def test_a_failing_flush_is_told() -> None:
    """flush and close return False, tell on_error, and count no event as lost."""
    failures: list[SinkFailure] = []

    class Failing(CaptureSink):
        def _flush(self) -> None:
            msg = "down"
            raise OSError(msg)

    sink = Failing(on_error=failures.append)
    sink.handle({"event": "x"})
    assert sink.flush() is False
    assert sink.close() is False
    assert [failure.events for failure in failures] == [0, 0]
    assert_balanced(sink.stats())


def test_stats_are_frozen() -> None:
    """A ledger that was read does not change."""
    sink = FailingSink(OSError("down"), on_error=lambda _: None)
    sink.handle({"event": "x"})
    stats = sink.stats()
    sink.handle({"event": "y"})
    assert stats.dropped == {"error": 1}
    with pytest.raises(AttributeError):
        stats.delivered = 7  # type: ignore[misc]


def test_what_is_raised_for_an_audit_sink_has_no_context_with_the_event() -> None:
    """Where an error's own text would give the event away, its stand-in does not lead to it either."""

    def fail(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(event["password"])

    sink = CaptureSink(processors=[fail], on_error="raise")
    with pytest.raises(SinkError) as caught:
        sink.handle({"event": "x", "password": "correct horse"})
    link: BaseException | None = caught.value
    while link is not None:
        assert "correct horse" not in f"{link!r} {link}"
        link = link.__cause__ or link.__context__


# -- items of a batch and what ends them


class _OwnLines(ListSink):
    """A sink that decides about the end of a line by itself."""

    def render(self, event: dict[str, Any]) -> bytes:
        return b"<" + str(event["event"]).encode() + b">"


@pytest.mark.parametrize(
    ("made", "options", "event"),
    [
        (ListSink, {"terminator": "\n"}, {"event": "e"}),
        (ListSink, {"terminator": ""}, {"event": "e"}),
        (ListSink, {"terminator": "\r\n\r\n"}, {"event": "e"}),
        (ListSink, {"terminator": "\n", "renderer": lambda _, __, event: event["event"] * 2}, {"event": "ä"}),
        (ListSink, {"terminator": "\n", "renderer": lambda _, __, event: b"bytes"}, {"event": "e"}),
        (ListSink, {"terminator": "\n", "encoding": "utf-16-le"}, {"event": "e"}),
        (ListSink, {"terminator": "\n", "encoding": "utf-16-le"}, "text of somebody else\n"),
        (ListSink, {"terminator": "\n"}, "text of somebody else"),
        (ListSink, {"terminator": "\n", "encoding": "utf-16", "renderer": lambda *_: "text"}, {"event": "e"}),
        (_OwnLines, {"terminator": "\n"}, {"event": "e"}),
    ],
)
def test_a_batch_is_written_as_its_events_are(made, options, event):
    """What a sink writes of an event is the same whether it comes alone or in a batch."""
    alone, batched = made(**options), made(**options)
    alone.deliver(event)
    taken = event if isinstance(event, dict) else TextEvent(event)
    batched.emit_batch([batched.encode(taken)])
    assert alone.written == batched.written != []


def test_an_item_has_no_terminator_and_gets_the_one_of_its_writer():
    """A terminator that is set between the event and its batch ends the event."""
    sink = ListSink(terminator="\n")
    item = sink.encode({"event": "e"})
    assert item.data == b'{"event":"e"}'
    sink.terminator = ";"
    sink.emit_batch([item])
    assert sink.written == [b'{"event":"e"};']


def test_completion_shows_what_a_user_calls(tmp_path):
    """Hooks for writers of sinks, and what wrappers call, are not listed; all of it is there all the same."""
    with RotatingFileSink(tmp_path / "a", max_bytes=100) as sink:
        shown = {name for name in dir(sink) if name[0] != "_"}
        assert {"handle", "flush", "close", "stats", "level", "renderer", "do_rollover", "reopen"} <= shown
        assert shown.isdisjoint({"emit", "emit_batch", "encode", "make_item", "write", "should_rollover", "after_fork"})
        assert len(shown) < 35
        assert callable(sink.emit)
    assert "emit" in dir(RotatingFileSink)
