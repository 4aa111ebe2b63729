"""QueueSink puts events into any queue, as bytes; QueueListener hands them to sinks, none of which starves another."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from structlog import DropEvent

from outfall import (
    BackgroundSink,
    BatchResult,
    CaptureSink,
    FanoutSink,
    FileSink,
    PermanentDeliveryError,
    QueueListener,
    QueueSink,
    RetryPolicy,
    Sink,
    SinkClosedError,
    SinkFailure,
    SinkHandler,
    StreamSink,
    TemporaryDeliveryError,
)
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.delivery import queue as sink_module
from outfall.sinks.delivery import queuelistener
from outfall.sinks.testing import FailingSink, SinkContract, StuckSink, assert_balanced
from tests.sinks._processes import check, events_of, in_fork, run, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from outfall.sinks.core.item import Encoded

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
PATIENCE_SECONDS = 30.0
AT_ONCE = RetryPolicy(start_seconds=0, pause_start_seconds=0)


def _numbers(events: Any) -> list[int]:
    return [event["number"] for event in events]


def _log(sink: Sink, *numbers: int, **fields: Any) -> None:
    for number in numbers:
        sink.handle({"event": "x", "level": "info", "number": number, **fields})


def _contents(waiting: Any) -> list[Any]:
    found = []
    while True:
        try:
            found.append(waiting.get(False))
        except queue.Empty:
            return found


@pytest.fixture(
    params=["SimpleQueue", "Queue", "bounded", "multiprocessing", "SimpleQueue of multiprocessing", "manager"]
)
def any_queue(request) -> Iterator[Any]:
    """Give a queue of each kind."""
    if request.param == "manager":
        with multiprocessing.get_context("spawn").Manager() as manager:
            yield manager.Queue()
        return
    context = multiprocessing.get_context()
    made: Any = {
        "SimpleQueue": queue.SimpleQueue,
        "Queue": queue.Queue,
        "bounded": lambda: queue.Queue(1000),
        "multiprocessing": context.Queue,
        "SimpleQueue of multiprocessing": context.SimpleQueue,
    }[request.param]()
    yield made
    if hasattr(made, "close"):
        made.close()
    if hasattr(made, "join_thread"):
        made.join_thread()


@pytest.fixture(autouse=True)
def _patience(monkeypatch) -> None:
    """Have what waits by default wait for a busy machine too."""
    monkeypatch.setattr(Sink, "drain_timeout", 60.0)
    monkeypatch.setattr(QueueListener, "drain_timeout", 60.0)


class TestQueueSinkContract(SinkContract):
    """A queue that nobody reads."""

    def make_sink(self, **options: Any) -> Sink:
        self.queue: Any = queue.SimpleQueue()
        return QueueSink(self.queue, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return [json.loads(item) for item in _contents(self.queue)]


class TestBoundedQueueSinkContract(TestQueueSinkContract):
    """A queue with locks and a bound."""

    def make_sink(self, **options: Any) -> Sink:
        self.queue = queue.Queue(1000)
        return QueueSink(self.queue, **options)


class TestListenedQueueSinkContract(SinkContract):
    """A queue with a listener in the same process."""

    @pytest.fixture(autouse=True)
    def _listen(self) -> Iterator[None]:
        self.target = CaptureSink()
        self.waiting: Any = queue.SimpleQueue()
        with QueueListener(self.waiting, self.target) as self.listener:
            yield

    def make_sink(self, **options: Any) -> Sink:
        return QueueSink(self.waiting, listener=self.listener, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert self.listener.flush(60)
        return self.target.events


# -- QueueSink


def test_what_is_in_the_queue_is_json_in_bytes() -> None:
    """One object for each event, with the event's own fields and no others, that any reader can parse."""
    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting)
    event = {"event": "x", "level": "info", "tags": ["a"]}
    sink.handle(event)
    sink.handle({"event": "y", "_record": object(), "value": {1, 2}})
    event["tags"].append("b")  # type: ignore[attr-defined]
    first, second = _contents(waiting)
    assert first == b'{"event":"x","level":"info","tags":["a"]}'
    assert json.loads(second) == {"event": "y", "value": [1, 2]}
    assert sink.prepare({"event": "x"}) == b'{"event":"x"}'
    assert (sink.stats().accepted, sink.stats().delivered) == (2, 2)


def test_the_short_cut_does_what_the_pipeline_does() -> None:
    """The same bytes, the same counts, with and without a level, whatever is in the event."""

    class Long(QueueSink):
        """Overrides what the short cut stands in for, so it is not taken."""

        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)

    events: list[Any] = [
        {"event": "x", "level": "info"},
        {"event": "x", "level": "debug"},
        {"event": "x", "level": "debug", "level_number": 40},
        {"event": "x", "level": "no-such"},
        {"event": "x"},
        {"event": "x", "value": object()},
        {"event": "x", "exc_info": ValueError("v")},
        {"event": "x", "_logger": None, "_name": "info", "_from_structlog": True},
        "text",
        42,
    ]
    for level in ("notset", "info"):
        results = []
        for kind in (QueueSink, Long):
            waiting: Any = queue.SimpleQueue()
            sink = kind(waiting, level=level, on_error=lambda failure: None, name="q")
            assert (sink._put_item is None) == (kind is Long)
            for event in events:
                sink.handle(event)
            results.append((_contents(waiting), sink.stats()))
        [(first, first_stats), (second, second_stats)] = results
        strip = [item.split(b" at 0x")[0] for item in first], [item.split(b" at 0x")[0] for item in second]
        assert strip[0] == strip[1]
        assert first_stats == second_stats


def test_level_and_processors_come_before_the_queue() -> None:
    """What is filtered or redacted is not in it."""

    def redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        event["password"] = "***"
        return event

    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting, level="info", processors=[redact])
    sink.handle({"event": "x", "level": "debug"})
    sink.handle({"event": "x", "level": "info", "password": "hunter2"})
    assert _contents(waiting) == [b'{"event":"x","level":"info","password":"***"}']


def test_a_level_that_came_with_the_call_is_not_lost() -> None:
    """It becomes a field, since the other end cannot know it; a level that is a field stays as it is."""
    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting)
    for event in ({"event": "x"}, {"event": "x", "level": "debug"}, {"event": "x", "level_number": 35}):
        with pytest.raises(DropEvent):
            sink(None, "warning", event)
    with pytest.raises(DropEvent):
        sink(None, "error", "text")
    assert [json.loads(item) for item in _contents(waiting)] == [
        {"event": "x", "level": "warning"},
        {"event": "x", "level": "debug"},
        {"event": "x", "level_number": 35},
        {"event": "text", "level": "error"},
    ]


def test_an_exception_is_rendered_where_it_is_handled() -> None:
    """exc_info=True is the traceback, as text; no traceback object is in the queue."""
    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting)
    try:
        raise ValueError("now")
    except ValueError:
        sink.handle({"event": "x", "exc_info": True})
    assert json.loads(waiting.get())["exception"].endswith("ValueError: now")


