"""Helpers for tests of your code: a sink that captures events, sinks that fail, and the contract of all sinks as tests.

They need only a test runner that collects classes as pytest does.
"""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

from structlog import DropEvent

from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.delivery.memory import CaptureSink
from outfall.sinks.errors import SinkClosedError
from outfall.sinks.event.levels import NOTSET, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.sink import OnError, Sink

__all__ = ["CaptureSink", "FailingSink", "SinkContract", "StuckSink", "assert_balanced"]


class FailingSink(CaptureSink):
    """Raise an exception for a number of events, then capture events.

    Args:
        error: The exception that `emit` raises.
        times: The number of events that fail; later ones are captured. Default None: all fail.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.
    """

    def __init__(
        self,
        error: BaseException,
        times: int | None = None,
        *,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)
        self.error = error
        #: The number of events that will still fail; None for all.
        self.times = times

    def emit(self, event: dict[str, Any]) -> None:
        """Raise the exception, or capture *event* after it was raised *times* times."""
        if self.times is None or self.times > 0:
            if self.times is not None:
                self.times -= 1
            raise self.error
        super().emit(event)


class StuckSink(CaptureSink):
    """Block in `emit` until `release` is called, then capture: it simulates a target that does not answer.

    Args:
        name: The name of the sink in reports and stats. Default: the name of its class.
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self._released = threading.Event()
        #: Set once an event blocks.
        self.stuck: threading.Event = threading.Event()

    def emit(self, event: dict[str, Any]) -> None:
        """Wait for `release`, for a minute at most, and capture *event*."""
        self.stuck.set()
        self._released.wait(60)
        super().emit(event)

    def release(self) -> None:
        """Unblock the waiting event and all later ones."""
        self._released.set()


def assert_balanced(stats: SinkStats) -> None:
    """Check that no event is pending and that each accepted event has an outcome.

    Args:
        stats: The ledger, as `Sink.stats` returns it.

    Raises:
        AssertionError: If not.
    """
    settled = stats.delivered + sum(stats.dropped.values()) + stats.dead_lettered + stats.spooled
    if stats.pending or stats.accepted + stats.adopted != settled:
        msg = f"the ledger does not balance: {stats}"
        raise AssertionError(msg)


class SinkContract:
    """The contract of every sink, as tests.

    Subclass it in a test module under a name that begins with ``Test``, and implement `make_sink`. If you implement
    `received` too, the tests also check the output. Each test makes its own sink and closes it.
    """

    #: The number of events that each of eight threads logs. Use fewer for a sink with a slow target.
    events_per_thread: int = 50

    def make_sink(self, **options: Any) -> Sink:
        """Return a new sink with *options*: ``level``, ``processors``, ``on_error`` and ``name``."""
        msg = f"{type(self).__name__} has to implement make_sink(**options)"
        raise TypeError(msg)

    def received(self, sink: Sink) -> list[dict[str, Any]] | None:
        """Return the events that *sink* has put out, oldest first; None (default) if they cannot be read back."""
        return None

    # -- taking events

    def test_an_event_is_delivered_and_counted(self) -> None:
        """A handled event is put out, and the ledger counts it."""
        with self.make_sink() as sink:
            sink.handle({"event": "hello", "level": "info", "number": 1})
            assert sink.flush()
            stats = sink.stats()
            assert (stats.accepted, stats.delivered, stats.pending) == (1, 1, 0)
            self._assert_received(sink, [{"event": "hello", "number": 1}])

    def test_the_event_is_not_changed(self) -> None:
        """A sink changes neither the dict it was given nor its nested values."""

        def redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
            event["user"]["password"] = "***"  # noqa: S105
            event["tags"].append("seen")
            event["more"] = True
            return event

        event = {"event": "login", "user": {"password": "hunter2"}, "tags": ["a"], "exc_info": None}
        before = copy.deepcopy(event)
        with self.make_sink(processors=[redact]) as sink:
            sink.handle(event)
            sink.flush()
            assert event == before
            self._assert_received(sink, [{"user": {"password": "***"}, "tags": ["a", "seen"], "more": True}])

    def test_events_below_the_level_are_filtered(self) -> None:
        """The level filters lower events, by name in any case, alias or number; it can be set at any time."""
        with self.make_sink(level="warning") as sink:
            sink.handle({"event": "low", "level": "info"})
            sink.handle({"event": "no level"})
            sink.handle({"event": "high", "level": "ERROR"})
            sink.handle({"event": "number wins", "level": "debug", "level_number": 40})
            sink.handle({"event": "unknown passes", "level": "no-such-level"})
            sink.level = "critical"
            sink.handle({"event": "now low", "level": "error"})
            sink.flush()
            assert (sink.stats().accepted, sink.stats().filtered) == (3, 3)
            self._assert_received(sink, [{"event": "high"}, {"event": "number wins"}, {"event": "unknown passes"}])

    def test_a_processor_can_drop_an_event(self) -> None:
        """DropEvent from a processor filters the event."""

        def drop(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
            if event["event"] == "noise":
                raise DropEvent
            return event

        with self.make_sink(processors=[drop]) as sink:
            sink.handle({"event": "noise"})
            sink.handle({"event": "signal"})
            sink.flush()
            assert (sink.stats().accepted, sink.stats().filtered) == (1, 1)
            self._assert_received(sink, [{"event": "signal"}])

    def test_it_ends_a_structlog_chain(self) -> None:
        """Called as a processor it handles the event and raises a fresh DropEvent."""
        with self.make_sink() as sink:
            raised = []
            for _ in range(2):
                try:
                    sink(None, "info", {"event": "from structlog"})
                except DropEvent as error:
                    raised.append(error)
            sink.flush()
            assert len(raised) == 2
            assert raised[0] is not raised[1]
            assert sink.stats().delivered == 2

    def test_hostile_values_are_no_failure(self) -> None:
        """An event whose values cannot be rendered is delivered nevertheless."""

        class Hostile:
            def __repr__(self) -> str:
                msg = "no"
                raise RuntimeError(msg)

        cycle: dict[str, Any] = {}
        cycle["self"] = cycle
        with self.make_sink() as sink:
            sink.handle({"event": "odd", "hostile": Hostile(), "cycle": cycle, "surrogate": "\ud800", 1: 2**70})  # type: ignore[dict-item]
            sink.flush()
            assert sink.stats().delivered == 1

    def test_rendered_text_is_taken(self) -> None:
        """Text and bytes that were rendered before are accepted like events."""
        with self.make_sink() as sink:
            sink.handle("some text")
            sink.handle(b"some bytes")
            sink.flush()
            assert sink.stats().delivered == 2

    def test_a_batch_is_taken(self) -> None:
        """emit_batch takes the results of encode, and returns None when all were delivered."""
        with self.make_sink() as sink:
            batch = [sink.encode({"event": "batched", "number": number}) for number in range(3)]
            assert sink.emit_batch(batch) is None
            sink.flush()
            self._assert_received(sink, [{"event": "batched", "number": number} for number in range(3)])

    # -- failing

    def test_a_failure_is_told_and_not_raised(self) -> None:
        """A failing processor loses only its event; on_error gets the failure, without the event's values."""
        failures: list[SinkFailure] = []

        def fail(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
            if "password" in event:
                raise ValueError(event["password"])
            return event

        with self.make_sink(processors=[fail], on_error=failures.append, name="mine") as sink:
            sink.handle({"event": "bad", "password": "correct horse"})
            sink.handle({"event": "good"})
            sink.flush()
            stats = sink.stats()
            assert (stats.accepted, stats.delivered, stats.dropped) == (2, 1, {"error": 1})
            assert stats.last_error is not None
            [failure] = failures
            assert (failure.sink, failure.events) == ("mine", 1)
            assert "correct horse" not in f"{failure!r} {failure.error!r} {failure.error} {stats}"

    def test_it_raises_if_told_to(self) -> None:
        """With on_error="raise" a failure reaches the caller, and is counted."""

        def fail(_logger: object, _name: str, _event: dict[str, Any]) -> dict[str, Any]:
            msg = "refused"
            raise ValueError(msg)

        with self.make_sink(processors=[fail], on_error="raise") as sink:
            try:
                sink.handle({"event": "bad"})
            except ValueError as error:
                assert str(error) == "refused"
            else:
                msg = "handle() did not raise"
                raise AssertionError(msg)
            assert sink.stats().dropped == {"error": 1}

    def test_a_failing_on_error_is_no_failure_of_the_application(self) -> None:
        """Whatever on_error raises, handle returns."""

        def fail(*_: object) -> dict[str, Any]:
            msg = "refused"
            raise ValueError(msg)

        with self.make_sink(processors=[fail], on_error=fail) as sink:
            sink.handle({"event": "bad"})
            assert sink.stats().dropped == {"error": 1}

    def test_what_on_error_logs_to_the_same_sink_is_refused(self) -> None:
        """An event from within on_error is counted as reentrant instead of failing for ever."""
        sinks: list[Sink] = []

        def fail(_logger: object, _name: str, _event: dict[str, Any]) -> dict[str, Any]:
            msg = "refused"
            raise ValueError(msg)

        def log_again(_failure: SinkFailure) -> None:
            sinks[0]._processors = ()
            sinks[0].handle({"event": "the sink failed"})

        with self.make_sink(processors=[fail], on_error=log_again) as sink:
            sinks.append(sink)
            sink.handle({"event": "bad"})
            assert sink.stats().dropped == {"error": 1, "reentrant": 1}

    def test_interrupts_pass_through(self) -> None:
        """KeyboardInterrupt is not swallowed, and its event is counted as interrupted."""

        def interrupt(_logger: object, _name: str, _event: dict[str, Any]) -> dict[str, Any]:
            raise KeyboardInterrupt

        with self.make_sink(processors=[interrupt]) as sink:
            try:
                sink.handle({"event": "cut short"})
            except KeyboardInterrupt:
                pass
            else:
                msg = "the KeyboardInterrupt was swallowed"
                raise AssertionError(msg)
            assert sink.stats().dropped == {"interrupted": 1}

    def test_misconfiguration_names_the_argument_and_the_value(self) -> None:
        """A bad level, processor or on_error raises at construction and says which."""
        for options in ({"level": "no-such"}, {"level": True}, {"processors": [42]}, {"on_error": "no-such"}):
            try:
                self.make_sink(**options).close()
            except (ValueError, TypeError) as error:
                [(argument, value)] = options.items()
                assert argument in str(error), str(error)
                assert repr(value if argument != "processors" else 42) in str(error), str(error)
            else:
                msg = f"{options} was accepted"
                raise AssertionError(msg)

    # -- ending

    def test_close_is_final_and_idempotent(self) -> None:
        """Events after close are counted as closed and reported; closing again changes nothing."""
        failures: list[SinkFailure] = []
        sink = self.make_sink(on_error=failures.append)
        sink.handle({"event": "before"})
        assert sink.close()
        assert sink.close()
        assert sink.closed
        sink.handle({"event": "after"})
        try:
            sink.deliver({"event": "after"})
        except SinkClosedError:
            pass
        else:
            msg = "deliver() did not raise SinkClosedError"
            raise AssertionError(msg)
        stats = sink.stats()
        assert (stats.accepted, stats.delivered, stats.dropped) == (3, 1, {"closed": 2})
        assert [type(failure.error) for failure in failures] == [SinkClosedError]
        assert_balanced(stats)

    def test_flush_and_close_return_in_time(self) -> None:
        """They keep their timeout, and refuse a negative one."""
        sink = self.make_sink()
        try:
            sink.flush(-1)
        except ValueError as error:
            assert "timeout=-1" in str(error)
        else:
            msg = "flush(-1) was accepted"
            raise AssertionError(msg)
        started = time.monotonic()
        sink.flush(0.5)
        sink.close(0.5)
        assert time.monotonic() - started < 2

    def test_once_closed_it_has_nothing_to_wait_for(self) -> None:
        """After close, flush and close return at once, since `logging` flushes closed handlers at exit."""
        sink = self.make_sink()
        sink.handle({"event": "before"})
        sink.close()
        started = time.monotonic()
        assert sink.flush(20)
        assert sink.close(20)
        assert time.monotonic() - started < 10

    def test_the_ledger_balances_with_many_threads(self) -> None:
        """Eight threads log at once: each event is counted once, and put out."""
        with self.make_sink() as sink:

            def log(thread: int) -> None:
                for number in range(self.events_per_thread):
                    sink.handle({"event": "many", "level": "info", "thread": thread, "number": number})

            threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sink.flush()
            stats = sink.stats()
            assert stats.accepted == 8 * self.events_per_thread
            assert_balanced(stats)
            events = self.received(sink)
            if events is not None:
                assert len({(event["thread"], event["number"]) for event in events}) == stats.delivered

    def test_a_forked_child_begins_anew(self) -> None:
        """The child's ledger is empty, and its sink works and closes."""
        if not hasattr(os, "fork"):
            return
        with self.make_sink() as sink:
            sink.handle({"event": "parent"})
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    fresh = sink.stats().accepted == 0
                    sink.handle({"event": "child"})
                    done = sink.close(5)
                    status = 0 if fresh and done and sink.stats().delivered == 1 else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            sink.handle({"event": "parent"})
            sink.flush()
            assert sink.stats().delivered == 2

    def test_it_does_not_pickle_and_says_so(self) -> None:
        """Pickling names the class and what to do instead."""
        with self.make_sink() as sink:
            try:
                pickle.dumps(sink)
            except TypeError as error:
                assert type(sink).__name__ in str(error)
            else:
                msg = "the sink was pickled"
                raise AssertionError(msg)

    def test_it_has_a_name_and_a_telling_repr(self) -> None:
        """The name is in the stats and the repr; by default it is the class's."""
        with self.make_sink(name="audit", level="error") as sink:
            assert sink.stats().name == "audit"
            assert type(sink).__name__ in repr(sink)
            assert "audit" in repr(sink)
            assert "error" in repr(sink)
        with self.make_sink() as sink:
            assert sink.name == type(sink).__name__

    def _assert_received(self, sink: Sink, expected: list[dict[str, Any]]) -> None:
        events = self.received(sink)
        if events is None:
            return
        assert len(events) == len(expected), events
        for event, part in zip(events, expected, strict=True):
            assert part.items() <= event.items() or all(event.get(key) == value for key, value in part.items()), event
