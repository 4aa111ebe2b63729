"""The contract of a sink: `Sink`, `ByteSink` and `SinkStats`."""

# `type(renderer) is OrjsonRenderer` does not narrow a callable for pyright.
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Union

from structlog import DropEvent

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_functions, unknown_argument
from outfall.sinks.core.chain import InChain
from outfall.sinks.core.clock import now
from outfall.sinks.core.forwarding import Forwarding, reads_data_alone
from outfall.sinks.core.guard import Guarded
from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.core.ledger import Ledger, SinkStats
from outfall.sinks.core.lock import WriteLock
from outfall.sinks.core.reentrancy import delivering, thread
from outfall.sinks.core.reporting import SinkFailure, cleaned, describe, report
from outfall.sinks.core.threads import in_thread
from outfall.sinks.errors import (
    PermanentDeliveryError,
    ReentrantEventError,
    SinkClosedError,
    TemporaryDeliveryError,
    reason_of,
)
from outfall.sinks.event.event import Remainder, TextEvent, as_event, copy_event, timestamp_of
from outfall.sinks.event.json import line_to_send
from outfall.sinks.event.levels import NOTSET, Level, level_name, level_of, parse_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

#: Counts the sinks of the process.
_numbers = itertools.count(1)

#: What ``on_error`` takes.
OnError = Union["Callable[[SinkFailure], object]", Literal["raise"]]


