"""Sinks that keep events in memory: `BufferingSink`, `MemorySink`, `CaptureSink`."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import lifecycle, threads
from outfall.sinks.core.arguments import checked_seconds, checked_size
from outfall.sinks.core.bells import Bells
from outfall.sinks.core.clock import now
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reentrancy import thread
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink, checked_sink
from outfall.sinks.errors import (
    DeliveryError,
    ReentrantEventError,
    TemporaryDeliveryError,
    reason_of,
)
from outfall.sinks.event.event import copy_event, snapshot, without_metadata
from outfall.sinks.event.levels import NOTSET, Level, level_of, parse_level

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.core.ledger import SinkStats


class _Buffer(deque[dict[str, Any]]):
    """A deque that compares and slices like a list. Unlike a list it removes its first item in constant time."""

    __slots__ = ()

    __hash__ = None  # as lists have it

    def __eq__(self, other: object) -> bool:
        return list(self) == other if isinstance(other, list) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index] if isinstance(index, slice) else super().__getitem__(index)


class BufferingSink(Sink):
    """Buffer events in memory, and flush the buffer when it holds *capacity* of them: a base class.

    `flush` empties the buffer; a subclass overrides it to put the events somewhere first. `should_flush` may be
    overridden too, and is called after each event. The buffer holds snapshots: later changes of nested dicts and lists
    have no effect on them, and ``exc_info=True`` is replaced by the exception.

    Args:
        capacity: The number of buffered events that triggers a flush.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *capacity* is not a whole number from 0 up. With 0 each event is flushed.

    In the ledger, buffered events are pending. Events that `flush` discards are ``dropped["discarded"]``; events that a
    subclass takes out of the buffer count as delivered.

    Safe from any thread; the lock of the buffer is held only for a moment. A forked child begins with an empty buffer.
    The exit of the process flushes the buffer, and each later event. `close` flushes it too.

    Source: `logging.handlers.BufferingHandler`.
    """

    locks_emit = False
    counts_batches = True

    #: Whether `close` and the exit of the process flush the buffer.
    flush_on_close: bool = True

    def __init__(
        self,
        capacity: int,
        *,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        #: The number of buffered events that triggers a flush; settable.
        self.capacity: int = checked_size(capacity, "capacity", "events")
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: The lock of the ledger, which guards the buffer too.
        self._left = self._ledger.lock
        #: Rung when an event leaves the buffer.
        self._bells = Bells()
        self._buffer = _Buffer()
        #: The number of events ever buffered, and the number of those dropped later.
        self._taken = 0
        self._lost_from_buffer = 0
        #: A token for the event that has left the buffer and is being given to the target.
        self._in_flight: object | None = None

    @property
    def buffer(self) -> deque[dict[str, Any]]:
        """The buffered events, oldest first. It may be changed, and other events may be assigned."""
        return self._buffer

    @buffer.setter
    def buffer(self, events: Iterable[dict[str, Any]]) -> None:
        made = _Buffer(events)
        with self._left:
            self._buffer = made
            self._bells.ring()

    def should_flush(self, event: dict[str, Any]) -> bool:
        """Return True if the buffer holds *capacity* events. Called after *event* was added to it."""
        return len(self._buffer) >= self.capacity

    def emit(self, event: dict[str, Any]) -> None:
        """Append a snapshot of *event* to the buffer, and flush it if `should_flush` says so."""
        kept = snapshot(event)
        with self._left:
            # Checked under the lock: close() may have emptied the buffer meanwhile.
            self._check_open()
            self._buffer.append(kept)
            self._taken += 1
        try:
            try:
                if self.should_flush(kept) or (lifecycle.exiting() and self.flush_on_close):
                    self._flush_buffer()
            finally:
                self._trim()
        except Exception as error:
            thread.settled = error  # the event itself is in the buffer
            raise

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Append each item's event."""
        return self._emit_each(batch, self._emit_item)

    def _emit_item(self, item: Encoded) -> None:
        failure = BufferingSink._put(self, item.event)
        if failure is not None:
            thread.settled = None
            self._fail_unraised(failure, item.event)

    def flush(self, timeout: float | None = None) -> bool:
        """Empty the buffer; its events are counted as ``dropped["discarded"]``. Return True.

        Args:
            timeout: The time limit in seconds, for subclasses.
        """
        self._put_remainders(now() + self._seconds(timeout))
        self._discard("discarded")
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Flush the buffer, unless `flush_on_close` is False; return False if events had to be given up.

        Events that are in the buffer afterwards are discarded and counted. Further calls return the same result.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        seconds = self._seconds(timeout)
        if not self._begin_to_close(now() + seconds):
            return self._close_result
        flushed = True
        failures: list[Exception] = []
        try:
            if self.flush_on_close:
                flushed = bool(self.flush(seconds))
        except Exception as error:
            failures.append(error)
        given_up = self._end()
        self._close_result = flushed and not given_up and not failures
        for failure in failures:
            self._fail(failure, None, events=given_up)
        return self._close_result

    def drain(self, timeout: float) -> None:
        """Flush at exit, unless `flush_on_close` is False; the sink stays open, and flushes later events at once."""
        if not self._closed and self.flush_on_close:
            self.flush(timeout)

    # -- hooks for the subclass below

    def _flush_buffer(self) -> None:
        """Flush after an event, if `should_flush` has returned True."""
        self.flush()

    def _trim(self) -> None:
        """Drop events beyond the capacity."""

    def _end(self) -> int:
        """Drop the remaining events at the end of `close`; return the number of events given up."""
        left = self._discard("closed" if self.flush_on_close else "discarded")
        return left if self.flush_on_close else 0

    def _discard(self, reason: str, keep: int = 0) -> int:
        """Drop the oldest events in the buffer until *keep* are left; return the number of dropped ones."""
        with self._left:
            excess = 0
            with contextlib.suppress(IndexError):  # a signal handler may have emptied the buffer
                while True:  # no condition here: from Python 3.12 on an interrupt at its jump back leaves the lock held
                    if len(self._buffer) <= keep:
                        break
                    self._buffer.popleft()
                    excess += 1
            self._lost_from_buffer += excess
            if excess:
                self._ledger.dropped[reason] += excess
                self._bells.ring()
        return excess

    # -- the pipeline

    def _put(self, event: dict[str, Any]) -> Exception | None:
        try:
            self.emit(event)
        except Exception as error:
            if error is not thread.settled:
                raise
            return error
        return None

    def _stats(self) -> SinkStats:
        stats = super()._stats()
        pending = len(self._buffer) + (self._in_flight is not None)
        # An event that has left the buffer without being counted as lost was delivered.
        delivered = self._taken - pending - self._lost_from_buffer
        return replace(
            stats,
            accepted=stats.accepted + delivered + pending,
            delivered=delivered,
            pending=pending,
        )

    @property
    def keeps_in_memory(self) -> bool:
        """True, for the events in the buffer."""
        return True

    def _describe(self) -> str:
        return f"with {len(self._buffer)} of {self.capacity} events"

    def _where(self) -> str:
        return ""


