"""Events delivered by a thread of the sink's own: `BackgroundSink`."""

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
from outfall.sinks.errors import DeliveryError, ReentrantEventError, SinkClosedError
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.json import LINE
from outfall.sinks.event.levels import NOTSET, NUMBERS, Level, parse_level

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping

    from outfall.sinks.core.ledger import Outcome, SinkStats
    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy

#: What an event in the queue takes besides its data: the tuple, the numbers in it, the head of the bytes.
_OVERHEAD_BYTES = 160

#: How much a target that writes all at once is given in one batch.
_WRITE_BYTES = 4 * 2**20

#: How many seconds lie between two reports of events dropped for want of room.
_TELL_SECONDS = 1.0

#: The short cut rests on the interpreter's lock: where there is none, each event takes the pipeline.
_ONE_AT_A_TIME: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Buffer(Worker):
    """Holds events in memory, and the thread that delivers them.

    `BackgroundSink.handle` appends by itself while `put` is below `limit` and `room` is enough; see `Worker`.

    Args:
        sink: The sink, for its settings; not kept.
    """

    def __init__(self, sink: BackgroundSink) -> None:
        #: What waits, oldest first.
        self.items: list[Raw | Encoded] = []
        self.capacity = sink._capacity
        self.capacity_bytes = self.room = sink._capacity_bytes
        self.overflow = sink._overflow
        self.keep_level = sink._keep_level
        self.block_seconds = sink._block_seconds
        #: True once somebody has waited for room in vain, until there is some.
        self.impatient = False
        #: True once something waits that is more than its data.
        self.mixed = False
        #: So many events at the front are at or above keep_level.
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
        """Compute `limit`: for the event of that number there is no room, or it has to wake the thread."""
        closed = self.closed or self.inline
        self.limit = -1 if closed else min(self.wake_at, self.settled + self.capacity)

    def waiting(self) -> int:
        """Return how many events wait."""
        return len(self.items)

    def take(self) -> tuple[Batch, int]:
        """Take a batch; a target that writes all at once is given all there is, up to `_WRITE_BYTES`."""
        number = len(self.items) + 1 if self.target.takes_any_number else self.batch_size
        used = self.capacity_bytes - self.room
        if number > self.batch_size and used > _WRITE_BYTES:
            number = max(1, number * _WRITE_BYTES // used)
        if number > len(self.items):
            # No call within this line, so no event comes between. Nothing is under way: what is used, these use.
            taken, self.items, used = self.items, [], self.capacity_bytes - self.room
        else:
            taken = self.items[:number]
            del self.items[:number]
            used = 0
        self.kept = max(0, self.kept - len(taken))
        batch = Batch(taken) if self.mixed else Batch.of_data(taken)  # type: ignore[arg-type]
        return batch, used or sum(map(len, batch.data)) + _OVERHEAD_BYTES * len(taken)

    def finish(self, batch: Batch, token: int) -> None:
        """Give back the room that a batch took."""
        self.room += token

    def settle(self, outcome: Outcome) -> None:
        """Count what became of some events, which makes room."""
        self.impatient = self.impatient and not outcome.events
        super().settle(outcome)

    def discard(self) -> None:
        """Forget what waits."""
        self.items.clear()

    def should_ring(self) -> bool:
        """Return True if a quarter of the room is free, or somebody flushes."""
        # Not for each batch: waiting threads would take turns with the worker, which costs both.
        return bool(self._marks) or self.put - self.settled <= self.capacity * 3 // 4

    # -- in the thread that logs

    def has_room(self, size: int) -> bool:
        """Return True if an event of so many bytes may come."""
        return self.put - self.settled < self.capacity and self.room >= size

    def append(self, waiting: Raw | Encoded, level: float) -> int:
        """Store an event, making room for it as the policy says; return how many others had to go for it.

        Raises:
            FullError: If there is no room.
            SinkClosedError: If nothing is taken any more.
        """
        size = len(data_in(waiting)) + _OVERHEAD_BYTES
        self.mixed = self.mixed or not isinstance(waiting, bytes)
        if size > self.capacity_bytes:
            msg = f"{self.name}: an event of {size} bytes is more than capacity_bytes={self.capacity_bytes}"
            raise FullError(msg)
        deadline = now() + self.block_seconds
        # A signal handler's event must not wait if the frame below has the lock: the thread needs it to make room.
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
        """Drop what has to make room for an event of this *level*; return False if there is nothing."""
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
            # All have to be kept, so the oldest goes, as the policy says.
            place = 0
            self.kept -= 1
        self.evicted(place, len(items))
        self.room += len(data_in(items[place])) + _OVERHEAD_BYTES
        del items[place]
        return True


def _level_in(waiting: Raw | Encoded) -> float:
    level = waiting[1] if isinstance(waiting, tuple) else None
    return item_of(waiting).level if level is None else level


class BackgroundSink(DeferredSink):
    """Take events into memory, and have a thread deliver them to *target* in batches.

    The way to a target that may be slow or away: `handle` encodes the event and returns. It does not wait for the
    target, unless what waits has reached the sink's capacity and *overflow* is ``"block"``.

    Level, processors and rendering, this sink's own and then the target's, run in the thread that logs, before the
    event is stored. What waits is bytes: changing the event afterwards changes nothing, and what a processor has
    removed is nowhere in memory.

    Args:
        target: Where the events go. It is owned: `close` closes it.
        capacity: How many events may be in memory, those being delivered included. Default 10 000.
        capacity_bytes: How many bytes they may take up together, 160 each on top of their encoded length. Default
            64 MiB.
        overflow: What happens to an event when there is no room. ``"block"`` (default): `handle` waits for room, for
            *block_timeout*, and drops the event then; after that every event is dropped at once until there is room
            again, so that an outage holds up nobody more than once. ``"drop_newest"``: it is dropped.
            ``"drop_oldest"``: what has waited longest is dropped for it. All are counted as ``dropped["overflow"]``.
        block_timeout: Seconds, or a timedelta. Default 1.0.
        batch_size: How many events the target is given at a time. Default 2000. A target that writes all at once, such
            as a file, is given all that waits, up to 4 MiB.
        linger: How long the first event of a batch waits for more, in seconds, or a timedelta. Default 0.2.
        keep_level: With one of the two policies that drop, an event at or above this level takes the place of the
            oldest one below it, and is dropped only if there is none. Default ``"error"``.
        retry: When a batch is tried again. Default ``RetryPolicy()``: for as long as it takes.
        dead_letter: A sink that gets the events that the target refuses for good. Not owned. Default None: they are
            counted as ``dropped["rejected"]``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr. With ``"raise"``, what the caller's thread can know is raised (full, closed); what the delivering
            thread meets is reported.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *capacity*, *capacity_bytes*, *overflow*, *block_timeout*, *batch_size*, *linger* or
            *keep_level* is not usable.
        TypeError: If *target* or *dead_letter* is no sink, or *retry* no `RetryPolicy`.

    Temporary failures are retried in order, so nothing overtakes; a batch that is refused for good is halved until the
    one event is found that is to blame. ``flush`` and ``close`` make the next attempt at once. ``close`` gives the
    target what waits until its timeout has passed; then the events of an attempt that is still running are counted as
    ``dropped["unconfirmed"]``, the others as ``dropped["closed"]``, and whatever the target answers later changes
    nothing.

    Safe from any thread and from signal handlers. The thread starts with the first event; it is a daemon. A forked
    child, whoever forked it, begins with an empty queue and a thread of its own; what was waiting is the parent's. At
    exit what waits is delivered, within the deadline all sinks share; an event that comes later still is delivered in
    the thread that logs it. What the target's delivery itself logs is dropped as ``reentrant``. A sink that nobody
    refers to any more, and that was not closed, warns by a ResourceWarning; what waits is delivered within 5 s, and the
    thread ends.
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
        #: Whether the usual event takes the short cut, from which level on, and whether its level and time are taken.
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
        #: Events dropped for want of room that are not reported yet, and when the last report was made.
        self._untold = 0
        self._told_at = -float("inf")

    # -- what applications call

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in memory, or it has been counted as dropped.
        """
        # What the pipeline does, for the usual event while there is room; everything else starts anew there. What
        # `plain_line` does is written out: the call would cost a twentieth of what it takes.
        if self._plain:
            given: Any = event
            try:
                if not (
                    given.__class__ is not dict
                    or "exc_info" in given
                    or "exception" in given  # whose parts go with it
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
                        if "level_number" in given:  # it wins over the level, and may be anything
                            raise LookupError
                        number = NUMBERS[given["level"]]
                        if number < floor:
                            self._ledger.filter()
                            return
                    # orjson's bytes keep the buffer they were made in, ten times as large at worst; cut from it they
                    # are as large as they look.
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
                        # No call from the comparison on, so neither a thread nor a signal handler comes between.
                        buffer.items += waiting
                        buffer.put += 1
                        buffer.room -= size
                        return
            except Exception:
                pass
            except BaseException:
                self._count_dropped("interrupted")
                raise
        self._handle_in_full(event)

    def _handle_in_full(self, event: Mapping[str, Any] | str | bytes) -> None:
        caught: Exception
        try:
            self.deliver(event)
        except ReentrantEventError:
            return  # counted; a report could be what feeds the loop
        except FullError:
            if self.on_error == "raise":
                raise
            self._tell_of_overflow(1)
            return
        except Exception as error:
            caught = error
        else:
            return
        try:
            self._fail(caught, event)
        finally:
            del caught  # with its traceback, which holds this frame

    def close(self, timeout: float | None = None) -> bool:
        """Deliver what waits, then close the target; idempotent. Return False if something had to be given up.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        deadline = now() + self._seconds(timeout)
        if not self._begin_to_close(deadline):
            return self._close_result
        settled, unconfirmed, lost = self._worker.close(deadline)
        for reason, events in (("unconfirmed", unconfirmed), ("closed", lost)):
            if events:
                self._ledger.drop(reason, events)
        closed = self._target.close(max(0.0, deadline - now()))
        self._tell_of_overflow(0)
        given_up = unconfirmed + lost
        if given_up:
            self._told(DeliveryError(f"{self.name} was closed before the target had taken everything"), given_up)
        self._close_result = settled and closed and not given_up
        return self._close_result

    def drain(self, timeout: float) -> None:
        """Deliver what waits, at exit; afterwards events are delivered in the thread that logs them."""
        if self._closed:
            return
        deadline = now() + timeout
        self.flush(timeout)
        buffer = self._worker
        buffer.inline = True
        buffer.set_limit()
        if not buffer.settle_all(deadline):
            told = DeliveryError(f"the process ends before {self._target.name} has taken everything")
            self._told(told, buffer.put - buffer.settled)

    def __del__(self) -> None:
        """Let the thread deliver what waits, and end."""
        try:
            buffer = self._worker
            if self._closed or buffer.thread is None or not here[0] or lifecycle.exiting():
                return
            buffer.abandon(self.on_error)
        except Exception:  # a sink that was made half, or the end of the interpreter
            return
        warnings.warn(f"unclosed sink {self!r}", ResourceWarning, source=self, stacklevel=2)

    # -- what the pipeline and a sink around this one call

    @property
    def keeps_in_memory(self) -> bool:
        """Whether it does. True, since what waits here is lost with the process."""
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
        # A kind of its own stays as it is; of the usual item its three parts wait, or its data alone.
        waiting: Raw | Encoded = item
        if type(item) is Encoded:
            waiting = (item.data, item.level, item.time, False) if self._with_moment else item.data
        evicted = buffer.append(waiting, item.level)
        if evicted:
            self._ledger.drop("overflow", evicted)
            self._tell_of_overflow(evicted)
        elif self._untold and now() - self._told_at >= _TELL_SECONDS:
            self._tell_of_overflow(0)

    def _refresh(self) -> None:
        own = type(self)
        usual = all(
            getattr(own, hook) is getattr(BackgroundSink, hook) for hook in ("deliver", "encode", "_put", "_take")
        )
        self._floor = max(self._level, self._target.level)
        self._with_moment = self._overflow != "block" or self._target.needs_moment
        self._worker.mixed = self._worker.mixed or self._with_moment
        busy = self._processors or self._closed or self._reporting
        self._typed = self._target.keeps_types
        self._plain = _ONE_AT_A_TIME and usual and not busy and self._target.plain

    # -- counting and telling

    def _tell_of_overflow(self, events: int) -> None:
        """Tell of events dropped for want of room: at once, then once a second, and not of each."""
        moment = now()
        with self._ledger.lock:
            self._untold += events
            if not self._untold or (events and moment - self._told_at < _TELL_SECONDS):
                return
            untold, self._untold = self._untold, 0
            self._told_at = moment
        error = FullError(f"there was no room while {self._target.name} did not keep up")
        with delivering(value=False):
            self._fail(error, None, events=untold, suppressed=untold - 1)

    def _stats(self) -> SinkStats:
        buffer = self._worker
        pending = buffer.put - buffer.settled
        return self._ledger.stats(self.name, pending=pending, targets=(self._target.stats(),))

    def _describe(self) -> str:
        return f"to {self._target!r}"

    def _where(self) -> str:
        return f"to {self._where_of(self._target)}"