class Sink(Guarded, InChain, Forwarding):
    """Somewhere to put event dicts.

    Applications call `handle`, or put the sink last in a structlog processor chain. Who writes a sink implements
    `emit`, and `emit_batch` where many at once are cheaper than one by one.

    The way of an event: level, then processors, both outside any lock, then `emit` under the sink's lock. Sinks raise;
    `handle` is the layer that counts, reports and never lets an exception into the application.

    Args:
        level: Events below it are filtered: a name in any case, or a number. Default NOTSET, which takes all. An
            event's ``level_number`` wins over its ``level``; without either it counts as INFO; a level nobody knows
            passes.
        processors: structlog processors, applied in order to a copy of the event. ``structlog.DropEvent`` filters it.
            They get the logger and method name where they are known, else None and the level's name. Default none.
        on_error: What is told of a failure: a callable that gets a `SinkFailure`, or ``"raise"`` to raise into the
            application (for audit logs). Default `report`: one line on stderr, at most once in 30 s per cause.
        name: What to call the sink in reports and stats. Default the name of its class.

    Raises:
        ValueError: If *level* is no level, or *on_error* is neither callable nor ``"raise"``.
        TypeError: If a processor is not callable.

    Safe from any thread and from signal handlers. A forked child gets fresh locks and an empty ledger. A sink is not
    picklable: make one in each process.
    """

    #: True in sinks whose delivery runs library code that logs (HTTP, background workers). While a thread delivers for
    #: one of them, all of them drop that thread's events as ``reentrant``; two of them on a DEBUG root logger would
    #: feed each other for ever otherwise.
    delivers_through_loggers: ClassVar[bool] = False

    #: True in sinks of that kind whose ``handle`` only stores events, for a thread to deliver.
    delivers_later: ClassVar[bool] = False

    #: False in sinks that hand events to something with a lock of its own, so that `emit` needs none of ours.
    locks_emit: ClassVar[bool] = True

    #: True in sinks that keep what `emit_batch` gives them (buffers, spools), and so count it themselves.
    counts_batches: ClassVar[bool] = False

    #: True in sinks that people look at, and in those that only hand on. Text for people is right there.
    shows_people: ClassVar[bool] = False

    #: What no user of a sink calls: hooks for writers of sinks, and calls from within.
    _inside: ClassVar[frozenset[str]] = frozenset(
        {name for name in vars(Forwarding) if name[0] != "_"}
        | {"after_fork", "drain", "hasten", "has_owner", "emit", "emit_batch", "encode", "handle_error"}
        | {"formatter", "counts_batches", "delivers_later", "delivers_through_loggers", "locks_emit", "shows_people"}
    )

    #: What ``flush`` and ``close`` take for *timeout* None, in seconds; `logging.shutdown` passes none. Settable. Once
    #: the process exits it is no more than what is left of the time that the exit gives all sinks together.
    drain_timeout: float = 5.0

    def __init__(
        self,
        *,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
        **unknown: NoReturn,
    ) -> None:
        given: dict[str, Any] = dict(unknown)
        for argument, value in given.items():  # of a class that passes on what it is given
            raise unknown_argument(type(self).__name__, argument, value, self.parameters())
        self._level = parse_level(level)
        self._processors = checked_functions(processors, "processors", "(logger, method_name, event_dict) -> event")
        for processor in self._processors:
            if isinstance(processor, Sink):
                msg = f"processors: {processor!r} is a sink, which ends a chain; write tee(sink), or use a FanoutSink"
                raise TypeError(msg)
        if not (callable(on_error) or on_error == "raise"):
            msg = f"on_error={on_error!r} is neither a callable nor 'raise'"
            raise ValueError(msg)
        self.on_error: OnError = on_error
        self.name: str = type(self).__name__ if name is None else str(name)
        self._number = next(_numbers)
        self._closed = False
        self._close_result = True
        self._reporting = 0
        #: How a subclass's short cut goes; 0: not at all.
        self._express = 0
        self._fresh_state()
        lifecycle.join(self)

    def _fresh_state(self) -> None:
        """Set up the lock and the ledger, at construction and in a forked child."""
        #: Around emit and write alone.
        self._lock = WriteLock()
        self._ledger = Ledger()
        #: Events that a failing `_flush` gave up, for the report.
        self._lost = 0
        #: When `_flush` and `_release` have to be done, by the monotonic clock; None outside flush and close.
        self._deadline: float | None = None

    # -- what applications call

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        The event is not changed. Rendered text is taken too. KeyboardInterrupt and SystemExit pass through, counted as
        ``interrupted``.
        """
        try:
            self.deliver(event)
        except ReentrantEventError:
            return  # counted; a report could be what feeds the loop
        except Exception as error:
            caught = error
        else:
            return
        # Out here, so that what is raised for it has no context that gives the event away.
        try:
            self._fail(caught, event, events=self._events_lost_to(caught))
        finally:
            del caught  # with its traceback, which holds this frame

    def deliver(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event, raising if it could not be put out: what wrappers and routers call.

        A filtered event is no failure. Whatever is raised, the event has been counted.

        Raises:
            SinkClosedError: After `close`.
            ReentrantEventError: If the event was born inside this sink's own delivery or error report.
            Exception: Whatever processors, renderer or target raise.
        """
        if not lifecycle.here[0]:
            lifecycle.notice_fork()
        failure = None
        try:
            admitted = self._admit(event)
            if admitted is None:
                return
            if self.delivers_through_loggers:
                if thread.delivering:
                    msg = f"{self.name}: the event was logged while delivering another"
                    raise ReentrantEventError(msg)
                if self.delivers_later:
                    failure = self._put(admitted)
                else:
                    with delivering():
                        failure = self._put(admitted)
            else:
                failure = self._put(admitted)
        except DropEvent:
            self._ledger.filter()
        except Exception as error:
            self._count_dropped(reason_of(error))
            raise
        except BaseException:
            self._count_dropped("interrupted")
            raise
        if failure is not None:
            thread.settled = failure
            raise failure

    def flush(self, timeout: float | None = None) -> bool:
        """Put out what waits; return True when everything accepted so far is settled (delivered, dropped …).

        Args:
            timeout: Seconds, for locks too. None stands for `drain_timeout`, 5 s.

        Failures go to ``on_error``. Returns within *timeout* and a quarter of a second.
        """
        if not lifecycle.here[0]:
            lifecycle.notice_fork()
        seconds = self._seconds(timeout)
        deadline = now() + seconds
        self._put_remainders(deadline)
        if not self._lock.acquire(seconds):
            return False
        errors: list[Exception] = []
        try:
            self._deadline = deadline
            self._flush()
        except Exception as error:
            errors.append(error)
        finally:
            self._deadline = None
            lost, self._lost = self._lost, 0
            self._lock.release()
        for failure in errors:
            self._fail(failure, None, events=lost)
        return not errors

    def close(self, timeout: float | None = None) -> bool:
        """Flush and release; idempotent. Return False if something had to be given up.

        Events that come later are counted as ``dropped["closed"]``.

        Args:
            timeout: Seconds, for locks too. None stands for `drain_timeout`, 5 s.
        """
        seconds = self._seconds(timeout)
        deadline = now() + seconds
        if not self._begin_to_close(deadline):
            return self._close_result
        if not self._lock.acquire(seconds):
            self._give_up()
            return False
        errors: list[Exception] = []
        try:
            self._deadline = deadline
            for step in (self._flush, self._release):
                try:
                    step()
                except Exception as error:
                    errors.append(error)
        finally:
            self._deadline = None
            lost, self._lost = self._lost, 0
            self._lock.release()
        self._close_result = not errors
        for failure in errors:
            self._fail(failure, None, events=lost)
            lost = 0
        return self._close_result

    def _begin_to_close(self, deadline: float) -> bool:
        """Take no more events; return False if that was so already."""
        if not lifecycle.here[0]:
            lifecycle.notice_fork()
        self._put_remainders(deadline)
        with self._ledger.lock:
            if self._closed:
                return False
            self._closed = True
            self._close_result = False
        self._changed()
        return True

    def _put_remainders(self, deadline: float) -> None:
        """Put out the events by which processors tell what they have held back, unless the sink around does it."""
        if self._closed or self.has_owner:
            return
        remainders: list[Remainder] = []
        for processor in self.all_processors():
            held_back: Any = getattr(processor, "held_back", None)
            if callable(held_back):
                told: Any = held_back()
                remainders += [Remainder(event, processor) for event in told]

        def put() -> None:
            for event in remainders:
                try:
                    self.deliver(event)
                except Exception as error:
                    self._fail_unraised(error, event)

        if remainders and self.delivers_through_loggers and not self.delivers_later:
            # A peer that says nothing may take longer than the caller has.
            work = threading.Thread(target=put, name=f"{self.name} tells what was held back", daemon=True)
            with suppress(RuntimeError):  # the interpreter is going down, or there are too many threads
                work.start()
                work.join(max(0.0, deadline - now()))
                return
        put()

    async def aflush(self, timeout: float | None = None) -> bool:
        """Do `flush` in a thread of its own, for asyncio."""
        return await in_thread(self.flush, timeout)

    async def aclose(self, timeout: float | None = None) -> bool:
        """Do `close` in a thread of its own, for asyncio."""
        return await in_thread(self.close, timeout)

    def stats(self) -> SinkStats:
        """Return the ledger as it stands."""
        with self._ledger.lock:
            return self._stats()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    @property
    def level(self) -> float:
        """The level number below which events are filtered; set it to a name or a number at any time."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self._level = parse_level(level)
        self._changed()

    @property
    def processors(self) -> tuple[Callable[[Any, str, Any], Any], ...]:
        """The processors applied to a copy of each event."""
        return self._processors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        parts = [self._describe()]
        if self.name != type(self).__name__:
            parts.append(f"name={self.name!r}")
        if self._level:
            parts.append(f"level={level_name(self._level)!r}")
        if self._closed:
            parts.append("closed")
        return f"<{type(self).__name__} {' '.join(part for part in parts if part)}>".replace(" >", ">")

    # -- what a sink writer implements

    def emit(self, event: dict[str, Any]) -> None:
        """Put one event out; raise if that failed. Called under the sink's lock; must not change *event*."""
        msg = f"{type(self).__name__} has to implement emit(event)"
        raise TypeError(msg)

    @reads_data_alone()
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Put many events out; return None if all were taken, else what became of the others.

        The default calls `emit` for each: a `TemporaryDeliveryError`, or a connection's error or time-out, ends the
        round and leaves the rest for a retry; any other exception rejects that one event.

        Raises:
            Exception: If none was taken.
        """
        return self._emit_each(batch, lambda item: self.emit(item.event))

    def handle_error(self, failure: SinkFailure) -> None:
        """Tell of *failure*; the default calls ``on_error``, or raises its error. Called without locks."""
        on_error = self.on_error
        if on_error == "raise":
            raise failure.error
        on_error(failure)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event* as a batch item for this sink, a snapshot that shares nothing with it."""
        return self._encoded(event, line_to_send(event))

    # -- what the sinks of this package override, under the lock

    def _flush(self) -> None:
        """Put out what waits; if that fails, count what is lost, add it to ``_lost`` and raise."""

    def _release(self) -> None:
        """Let go of what is held, at close."""

    def _give_up(self) -> None:
        """Count what waits as lost, without the lock: close() did not get it in time."""

    def _describe(self) -> str:
        """Return what tells this sink from others of its class, for its repr."""
        return ""

    def _where(self) -> str:
        """Return what tells this sink from others of its class, for reports: it stays the same, and is no secret."""
        return self._describe()

    def _where_of(self, target: Sink) -> str:
        """Return what to tell of *target*, which may have the name of the sink around it."""
        return target._told_name() if target.name != self.name else target._where() or target.name

    def _told_name(self) -> str:
        """Return the sink's name and what tells it from its like."""
        return f"{self.name} {self._where()}".rstrip()

    def _reads_metadata(self) -> bool:
        """Return True if something here may look at an event's metadata keys, which are costly to take out again."""
        return True

    def _refresh(self) -> None:
        """Find out anew whether a subclass's short cut may be taken; called when what it depends on changes."""

    def _changed(self) -> None:
        """Have the short cuts found out anew: this sink's, and those of the sinks around it."""
        self._refresh()
        for wrapper in self._wrappers:
            around = wrapper()
            if around is not None:
                around._changed()

    # -- short cuts, see outfall.sinks.core.forwarding

    @property
    def plain(self) -> bool:
        """See `Forwarding.plain`: of a sink with the usual `encode`, and without processors."""
        own = type(self)
        return own.encode is Sink.encode and own.make_item is Sink.make_item and not self._processors

    def _prepare_reads_metadata(self) -> bool:
        """Return True if `make_item` may look at an event's metadata keys. What comes after it never sees them."""
        own = type(self)
        usual = own.encode is Sink.encode and own.make_item is Sink.make_item
        return not usual or bool(self._processors)

    # -- the pipeline

    def _admit(self, event: object) -> dict[str, Any] | None:
        """Return the event to put out, past level and processors, or None if it was filtered."""
        admitted: dict[str, Any] = event if type(event) is dict else as_event(event)
        if type(admitted) is Remainder:
            if not self.has_processor(admitted.maker):
                return None
            # What it tells of has passed the level.
        elif self._level and level_of(admitted) < self._level:
            self._ledger.filter()
            return None
        if self._processors:
            admitted = self._processed(admitted)
        if self._closed:
            if thread.delivering:
                # What a delivery logs while everything is being closed is no event that somebody expects anywhere.
                msg = f"{self.name}: the event was logged while delivering another"
                raise ReentrantEventError(msg)
            raise self._closed_error()
        if self._reporting and self in thread.reporting:
            msg = f"{self.name}: the event was logged by its own on_error"
            raise ReentrantEventError(msg)
        return admitted

    def _processed(self, event: dict[str, Any]) -> dict[str, Any]:
        level = level_of(event)
        logger = event.get("_logger")
        if logger is None and "_record" in event:
            logger = logging.getLogger(event["_record"].name)  # what structlog's processors take it for
        name = event.get("_name") or level_name(level)
        processors = self._processors
        if isinstance(event, Remainder):
            places = [place for place, processor in enumerate(processors) if processor is event.maker]
            if not places:
                return event  # its maker is behind this sink
            processors = processors[places[0] + 1 :]
        processed: Any = copy_event(event)
        for processor in processors:
            processed = processor(logger, name, processed)
        made = as_event(processed)
        if isinstance(made, TextEvent) and made.carried_level is None:
            made.carried_level = level
        return made

    def _put(self, event: dict[str, Any]) -> Exception | None:
        """Emit one admitted event under the lock and count it; raise if it is lost.

        Returned is an error to raise although the event has been settled, which only routers have.
        """
        if self.locks_emit:
            with self._lock:
                self._check_open()
                self.emit(event)
                self._ledger.delivered += 1
        else:
            self.emit(event)
            with self._ledger.lock:
                self._ledger.delivered += 1
        return None

    def _check_open(self) -> None:
        # Asked again under the lock: close() may have come between.
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> SinkClosedError:
        return SinkClosedError(f"{self._told_name()} is closed")

    def _emit_each(
        self, batch: Sequence[Encoded], emit: Callable[[Any], None], made: Sequence[Any] | None = None
    ) -> BatchResult | None:
        """Call *emit* with each item, or with what was *made* of each."""
        rejected: dict[int, str] = {}
        for index, item in enumerate(batch if made is None else made):
            try:
                with self._lock if self.locks_emit else nullcontext():
                    emit(item)
            except DropEvent:
                pass
            except (TemporaryDeliveryError, ConnectionError, TimeoutError) as error:
                if index == 0:
                    raise
                retry_after = error.retry_after if isinstance(error, TemporaryDeliveryError) else None
                return BatchResult(range(index, len(batch)), rejected, retry_after=retry_after)
            except PermanentDeliveryError as error:
                rejected[index] = error.reason
            except Exception as error:
                rejected[index] = describe(cleaned(error, batch[index].event))
        return BatchResult(rejected=rejected) if rejected else None

    def _encoded(self, event: dict[str, Any], data: bytes) -> Encoded:
        when = timestamp_of(event)
        # orjson's bytes keep the buffer that they were made in, ten times as large at worst, and items wait.
        return Encoded(bytes(memoryview(data)), level_of(event), time.time() if when is None else when)

    # -- counting and telling

    def _count_dropped(self, reason: str, events: int = 1) -> None:
        self._ledger.drop(reason, events)

    def _stats(self) -> SinkStats:
        """Return the ledger; called under its lock."""
        return self._ledger.stats(self.name)

    def _events_lost_to(self, error: Exception) -> int:
        """Return how many events were lost when `deliver` raised *error*."""
        if error is thread.settled:
            thread.settled = None  # not kept, with all that its traceback holds
            return 0
        # More than one where a buffer was lost with it.
        lost, self._lost = self._lost, 0
        return 1 + lost

    def _fail(self, error: Exception, event: object, *, events: int = 1, suppressed: int = 0) -> None:
        """Apply the error policy to *error*; the loss itself has been counted. Called without locks."""
        told = cleaned(error, event)
        self._ledger.last_error = describe(told)
        failure = self._failed_with(told, events, suppressed)
        with self._ledger.lock:
            self._reporting += 1
        self._changed()
        thread.reporting.append(self)
        try:
            self.handle_error(failure)
        except Exception as raised:
            if self.on_error == "raise":
                raise
            # The last resort: who was to be told failed itself.
            report(replace(failure, error=cleaned(raised, event), events=0))
        finally:
            thread.reporting.pop()
            with self._ledger.lock:
                self._reporting -= 1
            self._changed()

    def _fail_unraised(self, error: Exception, event: object, *, events: int = 0) -> None:
        """Do `_fail` where nobody is there to raise to, or nothing may be: what would be raised is reported."""
        if self.on_error != "raise":
            self._fail(error, event, events=events)
            return
        told = cleaned(error, event)
        self._ledger.last_error = describe(told)
        report(self._failed_with(told, events))

    def _failed_with(self, told: BaseException, events: int, suppressed: int = 0) -> SinkFailure:
        try:
            where = self._where()
        except Exception:  # of a sink that was made half
            where = ""
        return SinkFailure(self.name, told, events, time.time(), suppressed, where, self._number)

    def _seconds(self, timeout: float | None) -> float:
        seconds = lifecycle.patience(self.drain_timeout) if timeout is None else timeout
        if not seconds >= 0:
            msg = f"timeout={timeout!r} is not a number of seconds from 0 up, or None"
            raise ValueError(msg)
        return seconds

    # -- the process's life, see outfall.sinks.core.lifecycle

    @property
    def has_owner(self) -> bool:
        """Whether a sink around this one drains it with itself."""
        return any(wrapper() is not None for wrapper in self._wrappers)

    def hasten(self, deadline: float) -> None:
        """Have a thread that delivers linger no more, at exit; until *deadline* `drain` waits for it."""
        self._put_remainders(deadline)

    def drain(self, timeout: float) -> None:
        """Put out what waits, at exit; the sink stays open and keeps nothing back any more."""
        if not self._closed:
            self.flush(timeout)

    def after_fork(self) -> None:
        """Begin anew in a forked child: fresh locks, an empty ledger, nothing pending."""
        self._fresh_state()
        self._reporting = 0
        self._changed()


def checked_sink(sink: Any, argument: str = "sink") -> Sink:
    """Return *sink*.

    Raises:
        TypeError: If it is none; the message says what makes one of it.
    """
    if isinstance(sink, Sink):
        return sink
    kind = type(sink).__name__
    if isinstance(sink, type):
        msg = f"{argument}={sink.__name__} is not a Sink but a class; write {sink.__name__}(…)"
    elif isinstance(sink, str) and "://" in sink:
        msg = f"{argument}: a URL is not a Sink; write open_sink(url)"  # which may hold a password
    elif isinstance(sink, (str, os.PathLike)):
        msg = f"{argument}={sink!r} is not a Sink; write FileSink({os.fspath(sink)!r})"
    elif isinstance(sink, logging.Handler):
        msg = f"{argument}={sink!r} is not a Sink; write HandlerSink({kind}(…))"
    elif isinstance(sink, (list, tuple)):
        msg = f"{argument}={sink!r} is not a Sink; give the sinks one by one, FanoutSink(*sinks)"
    elif hasattr(sink, "write"):
        msg = f"{argument}={sink!r} is not a Sink; write StreamSink(stream)"
    else:
        msg = f"{argument}={sink!r} is not a Sink"
    raise TypeError(msg)
