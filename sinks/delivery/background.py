"""`BackgroundSink`: delivers events in a thread of its own."""

from __future__ import annotations

import sys
import warnings
import weakref
from time import time
from typing import TYPE_CHECKING, Any, Literal

from orjson import dumps

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_choice, checked_count
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, Encoded, Raw, data_in, item_of
from outfall.sinks.core.lifecycle import here
from outfall.sinks.core.reentrancy import active, delivering, thread
from outfall.sinks.core.reporting import report
from outfall.sinks.core.threads import check_threads
from outfall.sinks.delivery.deferred import DeferredSink
from outfall.sinks.delivery.worker import NEVER, ON_FULL, FullError, Worker
from outfall.sinks.errors import DeliveryError, SinkClosedError
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.json import LINE
from outfall.sinks.event.levels import NOTSET, NUMBERS, Level, parse_level

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping

    from outfall.sinks.core.ledger import Outcome, SinkStats
    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy

#: The memory of a waiting event besides its data: the tuple, its numbers, the header of the bytes object.
_OVERHEAD_BYTES = 160

#: The size of a batch for a target that writes all items at once.
_WRITE_BYTES = 4 * 2**20

#: Seconds between two reports of overflow.
_TELL_SECONDS = 1.0

#: A subclass that overrides one of these does not take the shortcut in `handle`.
_HOOKS = ("deliver", "encode", "_put", "_take")

