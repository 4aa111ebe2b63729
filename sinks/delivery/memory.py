"""Sinks that keep events in memory: `BufferingSink`, `MemorySink`, `CaptureSink`."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections import deque
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import lifecycle
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
    """A deque that compares and slices like a list. Removing its first item does not move the others."""

    __slots__ = ()

    __hash__ = None  # as lists have it

    def __eq__(self, other: object) -> bool:
        return list(self) == other if isinstance(other, list) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index] if isinstance(index, slice) else super().__getitem__(index)


class _SettledError(Exception):
    """Carries an error of a flush past the code that would blame it on the event that caused the flush."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class BufferingSink(Sink):
    """Keep events in `buffer`, and flush it when it holds *capacity* of them: for subclasses that do more.

    Flushing empties the buffer; a subclass overrides `flush` to put the events somewhere before. `should_flush` may be
    overridden too: it is asked after each event. What is in the buffer is a snapshot: what the caller later changes in
    a nested dict or list is not seen, and ``exc_info=True`` has become the exception.

    Args:
        capacity: How many events the buffer holds when `should_flush` says that it is time.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *capacity* is not a whole number from 0 up. With 0 each event is flushed.

    In the ledger, what is in the buffer is pending. What `flush` throws away is ``dropped["discarded"]``; what a
    subclass takes out of the buffer counts as delivered.

    Safe from any thread; the buffer is locked only while it is touched. A forked child begins with an empty one. At the
    exit of the process it is flushed, and from then on each event is. `close` flushes it.

    Source: `logging.handlers.BufferingHandler`.
    """

    locks_emit = False
    counts_batches = True

    #: What `close` and the exit of the process do; False leaves the buffer unflushed.
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
        #: Settable.
        self.capacity: int = checked_size(capacity, "capacity", "events")
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: Around the buffer too. The bells are rung when something leaves it.
        self._left = self._ledger.lock
        self._bells = Bells()
        self._buffer = _Buffer()
        #: How many events have come into the buffer, and how many have left it as dropped.
        self._taken = 0
        self._lost_from_buffer = 0
        #: Stands for the event that is being given to the target and has left the buffer.
        self._in_hand: object | None = None

    @property
    def buffer(self) -> deque[dict[str, Any]]:
        """The events that wait, oldest first. May be changed, and set to other events."""
        return self._buffer

    @buffer.setter
    def buffer(self, events: Iterable[dict[str, Any]]) -> None:
        made = _Buffer(events)
        with self._left:
            self._buffer = made
            self._bells.ring()

    def should_flush(self, event: dict[str, Any]) -> bool:
        """Return True if the buffer is up to capacity. Called when *event* is in it."""
        return len(self._buffer) >= self.capacity

    def emit(self, event: dict[str, Any]) -> None:
        """Append a snapshot of *event* to the buffer, and flush it if `should_flush` says so."""
        kept = snapshot(event)
        with self._left:
            # Asked under the lock: close() may have emptied the buffer meanwhile.
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
            failure = error
        else:
            return
        raise _SettledError(failure)

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Append each item's event."""
        return self._emit_each(batch, self._emit_item)

    def _emit_item(self, item: Encoded) -> None:
        try:
            self.emit(item.event)
        except _SettledError as carried:
            failure = carried.error
        else:
            return
        self._fail_unraised(failure, item.event)  # the event itself is taken

    def flush(self, timeout: float | None = None) -> bool:
        """Empty the buffer; what was in it is counted as ``dropped["discarded"]``. Return True.

        Args:
            timeout: Seconds, or None; for subclasses.
        """
        self._put_remainders(now() + self._seconds(timeout))
        self._discard("discarded")
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Flush the buffer, unless `flush_on_close` is False; idempotent. Return False if events had to be given up.

        What is in the buffer afterwards is thrown away, and counted.

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
        """Flush at exit, as `close` would; the sink stays open, and later events are flushed at once."""
        if not self._closed and self.flush_on_close:
            self.flush(timeout)

    # -- for subclasses here

    def _flush_buffer(self) -> None:
        """Flush because an event has come."""
        self.flush()

    def _trim(self) -> None:
        """Drop what there is no room for."""

    def _end(self) -> int:
        """Drop what is left at the end of `close`; return how many events were given up."""
        left = self._discard("closed" if self.flush_on_close else "discarded")
        return left if self.flush_on_close else 0

    def _discard(self, reason: str, keep: int = 0) -> int:
        """Drop the oldest events in the buffer until so many are left; return how many those were."""
        with self._left:
            excess = 0
            with contextlib.suppress(IndexError):  # a signal handler was here as well
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
        except _SettledError as carried:
            return carried.error
        return None

    def _stats(self) -> SinkStats:
        stats = super()._stats()
        pending = len(self._buffer) + (self._in_hand is not None)
        # Whoever took an event out of the buffer, and did not count it as lost, has delivered it.
        delivered = self._taken - pending - self._lost_from_buffer
        return replace(
            stats,
            accepted=stats.accepted + delivered + pending,
            delivered=delivered,
            pending=pending,
        )

    @property
    def keeps_in_memory(self) -> bool:
        """Whether it does. True, as for what is in the buffer."""
        return True

    def _describe(self) -> str:
        return f"with {len(self._buffer)} of {self.capacity} events"

    def _where(self) -> str:
        return ""


