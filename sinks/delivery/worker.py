"""The thread that delivers for a sink, in batches: `Worker`, the one engine of all sinks that deliver later."""

from __future__ import annotations

import contextlib
import sys
import threading
from queue import Empty, SimpleQueue
from time import time
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.sinks.core import lifecycle, threads
from outfall.sinks.core.bells import LONGEST_WAIT_SECONDS, Bells
from outfall.sinks.core.clock import now
from outfall.sinks.core.ledger import Ledger, Outcome
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import SinkFailure, cleaned, describe, report
from outfall.sinks.delivery.delivery import Delivery
from outfall.sinks.errors import DeliveryError, TemporaryDeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.item import Batch
    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy

#: What to do with an event that there is no room for.
ON_FULL = ("block", "drop_newest", "drop_oldest")

#: As the number of an event: none ever.
NEVER = sys.maxsize

#: How often a thread without work looks for some: an interrupt may come between an event and its waking the thread.
_IDLE_SECONDS = 5.0


class FullError(TemporaryDeliveryError):
    """There was no room for an event."""

    dropped_as = "overflow"


class _Mark:
    """A number of events that must be done before a flush returns."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Worker:
    """A thread that takes batches of waiting events and delivers them to a target, and the calls that wait for it.

    Events have numbers, in the order in which they came. `put`, `settled` and `done` say how many events ever came,
    were settled, and belong to batches that are through. So what is pending is a difference, a flush waits for a
    number, and nothing stands among the events for it.

    A subclass says where events wait:

    - `waiting` returns how many could be taken now, and `take` takes some of them: a batch, and whatever `finish` has
      to know when the batch is through. Both are called under `lock`. What is taken may be something else that has a
      length, if `prepared` makes a batch of it. `rest` is called when nothing waits.
    - Storing an event adds one to `put`; if the event's number is `wake_at` or above, `rouse` is called then. Code that
      stores without `lock` compares with `limit` first, which `set_limit` keeps up to date: below it there is room, and
      the thread need not be woken. The comparison and the additions must be free of calls, so that no thread and no
      signal handler comes between them.

    A worker has one thread, and is not started again: after `end` it delivers nothing, and a late answer of the target
    changes nothing. A forked child makes a new worker.

    The thread may hold the sink weakly. When the last reference to the sink is gone, the sink calls `abandon`: what
    waits is delivered within the exit's deadline, and the thread ends.

    Args:
        owner: Returns the sink, or None once it is gone: mostly a weak reference. The sink's ``_told(error, events)``
            is called for each failure.
        name: The sink's name, for the thread and for messages.
        target: Where the batches go.
        ledger: The sink's.
        batch_size: How many events wake the thread at once.
        linger: Seconds that the first event of a batch waits for more.
        retry: How often a failed batch is tried again. Default ``RetryPolicy()``.
        dead_letter: A sink for events that the target refuses for good. Default None: they are dropped.

    `lock` is an RLock. A waiting caller holds nothing, so an interrupt may come at any moment.
    """

    lock: Any
    put: int
    settled: int
    done: int
    wake_at: int
    limit: int
    inline: bool
    closed: bool
    stopping: bool
    ended: bool
    concluding: bool
    urgent_until: float
    delivery: Delivery
    bells: Bells

    def __init__(
        self,
        owner: Callable[[], Any],
        name: str,
        target: Sink,
        ledger: Ledger,
        *,
        batch_size: int,
        linger: float,
        retry: RetryPolicy | None,
        dead_letter: Sink | None,
    ) -> None:
        self.name = name
        self.target = target
        self.ledger = ledger
        self.batch_size = batch_size
        self.linger = linger
        self.retry = retry
        self.dead_letter = dead_letter
        self.lock = threading.RLock()
        self.put = self.settled = self.done = 0
        #: The event of this number wakes the thread, and so does each behind it.
        self.wake_at = 0
        #: Events below this number need no check: there is room for them, and they do not wake the thread.
        self.limit = 0
        #: True once the process exits: each event is delivered in the thread that logs it.
        self.inline = lifecycle.exiting()
        #: No more events are taken; the thread stops when `urgent_until` has passed; the thread has to end at once.
        self.closed = self.stopping = self.ended = False
        #: The thread ends as soon as nothing waits.
        self.concluding = False
        #: Until when a caller waits for the thread, by `now`.
        self.urgent_until = 0.0
        #: Wakes the thread. A SimpleQueue, since a signal handler may call its put() while it interrupts another put().
        self.wakeups: SimpleQueue[None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.delivery = self._new_delivery(self.pause)
        self._owner = owner
        #: True once the sink is gone, and the sink's on_error from then on.
        self._abandoned = False
        self._on_error: Any = report
        self._marks: list[_Mark] = []
        #: The threads that wait for events to be settled.
        self.bells = Bells()
        self._target_gone = False

    def _new_delivery(self, pause: Callable[[float], bool]) -> Delivery:
        return Delivery(
            self.target,
            retry=self.retry,
            dead_letter=self.dead_letter,
            settle=self.settle,
            tell=self.tell,
            pause=pause,
        )

    # -- where events wait: a subclass's

    def waiting(self) -> int:
        """Return how many events could be taken now. Called under the lock."""
        raise NotImplementedError

    def take(self) -> tuple[Any, Any] | None:
        """Take some of what waits, oldest first; return None if it is gone. Called under the lock."""
        raise NotImplementedError

    def rest(self) -> None:
        """Do what there is to do when nothing waits. Called under the lock."""

    def prepared(self, taken: Any) -> Batch:
        """Return what the target is given of what `take` has taken. Called without the lock, where it is delivered."""
        return taken  # type: ignore[no-any-return]

    def finish(self, batch: Any, token: Any) -> None:
        """Release what was taken by `take`: all of *batch* is settled."""

    def discard(self) -> None:
        """Forget what waits: it has been counted as lost. Called under the lock."""

    def set_limit(self) -> None:
        """Compute `limit`; called whenever something that it depends on has changed, under the lock or not."""
        self.limit = -1 if self.closed or self.inline else self.wake_at

    # -- waiting for the thread

    def is_done(self, number: int) -> bool:
        """Return True if a flush that waits for so many events may return."""
        return self.done >= number

    def settle_all(self, deadline: float, number: int | None = None) -> bool:
        """Wait until all that has come is settled; return False if *deadline*, by `now`, comes first.

        Args:
            deadline: Until when the thread hurries.
            number: Wait for so many events only. Default None: all that have come.
        """
        if threading.current_thread() is self.thread:
            return False  # called by the target, or by on_error: it would wait for itself
        mark = _Mark(self.put if number is None else number)
        self._marks.append(mark)
        try:
            if not self.is_done(mark.number):
                self.urgent_until = max(self.urgent_until, deadline)
                self.rouse()
            while True:  # see _Buffer.append
                left = deadline - now()
                if self.is_done(mark.number) or left <= 0:
                    return self.is_done(mark.number)
                self.bells.wait(left, lambda: self.is_done(mark.number))
        finally:
            self._marks.remove(mark)
            if not self._marks and not self.stopping:
                self.urgent_until = 0.0

    def evicted(self, place: int, events: int) -> None:
        """Count one event as gone that waited at *place* among so many. Called under the lock."""
        number = self.put - events + place
        self.settled += 1
        self.done += 1
        for mark in tuple(self._marks):
            # One that came after a mark is not what that flush waits for.
            mark.number += number >= mark.number

    # -- the thread

    def rouse(self) -> None:
        """Wake the thread, starting it if it does not run; deliver here if none can be started."""
        if not self.wake():
            self.deliver_all_here()

    def wake(self) -> bool:
        """Wake the thread, starting it if it does not run; return False if none can be started."""
        if self.thread is None:
            self._start()
            return self.thread is not None
        self.wakeups.put(None)
        return True

    def _start(self) -> None:
        with self.lock:
            if self.thread is not None:
                return
            made = threading.Thread(target=self._run, name=f"outfall {self.name}", daemon=True)
            # Set before it runs, so that an event from a signal handler does not start another.
            self.thread = made
            try:
                threads.start(made)
            except BaseException as error:
                # The interpreter is going down, or there are too many threads, or an interrupt came: the next event
                # tries again. A thread that runs nevertheless finds in _run, under the lock, what it is.
                if not made.is_alive():
                    self.thread = None
                    self.wake_at = 0
                    self.set_limit()
                if isinstance(error.__context__, KeyboardInterrupt):  # see Bells
                    raise error.__context__ from None
                if not isinstance(error, RuntimeError):
                    raise

    def _run(self) -> None:
        with self.lock:
            if self.thread is not threading.current_thread():
                return
        while (found := self._next()) is not None:
            if not self._deliver(*found):
                break
        if self._abandoned:
            self._give_up_abandoned()

    def _deliver(self, taken: Any, token: Any) -> bool:
        """Deliver *taken*; return False if the delivery was stopped: whoever has stopped it counts what is left."""
        try:
            with delivering():
                left = self.delivery.deliver(self.prepared(taken))
        except BaseException as error:
            left = []
            self._lose(taken, error)
        if not left:
            self._finish(taken, token)
        return not left

    def _finish(self, taken: Any, token: Any) -> None:
        with self.lock:
            if self.ended:
                return
            if token is not None:
                self.finish(taken, token)
            self.done += len(taken)
        if self.bells:
            self.bells.ring()

    def _next(self) -> tuple[Any, Any] | None:
        """Wait for events and take some; return None once the thread has to end."""
        due = float("inf")
        while True:
            self._forget_wakeups()
            moment = now()
            with self.lock:
                urgent = self.urgent_until > moment
                if self.ended or (self.stopping and not urgent):
                    return None
                waits = self.waiting()
                if waits and (moment >= due or urgent or self._marks or waits >= self.batch_size):
                    self.wake_at = NEVER
                    self.set_limit()
                    found = self.take()
                    if found is not None:
                        return found
                    continue
                self.wake_at = self.put - waits + (self.batch_size - 1 if waits else 0)
                self.set_limit()
                # An event that was stored without the lock, before `wake_at` was set, has not woken the thread.
                if self.waiting() != waits:
                    continue
                if not waits:
                    self.rest()
                    if self._abandoned or self.concluding or self.thread is None:
                        return None
            if waits and due == float("inf"):
                due = moment + self.linger
            self.sleep(due - moment if waits else self.idle_seconds)

    @property
    def idle_seconds(self) -> float:
        """How long the thread sleeps at most while nothing waits."""
        return _IDLE_SECONDS

    def sleep(self, seconds: float) -> bool:
        """Wait until somebody wakes the thread; return False if *seconds* pass first."""
        try:
            self.wakeups.get(timeout=min(max(0.0, seconds), LONGEST_WAIT_SECONDS))
        except Empty:
            return False
        return True

    def _forget_wakeups(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self.wakeups.get_nowait()

    def pause(self, seconds: float) -> bool:
        """Wait before the next attempt, or less; return False if there is to be none."""
        self._forget_wakeups()
        urgent = self.urgent_until - now()
        if self.ended or (self.stopping and urgent <= 0):
            return False
        if urgent > 0:
            # A caller waits: make several attempts in the time that is left, instead of one too late.
            seconds = min(seconds, urgent / 2)
        self.sleep(seconds)
        return not (self.ended or (self.stopping and self.urgent_until <= now()))

    def hasten(self, deadline: float) -> None:
        """Stop the thread from lingering, since a caller waits for it until *deadline*."""
        # Also for a thread that starts later, with an event that is being stored just now.
        self.urgent_until = max(self.urgent_until, deadline)
        if self.thread is not None:
            self.wakeups.put(None)

    # -- counting and telling

    def settle(self, outcome: Outcome) -> None:
        """Count what became of some events."""
        events = outcome.events
        with self.lock:
            if self.ended:
                return  # `end` has counted them
            self.settled += events
            self.ledger.settle(outcome)
            self.set_limit()
        if events and self.bells and self.should_ring():
            self.bells.ring()

    def should_ring(self) -> bool:
        """Return True if waiting threads should look now, though the batch is not finished."""
        return bool(self._marks)

    def tell(self, error: Exception, events: int) -> None:
        """Report *error*, and the number of events lost to it, to the sink or, once it is gone, to its on_error."""
        if not self.ended:
            self._tell(error, events)

    def _tell(self, error: Exception, events: int) -> None:
        owner = self._owner()
        # Not under the mark of a delivering thread: what on_error logs, other sinks may take.
        with delivering(value=False):
            if owner is not None:
                owner._told(error, events)
            elif self._abandoned:
                with contextlib.suppress(Exception):
                    self._on_error(SinkFailure(self.name, cleaned(error, None), events, time()))

    def _lose(self, taken: Any, error: BaseException) -> None:
        """Settle what is left of *taken*, whose delivery ended in a way that no delivery should."""
        with self.lock:
            lost = self.done + len(taken) - self.settled
        self.settle(Outcome(dropped={"error": lost}))
        self.tell(DeliveryError(describe(cleaned(error, None))), lost)

    # -- the end

    def close(self, deadline: float) -> tuple[bool, int, int]:
        """Take nothing more, deliver until *deadline*, and end.

        Returns:
            Whether all was settled; how many events are lost with an attempt that is still running; how many others.
        """
        with self.lock:
            self.closed = True
            self.urgent_until = max(self.urgent_until, deadline)
            self.stopping = True
            self.set_limit()
        self.bells.ring()
        settled = self.settle_all(deadline)
        return settled, *self.end()

    def end(self) -> tuple[int, int]:
        """End at once; return how many events are lost with an attempt that is still running, and how many others."""
        with self.lock:
            self.closed = self.stopping = self.ended = True
            self.set_limit()
            lost, self.settled = self.put - self.settled, self.put
            self.done = self.put
            unconfirmed = min(lost, self.delivery.attempting)
            self.discard()
        self.wakeups.put(None)
        self.bells.ring()
        return unconfirmed, lost - unconfirmed

    def abandon(self, on_error: Any) -> None:
        """Deliver what waits within the exit's deadline, and end: the sink is gone.

        Takes no lock and waits for nothing, for a finalizer.

        Args:
            on_error: Called with each failure from now on; `report` if it is not callable.
        """
        self._on_error = on_error if callable(on_error) else report
        self._abandoned = True
        self.urgent_until = now() + lifecycle.EXIT_DEADLINE_SECONDS
        self.closed = self.stopping = True
        self.set_limit()
        lifecycle.join(self)
        self.wakeups.put(None)

    def _give_up_abandoned(self) -> None:
        unconfirmed, lost = self.end()
        self.ledger.drop("closed", unconfirmed + lost)
        if unconfirmed + lost:
            told = DeliveryError("nobody refers to the sink any more, and its target takes nothing")
            self._tell(told, unconfirmed + lost)
        with contextlib.suppress(Exception):
            self.target.flush(0)

    # -- an abandoned worker is drained at exit by itself, see outfall.sinks.core.lifecycle

    delivers_later: ClassVar[bool] = True
    has_owner = False

    def drain(self, timeout: float) -> None:
        """Wait until what an abandoned sink has left is delivered."""
        self.settle_all(now() + timeout)

    def after_fork(self) -> None:
        """Deliver nothing in a forked child: what waits is the parent's."""
        self.lock = threading.RLock()
        self._abandoned = False
        self.end()

    # -- where there is no thread: at exit, or if none can be started

    def deliver_here(self, batch: Batch) -> None:
        """Deliver *batch*, a new event, in this thread, at the exit of the process.

        Raises:
            FullError: If the target does not take anything.
        """
        if self.put > self.settled and not self._target_gone:
            # Another thread delivers what came while the sink was drained. If it hangs, no thread waits for it again.
            self._target_gone = not self.settle_all(now() + lifecycle.patience(lifecycle.EXIT_DEADLINE_SECONDS))
        with self.lock:
            gone = self._target_gone
            events = 0 if gone else len(batch)
            self.put += events
        if gone:
            msg = f"{self.name}: the process ends, and {self.target.name} does not take anything"
            raise FullError(msg)
        self._attempt(batch, None)

    def deliver_all_here(self) -> None:
        """Deliver all that waits in this thread, once."""
        while True:
            with self.lock:
                found = self.take() if self.waiting() else None
                if found is None:
                    return
            self._attempt(*found)

    def _attempt(self, taken: Any, token: Any) -> None:
        with delivering():
            left = self._new_delivery(lambda _: False).deliver(self.prepared(taken))
        lost = sum(map(len, left))
        if lost:
            self._target_gone = self.inline
            self.settle(Outcome(dropped={"error": lost}))
            self.tell(DeliveryError(f"{self.target.name} did not take what came at the end of the process"), lost)
        self._finish(taken, token)