#: The shortcut needs the interpreter's global lock; without that each event takes the pipeline.
_ONE_AT_A_TIME: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Buffer(Worker):
    """The events in memory, and the thread that delivers them.

    `BackgroundSink.handle` appends events itself while `put` is below `limit` and `room` suffices; see `Worker`.

    Args:
        sink: The sink, for its settings; only a weak reference is kept.
    """

    def __init__(self, sink: BackgroundSink) -> None:
        #: The waiting events, oldest first.
        self.items: list[Raw | Encoded] = []
        self.capacity = sink._capacity
        self.capacity_bytes = self.room = sink._capacity_bytes
        self.overflow = sink._overflow
        self.keep_level = sink._keep_level
        self.block_seconds = sink._block_seconds
        #: True after a wait for room has timed out, until there is room.
        self.impatient = False
        #: True once an item has been stored that is not only its data.
        self.mixed = False
        #: The number of events at the front that are at or above keep_level.
        self.kept = 0
        super().__init__(
            weakref.ref(sink),
            sink.name,
            sink._target,
            sink._ledger,
            batch_size=min(sink._batch_size, sink._capacity),
            linger=sink._linger_seconds,
            retry=sink._retry,
            dead_letter=sink._dead_letter,
        )
        self.set_limit()

    def set_limit(self) -> None:
        """Compute `limit`: the first event number that has no room, or has to wake the thread."""
        closed = self.closed or self.inline
        self.limit = -1 if closed else min(self.wake_at, self.settled + self.capacity)

    def waiting(self) -> int:
        """Return the number of waiting events."""
        return len(self.items)

    def take(self) -> tuple[Batch, int]:
        """Take a batch; for a target that writes all items at once, take all events up to `_WRITE_BYTES`."""
        number = len(self.items) + 1 if self.target.takes_any_number else self.batch_size
        used = self.capacity_bytes - self.room
        if number > self.batch_size and used > _WRITE_BYTES:
            number = max(1, number * _WRITE_BYTES // used)
        if number > len(self.items):
            # No call within this line, so that no event comes between. No other batch is in progress, so the used room
            # is that of these events.
            taken, self.items, used = self.items, [], self.capacity_bytes - self.room
        else:
            taken = self.items[:number]
            del self.items[:number]
            used = 0
        self.kept = max(0, self.kept - len(taken))
        batch = Batch(taken) if self.mixed else Batch.of_data(taken)  # type: ignore[arg-type]
        return batch, used or sum(map(len, batch.data)) + _OVERHEAD_BYTES * len(taken)

    def finish(self, batch: Batch, token: int) -> None:
        """Release the room of a batch."""
        self.room += token

    def settle(self, outcome: Outcome) -> None:
        """Count the outcome of some events, which makes room; wake the callers that wait for it."""
        self.impatient = self.impatient and not outcome.events
        with self.lock:
            super().settle(outcome)
            self.set_limit()
        # Once a quarter is free: waking threads for little room costs them and the worker many context switches.
        if self.bells and self.put - self.settled <= self.capacity * 3 // 4:
            self.bells.ring()

    def discard(self) -> None:
        """Discard the waiting events."""
        self.items.clear()

    # -- in the thread that logs

    def has_room(self, size: int) -> bool:
        """Return True if there is room for an event of *size* bytes."""
        return self.put - self.settled < self.capacity and self.room >= size

    def append(self, waiting: Raw | Encoded, size: int, level: float) -> int:
        """Store an event, after making room for it by the overflow policy; return the number of evicted events.

        Raises:
            FullError: If there is no room.
            SinkClosedError: If the sink is closed.
        """
        size += _OVERHEAD_BYTES
        self.mixed = self.mixed or not isinstance(waiting, bytes)
        if size > self.capacity_bytes:
            msg = f"{self.name}: an event of {size} bytes is more than capacity_bytes={self.capacity_bytes}"
            raise FullError(msg)
        deadline = now() + self.block_seconds
        # An event of a signal handler must not wait if the interrupted frame holds the lock, which the worker needs.
        cannot_wait = self.overflow == "block" and self.lock._is_owned()
        evicted = 0
        while True:
            with self.lock:
                if self.closed:
                    msg = f"{self.name} is closed"
                    raise SinkClosedError(msg)
                # No condition at the loop's head: from Python 3.12 on its jump back is outside the `with`, and an
                # interrupt there would leave the lock held.
                while True:
                    found = self.has_room(size) or cannot_wait
                    if found or not self._evict(level):
                        break
                    evicted += 1
                if found:
                    rouses = self.put >= self.wake_at
                    self.items += (waiting,)
                    self.put += 1
                    self.room -= size
                    if rouses:
                        self.wake_at = NEVER
                    self.set_limit()
                    break
            left = deadline - now()
            if self.overflow != "block" or self.impatient or left <= 0:
                self.impatient = self.overflow == "block"
                msg = f"{self.name} is full: {self.put - self.settled} events wait for {self.target.name}"
                raise FullError(msg)
            self.bells.wait(left, lambda: self.has_room(size) or self.closed)
        if rouses:
            try:
                self.rouse()
            except BaseException:
                # The event counts as interrupted, but it is in the buffer. The next event has to wake the thread.
                self.ledger.drop("interrupted", -1)
                self.wake_at = 0
                self.set_limit()
                raise
        return evicted

    def _evict(self, level: float) -> bool:
        """Drop an event to make room for one of *level*; return False if none may be dropped."""
        if self.overflow == "block":
            return False
        keep = level >= self.keep_level
        if not keep and self.overflow == "drop_newest":
            return False
        items = self.items
        # Events at the front that have to be kept are not examined again for each new event.
        place = self.kept
        while place < len(items) and _level_in(items[place]) >= self.keep_level:
            place += 1
        self.kept = place
        if place == len(items):
            if not keep or self.overflow == "drop_newest" or not items:
                return False
            # All are to be kept, so drop the oldest.
            place = 0
            self.kept -= 1
        self.evicted(place, len(items))
        room = len(data_in(items[place])) + _OVERHEAD_BYTES
        self.room += room
        del items[place]
        return True


def _level_in(waiting: Raw | Encoded) -> float:
    level = waiting[1] if isinstance(waiting, tuple) else None
    return item_of(waiting).level if level is None else level


class BackgroundSink(DeferredSink):
    """Store events in memory; a thread delivers them to *target* in batches.

    Use it for a target that may be slow or unreachable. `handle` encodes the event and returns. It waits for the target
    only if the sink is full and *overflow* is ``"block"``.

    Level, processors and rendering, first this sink's and then the target's, run in the thread that logs, before the
    event is stored. Waiting events are bytes: later changes of the event have no effect, and data that a processor has
    removed is not in memory.

    Args:
        target: The sink that gets the events. It is owned: `close` closes it.
        capacity: The largest number of events in memory, including those being delivered. Default 10 000.
        capacity_bytes: The largest size of these events in bytes: their encoded length, and 160 for each. Default
            64 MiB.
        overflow: What happens to an event without room. ``"block"`` (default): `handle` waits for room, at most
            *block_timeout*, and then drops the event; the next events are dropped at once until there is room again, so
            that an outage delays the application only once. ``"drop_newest"``: the event is dropped.
            ``"drop_oldest"``: the oldest waiting event is dropped. All count as ``dropped["overflow"]``.
        block_timeout: How long an event waits for room, in seconds or as a timedelta. Default 1.0.
        batch_size: The number of events in a batch. Default 2000. A target that writes all items at once, such as a
            file, gets all waiting events, up to 4 MiB.
        linger: How long the first event of a batch waits for more events, in seconds or as a timedelta. Default 0.2.
        keep_level: With ``"drop_newest"`` and ``"drop_oldest"``, an event at or above this level replaces the oldest
            one below it, and is dropped only if there is none. Default ``"error"``.
        retry: The policy for retries. Default ``RetryPolicy()``: retry until the target takes the batch.
        dead_letter: A sink that gets the events that the target refuses for good. It is not owned. Default None: they
            count as ``dropped["rejected"]``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr. With ``"raise"``, errors in the caller's thread are raised (full, closed), and errors in the
            delivering thread are reported.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *capacity*, *capacity_bytes*, *overflow*, *block_timeout*, *batch_size*, *linger* or
            *keep_level* is not usable.
        TypeError: If *target* or *dead_letter* is not a sink, or *retry* is not a `RetryPolicy`.

    Batches are retried in order after temporary failures, so that no event overtakes another. A batch that is refused
    for good is halved until the event at fault is found. ``flush`` and ``close`` make the next attempt at once.
    ``close`` delivers until its timeout. Then the events of an attempt in progress count as ``dropped["unconfirmed"]``,
    all others as ``dropped["closed"]``, and a later response of the target is ignored.

    Safe from any thread and from signal handlers. The thread is a daemon, and starts with the first event. A forked
    child, also one forked by C code, begins with an empty queue and its own thread; the parent delivers what waited. At
    exit the waiting events are delivered within the deadline that all sinks share; later events are delivered in the
    thread that logs them. Events that the target's delivery itself logs are dropped as ``reentrant``. A sink that is
    garbage collected without `close` emits a ResourceWarning; its thread delivers the waiting events within 5 s, and
    ends.
    """

    def __init__(
        self,
        target: Sink,
        *,
        capacity: int = 10_000,
        capacity_bytes: int = 64 * 2**20,
        overflow: Literal["block", "drop_newest", "drop_oldest"] = "block",
        block_timeout: float | dt.timedelta = 1.0,
        batch_size: int = 2_000,
        linger: float | dt.timedelta = 0.2,
        keep_level: Level = "error",
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._capacity = checked_count(capacity, "capacity", "events")
        self._capacity_bytes = checked_count(capacity_bytes, "capacity_bytes", "bytes")
        self._overflow = checked_choice(overflow, "overflow", ON_FULL)
        self._keep_level = parse_level(keep_level, "keep_level")
        #: Whether plain events take the shortcut, their lowest level, and whether level and time are stored.
        self._plain = self._typed = False
        self._floor = 0.0
        self._with_moment = True
        super().__init__(
            target,
            block_timeout=block_timeout,
            batch_size=batch_size,
            linger=linger,
            retry=retry,
            dead_letter=dead_letter,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._worker: _Buffer = _Buffer(self)
        #: The number of unreported overflows, and the time of the last report.
        self._untold = 0
        self._told_at = -float("inf")

    # -- methods for applications

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event; failures go to ``on_error``. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in memory, or it has been counted as dropped.
        """
        # A shortcut for plain events while there is room; all others take the pipeline. `plain_line` is inlined, since
        # the call would cost five per cent.
        if self._plain:
            given: Any = event
            try:
                if not (
                    given.__class__ is not dict
                    or "exc_info" in given
                    or "exception" in given  # its type and message may have to be added
                    or "_record" in given
                    or "_logger" in given
                    or "_name" in given
                    or "_from_structlog" in given
                    or (is_tracked(given) and too_deep(given))
                    or not here[0]
                    or (active and thread.delivering)
                ):
                    floor, with_moment, number = self._floor, self._with_moment, 0.0
                    if floor or with_moment:
                        if "level_number" in given:  # it wins over the level, and may have any type
                            raise LookupError
                        number = NUMBERS[given["level"]]
                        if number < floor:
                            self._ledger.filter()
                            return
                    # The slice copies: orjson's bytes keep their whole buffer, which may be ten times as large.
                    data = dumps(given, None, LINE)[:-1]
                    if self._typed and b"null" in data:
                        raise LookupError
                    size = len(data) + _OVERHEAD_BYTES
                    if with_moment:
                        waiting: tuple[Any] = ((data, number, time(), given.get("timestamp", False)),)
                    else:
                        waiting = (data,)
                    buffer = self._worker
                    if buffer.put < buffer.limit and buffer.room >= size:
                        # No call since the comparison, so that neither a thread nor a signal handler comes between.
                        buffer.items += waiting
                        buffer.put += 1
                        buffer.room -= size
                        return
            except Exception:
                pass
            except BaseException:
                self._count_dropped("interrupted")
                raise
        super().handle(event)

    def close(self, timeout: float | None = None) -> bool:
        """Deliver the waiting events, then close the target; return False if events had to be given up.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        deadline = now() + self._seconds(timeout)
        if not self._begin_to_close(deadline):
            return self._close_result
        settled, lost = self._worker.close(deadline)
        given_up = lost.events
        if given_up:
            self._ledger.settle(lost)
        closed = self._target.close(max(0.0, deadline - now()))
        self._tell_of_overflow(0)
        if given_up:
            self._told(DeliveryError(f"{self.name} was closed before the target had taken everything"), given_up)
        self._close_result = settled and closed and not given_up
        return self._close_result

    def drain(self, timeout: float) -> None:
        """Deliver the waiting events at exit; later events are delivered in the thread that logs them."""
        if self._closed:
            return
        deadline = now() + timeout
        self.flush(timeout)
        buffer = self._worker
        buffer.inline = True
        buffer.set_limit()
        if not buffer.settle_all(deadline):
            error = DeliveryError(f"the process ends before {self._target.name} has taken everything")
            self._told(error, buffer.put - buffer.settled)

    def __del__(self) -> None:
        """Let the thread deliver the waiting events, and end."""
        try:
            buffer = self._worker
            if self._closed or buffer.thread is None or not here[0] or lifecycle.exiting():
                return
            buffer.abandon(self.on_error)
        except Exception:  # the constructor has not finished, or the interpreter is shutting down
            return
        warnings.warn(f"unclosed sink {self!r}", ResourceWarning, source=self, stacklevel=2)

    # -- methods for the pipeline and for wrappers

    @property
    def keeps_in_memory(self) -> bool:
        """True: waiting events are lost if the process is killed."""
        return True

    @property
    def keeps_types(self) -> bool:
        """See `Forwarding.keeps_types`."""
        return self._target.keeps_types

    def _take(self, item: Encoded) -> None:
        buffer = self._worker
        if buffer.thread is None:
            check_threads()
        if buffer.inline:
            self._check_open()
            buffer.deliver_here(Batch([item]))
            return
        # An item of another class is stored as it is; of an `Encoded` its three parts, or its data alone.
        waiting: Raw | Encoded = item
        if type(item) is Encoded:
            waiting = (item.data, item.level, item.time, False) if self._with_moment else item.data
        evicted = buffer.append(waiting, len(item.data), item.level)
        if evicted:
            self._ledger.drop("overflow", evicted)
            self._tell_of_overflow(evicted)
        elif self._untold and now() - self._told_at >= _TELL_SECONDS:
            self._tell_of_overflow(0)

    def _refresh(self) -> None:
        self._floor = max(self._level, self._target._level)
        self._with_moment = self._overflow != "block" or self._target.needs_moment
        self._worker.mixed = self._worker.mixed or self._with_moment
        self._typed = self._target.keeps_types
        busy = self._processors or self._closed or self._reporting
        own = [hook for hook in _HOOKS if getattr(type(self), hook) is not getattr(BackgroundSink, hook)]
        self._plain = _ONE_AT_A_TIME and not (busy or own) and self._target.plain

    # -- counting and reporting

    def _fail(self, error: Exception, event: object, *, events: int = 1, suppressed: int = 0) -> None:
        if isinstance(error, FullError) and self.on_error != "raise":
            self._tell_of_overflow(events)
        else:
            super()._fail(error, event, events=events, suppressed=suppressed)

    def _tell_of_overflow(self, events: int) -> None:
        """Report dropped events: the first at once, then those of each second together."""
        moment = now()
        with self._ledger.lock:
            self._untold += events
            if not self._untold or (events and moment - self._told_at < _TELL_SECONDS):
                return
            untold, self._untold = self._untold, 0
            self._told_at = moment
        error = FullError(f"there was no room while {self._target.name} did not keep up")
        with delivering(value=False):
            super()._fail(error, None, events=untold, suppressed=untold - 1)

    def _stats(self) -> SinkStats:
        buffer = self._worker
        pending = buffer.put - buffer.settled
        return self._ledger.stats(self.name, pending=pending, targets=(self._target.stats(),))

    def _describe(self) -> str:
        return f"to {self._target!r}"

    def _where(self) -> str:
        return f"to {self._where_of(self._target)}"
