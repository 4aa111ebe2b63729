"""The base class of all sinks, with their contract: `Sink`."""

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
from outfall.sinks.core.threads import in_thread, start
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

#: The type of the argument ``on_error``.
OnError = Union["Callable[[SinkFailure], object]", Literal["raise"]]


class Sink(Guarded, InChain, Forwarding):
    """Take event dicts and put them somewhere: the base class of all sinks.

    Applications call `handle`, or put the sink last in a structlog processor chain. To write a sink, implement `emit`,
    and also `emit_batch` if many events at once are cheaper than one by one.

    An event passes level and processors, outside any lock; then `emit` gets it under the sink's lock. `emit` raises
    exceptions. `handle` counts and reports them, and never lets one into the application.

    Args:
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all. An event's
            ``level_number`` wins over its ``level``. An event without either counts as INFO, and one with an unknown
            level passes.
        processors: structlog processors, applied in order to a copy of the event. ``structlog.DropEvent`` filters the
            event. They get the logger and the method name if these are known, else None and the level's name. Default:
            none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"`` to raise into the application (for audit
            logs). Default `report`: one line on stderr, at most once in 30 s per cause.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *level* is not a level, or *on_error* is neither callable nor ``"raise"``.
        TypeError: If a processor is not callable.

    Safe from any thread and from signal handlers. A forked child gets new locks and an empty ledger. A sink cannot be
    pickled: make one in each process.
    """

    #: True in sinks whose delivery runs library code that logs (HTTP, background workers). While a thread delivers for
    #: one of them, all of them drop that thread's events as ``reentrant``. Otherwise two of them on a DEBUG root logger
    #: would feed each other for ever.
    delivers_through_loggers: ClassVar[bool] = False

    #: True in those of these sinks whose ``handle`` only stores events, which a thread delivers.
    delivers_later: ClassVar[bool] = False

    #: False in sinks that pass events to an object with its own lock, so that `emit` needs no lock.
    locks_emit: ClassVar[bool] = True

    #: True in sinks that store the items of `emit_batch` (buffers, spools), and so count them themselves.
    counts_batches: ClassVar[bool] = False

    #: True in sinks that may get text for people, since people read their output or they only pass events on.
    shows_people: ClassVar[bool] = False

    #: Names that users of a sink do not need: hooks for authors of sinks, and internal calls.
    _inside: ClassVar[frozenset[str]] = frozenset(
        {name for name in vars(Forwarding) if name[0] != "_"}
        | {"after_fork", "drain", "hasten", "has_owner", "emit", "emit_batch", "encode", "handle_error"}
        | {"formatter", "counts_batches", "delivers_later", "delivers_through_loggers", "locks_emit", "shows_people"}
    )

    #: The timeout of ``flush`` and ``close`` if *timeout* is None, as for `logging.shutdown`, in seconds. Settable.
    #: During the exit of the process it is limited to the time left for all sinks together.
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
        for argument, value in given.items():  # a subclass has passed on its keyword arguments
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
        self._fresh_state()
        lifecycle.join(self)

    def _fresh_state(self) -> None:
        """Set up the lock and the ledger, at construction and in a forked child."""
        #: Held around emit and write only.
        self._lock = WriteLock()
        self._ledger = Ledger()
        #: The number of events that a failed `_flush` gave up, for the report.
        self._lost = 0
        #: The deadline of `_flush` and `_release`, by the monotonic clock; None outside flush and close.
        self._deadline: float | None = None

    # -- methods for applications

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event; failures go to ``on_error``. Never raises, unless ``on_error`` is ``"raise"``.

        Args:
            event: The event, which is not changed; or rendered text.

        KeyboardInterrupt and SystemExit pass through, counted as ``interrupted``.
        """
        try:
            self.deliver(event)
        except ReentrantEventError:
            return  # counted; a report could be logged, and continue the loop
        except Exception as error:
            caught = error
        else:
            return
        # Outside of the except block: *caught* may repeat the event, so it must not become the context of an error.
        try:
            self._fail(caught, event, events=self._events_lost_to(caught))
        finally:
            del caught  # its traceback refers to this frame: without this they form a cycle

    def deliver(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event, and raise if it cannot be put out; wrappers and routers call this.

        A filtered event is not a failure. The event is counted even if an exception is raised.

        Raises:
            SinkClosedError: After `close`.
            ReentrantEventError: If the event was logged during this sink's own delivery or error report.
            Exception: The exceptions of processors, renderer and target.
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
        """Put out all waiting events; return True if all events accepted so far have an outcome (delivered, dropped …).

        Args:
            timeout: The time limit in seconds, including waits for locks. Default None: `drain_timeout`, 5 s.

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
        """Flush, and release all resources; return False if events had to be given up.

        Later events are counted as ``dropped["closed"]``. Further calls do nothing, and return the same result.

        Args:
            timeout: The time limit in seconds, including waits for locks. Default None: `drain_timeout`, 5 s.
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
        """Mark the sink as closed; return False if it was closed already."""
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
        """Put out the processors' summaries of suppressed events, unless an owner does it."""
        if self._closed or self.has_owner:
            return
        remainders: list[Remainder] = []
        for processor in self.all_processors():
            held_back: Any = getattr(processor, "held_back", None)
            if callable(held_back):
                summaries: Any = held_back()
                remainders += [Remainder(event, processor) for event in summaries]
        if not remainders:
            return

        def put() -> None:
            for event in remainders:
                try:
                    self.deliver(event)
                except Exception as error:
                    self._fail_unraised(error, event)

        if self.delivers_through_loggers and not self.delivers_later:
            # In a thread, since a peer that does not answer may take longer than the deadline allows.
            work = threading.Thread(target=put, name=f"{self.name} tells what was held back", daemon=True)
            with suppress(RuntimeError):  # the interpreter is shutting down, or there are too many threads
                start(work)
                work.join(max(0.0, deadline - now()))
                return
        put()

    async def aflush(self, timeout: float | None = None) -> bool:
        """Call `flush` in a new thread, for asyncio."""
        return await in_thread(self.flush, timeout)

    async def aclose(self, timeout: float | None = None) -> bool:
        """Call `close` in a new thread, for asyncio."""
        return await in_thread(self.close, timeout)

    def stats(self) -> SinkStats:
        """Return the current ledger."""
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

    # -- methods for authors of sinks

    def emit(self, event: dict[str, Any]) -> None:
        """Put one event out, and raise if that fails. Called under the sink's lock; must not change *event*."""
        msg = f"{type(self).__name__} has to implement emit(event)"
        raise TypeError(msg)

    @reads_data_alone()
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Put many events out; return None if all were delivered, else a `BatchResult`.

        The default calls `emit` for each event. A `TemporaryDeliveryError`, ConnectionError or TimeoutError ends the
        loop, and leaves this and the remaining events for a retry. Any other exception rejects that one event.

        Raises:
            Exception: If no event was delivered.
        """
        return self._emit_each(batch, lambda item: self.emit(item.event))

    def handle_error(self, failure: SinkFailure) -> None:
        """Report *failure*: the default calls ``on_error``, or raises the error. Called without locks."""
        on_error = self.on_error
        if on_error == "raise":
            raise failure.error
        on_error(failure)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return an item for `emit_batch`: a snapshot that shares nothing with *event*."""
        return self._encoded(event, line_to_send(event))

    # -- methods that sinks of this package override; called under the lock

    def _flush(self) -> None:
        """Put out all waiting events; if that fails, count the lost ones, add their number to ``_lost`` and raise."""

    def _release(self) -> None:
        """Release all resources, at close."""

    def _give_up(self) -> None:
        """Count the waiting events as lost; called without the lock, which `close` did not get in time."""

    def _describe(self) -> str:
        """Return the target, for the repr: it distinguishes this sink from others of its class."""
        return ""

    def _where(self) -> str:
        """Return the target, for reports: a text that does not change and holds no secret."""
        return self._describe()

    def _where_of(self, target: Sink) -> str:
        """Return name and target of *target*, for a wrapper's reports; leave the name out if it is the wrapper's."""
        return target._full_name() if target.name != self.name else target._where() or target.name

    def _full_name(self) -> str:
        """Return the sink's name and target."""
        return f"{self.name} {self._where()}".rstrip()

    def _reads_metadata(self) -> bool:
        """Return True if the sink may read an event's metadata keys, which are slow to remove again."""
        return True

    def _refresh(self) -> None:
        """Decide again whether a subclass's shortcut may be taken; called when settings change."""

    def _changed(self) -> None:
        """Call `_refresh` of this sink and of its wrappers, after a change of settings."""
        self._refresh()
        for wrapper in self._wrappers:
            around = wrapper()
            if around is not None:
                around._changed()

    # -- shortcuts, see outfall.sinks.core.forwarding

    @property
    def plain(self) -> bool:
        """True if `encode` and `make_item` are not overridden and there are no processors; see `Forwarding.plain`."""
        own = type(self)
        return own.encode is Sink.encode and own.make_item is Sink.make_item and not self._processors

    def _prepare_reads_metadata(self) -> bool:
        """Return True if `make_item` may read an event's metadata keys; later stages never see them."""
        own = type(self)
        usual = own.encode is Sink.encode and own.make_item is Sink.make_item
        return not usual or bool(self._processors)

    # -- the pipeline

    def _admit(self, event: object) -> dict[str, Any] | None:
        """Apply level and processors; return the event to put out, or None if it is filtered."""
        admitted: dict[str, Any] = event if type(event) is dict else as_event(event)
        if type(admitted) is Remainder:
            if not self.has_processor(admitted.maker):
                return None
            # Not filtered by level: the events that it sums up have passed the level.
        elif self._level and level_of(admitted) < self._level:
            self._ledger.filter()
            return None
        if self._processors:
            admitted = self._processed(admitted)
        if self._closed:
            if thread.delivering:
                # An event that a delivery logs while sinks are being closed: not worth a report.
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
            logger = logging.getLogger(event["_record"].name)  # as structlog's processors expect
        name = event.get("_name") or level_name(level)
        processors = self._processors
        if isinstance(event, Remainder):
            places = [place for place, processor in enumerate(processors) if processor is event.maker]
            if not places:
                return event  # the processor that made it belongs to a sink behind this one
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

        Return an error that `deliver` should raise although the event was put out; only routers have one.
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
        # Checked again under the lock: close() may have been called meanwhile.
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> SinkClosedError:
        return SinkClosedError(f"{self._full_name()} is closed")

    def _emit_each(
        self, batch: Sequence[Encoded], emit: Callable[[Any], None], made: Sequence[Any] | None = None
    ) -> BatchResult | None:
        """Call *emit* with each item of *batch*, or with each object in *made*, which stands for an item."""
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
        # A copy, since items wait: orjson's bytes keep their whole buffer, which may be ten times as large.
        return Encoded(bytes(memoryview(data)), level_of(event), time.time() if when is None else when)

    # -- counting and reporting

    def _count_dropped(self, reason: str, events: int = 1) -> None:
        self._ledger.drop(reason, events)

    def _stats(self) -> SinkStats:
        """Return the ledger; called under its lock."""
        return self._ledger.stats(self.name)

    def _events_lost_to(self, error: Exception) -> int:
        """Return the number of events lost when `deliver` raised *error*."""
        if error is thread.settled:
            thread.settled = None  # frees its traceback
            return 0
        # More than one if buffered events were lost too.
        lost, self._lost = self._lost, 0
        return 1 + lost

    def _fail(self, error: Exception, event: object, *, events: int = 1, suppressed: int = 0) -> None:
        """Apply the error policy to *error*; the loss itself has been counted. Called without locks."""
        shown = cleaned(error, event)
        self._ledger.last_error = describe(shown)
        failure = self._failed_with(shown, events, suppressed)
        with self._ledger.lock:
            self._reporting += 1
        self._changed()
        thread.reporting.append(self)
        try:
            self.handle_error(failure)
        except Exception as raised:
            if self.on_error == "raise":
                raise
            # on_error itself has failed.
            report(replace(failure, error=cleaned(raised, event), events=0))
        finally:
            thread.reporting.pop()
            with self._ledger.lock:
                self._reporting -= 1
            self._changed()

    def _fail_unraised(self, error: Exception, event: object, *, events: int = 0) -> None:
        """Do the same as `_fail`, but report the error instead of raising it, since no caller can handle it."""
        if self.on_error != "raise":
            self._fail(error, event, events=events)
            return
        shown = cleaned(error, event)
        self._ledger.last_error = describe(shown)
        report(self._failed_with(shown, events))

    def _failed_with(self, error: BaseException, events: int, suppressed: int = 0) -> SinkFailure:
        try:
            where = self._where()
        except Exception:  # the constructor has not finished
            where = ""
        return SinkFailure(self.name, error, events, time.time(), suppressed, where, self._number)

    def _seconds(self, timeout: float | None) -> float:
        seconds = lifecycle.patience(self.drain_timeout) if timeout is None else timeout
        if not seconds >= 0:
            msg = f"timeout={timeout!r} is not a number of seconds from 0 up, or None"
            raise ValueError(msg)
        return seconds

    # -- fork and exit, see outfall.sinks.core.lifecycle

    @property
    def has_owner(self) -> bool:
        """Whether a wrapper owns this sink and drains it."""
        return any(wrapper() is not None for wrapper in self._wrappers)

    def hasten(self, deadline: float) -> None:
        """Make the delivering thread send waiting events at once; called at exit, before `drain`, with its deadline."""
        self._put_remainders(deadline)

    def drain(self, timeout: float) -> None:
        """Put out all waiting events at exit; the sink stays open, and buffers no more."""
        if not self._closed:
            self.flush(timeout)

    def after_fork(self) -> None:
        """Reset the sink in a forked child: new locks, an empty ledger, nothing pending."""
        self._fresh_state()
        self._reporting = 0
        self._changed()


def checked_sink(sink: Any, argument: str = "sink") -> Sink:
    """Return *sink*.

    Raises:
        TypeError: If it is not a `Sink`; the message says how to make one.
    """
    if isinstance(sink, Sink):
        return sink
    kind = type(sink).__name__
    if isinstance(sink, type):
        msg = f"{argument}={sink.__name__} is not a Sink but a class; write {sink.__name__}(…)"
    elif isinstance(sink, str) and "://" in sink:
        msg = f"{argument}: a URL is not a Sink; write open_sink(url)"  # without the URL, which may hold a password
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