class MemorySink(BufferingSink):
    """Keep events in memory, and hand them on to *target* when there are many, or one is important.

    Args:
        capacity: How many events make it flush, and how many the buffer holds at most: with more, while the target
            cannot be given them, the oldest are dropped.
        flush_level: An event at this level or above makes it flush. Default ``"error"``. Settable, by `flush_level`.
        target: The sink that events are handed on to, by `Sink.deliver`, so that its level and processors apply. It is
            not owned: close it after this one. Default None: the buffer is kept until there is one, see `set_target`.
        flush_on_close: Whether `close` and the exit of the process flush. Default True; with False what is in the
            buffer then is thrown away.
        ring: With True only an event at *flush_level* makes it flush, and the buffer holds the newest *capacity* events
            until then: what led to an error is logged, what led to none is not. Default False.
        block_timeout: Seconds, or a timedelta, that an event waits for room while another thread hands on. When they
            have passed, the oldest event is dropped, and so at once with those that follow until there is room: a
            target that hangs holds up nobody more than once. Default 1.0.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *capacity* is not a whole number from 0 up, *flush_level* is no level, or *block_timeout* is no
            number of seconds from 0 up.
        TypeError: If *target* is no sink.

    An event leaves the buffer when the target has taken or refused it, one after the other, so a target that fails
    midway is given none twice that it took. What it refuses is lost, counted and told; the others are handed on. If it
    raises a `TemporaryDeliveryError` that event and those behind it stay until the next flush.

    In the ledger what is handed on is delivered. Dropped are: what there was no room for (``overflow``; ``discarded``
    with *ring*, where that is as meant), and what `close` could not hand on in time (``closed``, and ``unconfirmed``
    the one the target was being given), or had not to (``discarded``).

    Safe from any thread and from signal handlers. One thread at a time hands on, in order, and no lock is held
    meanwhile: what other threads log is buffered, as long as there is room. What the thread that hands on logs itself
    meanwhile is buffered as well, until the next flush. A forked child begins with an empty buffer. ``close`` sets
    `target` to None.

    Source: `logging.handlers.MemoryHandler`; CPython's loses its place when the target raises, and gives it the whole
    buffer again.
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
        #: Both settable.
        self.flush_on_close: bool = bool(flush_on_close)
        self.ring: bool = bool(ring)
        #: Seconds; settable.
        self.block_timeout: float = checked_seconds(block_timeout, "block_timeout")
        super().__init__(capacity, level=level, processors=processors, on_error=on_error, name=name)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: The thread that hands on, and up to which event, counted from the first, somebody wants that.
        self._handing: int | None = None
        self._wanted = 0
        #: When, by the monotonic clock, the target wants to be asked again.
        self._resume_at = 0.0
        #: True once an event has waited for room in vain, until there is some.
        self._impatient = False

    @property
    def flush_level(self) -> float:
        """The level number from which on an event makes it flush; set it to a name or a number at any time."""
        return self._flush_level

    @flush_level.setter
    def flush_level(self, level: Level) -> None:
        self._flush_level = parse_level(level, "flush_level")

    @property
    def target(self) -> Sink | None:
        """The sink that events are handed on to, or None; settable."""
        return self._target

    @target.setter
    def target(self, target: Sink | None) -> None:
        self.set_target(target)

    def set_target(self, target: Sink | None) -> None:
        """Hand on to *target* from now on; what waits in the buffer goes to it with the next flush.

        Raises:
            TypeError: If it is no sink.
        """
        self._target = _checked_target(target)

    def should_flush(self, event: dict[str, Any]) -> bool:
        """Return True if the buffer is up to capacity (not with *ring*), or *event* at the flush level or above."""
        if level_of(event) >= self._flush_level:
            return True
        return not self.ring and len(self._buffer) >= self.capacity

    def flush(self, timeout: float | None = None) -> bool:
        """Hand on all that is in the buffer; return True when it is empty and the target has failed at nothing.

        Without a target nothing happens. Failures go to ``on_error``.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s. After that time the flush continues
                in a thread of its own.
        """
        seconds = self._seconds(timeout)
        self._put_remainders(now() + seconds)
        with self._left:
            if not self._buffer and self._in_hand is None:
                return True
            if self._target is None or self._handing == get_ident():
                return False
            mine = self._taken
        failures: list[BaseException] = []
        # In another thread, since only that can be left to itself when the time is up.
        work = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._take_turn, mine, now() + seconds, failures),
            name=f"outfall {self.name}",
            daemon=True,
        )
        try:
            work.start()
        except RuntimeError:  # the interpreter is going down
            self._take_turn(mine, now() + seconds, failures)
        else:
            released(work.join, seconds)
        failed = list(failures)
        if self.on_error == "raise" or any(not isinstance(failure, Exception) for failure in failed):
            for failure in failed:
                raise failure
        with self._left:
            handed_on = self._taken - len(self._buffer) - (self._in_hand is not None)
            return handed_on >= mine and not failed

    def _take_turn(self, wanted: int, deadline: float, failures: list[BaseException]) -> None:
        """Hand on so many of the events that have come, after the thread that does so now."""
        try:
            in_time = True
            while True:  # a condition here, or at the loop's end, would jump back outside the try from Python 3.12 on
                if not in_time or self._hand_on(wanted, failures):
                    break
                in_time = self._bells.wait(deadline - now(), lambda: self._handing is None)
        except BaseException as error:
            self._count_dropped("interrupted")
            failures.append(error)

    def _flush_buffer(self) -> None:
        if type(self).flush is not MemorySink.flush:
            self.flush()
            return
        with self._left:
            if self._handing == get_ident() or now() < self._resume_at:
                # The event was logged by the target itself, which would never finish then, or by a signal handler.
                return
            wanted = self._wanted = self._taken
        failures: list[BaseException] = []
        self._hand_on(wanted, failures)  # or the thread that is doing so already
        for failure in failures:
            raise failure

    def _hand_on(self, wanted: int, failures: list[BaseException]) -> bool:
        """Give the target what is in the buffer, as far as that is wanted; return False if another thread does."""
        mine = False
        try:
            with self._left:
                if self._handing is not None:
                    return False
                me = get_ident()
                # No call from here on to the next line, so that no interrupt comes between.
                self._handing, mine = me, True
                self._wanted = max(self._wanted, wanted)
            goes_on = True
            while True:  # see _take_turn
                next_one = self._next() if goes_on else None
                if next_one is None:
                    break
                target, event, hand = next_one
                try:
                    target.deliver(event)
                except Exception as error:
                    goes_on = self._keeps(target, error, event, hand, failures)
                else:
                    self._settle(hand)
        except BaseException:
            with self._left:
                if self._in_hand is not None:
                    self._in_hand = None
                    self._lost_from_buffer += 1
            raise
        finally:
            with self._left:
                if mine and self._handing == get_ident():
                    self._handing = None
                    self._bells.ring()
        return True

    def _next(self) -> tuple[Sink, dict[str, Any], object] | None:
        """Take the oldest event out of the buffer, with what stands for it, if it is to be handed on now."""
        with self._left:
            target = self._target
            if target is None or not self._buffer or self._taken - len(self._buffer) >= self._wanted:
                # Under the same lock: a thread that asks for more from now on hands it on by itself.
                self._handing = None
                self._bells.ring()
                return None
            hand = self._in_hand = object()
            return target, self._buffer.popleft(), hand

    def _settle(self, hand: object, dropped_as: str | None = None) -> None:
        with self._left:
            if self._in_hand is hand:  # else close() has counted it
                self._in_hand = None
                if dropped_as is not None:
                    self._lost_from_buffer += 1
                    self._ledger.dropped[dropped_as] += 1
                self._bells.ring()

    def _keeps(
        self, target: Sink, error: Exception, event: dict[str, Any], hand: object, failures: list[BaseException]
    ) -> bool:
        """Account for what *target* raised, and tell of it; return False if this is no time to go on."""
        lost = target._events_lost_to(error)
        later = bool(lost) and isinstance(error, (TemporaryDeliveryError, ReentrantEventError))
        if later:
            with self._left:
                if self._in_hand is hand:
                    self._in_hand = None
                    self._buffer.appendleft(event)
                    self._wanted = 0
                    self._resume_at = now() + (getattr(error, "retry_after", None) or 0.0)
        else:
            self._settle(hand, reason_of(error) if lost else None)
        if isinstance(error, ReentrantEventError):
            return False  # telling could be what feeds the loop
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
            return  # a signal handler's event: the interrupted one makes room
        if self._handing == get_ident() or self._await_room():
            return
        dropped = self._discard("discarded" if self.ring else "overflow", keep=self.capacity)
        if dropped and not self.ring:
            why = "has no target" if self._target is None else "cannot hand them on"
            msg = f"{self.name} {why}: the oldest events beyond capacity={self.capacity} are dropped"
            self._fail(DeliveryError(msg), None, events=dropped)

    def _await_room(self) -> bool:
        """Wait while another thread hands on; return False if there is still no room."""
        deadline = now() + self.block_timeout
        while True:
            with self._left:
                if len(self._buffer) <= self.capacity:
                    return True
                if self._handing is None or self._impatient:
                    return False
            left = deadline - now()
            # In vain once is enough, until there has been room again.
            self._impatient = left <= 0 or not self._bells.wait(
                left, lambda: len(self._buffer) <= self.capacity or self._handing is None
            )

    def _end(self) -> int:
        with self._left:
            target, self._target = self._target, None
            given_up = 0
            if self._in_hand is not None:
                self._in_hand = None
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
            # The target would refuse it now; later it would take it, deliver it, and log anew.
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

    Each is a snapshot: what the caller later changes in a nested dict or list is not seen. Metadata keys are left out.

    Args:
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Safe from any thread. A forked child begins with none. `close` keeps them.
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
        """Begin anew in a forked child, with no events."""
        super().after_fork()
        self.events = []