def test_a_full_queue_costs_the_event_and_nobody_waits() -> None:
    """It is counted as full and told; with "raise" it is raised; when there is room again events are taken."""
    failures: list[SinkFailure] = []
    waiting: Any = queue.Queue(1)
    sink = QueueSink(waiting, on_error=failures.append)
    _log(sink, 1, 2)
    assert sink.stats().dropped == {"full": 1}
    assert [(str(failure.error), failure.events) for failure in failures] == [("the queue is full", 1)]
    assert failures[0].error.__context__ is None
    with pytest.raises(TemporaryDeliveryError, match="full"):
        sink.deliver({"event": "x"})
    sink.on_error = "raise"
    with pytest.raises(TemporaryDeliveryError, match="full"):
        _log(sink, 3)
    waiting.get()
    _log(sink, 4)
    assert_balanced(sink.stats())
    assert _numbers(map(json.loads, _contents(waiting))) == [4]


class _ShutDown(Exception):
    """What a queue that was shut down raises."""


class _DownQueue:
    """A queue that was shut down, after what was in it has been read."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)

    def put_nowait(self, item: Any) -> None:
        raise _ShutDown

    def get(self, block: bool = True) -> Any:
        if self.items:
            return self.items.pop(0)
        raise _ShutDown

    get_nowait = get


@pytest.fixture
def shut_down(monkeypatch) -> None:
    """Have the modules take _ShutDown for the exception that came with Python 3.13."""
    monkeypatch.setattr(sink_module, "SHUT_DOWN", (_ShutDown,))
    monkeypatch.setattr(queuelistener, "SHUT_DOWN", (_ShutDown,))


@pytest.mark.usefixtures("shut_down")
def test_a_queue_that_was_shut_down_is_closed() -> None:
    """Events are counted as closed and told; a listener delivers what is left and ends."""
    failures: list[SinkFailure] = []
    down = _DownQueue(b'{"number":1}', b'{"number":2}')
    sink = QueueSink(down, on_error=failures.append)
    _log(sink, 3)
    assert sink.stats().dropped == {"closed": 1}
    assert isinstance(failures[0].error, PermanentDeliveryError)
    target = CaptureSink()
    listener = QueueListener(down, target, on_error=failures.append).start()
    until(lambda: not listener.running)
    assert listener.stop()
    assert _numbers(target.events) == [1, 2]
    assert listener.stop()
    assert len(failures) == 1


@pytest.mark.skipif(not hasattr(queue, "ShutDown"), reason="since Python 3.13")
def test_a_real_queue_that_was_shut_down_is_closed() -> None:
    """The same with the standard library's queue."""
    waiting: Any = queue.Queue()
    target = CaptureSink()
    sink = QueueSink(waiting, on_error=lambda failure: None)
    listener = QueueListener(waiting, target).start()
    _log(sink, 1)
    waiting.shutdown()
    _log(sink, 2)
    until(lambda: not listener.running)
    assert listener.stop()
    assert _numbers(target.events) == [1]
    assert sink.stats().dropped == {"closed": 1}


def test_prepare_and_enqueue_may_be_overridden() -> None:
    """As QueueHandler's: what prepare returns is what enqueue gets, and the queue may be anything then."""

    class Socket(QueueSink):
        def prepare(self, event: dict[str, Any]) -> Any:
            return {"number": event["number"]}

        def enqueue(self, item: Any) -> None:
            self.queue.append(item)

    sent: list[Any] = []
    sink = Socket(sent)
    _log(sink, 1)
    assert sent == [{"number": 1}]
    assert sink.stats().delivered == 1
    assert sink.plain is False
    assert json.loads(sink.encode({"event": "x", "number": 1}).data) == {"event": "x", "number": 1}


def test_a_queue_that_is_none_is_refused() -> None:
    """It raises at construction, and when it is set."""
    with pytest.raises(TypeError, match="queue=42 has no put_nowait"):
        QueueSink(42)
    sink = QueueSink(queue.SimpleQueue())
    with pytest.raises(TypeError, match="queue=42"):
        sink.queue = 42


def test_the_queue_can_be_exchanged() -> None:
    """Later events go into the other one."""
    first, second = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
    sink = QueueSink(first)
    _log(sink, 1)
    sink.queue = second
    _log(sink, 2)
    assert sink.queue is second
    assert (len(_contents(first)), len(_contents(second))) == (1, 1)
    assert repr(sink) == "<QueueSink into a SimpleQueue>"


def test_the_level_can_be_set_at_any_time() -> None:
    """Also while the short cut is taken."""
    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting)
    _log(sink, 1)
    sink.level = "error"
    _log(sink, 2)
    sink.level = "info"
    _log(sink, 3)
    assert _numbers(map(json.loads, _contents(waiting))) == [1, 3]
    assert sink.stats().filtered == 1


def test_what_a_delivering_thread_logs_is_refused() -> None:
    """In a thread that delivers for a listener or a background sink, events are dropped as reentrant."""
    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting)
    with delivering():
        _log(sink, 1)
        sink.handle("text")
    _log(sink, 2)
    assert sink.stats().dropped == {"reentrant": 2}
    assert _numbers(map(json.loads, _contents(waiting))) == [2]