class MemorySink(BufferingSink):
    """Buffer events in memory, and flush them to *target* when there are many, or when an important one comes.

    Args:
        capacity: The number of buffered events that triggers a flush. It is also the size of the buffer: while the
            target cannot take events, the oldest ones beyond it are dropped.
        flush_level: An event at this level or above triggers a flush. Default ``"error"``. Settable, by `flush_level`.
        target: The sink that gets the events, by `Sink.deliver`, so that its level and processors apply. It is not
            owned: close it after this one. Default None: events are buffered until there is one, see `set_target`.
        flush_on_close: Whether `close` and the exit of the process flush. Default True. With False the buffered events
            are discarded.
        ring: With True only an event at *flush_level* triggers a flush, and the buffer holds the newest *capacity*
            events until then. So the events that led to an error are logged, and all others are not. Default False.
        block_timeout: How long an event waits for room while another thread flushes, in seconds or as a timedelta.
            After a wait that timed out, the oldest event is dropped; the next events drop the oldest at once until
            there is room, so that a target that hangs delays the application only once. Default 1.0.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *capacity* is not a whole number from 0 up, *flush_level* is not a level, or *block_timeout* is
            not a number of seconds from 0 up.
        TypeError: If *target* is not a sink.

    Events are flushed one by one, and each leaves the buffer when the target has taken or refused it. So a target that
    fails gets no event twice that it took. An event that it refuses is lost, counted and reported; the others are still
    flushed. After a `TemporaryDeliveryError` that event and the later ones stay in the buffer until the next flush.

    In the ledger flushed events are delivered. Dropped events are: those without room (``overflow``; with *ring*
    ``discarded``), those that `close` could not flush in time (``closed``; ``unconfirmed`` for the one that was being
    delivered), and those that `close` did not have to flush (``discarded``).

    Safe from any thread and from signal handlers. One thread at a time flushes, in order, and holds no lock meanwhile.
    Events of other threads are buffered as long as there is room. Events that the flushing thread itself logs are
    buffered until the next flush. A forked child begins with an empty buffer. ``close`` sets `target` to None.

    Source: `logging.handlers.MemoryHandler`. If its target raises, it gives the target the whole buffer again.
    """

    def __init__(
        self,
        capacity: int,
        flush_level: Level = "error",
        target: Sink | None = None,
        flush_on_close: bool = True,
        *,
        ring: bool = False,
        block_timeout: float | dt.timedelta = 1.0,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._flush_level = parse_level(flush_level, "flush_level")
        self._target = _checked_target(target)
        #: Whether `close` and the exit of the process flush the buffer; settable.
        self.flush_on_close: bool = bool(flush_on_close)
        #: Whether only an event at the flush level triggers a flush; settable.
        self.ring: bool = bool(ring)
        #: Seconds that an event waits for room; settable.
        self.block_timeout: float = checked_seconds(block_timeout, "block_timeout")
        super().__init__(capacity, level=level, processors=processors, on_error=on_error, name=name)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: The thread that flushes, and the number of events, counted from the first ever, that it has to flush.
        self._flushing: int | None = None
        self._wanted = 0
        #: When the target may be tried again, by the monotonic clock.
        self._resume_at = 0.0
        #: True after a wait for room has timed out, until there is room.
        self._impatient = False

    @property
    def flush_level(self) -> float:
        """The lowest level number that triggers a flush; set it to a name or a number at any time."""
        return self._flush_level

    @flush_level.setter
    def flush_level(self, level: Level) -> None:
        self._flush_level = parse_level(level, "flush_level")

    @property
    def target(self) -> Sink | None:
        """The sink that gets the events, or None; settable."""
        return self._target

    @target.setter
    def target(self, target: Sink | None) -> None:
        self.set_target(target)

    def set_target(self, target: Sink | None) -> None:
        """Flush to *target* from now on; it gets the buffered events with the next flush.

        Raises:
            TypeError: If *target* is not a sink.
        """
        self._target = _checked_target(target)

    def should_flush(self, event: dict[str, Any]) -> bool:
        """Return True if *event* has the flush level, or the buffer holds *capacity* events (not with *ring*)."""
        if level_of(event) >= self._flush_level:
            return True
        return not self.ring and len(self._buffer) >= self.capacity

    def flush(self, timeout: float | None = None) -> bool:
        """Give the buffered events to the target; return True if it took all.

        Without a target the events stay. Failures go to ``on_error``.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s. After that time the flush continues
                in a thread of its own.
        """
        seconds = self._seconds(timeout)
        self._put_remainders(now() + seconds)
        with self._left:
            if not self._buffer and self._in_flight is None:
                return True
            if self._target is None or self._flushing == get_ident():
                return False
            mine = self._taken
        failures: list[BaseException] = []
        # In another thread, which can continue when the time is up.
        work = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._flush_in_turn, mine, now() + seconds, failures),
            name=f"outfall {self.name}",
            daemon=True,
        )
        try:
            threads.start(work)
        except RuntimeError:  # the interpreter is shutting down
            self._flush_in_turn(mine, now() + seconds, failures)
        else:
            released(work.join, seconds)
        failed = list(failures)
        if self.on_error == "raise" or any(not isinstance(failure, Exception) for failure in failed):
            for failure in failed:
                raise failure
        with self._left:
            flushed = self._taken - len(self._buffer) - (self._in_flight is not None)
            return flushed >= mine and not failed

    def _flush_in_turn(self, wanted: int, deadline: float, failures: list[BaseException]) -> None:
        """Flush the first *wanted* events ever buffered, after the thread that is flushing now."""
        try:
            in_time = True
            while True:  # a condition here, or at the loop's end, would jump back outside the try from Python 3.12 on
                if not in_time or self._flush_to_target(wanted, failures):
                    break
                in_time = self._bells.wait(deadline - now(), lambda: self._flushing is None)
        except BaseException as error:
            self._count_dropped("interrupted")
            failures.append(error)

    def _flush_buffer(self) -> None:
        if type(self).flush is not MemorySink.flush:
            self.flush()
            return
        with self._left:
            if self._flushing == get_ident() or now() < self._resume_at:
                # The target itself has logged the event, and would never finish; or a signal handler has.
                return
            wanted = self._wanted = self._taken
        failures: list[BaseException] = []
        self._flush_to_target(wanted, failures)  # or the thread that is flushing already does it
        for failure in failures:
            raise failure

    def _flush_to_target(self, wanted: int, failures: list[BaseException]) -> bool:
        """Flush the first *wanted* events ever buffered; return False if another thread is flushing."""
        mine = False
        try:
            with self._left:
                if self._flushing is not None:
                    return False
                me = get_ident()
                # No call until after the next line, so that no interrupt comes between.
                self._flushing, mine = me, True
                self._wanted = max(self._wanted, wanted)
            proceed = True
            while True:  # see _flush_in_turn
                next_one = self._next() if proceed else None
                if next_one is None:
                    break
                target, event, token = next_one
                try:
                    target.deliver(event)
                except Exception as error:
                    proceed = self._settle_failed(target, error, event, token, failures)
                else:
                    self._settle(token)
        except BaseException:
            with self._left:
                if self._in_flight is not None:
                    self._in_flight = None
                    self._lost_from_buffer += 1
            raise
        finally:
            with self._left:
                if mine and self._flushing == get_ident():
                    self._flushing = None
                    self._bells.ring()
        return True

    def _next(self) -> tuple[Sink, dict[str, Any], object] | None:
        """Take the oldest event out of the buffer, with a token for it, if it has to be flushed now."""
        with self._left:
            target = self._target
            if target is None or not self._buffer or self._taken - len(self._buffer) >= self._wanted:
                # Under the same lock: a thread that wants more flushed from now on does it itself.
                self._flushing = None
                self._bells.ring()
                return None
            token = self._in_flight = object()
            return target, self._buffer.popleft(), token

    def _settle(self, token: object, dropped_as: str | None = None) -> None:
        with self._left:
            if self._in_flight is token:  # else close() has counted it
                self._in_flight = None
                if dropped_as is not None:
                    self._lost_from_buffer += 1
                    self._ledger.dropped[dropped_as] += 1
                self._bells.ring()

    def _settle_failed(
        self, target: Sink, error: Exception, event: dict[str, Any], token: object, failures: list[BaseException]
    ) -> bool:
        """Count and report an event for which *target* raised *error*; return False if the flush has to stop."""
        lost = target._events_lost_to(error)
        later = bool(lost) and isinstance(error, (TemporaryDeliveryError, ReentrantEventError))
        if later:
            with self._left:
                if self._in_flight is token:
                    self._in_flight = None
                    self._buffer.appendleft(event)
                    self._wanted = 0
                    self._resume_at = now() + (getattr(error, "retry_after", None) or 0.0)
        else:
            self._settle(token, reason_of(error) if lost else None)
        if isinstance(error, ReentrantEventError):
            return False  # without a report, which could be logged and continue the loop
        events = 0 if later else lost
        if target.on_error is not report and target.on_error != "raise":
            target._fail(error, event, events=events)
        if self.on_error == "raise":
            failures.append(error)
        else:
            self._fail(error, event, events=events)
        return not later

    def _trim(self) -> None:
        if len(self._buffer) <= self.capacity:
            self._impatient = False
            return
        if self._left._is_owned():
            return  # an event of a signal handler: the interrupted event makes room
        if self._flushing == get_ident() or self._await_room():
            return
        dropped = self._discard("discarded" if self.ring else "overflow", keep=self.capacity)
        if dropped and not self.ring:
            why = "has no target" if self._target is None else "cannot hand them on"
            msg = f"{self.name} {why}: the oldest events beyond capacity={self.capacity} are dropped"
            self._fail(DeliveryError(msg), None, events=dropped)

    def _await_room(self) -> bool:
        """Wait while another thread flushes; return False if there is still no room."""
        deadline = now() + self.block_timeout
        while True:
            with self._left:
                if len(self._buffer) <= self.capacity:
                    return True
                if self._flushing is None or self._impatient:
                    return False
            left = deadline - now()
            # After one wait that timed out, no event waits until there was room again.
            self._impatient = left <= 0 or not self._bells.wait(
                left, lambda: len(self._buffer) <= self.capacity or self._flushing is None
            )

    def _end(self) -> int:
        with self._left:
            target, self._target = self._target, None
            given_up = 0
            if self._in_flight is not None:
                self._in_flight = None
                self._lost_from_buffer += 1
                self._ledger.dropped["unconfirmed"] += 1
                given_up = 1
            left = self._discard("closed" if self.flush_on_close else "discarded")
            given_up += left if self.flush_on_close else 0
        if given_up:
            why = "had no target" if target is None else "could not hand on everything in time"
            self._fail(DeliveryError(f"{self.name} {why} when it was closed"), None, events=given_up)
        return given_up

    def _put(self, event: dict[str, Any]) -> Exception | None:
        target = self._target
        if thread.delivering and target is not None and target.delivers_through_loggers:
            # The target would drop the event now, but deliver it later, and that would log another one.
            msg = f"{self.name}: the event was logged while delivering another"
            raise ReentrantEventError(msg)
        return super()._put(event)

    def _reads_metadata(self) -> bool:
        target = self._target
        return bool(self._processors) or target is None or target._reads_metadata()

    def _stats(self) -> SinkStats:
        target = self._target
        return super()._stats() if target is None else replace(super()._stats(), targets=(target.stats(),))

    def _describe(self) -> str:
        described = super()._describe()
        return described if self._target is None else f"{described} for {self._target.name}"

    def _where(self) -> str:
        return "" if self._target is None else f"for {self._target._full_name()}"


def _checked_target(target: Sink | None) -> Sink | None:
    if target is not None:
        checked_sink(target, "target")
    return target


class CaptureSink(Sink):
    """Keep events in `events`, for tests.

    Each is a snapshot: later changes of nested dicts and lists have no effect on it. Metadata keys are left out.

    Args:
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Safe from any thread. A forked child begins without events. `close` keeps the events.
    """

    shows_people = True

    def __init__(
        self,
        *,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        #: The events so far, oldest first.
        self.events: list[dict[str, Any]] = []
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def emit(self, event: dict[str, Any]) -> None:
        """Keep a snapshot of *event*."""
        self.events.append(without_metadata(copy_event(event)))

    def clear(self) -> None:
        """Forget the events so far."""
        with self._lock:
            self.events.clear()

    def _describe(self) -> str:
        return f"with {len(self.events)} events"

    def _where(self) -> str:
        return ""

    def after_fork(self) -> None:
        """Reset the sink in a forked child, without events."""
        super().after_fork()
        self.events = []
