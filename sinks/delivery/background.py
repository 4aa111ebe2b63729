"""Events delivered by a thread of the sink's own: `BackgroundSink`."""

# `event.__class__ is dict` does not narrow a type for pyright, and WriteLock reads `holding` from the frame.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportUnusedVariable=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from queue import Empty
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Literal

from orjson import OPT_APPEND_NEWLINE, dumps

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_choice, checked_count
from outfall.sinks.core.item import Batch, Encoded, Raw, item_of
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.core.lifecycle import here
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.reentrancy import active, delivering, thread
from outfall.sinks.core.reporting import cleaned, describe, report
from outfall.sinks.delivery.worker import ON_FULL, DeferredSink, FullError
from outfall.sinks.errors import DeliveryError, ReentrantEventError
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.json import OPTIONS
from outfall.sinks.event.levels import NOTSET, NUMBERS, parse_level

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping

    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy

_NEVER = sys.maxsize


class _Mark:
    """A place in the queue; everything before it is settled once `reached` is set."""

    def __init__(self) -> None:
        self.reached = threading.Event()


#: What waits in the queue.
_Waiting = Raw | Encoded | _Mark


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
        batch_size: How many events the target is given at a time. Default 500.
        linger: How long the first event of a batch waits for more, in seconds, or a timedelta. Default 0.2.
        keep_level: With one of the two policies that drop, an event at or above this level takes the place of the
            oldest one below it, and is dropped only if there is none. Default ``"error"``.
        retry: When a batch is tried again. Default ``RetryPolicy()``: for as long as it takes.
        dead_letter: A sink that gets the events that the target refuses for good. Not owned. Default None: they are
            counted as ``dropped["rejected"]``.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`. With ``"raise"``, what the caller's thread can know is raised (full, closed); what the
            delivering thread meets is reported.
        name: See `Sink`.

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
    child begins with an empty queue and a thread of its own, and what was waiting is the parent's. At exit what waits
    is delivered, within the deadline all sinks share; an event that comes later still is delivered in the thread that
    logs it. What the target's delivery itself logs is dropped as ``reentrant``.
    """

    def __init__(
        self,
        target: Sink,
        *,
        capacity: int = 10_000,
        capacity_bytes: int = 64 * 2**20,
        overflow: Literal["block", "drop_newest", "drop_oldest"] = "block",
        block_timeout: float | dt.timedelta = 1.0,
        batch_size: int = 500,
        linger: float | dt.timedelta = 0.2,
        keep_level: str | float = "error",
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._capacity = checked_count(capacity, "capacity", "events")
        self._capacity_bytes = checked_count(capacity_bytes, "capacity_bytes", "bytes")
        self._overflow = checked_choice(overflow, "overflow", ON_FULL)
        self._keep_level = parse_level(keep_level, "keep_level")
        #: orjson's options where one call of it makes an event what the target wants; None: the whole pipeline.
        self._option: int | None = None
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
        self._queue: deque[_Waiting] = deque()
        #: How many events are in memory, and how many bytes there is still room for. With the queue, under the lock.
        self._pending = 0
        self._room = self._capacity_bytes
        #: With so many events before it, an event has to wake the thread.
        self._wake_from = 0
        #: With so many, an event cannot take the short cut: the least of that and of what there is room for.
        self._attention = 0
        #: True once the process exits: events are delivered in the thread that logs them; and once that has failed.
        self._inline = lifecycle.exiting()
        self._target_gone = False
        #: How many marks are in the queue.
        self._marks = 0
        #: For those who wait for room.
        self._room_made = threading.Condition()
        self._blocked = 0
        #: So many events at the front of the queue are at or above keep_level.
        self._kept = 0
        #: Events dropped for want of room that on_error has not been told of, and when it was told last.
        self._untold = 0
        self._told_at = -float("inf")

    # -- what applications call

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in memory, or it has been counted as dropped.
        """
        # What the pipeline does, in one function, for the usual event while there is room: see FileSink.handle.
        option = self._option
        if option is not None and event.__class__ is dict:
            try:
                if not (
                    "exc_info" in event
                    or "exception" in event
                    or "_record" in event
                    or "_logger" in event
                    or "_name" in event
                    or "_from_structlog" in event
                    or (is_tracked(event) and too_deep(event))
                    or "level_number" in event
                    or (active and thread.delivering)
                    or not here[0]
                ):
                    number = NUMBERS[event["level"]]
                    if number < self._level:
                        self._ledger.filter()
                        return
                    # orjson's bytes keep the buffer they were made in, ten times as large at worst; cut from it they
                    # are as large as they look.
                    data = dumps(event, None, option | OPT_APPEND_NEWLINE)[:-1]
                    size = len(data) + _OVERHEAD_BYTES
                    waiting = ((data, number, time(), "timestamp" in event),)
                    # Taking the lock by hand: see WriteLock.
                    turn = self._turn
                    del turn[0]
                    holding = True
                    try:
                        if self._room < size or self._pending >= self._attention:
                            raise LookupError  # full, or the thread is to be woken
                        queue = self._queue
                        # Not append(): an interrupt after a call would leave an event in that is not counted. Then each
                        # number in one step, read and written: the line before may collect garbage, whose finalizers,
                        # and signal handlers within them, may log to this very sink.
                        queue += waiting
                        self._pending += 1
                        self._room -= size
                    finally:
                        try:
                            holding = False
                            turn += TURN
                        finally:
                            pass
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
            timeout: Seconds. None stands for `drain_timeout`, 5 s.
        """
        deadline = monotonic() + self._seconds(timeout)
        if not self._begin_to_close():
            return self._close_result
        with self._lock:
            # Nothing that is on its way past the question whether this is closed finds room any more.
            self._capacity = self._attention = 0
            self._urgent_until = max(self._urgent_until, deadline)
            self._stopping = True
        self._make_room_known()
        settled = self._settle_all(deadline)
        given_up = self._give_up_rest()
        closed = self._target.close(max(0.0, deadline - monotonic()))
        self._tell_of_overflow(0)
        if given_up:
            self._told(DeliveryError(f"{self.name} was closed before the target had taken everything"), given_up)
        self._close_result = settled and closed and not given_up
        return self._close_result

    def drain(self, timeout: float) -> None:
        """Deliver what waits, at exit; afterwards events are delivered in the thread that logs them."""
        if self._closed:
            return
        deadline = monotonic() + timeout
        self.flush(timeout)
        self._inline = True
        self._changed()
        if not self._settle_all(deadline):
            self._told(
                DeliveryError(f"the process ends before {self._target.name} has taken everything"), self._pending
            )

    # -- what the pipeline calls

    def _take(self, item: Encoded) -> None:
        if self._inline:
            self._deliver_here(item)
        else:
            self._store(item)

    def _store(self, item: Encoded) -> None:
        """Put *item* into the queue, making room for it as the policy says.

        Raises:
            FullError: If there is none.
        """
        size = _size(item)
        if size > self._capacity_bytes:
            msg = f"{self.name}: an event of {size} bytes is more than capacity_bytes={self._capacity_bytes}"
            raise FullError(msg)
        deadline = monotonic() + self._block_seconds
        while not self._enqueue(item, size):
            if not self._wait_for_room(size, deadline - monotonic()):
                msg = f"{self.name} is full: {self._pending} events wait for {self._target.name}"
                raise FullError(msg)

    def _enqueue(self, item: Encoded, size: int) -> bool:
        """Put *item* into the queue, in the place of others if the policy says so; return False if there is no room."""
        evicted = 0
        awake = True
        with self._lock:
            self._check_open()
            while not self._has_room(size) and self._evict(item.level):
                evicted += 1
            found = self._has_room(size)
            if found:
                self._queue += (item,)
                self._pending += 1
                self._room -= size
                awake = self._pending <= self._wake_from
                if not awake and self._worker is not None:
                    self._wake_at(_NEVER)
        if evicted:
            self._count_dropped("overflow", evicted)
            self._tell_of_overflow(evicted)
        if not awake:
            try:
                self._rouse()
            except BaseException:
                # It will be counted as interrupted, but it is in the queue.
                self._count_dropped("interrupted", -1)
                raise
        return found

    def _has_room(self, size: int) -> bool:
        return self._pending < self._capacity and self._room >= size

    def _evict(self, level: float) -> bool:
        """Drop what has to make room for an event of this *level*; return False if there is nothing."""
        if self._overflow == "block":
            return False
        queue = self._queue
        keep = level >= self._keep_level
        if not keep and self._overflow == "drop_newest":
            return False
        # What is at the front and has to be kept is not looked at again with each event.
        place = self._kept
        while place < len(queue):
            waiting = queue[place]
            if not isinstance(waiting, _Mark) and _level(waiting) < self._keep_level:
                break
            place += 1
        self._kept = place
        if place == len(queue):
            if not keep or self._overflow == "drop_newest":
                return False
            # All are to be kept: then the oldest of them goes, as the policy says.
            place = next((at for at, waiting in enumerate(queue) if not isinstance(waiting, _Mark)), place)
            if place == len(queue):
                return False
            self._kept -= 1
        waiting = queue[place]
        del queue[place]
        if not isinstance(waiting, _Mark):
            size = _size(waiting)
            self._pending -= 1
            self._room += size
        return True

    def _wait_for_room(self, size: int, seconds: float) -> bool:
        """Wait until there may be room for *size* bytes; return False if that is in vain."""
        if self._overflow != "block" or self._impatient:
            return False
        if seconds <= 0:
            self._impatient = True
            return False
        with self._room_made:
            self._blocked += 1
            try:
                # Asked again now that whoever makes room knows of this thread.
                if not (self._has_room(size) or self._closed):
                    self._room_made.wait(seconds)
            finally:
                self._blocked -= 1
        return True

    def _make_room_known(self) -> None:
        self._impatient = False
        # Not for each batch: those who wait would take turns with the delivering thread, which costs both. A quarter of
        # the room at a time, or all of it.
        enough = self._pending <= self._capacity * 3 // 4 and self._room >= self._capacity_bytes // 4
        if self._blocked and (enough or self._closed):
            with self._room_made:
                self._room_made.notify_all()

    # -- the delivering thread

    def _wake_at(self, events: int) -> None:
        """Have the event that finds so many before it wake the thread. Called under the lock."""
        self._wake_from = events
        self._attention = min(events, self._capacity)

    def _rouse(self) -> None:
        super()._rouse()
        if self._worker is None:
            self._deliver_all_here()

    def _not_started(self) -> None:
        self._wake_at(0)

    def _work(self, generation: int) -> None:
        while generation == self._generation:
            batch = self._next_batch(generation)
            if batch is None:
                continue
            try:
                with delivering():
                    left = self._delivery.deliver(batch)
            except BaseException as error:
                left = []
                self._lose_rest(error, generation)
            if left:
                return  # close() has given up waiting, and counts them
            self._batch_done(batch, generation)

    def _next_batch(self, generation: int) -> Batch | None:
        """Wait for events and return some of them; None if there was nothing but a mark, or the sink is closed."""
        lingering = False
        while True:
            self._forget_wakeups()
            with self._lock:
                if generation != self._generation:
                    return None
                queue = self._queue
                if queue:
                    first = queue[0]
                    if isinstance(first, _Mark):
                        self._reach(first)
                        return None
                    if lingering or len(queue) >= self._batch_size or self._urgent_until > monotonic():
                        self._wake_at(_NEVER)
                        return self._taken_from_queue()
                self._wake_at(self._batch_size - 1 if queue else 0)
                waits = bool(queue)
            with contextlib.suppress(Empty):
                self._wakeups.get(timeout=self._linger_seconds if waits else _IDLE_SECONDS)
            lingering = waits

    def _reach(self, mark: _Mark) -> None:
        self._queue.popleft()
        self._kept = max(0, self._kept - 1)
        self._marks -= 1
        if not self._marks:
            self._urgent_until = 0.0
        mark.reached.set()

    def _taken_from_queue(self) -> Batch:
        taken: list[Raw | Encoded] = []
        queue = self._queue
        if self._marks:
            while queue and len(taken) < self._batch_size:
                waiting = queue[0]
                if isinstance(waiting, _Mark):
                    break
                taken.append(waiting)
                queue.popleft()
        else:
            taken = [queue.popleft() for _ in range(min(len(queue), self._batch_size))]  # type: ignore[misc]
        self._kept = max(0, self._kept - len(taken))
        return Batch(taken)

    def _forget_wakeups(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._wakeups.get_nowait()

    def _pause(self, seconds: float, generation: int) -> bool:
        self._forget_wakeups()
        urgent = self._urgent_until - monotonic()
        if self._stopping and urgent <= 0:
            return False
        if urgent > 0:
            # Somebody waits for this: several attempts in the time that is left, instead of one too late.
            seconds = min(seconds, urgent / 2)
        with contextlib.suppress(Empty):
            self._wakeups.get(timeout=min(seconds, _LONGEST_WAIT_SECONDS))
        return not (self._stopping and self._urgent_until <= monotonic())

    def _settle_all(self, deadline: float) -> bool:
        if threading.current_thread() is self._worker:
            return False  # called by the target, or by on_error: it would wait for itself
        with self._lock:
            if not self._pending:
                return True
            mark = _Mark()
            self._queue.append(mark)
            self._marks += 1
            self._urgent_until = max(self._urgent_until, deadline)
        self._rouse()
        return mark.reached.wait(max(0.0, deadline - monotonic()))

    # -- in the thread that logs, where there is no other

    def _deliver_here(self, item: Encoded) -> None:
        with self._lock:
            self._check_open()
            gone = self._target_gone or self._pending > 0
            if not gone:
                self._pending = 1
        if gone:
            # The other thread hangs, or it would have been done by the deadline; this one must not hang as well, or
            # not more than once.
            msg = f"{self.name}: the process ends, and {self._target.name} does not take anything"
            raise FullError(msg)
        self._attempt(Batch([item]))

    def _deliver_all_here(self) -> None:
        while True:
            with self._lock:
                batch = self._taken_from_queue()
                mark = self._queue[0] if self._queue and not batch else None
                if isinstance(mark, _Mark):
                    self._reach(mark)
            if batch:
                self._attempt(batch)
                size = _size_of(batch)
                with self._lock:
                    self._room += size
            elif mark is None:
                return

    def _attempt(self, batch: Batch) -> None:
        with delivering():
            left = self._new_delivery(lambda _: False).deliver(batch)
        lost = sum(map(len, left))
        if lost:
            self._target_gone = self._inline
            self._settle(Outcome(dropped={"error": lost}), self._generation)
            self._told(DeliveryError(f"{self._target.name} did not take what came at the end of the process"), lost)

    # -- counting and telling

    def _settle(self, outcome: Outcome, generation: int) -> None:
        events = outcome.events
        with self._lock, self._ledger.lock:
            if generation != self._generation:
                return  # close() has counted them
            self._pending -= events
            self._ledger.settle(outcome)
        if events:
            self._make_room_known()

    def _batch_done(self, batch: Batch, generation: int) -> None:
        size = _size_of(batch)
        with self._lock:
            if generation == self._generation:
                self._room += size
        self._make_room_known()
        if self._untold and monotonic() - self._told_at >= _TELL_SECONDS:
            self._tell_of_overflow(0)

    def _lose_rest(self, error: BaseException, generation: int) -> None:
        """Settle what is left of a batch whose delivery ended in a way that no delivery should."""
        with self._lock:
            lost = self._pending - sum(not isinstance(waiting, _Mark) for waiting in self._queue)
        self._settle(Outcome(dropped={"error": lost}), generation)
        if generation == self._generation:
            self._told(DeliveryError(describe(cleaned(error, None))), lost)

    def _give_up_rest(self) -> int:
        """Count what is still in memory as lost, at the end of close; return how many events that are."""
        with self._lock, self._ledger.lock:
            self._generation += 1
            lost, self._pending = self._pending, 0
            unconfirmed = min(lost, self._delivery.attempting)
            if unconfirmed:
                self._ledger.dropped["unconfirmed"] += unconfirmed
            if lost > unconfirmed:
                self._ledger.dropped["closed"] += lost - unconfirmed
            for waiting in self._queue:
                if isinstance(waiting, _Mark):
                    waiting.reached.set()
            self._queue.clear()
        self._wakeups.put(None)
        return lost

    def _tell_of_overflow(self, events: int) -> None:
        """Tell of events dropped for want of room: at once, then once a second, and not of each."""
        now = monotonic()
        with self._ledger.lock:
            self._untold += events
            if not self._untold or (events and now - self._told_at < _TELL_SECONDS):
                return
            untold, self._untold = self._untold, 0
            self._told_at = now
        error = FullError(f"there was no room while {self._target.name} did not keep up")
        with delivering(value=False):
            self._fail(error, None, events=untold, suppressed=untold - 1)

    def _stats(self) -> SinkStats:
        return self._ledger.stats(self.name, pending=self._pending, targets=(self._target.stats(),))

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        own = type(self)
        usual = all(
            getattr(own, hook) is getattr(BackgroundSink, hook) for hook in ("deliver", "_put", "_take", "_store")
        ) and not (self._processors or self._closed or self._reporting or self._inline)
        self._option = OPTIONS if usual and self._target.plain and not self._target.level else None

    @property
    def keeps_in_memory(self) -> bool:
        """True: what its thread has not delivered yet."""
        return True

    def _describe(self) -> str:
        return f"to {self._target!r}"


HAND_TAKEN.add(BackgroundSink.handle.__code__)

#: How often a thread without work looks for some: an interrupt may come between an event and its waking the thread.
_IDLE_SECONDS = 5.0

#: Longer ones are too long for the system's clock.
_LONGEST_WAIT_SECONDS = 86_400.0

#: How often on_error is told of events dropped for want of room.
_TELL_SECONDS = 1.0


#: What an event in the queue takes besides its data: the tuple, the numbers in it, the head of the bytes.
_OVERHEAD_BYTES = 160


def _size(waiting: Raw | Encoded) -> int:
    data = waiting[0] if type(waiting) is tuple else waiting.data  # type: ignore[union-attr]
    return len(data) + _OVERHEAD_BYTES


def _size_of(batch: Batch) -> int:
    return sum(map(len, batch.data)) + len(batch) * _OVERHEAD_BYTES


def _level(waiting: Raw | Encoded) -> float:
    level = waiting[1] if type(waiting) is tuple else None
    return item_of(waiting).level if level is None else level