def test_an_interrupt_passes_and_is_counted() -> None:
    """KeyboardInterrupt while the queue is touched reaches the caller."""

    class Interrupted:
        def __init__(self) -> None:
            self.times = 1

        def put_nowait(self, item: Any) -> None:
            raise KeyboardInterrupt

    sink = QueueSink(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        _log(sink, 1)
    fast = QueueSink(queue.SimpleQueue())

    def interrupt(_item: bytes) -> None:
        raise KeyboardInterrupt

    fast._put_item = interrupt
    with pytest.raises(KeyboardInterrupt):
        _log(fast, 1)
    assert sink.stats().dropped == fast.stats().dropped == {"interrupted": 1}


def test_a_batch_goes_into_the_queue_as_far_as_there_is_room() -> None:
    """The rest is left for a retry; with no room at all it raises."""
    waiting: Any = queue.Queue(2)
    sink = QueueSink(waiting)
    batch = [sink.encode({"event": "x", "number": number}) for number in range(3)]
    assert sink.emit_batch(batch) == BatchResult(retry=range(2, 3))
    with pytest.raises(TemporaryDeliveryError):
        sink.emit_batch(batch)
    assert _numbers(map(json.loads, _contents(waiting))) == [0, 1]


def test_behind_a_background_sink() -> None:
    """Its short cut makes the same bytes."""
    waiting: Any = queue.Queue()
    with BackgroundSink(QueueSink(waiting), linger=0) as sink:
        _log(sink, 1)
        assert sink.flush(60)
    assert _contents(waiting) == [b'{"event":"x","level":"info","number":1}']


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer's own lock is not for signal handlers")
@pytest.mark.parametrize("make", [queue.SimpleQueue, queue.Queue])
def test_signal_handlers_may_log(make) -> None:
    """Also into a queue whose lock the interrupted thread has."""
    waiting: Any = make()
    sink = QueueSink(waiting)
    handled = [0]

    def handler(*_: object) -> None:
        handled[0] += 1
        _log(sink, -1)

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
    found = _numbers(map(json.loads, _contents(waiting)))
    assert [each for each in found if each >= 0] == list(range(number))
    assert found.count(-1) == handled[0]
    assert sink.stats().delivered == number + handled[0]


def test_what_a_signal_handler_could_not_put_is_counted() -> None:
    """An event that came while the thread had the queue's lock, and finds it full then, is dropped as full."""
    waiting: Any = queue.Queue(1)
    sink = QueueSink(waiting)
    put = waiting.put_nowait

    def interrupted(item: bytes) -> None:
        if b"outer" in item:
            _log(sink, 2, which="inner")
        put(item)

    waiting.put_nowait = interrupted
    _log(sink, 1, which="outer")
    assert len(_contents(waiting)) == 1
    assert (sink.stats().delivered, sink.stats().dropped) == (1, {"full": 1})


def test_flush_and_close_wait_for_the_listener() -> None:
    """With listener=, flush is True when its sinks have what was enqueued; close does not stop it."""
    waiting: Any = queue.SimpleQueue()
    target = StuckSink()
    with QueueListener(waiting, target) as listener:
        sink = QueueSink(waiting, listener=listener)
        _log(sink, 1, 2)
        assert target.stuck.wait(60)
        assert sink.flush(0.01) is False
        target.release()
        assert sink.flush(60) is True
        assert _numbers(target.events) == [1, 2]
        _log(sink, 3)
        assert sink.close(60) is True
        assert sink.close(60) is True
        assert _numbers(target.events) == [1, 2, 3]
        assert listener.running
    alone = QueueSink(waiting)
    assert alone.flush(0) is True
    assert alone.close(0) is True


# -- QueueListener


def test_through_any_queue(any_queue) -> None:
    """Events come out of each kind of queue as they went in, in order, and to every sink."""
    sink = QueueSink(any_queue)
    first, second = CaptureSink(), CaptureSink()
    with QueueListener(any_queue, first, second) as listener:
        _log(sink, *range(100), nested={"a": [1, None, 2.5]})
        assert listener.flush(60)
        assert _numbers(first.events) == list(range(100))
        assert first.events == second.events
        assert first.events[0] == {"event": "x", "level": "info", "number": 0, "nested": {"a": [1, None, 2.5]}}
    stats = listener.stats()
    assert (stats.accepted, stats.delivered, stats.pending, stats.dropped) == (100, 100, 0, {})
    assert [(each.accepted, each.delivered) for each in stats.targets] == [(100, 100), (100, 100)]
    assert_balanced(stats)


def test_start_and_stop_are_idempotent() -> None:
    """Starting twice starts one reader, stopping twice is no failure, and it can be started again."""
    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    listener = QueueListener(waiting, target)
    assert listener.stop() is True
    assert (listener.running, listener.flush(0)) == (False, True)
    assert listener.start() is listener
    threads = threading.active_count()
    assert listener.start() is listener
    assert threading.active_count() == threads
    assert listener.running
    _log(QueueSink(waiting), 1)
    assert listener.stop() is True
    assert listener.stop() is True
    assert not listener.running
    assert repr(listener) == "<QueueListener of a SimpleQueue to CaptureSink stopped>"
    _log(QueueSink(waiting), 2)
    with listener:
        assert repr(listener) == "<QueueListener of a SimpleQueue to CaptureSink>"
    assert _numbers(target.events) == [1, 2]
    assert listener.stats().delivered == 2
    assert _contents(waiting) == []


def test_stop_delivers_what_is_in_the_queue() -> None:
    """Everything enqueued before stop is delivered when it returns."""
    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    _log(QueueSink(waiting), *range(2000))
    listener = QueueListener(waiting, target, batch_size=7).start()
    assert listener.stop(60) is True
    assert _numbers(target.events) == list(range(2000))


def test_sinks_get_batches() -> None:
    """No more than batch_size at a time, by emit_batch."""
    batches: list[list[int]] = []

    class Batches(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            batches.append(_numbers(item.event for item in batch))
            return None

    waiting: Any = queue.SimpleQueue()
    _log(QueueSink(waiting), *range(10))
    with QueueListener(waiting, Batches(), batch_size=4, linger=60) as listener:
        until(lambda: len(batches) == 2)
        assert batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
        # The last two linger; who waits ends that.
        assert listener.flush(60)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_levels_of_sinks_apply_if_they_are_to() -> None:
    """respect_sink_level is False by default, as in the standard library; what is filtered is counted."""
    for respect, expected in ((False, [1, 2]), (True, [2])):
        waiting: Any = queue.SimpleQueue()
        errors, everything = CaptureSink(level="error"), CaptureSink()
        with QueueListener(waiting, errors, everything, respect_sink_level=respect) as listener:
            sink = QueueSink(waiting)
            sink.handle({"event": "x", "level": "info", "number": 1})
            sink.handle({"event": "x", "level": "error", "number": 2})
        assert _numbers(errors.events) == expected
        assert _numbers(everything.events) == [1, 2]
        assert listener.stats().targets[0].filtered == 2 - len(expected)
        assert_balanced(listener.stats())
        assert_balanced(listener.stats().targets[0])


def test_processors_and_renderers_of_sinks_apply_each_to_its_own_copy() -> None:
    """A processor that fails or drops costs its sink that event alone."""
    import io

    def odd(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
        event["nested"]["seen"] = True
        if event["number"] == 2:
            raise DropEvent
        if event["number"] == 3:
            raise ValueError("no threes")
        return event

    failures: list[SinkFailure] = []
    waiting: Any = queue.SimpleQueue()
    processed, plain, stream = CaptureSink(processors=[odd], name="processed"), CaptureSink(), io.StringIO()
    text = StreamSink(stream, renderer=lambda _logger, _name, event: f"say {event['number']}")
    with QueueListener(waiting, processed, plain, text, on_error=failures.append) as listener:
        _log(QueueSink(waiting), 1, 2, 3, 4, nested={})
    assert _numbers(processed.events) == [1, 4]
    assert processed.events[0]["nested"] == {"seen": True}
    assert [event["nested"] for event in plain.events] == [{}] * 4
    assert stream.getvalue() == "say 1\nsay 2\nsay 3\nsay 4\n"
    first = listener.stats().targets[0]
    assert (first.accepted, first.delivered, first.filtered, first.dropped) == (3, 2, 1, {"error": 1})
    assert first.last_error == "ValueError: no threes"
    assert [(failure.sink, str(failure.error), failure.events) for failure in failures] == [
        ("processed", "no threes", 1)
    ]


def test_a_sink_that_always_raises_costs_the_one_beside_it_nothing() -> None:
    """The other has every event, the failing one's are counted and told to its own on_error and the listener's."""
    own: list[SinkFailure] = []
    failures: list[SinkFailure] = []
    waiting: Any = queue.SimpleQueue()
    broken, working = FailingSink(ValueError("broken"), name="broken", on_error=own.append), CaptureSink()
    with QueueListener(waiting, broken, working, on_error=failures.append) as listener:
        _log(QueueSink(waiting), *range(50))
        assert listener.flush(60)
        assert _numbers(working.events) == list(range(50))
    first, second = listener.stats().targets
    assert (first.delivered, first.dropped) == (0, {"rejected": 50})
    assert (second.delivered, second.dropped) == (50, {})
    assert sum(failure.events for failure in failures) == 50
    assert {failure.sink for failure in failures} == {"broken"}
    assert sum(failure.events for failure in own) == 50
    assert_balanced(listener.stats())


def test_a_sink_that_hangs_keeps_nothing_from_the_one_beside_it() -> None:
    """The other gets all events while it hangs, more than the hanging one has room for; those are counted."""
    failures: list[SinkFailure] = []
    waiting: Any = queue.SimpleQueue()
    stuck, working = StuckSink(name="stuck"), CaptureSink()
    listener = QueueListener(
        waiting, stuck, working, capacity=10, batch_size=5, block_timeout=0.01, on_error=failures.append
    ).start()
    try:
        _log(QueueSink(waiting), *range(100))
        assert stuck.stuck.wait(60)
        until(lambda: len(working.events) == 100)
        until(lambda: listener.stats().targets[0].dropped.get("overflow") == 90)
        assert "did not keep up" in str(listener.stats().targets[0].last_error)
        assert {failure.sink for failure in failures} == {"stuck"}
        # When there is room again, events are taken again.
        stuck.release()
        until(lambda: listener.stats().targets[0].pending == 0)
        _log(QueueSink(waiting), 100)
        assert listener.flush(60)
        assert len(stuck.events) == 11
        assert stuck.events[-1]["number"] == 100
    finally:
        stuck.release()
        assert listener.stop(60)
    for target in listener.stats().targets:
        assert_balanced(target)


def test_a_slow_sink_loses_nothing_while_the_others_have_work() -> None:
    """A sink that takes its time is waited for, and nothing is dropped for it."""
    waiting: Any = queue.SimpleQueue()
    gate = threading.Semaphore(0)

    class Slow(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            assert gate.acquire(timeout=60)
            return super().emit_batch(batch)

    slow, quick = Slow(), CaptureSink()
    with QueueListener(waiting, slow, quick, capacity=4, batch_size=2, block_timeout=60) as listener:
        _log(QueueSink(waiting), *range(40))
        for _ in range(40):
            gate.release()
        assert listener.flush(60)
    assert _numbers(slow.events) == _numbers(quick.events) == list(range(40))


def test_while_the_only_sink_is_away_events_stay_in_the_queue() -> None:
    """Nothing is dropped; no more than capacity is read; when it is back all are delivered, in order."""
    waiting: Any = queue.Queue()
    back = threading.Event()

    class Away(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            if not back.is_set():
                raise TemporaryDeliveryError("away")
            return super().emit_batch(batch)

    target = Away()
    with QueueListener(
        waiting,
        target,
        capacity=5,
        block_timeout=0,
        retry=RetryPolicy(start_seconds=0.001, max_seconds=0.001),
        on_error=lambda failure: None,
    ) as listener:
        _log(QueueSink(waiting), *range(50))
        until(lambda: listener.stats().targets[0].pending == 5)
        until(lambda: listener.stats().targets[0].retried > 3)
        assert waiting.qsize() >= 44
        back.set()
        assert listener.flush(60)
    assert _numbers(target.events) == list(range(50))
    assert listener.stats().targets[0].dropped == {}


def test_an_event_keeps_the_time_it_came_through_an_outage() -> None:
    """One without a timestamp is told with the time it was read, not that of the attempt that succeeded."""
    times: list[float] = []
    failing = threading.Event()

    class Away(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            if not failing.is_set():
                failing.set()
                raise TemporaryDeliveryError("away")
            times.extend(item.time for item in batch)
            return None

    waiting: Any = queue.SimpleQueue()
    before = time.time()
    with QueueListener(waiting, Away(), batch_size=1, retry=AT_ONCE, on_error=lambda failure: None):
        waiting.put(b'{"event":"x"}')
        waiting.put(b'{"event":"x","timestamp":5}')
    assert before <= times[0] <= time.time()
    assert times[1] == 5


def test_what_a_sink_refuses_goes_to_the_dead_letters() -> None:
    """The one event that it refuses for good, and no other."""
    letters = CaptureSink()

    class Fussy(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            if event["number"] == 3:
                raise PermanentDeliveryError("no threes")
            super().emit(event)

    waiting: Any = queue.SimpleQueue()
    fussy = Fussy()
    with QueueListener(waiting, fussy, dead_letter=letters, on_error=lambda failure: None) as listener:
        _log(QueueSink(waiting), *range(6))
    assert (_numbers(fussy.events), _numbers(letters.events)) == ([0, 1, 2, 4, 5], [3])
    assert listener.stats().targets[0].dead_lettered == 1
    assert_balanced(listener.stats().targets[0])


def test_bytes_text_and_dicts_are_taken_and_garbage_is_counted() -> None:
    """What is no event costs nothing else, and is told without its content."""
    failures: list[SinkFailure] = []
    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    with QueueListener(waiting, target, on_error=failures.append) as listener:
        for item in (
            b'{"event":"bytes"}',
            bytearray(b'{"event":"bytearray"}'),
            '{"event":"json"}',
            "just text",
            "[1]",
            "\ud800",
            {"event": "dict"},
            b"hunter2 no json",
            b"[1, 2]",
            b'{"half":',
            42,
            object(),
            ["hunter2"],
            b'{"event":"last","_record":1}',
        ):
            waiting.put(item)
        assert listener.flush(60)
    assert target.events == [
        {"event": "bytes"},
        {"event": "bytearray"},
        {"event": "json"},
        {"event": "just text"},
        {"event": "[1]"},
        {"event": "\ud800"} if target.events[5]["event"] == "\ud800" else target.events[5],
        {"event": "dict"},
        {"event": "last"},
    ]
    stats = listener.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (14, 8, {"garbage": 6})
    assert_balanced(stats)
    assert [failure.events for failure in failures] == [1] * 6
    assert "hunter2" not in repr(failures)
    assert stats.last_error is not None


def test_rendered_text_is_written_as_it_is() -> None:
    """Text in the queue is text to byte sinks."""
    import io

    stream = io.StringIO()
    waiting: Any = queue.SimpleQueue()
    with QueueListener(waiting, StreamSink(stream)):
        waiting.put("12:00 started")
    assert stream.getvalue() == "12:00 started\n"


def test_task_done_is_called_once_for_each_item_when_it_is_delivered() -> None:
    """queue.join() returns when all sinks are done with all items, garbage and sentinels included."""
    waiting: Any = queue.Queue()
    stuck = StuckSink()
    with QueueListener(waiting, stuck, CaptureSink(), on_error=lambda failure: None) as listener:
        _log(QueueSink(waiting), 1, 2)
        waiting.put(b"garbage")
        assert stuck.stuck.wait(60)
        until(lambda: listener.stats().targets[1].delivered == 2)
        assert waiting.unfinished_tasks >= 2
        joiner = threading.Thread(target=waiting.join)
        joiner.start()
        stuck.release()
        joiner.join(60)
        assert not joiner.is_alive()
        assert len(stuck.events) == 2
        assert listener.flush(60)
    assert waiting.unfinished_tasks == 0


def test_a_sentinel_from_elsewhere_ends_the_reading() -> None:
    """None in the queue is the end: what came before is delivered, what comes after waits for the next start."""
    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    listener = QueueListener(waiting, target).start()
    _log(QueueSink(waiting), 1)
    waiting.put(None)
    _log(QueueSink(waiting), 2)
    until(lambda: not listener.running)
    until(lambda: len(target.events) == 1)
    assert listener.flush(0) is True
    with listener:
        until(lambda: len(target.events) == 2)
    assert _numbers(target.events) == [1, 2]


def test_the_hooks_may_be_overridden() -> None:
    """dequeue, prepare, handle and enqueue_sentinel, as QueueListener's in the standard library."""
    handled: list[Any] = []

    class Mine(QueueListener):
        _sentinel = b"end"

        def dequeue(self, block: bool) -> Any:
            assert block is True
            return self.queue.get(block, timeout=0.001)

        def prepare(self, item: Any) -> dict[str, Any]:
            return {**super().prepare(item), "prepared": True}

        def handle(self, item: Any) -> None:
            handled.append(item)
            if item == b"mine":
                return
            if item == b"fail":
                raise ValueError("no")
            super().handle(item)
            if b"2" in item:
                raise ValueError("afterwards")

        def enqueue_sentinel(self) -> None:
            self.queue.put(b"end")

    waiting: Any = queue.Queue()
    target = CaptureSink()
    listener = Mine(waiting, target, on_error=lambda failure: None)
    with listener:
        for item in (b'{"number":1}', b"mine", b"fail", b'{"number":2}'):
            waiting.put(item)
    assert handled == [b'{"number":1}', b"mine", b"fail", b'{"number":2}']
    assert target.events == [{"number": 1, "prepared": True}, {"number": 2, "prepared": True}]
    stats = listener.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (4, 3, {"error": 1})
    assert waiting.unfinished_tasks == 0


def test_a_dequeue_that_does_not_wait_for_ever_ends_when_the_time_is_up() -> None:
    """Also if no sentinel gets through."""

    class Impatient(QueueListener):
        def dequeue(self, block: bool) -> Any:
            return self.queue.get(block, timeout=0.001)

        def enqueue_sentinel(self) -> None:
            """Have no way to say it."""

    listener = Impatient(queue.Queue(), CaptureSink(), name="impatient").start()
    listener.stop(0.05)
    until(lambda: not any(thread.name.startswith("outfall impatient") for thread in threading.enumerate()))
    assert listener.stop() is True


def test_a_listener_without_sinks_reads_on() -> None:
    """Events are taken and gone, as they are without handlers."""
    waiting: Any = queue.SimpleQueue()
    with QueueListener(waiting) as listener:
        _log(QueueSink(waiting), 1)
        assert listener.flush(60)
    assert listener.stats().delivered == 1


def test_an_item_can_be_handed_on_by_hand() -> None:
    """handle delivers at once while it is not started, once to each sink; a sink that fails costs no other."""
    failures: list[SinkFailure] = []
    away, target = FailingSink(TemporaryDeliveryError("away"), times=1, name="away"), CaptureSink()
    listener = QueueListener(queue.Queue(), away, target, on_error=failures.append)
    listener.handle({"event": "x", "number": 1})
    listener.handle(b'{"number": 2}')
    with pytest.raises(TypeError):
        listener.handle(42)
    assert (_numbers(away.events), _numbers(target.events)) == ([2], [1, 2])
    assert sum(failure.events for failure in failures) == 1
    stats = listener.stats()
    assert (stats.accepted, stats.delivered, stats.pending) == (2, 2, 0)
    assert stats.targets[0].dropped == {"closed": 1}
    with listener:
        listener.handle({"event": "x", "number": 3})
        assert listener.flush(60)
        assert _numbers(target.events) == [1, 2, 3]
    assert listener.queue.unfinished_tasks == 0


def test_an_item_is_handed_on_by_hand_after_a_sentinel_from_elsewhere() -> None:
    """The listener has threads no more then, and delivers in the caller's."""
    target = CaptureSink()
    listener = QueueListener(queue.SimpleQueue(), target).start()
    listener.queue.put(None)
    until(lambda: not listener.running)
    listener.handle({"event": "x", "number": 1})
    assert _numbers(target.events) == [1]
    assert listener.stop(60)


def test_stop_does_not_wait_for_room() -> None:
    """An event that the reader holds while the only sink hangs is given up when the time is up, and counted."""
    waiting: Any = queue.Queue()
    stuck = StuckSink()
    listener = QueueListener(waiting, stuck, capacity=1, on_error=lambda failure: None).start()
    _log(QueueSink(waiting), 1, 2, 3)
    assert stuck.stuck.wait(60)
    until(lambda: listener.stats().pending == 2)
    assert listener.stop(0.05) is False
    until(lambda: listener.stats().pending == 0)
    assert listener.stats().targets[0].dropped == {"unconfirmed": 1, "closed": 1}
    stuck.release()
    until(lambda: len(stuck.events) == 1)
    # The third is in the queue, and the sentinel, which does not end the next start.
    with listener:
        until(lambda: len(stuck.events) == 2)
        _log(QueueSink(waiting), 4)
        assert listener.flush(60)
        assert listener.running
    assert _numbers(stuck.events) == [1, 3, 4]
    assert waiting.qsize() == 0


@pytest.mark.usefixtures("shut_down")
def test_a_listener_whose_queue_is_shut_down_meanwhile_is_stopped() -> None:
    """Neither mark nor sentinel can be put; what was in the queue is delivered."""
    down = _DownQueue(b'{"number":1}')
    reading, go_on = threading.Event(), threading.Event()

    class Slow(QueueListener):
        def dequeue(self, block: bool) -> Any:
            reading.set()
            go_on.wait(60)
            return super().dequeue(block)

    target = CaptureSink()
    listener = Slow(down, target).start()
    assert reading.wait(60)
    assert listener.flush(60) is False
    threading.Timer(0.05, go_on.set).start()
    assert listener.stop(60) is True
    assert _numbers(target.events) == [1]


def test_stop_gives_up_in_time_and_says_so() -> None:
    """What hangs is unconfirmed, what waits behind it closed; late answers change nothing, and it can start again."""
    failures: list[SinkFailure] = []
    waiting: Any = queue.Queue()
    stuck = StuckSink(name="stuck")
    listener = QueueListener(waiting, stuck, batch_size=2, on_error=failures.append, name="mine").start()
    _log(QueueSink(waiting), 1)
    assert stuck.stuck.wait(60)
    _log(QueueSink(waiting), 2, 3, 4)
    until(lambda: listener.stats().targets[0].pending == 4)
    began = time.monotonic()
    assert listener.stop(0.1) is False
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    target = listener.stats().targets[0]
    assert target.dropped == {"unconfirmed": 1, "closed": 3}
    assert_balanced(target)
    assert_balanced(listener.stats())
    assert [(failure.sink, failure.events) for failure in failures] == [("stuck", 4)]
    assert "mine was stopped before stuck had taken everything" in str(failures[0].error)
    assert waiting.unfinished_tasks == 0
    stuck.release()
    until(lambda: len(stuck.events) == 1)
    until(lambda: not any(thread.name.startswith("outfall mine") for thread in threading.enumerate()))
    assert listener.stats().targets[0].dropped == {"unconfirmed": 1, "closed": 3}
    with listener:
        _log(QueueSink(waiting), 5)
    assert _numbers(stuck.events) == [1, 5]


def test_a_sink_that_is_away_when_it_is_stopped_is_tried_until_the_time_is_up() -> None:
    """stop does not wait out a long backoff: it tries at once, and gives up at its deadline."""
    attempts = [0]

    class Away(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            attempts[0] += 1
            if attempts[0] < 3:
                raise TemporaryDeliveryError("away", retry_after=3600)
            return super().emit_batch(batch)

    waiting: Any = queue.SimpleQueue()
    target = Away()
    told: list[Any] = []
    listener = QueueListener(waiting, target, on_error=told.append).start()
    _log(QueueSink(waiting), 1)
    until(lambda: told)
    assert listener.stop(60) is True
    assert _numbers(target.events) == [1]
    attempts[0] = -1000
    listener.start()
    _log(QueueSink(waiting), 2)
    until(lambda: attempts[0] > -1000)
    assert listener.stop(0.1) is False
    assert listener.stats().targets[0].dropped == {"closed": 1}


def test_a_bounded_queue_that_is_full_can_be_stopped_and_flushed() -> None:
    """The sentinel waits for room, which the reader makes."""
    waiting: Any = queue.Queue(2)
    target = StuckSink()
    listener = QueueListener(waiting, target, capacity=1, batch_size=1).start()
    sink = QueueSink(waiting)
    _log(sink, 1)
    assert target.stuck.wait(60)
    number = 1
    while not sink.stats().dropped:
        number += 1
        _log(sink, number)
    assert listener.flush(0.05) is False
    threading.Timer(0.05, target.release).start()
    assert listener.stop(60) is True
    assert len(target.events) == sink.stats().delivered


def test_a_reader_that_stop_could_not_reach_takes_nothing_from_the_next_start() -> None:
    """If no sentinel gets through, the thread that is left behind gives back what it reads."""

    class Deaf(QueueListener):
        def enqueue_sentinel(self) -> None:
            raise OSError("no way")

    failures: list[SinkFailure] = []
    waiting: Any = queue.Queue()
    target = CaptureSink()
    listener = Deaf(waiting, target, on_error=failures.append).start()
    assert listener.stop(0.01) is False
    assert str(failures[0].error) == "no way"
    _log(QueueSink(waiting), 1)
    until(lambda: not any(thread.name == "outfall Deaf" for thread in threading.enumerate()))
    assert (waiting.qsize(), target.events) == (1, [])
    with QueueListener(waiting, target):
        pass
    assert _numbers(target.events) == [1]


def test_an_item_that_a_left_behind_reader_cannot_give_back_is_counted() -> None:
    """It is dropped as closed and told."""

    class OneWay:
        def __init__(self) -> None:
            self.items: Any = queue.SimpleQueue()

        def get(self, block: bool) -> Any:
            return self.items.get()

        def put_nowait(self, item: Any) -> None:
            raise OSError("one way")

    failures: list[SinkFailure] = []
    one_way = OneWay()
    listener = QueueListener(one_way, on_error=failures.append).start()
    assert listener.stop(0.01) is False
    one_way.items.put(b'{"number":1}')
    until(lambda: len(failures) == 2)
    assert listener.stats().dropped == {"closed": 1}
    assert_balanced(listener.stats())


def test_an_item_that_cannot_be_unpickled_is_garbage_and_a_broken_queue_is_tried_again() -> None:
    """Neither ends the reading."""
    failures: list[SinkFailure] = []

    class Odd:
        def __init__(self) -> None:
            self.items: Any = queue.Queue()

        def get(self, block: bool) -> Any:
            item = self.items.get()
            if isinstance(item, Exception):
                raise item
            return item

        def put_nowait(self, item: Any) -> None:
            self.items.put(item)

        def task_done(self) -> None:
            self.items.task_done()

    odd = Odd()
    target = CaptureSink()
    listener = QueueListener(odd, target, on_error=failures.append).start()
    for item in (AttributeError("no such class"), EOFError("gone"), OSError("gone"), b'{"number":1}'):
        odd.put_nowait(item)
    until(lambda: target.events)
    assert listener.stats().dropped == {"garbage": 1}
    assert [failure.events for failure in failures] == [1, 0, 0]
    odd.put_nowait(queue.Empty())
    odd.put_nowait(b'{"number":2}')
    assert listener.stop(60)
    assert _numbers(target.events) == [1, 2]


def test_a_queue_that_is_gone_does_not_keep_a_listener_from_stopping() -> None:
    """stop ends a reader whose queue only raises, as that of a manager that was shut down."""

    class Gone:
        def get(self, block: bool) -> Any:
            raise EOFError

        def put_nowait(self, item: Any) -> None:
            raise BrokenPipeError

    listener = QueueListener(Gone(), CaptureSink(), on_error=lambda failure: None).start()
    assert listener.running
    assert listener.flush(0.01) is False
    assert listener.stop(60) is True


def test_a_sink_may_stop_and_flush_its_own_listener() -> None:
    """It gets False at once, since it cannot wait for itself; the listener ends."""
    answers: list[bool] = []

    class Stopping(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)
            answers.append(listener.flush(60))
            answers.append(listener.stop(60))

    waiting: Any = queue.SimpleQueue()
    target = Stopping()
    listener = QueueListener(waiting, target).start()
    _log(QueueSink(waiting), 1)
    until(lambda: not listener.running)
    assert listener.stop(60) is True
    assert (answers, _numbers(target.events)) == ([False, False], [1])


def test_what_a_sink_logs_while_it_delivers_is_dropped() -> None:
    """A sink whose delivery logs to the queue it is fed from does not feed itself; on_error may log to other sinks."""
    waiting: Any = queue.SimpleQueue()
    sink = QueueSink(waiting)
    other = CaptureSink()

    class Chatty(CaptureSink):
        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)
            _log(sink, -1)
            raise PermanentDeliveryError("no")

    target = Chatty()
    with QueueListener(waiting, target, on_error=lambda failure: _log(other, 7)) as listener:
        _log(sink, 1)
        assert listener.flush(60)
    assert _numbers(target.events) == [1]
    assert _numbers(other.events) == [7]
    assert sink.stats().dropped == {"reentrant": 1}


def test_whatever_on_error_raises_the_listener_goes_on() -> None:
    """It is reported and goes no further."""

    def fail(failure: SinkFailure) -> None:
        raise RuntimeError("on_error itself")

    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    with QueueListener(waiting, FailingSink(ValueError("bad")), target, on_error=fail):
        _log(QueueSink(waiting), 1, 2)
    assert _numbers(target.events) == [1, 2]


def test_a_sink_that_raises_system_exit_does_not_end_its_thread() -> None:
    """The events are counted, and the next ones are delivered."""
    failures: list[SinkFailure] = []
    waiting: Any = queue.SimpleQueue()
    target = FailingSink(SystemExit(3), times=1)
    with QueueListener(waiting, target, batch_size=1, on_error=failures.append) as listener:
        _log(QueueSink(waiting), 1, 2)
    assert _numbers(target.events) == [2]
    assert listener.stats().targets[0].dropped == {"error": 1}
    assert_balanced(listener.stats().targets[0])
    assert [failure.events for failure in failures] == [1]


def test_a_sink_that_was_closed_costs_its_events_alone() -> None:
    """They are counted as closed."""
    failures: list[SinkFailure] = []
    waiting: Any = queue.SimpleQueue()
    closed, target = CaptureSink(), CaptureSink()
    closed.close()
    with QueueListener(waiting, closed, target, on_error=failures.append) as listener:
        _log(QueueSink(waiting), 1)
    assert listener.stats().targets[0].dropped == {"closed": 1}
    assert isinstance(failures[0].error, SinkClosedError)
    assert _numbers(target.events) == [1]


def test_sinks_that_keep_what_they_are_given_and_routers_may_stand_behind() -> None:
    """A background sink and a fanout are given batches like any other."""
    waiting: Any = queue.SimpleQueue()
    first, second, third = CaptureSink(), CaptureSink(level="error"), CaptureSink()
    with BackgroundSink(first) as background, QueueListener(waiting, background, FanoutSink(second, third)) as listener:
        _log(QueueSink(waiting), 1, 2)
        assert listener.flush(60)
        assert background.flush(60)
        assert (_numbers(first.events), second.events, _numbers(third.events)) == ([1, 2], [], [1, 2])
        assert background.stats().accepted == 2


def test_threads_that_cannot_start_are_no_half_started_listener(monkeypatch) -> None:
    """start raises, and the listener can be started later."""
    listener = QueueListener(queue.SimpleQueue(), CaptureSink(), name="lame")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "outfall lame":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            listener.start()
    assert not listener.running
    until(lambda: not any(thread.name.startswith("outfall lame") for thread in threading.enumerate()))
    with listener:
        assert listener.running


def test_bad_arguments_are_refused() -> None:
    """Each raises at construction and names itself."""
    waiting: Any = queue.SimpleQueue()
    sink = CaptureSink()
    for arguments, options, error, message in (
        ((42,), {}, TypeError, "queue=42 has no get"),
        ((waiting, "file"), {}, TypeError, "'file' is not a Sink"),
        ((waiting, sink), {"batch_size": 0}, ValueError, "batch_size=0"),
        ((waiting, sink), {"capacity": -1}, ValueError, "capacity=-1"),
        ((waiting, sink), {"linger": "long"}, ValueError, "linger='long'"),
        ((waiting, sink), {"block_timeout": -1}, ValueError, "block_timeout=-1"),
        ((waiting, sink), {"retry": 3}, TypeError, "retry=3"),
        ((waiting, sink), {"dead_letter": "file"}, TypeError, "dead_letter='file'"),
        ((waiting, sink), {"on_error": "raise"}, TypeError, "on_error='raise'"),
    ):
        with pytest.raises(error, match=message):
            QueueListener(*arguments, **options)
    listener = QueueListener(waiting, sink)
    for call in (listener.stop, listener.flush):
        with pytest.raises(ValueError, match="timeout=-1"):
            call(-1)


def test_a_mark_of_another_listener_is_passed_by() -> None:
    """Two listeners on one queue do not take each other's marks for garbage."""
    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    with QueueListener(waiting, target) as listener:
        waiting.put(queuelistener._MARK + b"another")
        _log(QueueSink(waiting), 1)
        assert listener.flush(60)
    assert (listener.stats().accepted, _numbers(target.events)) == (1, [1])


# -- exit


_EXITING = """
    import logging, queue, sys, threading
    from outfall import FileSink, QueueListener, QueueSink
    waiting = queue.{kind}()
    target = FileSink(sys.argv[1])
    listener = QueueListener(waiting, target)
    sink = QueueSink(waiting{more})
    for number in range(1000):
        sink.handle({{"event": "x", "number": number}})
    listener.start()
    class Late(logging.Handler):
        def close(self):
            for number in range(1000, 1003):
                sink.handle({{"event": "x", "number": number}})
            print(len(open(sys.argv[1]).readlines()))
    late = Late()
"""


@pytest.mark.parametrize("kind", ["SimpleQueue", "Queue"])
@pytest.mark.parametrize("more", ["", ", listener=listener"])
def test_what_is_queued_at_exit_is_delivered(tmp_path, kind, more) -> None:
    """By a listener nobody stopped; and what other exit hooks still log, before handle returns."""
    printed = check(_EXITING.format(kind=kind, more=more), tmp_path / "out")
    assert printed == "1003\n"
    assert _numbers(events_of(tmp_path / "out")) == list(range(1003))


def test_what_is_in_a_queue_of_multiprocessing_at_exit_is_delivered(tmp_path) -> None:
    """Before multiprocessing closes it, however late it was imported; and nothing is said of the closing."""
    script = """
        import sys
        from outfall import FileSink, QueueListener, QueueSink
        import multiprocessing
        waiting = multiprocessing.Queue()
        listener = QueueListener(waiting, FileSink(sys.argv[1]))
        listener.start()
        sink = QueueSink(waiting)
        for number in range(1000):
            sink.handle({"event": "x", "number": number})
    """
    result = run(script, tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert _numbers(events_of(tmp_path / "out")) == list(range(1000))


def test_a_target_that_hangs_at_exit_is_left_in_time(tmp_path) -> None:
    """The process ends within the deadline, says what it left, and a late event waits once at most."""
    script = """
        import logging, queue, sys, threading, time
        from outfall import QueueListener, QueueSink, CaptureSink
        from outfall.sinks.core import lifecycle
        lifecycle.EXIT_DEADLINE_SECONDS = 0.3
        class Hanging(CaptureSink):
            def emit(self, event):
                time.sleep(3600)
        waiting = queue.SimpleQueue()
        target = Hanging()
        listener = QueueListener(waiting, target).start()
        sink = QueueSink(waiting)
        sink.drain_timeout = 0.3
        sink.handle({"event": "x"})
        class Late(logging.Handler):
            def close(self):
                for _ in range(100):
                    sink.handle({"event": "x"})
        late = Late()
    """
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in script.splitlines())],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "the process ends before all that is in the queue was delivered" in result.stderr


# -- other processes


def _log_in_child(waiting: Any, worker: int, events: int) -> None:
    """Log so many events, as a worker process does."""
    sink = QueueSink(waiting)
    for number in range(events):
        sink.handle({"event": "x", "level": "info", "worker": worker, "number": number, "pid": os.getpid()})
    assert sink.close()
    assert sink.stats().delivered == events


def _collect(context: Any, waiting: Any, workers: int, events: int) -> None:
    target = CaptureSink()
    children = [context.Process(target=_log_in_child, args=(waiting, worker, events)) for worker in range(workers)]
    with QueueListener(waiting, target) as listener:
        for child in children:
            child.start()
        for child in children:
            child.join(100)
        assert [child.exitcode for child in children] == [0] * workers
        until(lambda: len(target.events) == workers * events)
    for worker in range(workers):
        assert _numbers(event for event in target.events if event["worker"] == worker) == list(range(events))
    assert len({event["pid"] for event in target.events}) == workers
    assert_balanced(listener.stats())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_log_through_one_queue(method) -> None:
    """Every event of every process arrives once, in the order of its process, however that was started."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    context = multiprocessing.get_context(method)
    waiting = context.Queue()
    _collect(context, waiting, 2, 200)
    waiting.close()
    waiting.join_thread()


def test_processes_log_through_a_manager_s_queue() -> None:
    """The same through a server process, whose bound counts."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        _collect(context, manager.Queue(1000), 2, 100)


def _listen_in_child(waiting: Any, path: str) -> None:
    """Hand on to a file until somebody puts None into the queue."""
    with FileSink(path) as target:
        listener = QueueListener(waiting, target).start()
        until(lambda: not listener.running)
        assert listener.stop(60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_its_own_may_listen(tmp_path, method) -> None:
    """As the logging cookbook has it: one process writes the file, and None in the queue ends it."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    context = multiprocessing.get_context(method)
    waiting = context.Queue()
    writer = context.Process(target=_listen_in_child, args=(waiting, str(tmp_path / "out")))
    writer.start()
    _log(QueueSink(waiting), *range(100))
    waiting.put(None)
    writer.join(100)
    assert writer.exitcode == 0
    assert _numbers(events_of(tmp_path / "out")) == list(range(100))
    waiting.close()
    waiting.join_thread()


def _exit_with_events(path: str) -> None:
    """End with events in a queue whose listener nobody stops."""
    waiting: Any = queue.SimpleQueue()
    target = FileSink(path)
    listener = QueueListener(waiting, target).start()
    _log(QueueSink(waiting), *range(500))
    _exit_with_events.kept = (listener, target)  # type: ignore[attr-defined] # alive until the end


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_is_queued_at_the_exit_of_a_child_is_delivered(tmp_path, method) -> None:
    """Children of multiprocessing run no atexit; it works there too."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    context = multiprocessing.get_context(method)
    child = context.Process(target=_exit_with_events, args=(str(tmp_path / "out"),))
    child.start()
    child.join(100)
    assert child.exitcode == 0
    assert _numbers(events_of(tmp_path / "out")) == list(range(500))


@needs_fork
@pytest.mark.parametrize("make", [queue.SimpleQueue, queue.Queue, queue.LifoQueue])
def test_after_a_fork_what_was_in_a_queue_for_threads_is_the_parent_s(make) -> None:
    """The child begins with an empty queue and a listener that is not started, whoever had the queue's lock."""
    waiting: Any = make()
    target = StuckSink()
    listener = QueueListener(waiting, target)
    sink = QueueSink(waiting, listener=listener)
    listener.start()
    _log(sink, 1)
    assert target.stuck.wait(60)
    _log(sink, 2)
    until(lambda: listener.stats().pending == 2)
    target.release()

    def child() -> None:
        assert not listener.running
        assert (listener.stats().accepted, sink.stats().accepted) == (0, 0)
        assert waiting.qsize() == 0
        target.events.clear()
        with listener:
            _log(sink, 3)
            assert sink.flush(60)
        assert _numbers(target.events) == [3]

    if hasattr(waiting, "mutex"):
        listener.stop(60)
        _log(sink, 9)
        with waiting.mutex:
            in_fork(child)
        assert waiting.qsize() == 1
    else:
        in_fork(child)
        assert listener.stop(60)
    assert _numbers(target.events) == [1, 2]


@needs_fork
@pytest.mark.parametrize("make", [queue.SimpleQueue, queue.Queue])
def test_a_sink_alone_begins_with_an_empty_queue_in_a_forked_child(make) -> None:
    """Also where no listener of the queue is there to empty it."""
    waiting: Any = make()
    sink = QueueSink(waiting)
    _log(sink, 1)

    def child() -> None:
        _log(sink, 2)
        assert _numbers(map(json.loads, _contents(waiting))) == [2]

    in_fork(child)
    assert _numbers(map(json.loads, _contents(waiting))) == [1]


@needs_fork
def test_a_fork_among_many_logging_threads_loses_and_repeats_nothing() -> None:
    """Children forked under load log on without a deadlock, and the parent's events arrive once."""
    waiting: Any = queue.Queue()
    target = CaptureSink()
    sink = QueueSink(waiting)
    stop = threading.Event()
    counts = [0] * 4

    def work(worker: int) -> None:
        while not stop.is_set():
            _log(sink, counts[worker], worker=worker)
            counts[worker] += 1
            if counts[worker] % 20 == 0:
                stop.wait(0.005)

    def child() -> None:
        mine = CaptureSink()
        with QueueListener(waiting, mine):
            _log(sink, *range(10), worker=-1)
        assert _numbers(mine.events) == list(range(10))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    with QueueListener(waiting, target):
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                in_fork(child)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert QueueSink(waiting).stats().accepted == 0
    for worker in range(4):
        assert _numbers(event for event in target.events if event["worker"] == worker) == list(range(counts[worker]))


@needs_fork
def test_a_child_that_the_application_forks_itself_may_use_a_multiprocessing_queue() -> None:
    """Also one that the parent had used before, whose feeding thread the child does not have."""
    context = multiprocessing.get_context("fork")
    waiting = context.Queue()
    sink = QueueSink(waiting)
    target = CaptureSink()
    with QueueListener(waiting, target):
        _log(sink, 1)
        until(lambda: len(target.events) == 1)

        def child() -> None:
            _log(sink, 2)
            waiting.close()
            waiting.join_thread()

        in_fork(child)
        until(lambda: len(target.events) == 2)
    assert _numbers(target.events) == [1, 2]
    waiting.close()
    waiting.join_thread()


def test_a_queue_of_records_loggers_and_sinks_together() -> None:
    """Records come through SinkHandler into the queue as events, their extra fields and exceptions included."""
    import logging

    waiting: Any = queue.SimpleQueue()
    target = CaptureSink()
    logger = logging.Logger("shop")
    logger.addHandler(SinkHandler(QueueSink(waiting), callsite=False))
    with QueueListener(waiting, target):
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("order %s failed", 17, extra={"customer": "ada"})
    [event] = target.events
    assert (event["event"], event["level"], event["customer"]) == ("order 17 failed", "error", "ada")
    assert event["exception"].endswith("ValueError: why")


def test_only_who_looks_at_records_is_given_them() -> None:
    """SinkHandler leaves the record out of the event, which costs, unless a processor or a subclass may look at it."""

    class Looking(QueueSink):
        def prepare(self, event: dict[str, Any]) -> Any:
            return super().prepare(event)

    waiting: Any = queue.SimpleQueue()
    assert QueueSink(waiting)._reads_metadata() is False
    assert QueueSink(waiting, processors=[lambda _logger, _name, event: event])._reads_metadata() is True
    assert Looking(waiting)._reads_metadata() is True


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer's own lock is not for signal handlers")
def test_an_interrupt_of_a_caller_that_waits_for_room_comes_through() -> None:
    """Whenever it comes, and each event is accounted for."""
    # In a program of its own: a finalizer of what other tests have left would swallow one now and then.
    check(
        """
        import queue, signal, time
        from outfall import CaptureSink, QueueListener
        from outfall.sinks.testing import assert_balanced

        class Slow(CaptureSink):
            def emit_batch(self, batch):
                time.sleep(0.000_1)  # so that callers wait and are woken all the time

        failures, fired, came = [], [], 0
        listener = QueueListener(queue.Queue(), Slow(), capacity=2, batch_size=1, on_error=failures.append)

        def interrupt(_number, _frame):
            fired.append(1)
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        listener.start()
        for number in range(200):
            fired.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.000_1 + 0.000_003 * (number % 100))
                while True:  # a condition here would jump back outside the try from Python 3.12 on
                    if fired:
                        break
                    listener.handle({"event": "x", "level": "info"})
            except KeyboardInterrupt:
                came += 1
        assert listener.stop(60)
        assert came == 200, came
        assert not failures, failures
        stats = listener.stats()
        assert stats.pending == 0
        assert_balanced(stats)
        assert_balanced(stats.targets[0])
        """
    )


def test_an_interrupt_in_a_sink_comes_out_of_a_listener_that_is_not_started() -> None:
    """The event is counted as interrupted, and nothing waits for it."""

    class Interrupted(CaptureSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            raise KeyboardInterrupt

    listener = QueueListener(queue.Queue(), Interrupted())
    with pytest.raises(KeyboardInterrupt):
        listener.handle({"event": "x"})
    stats = listener.stats()
    assert stats.pending == 0
    assert stats.targets[0].dropped == {"interrupted": 1}
    assert_balanced(stats.targets[0])
