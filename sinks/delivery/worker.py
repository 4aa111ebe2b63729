"""The thread that delivers events in batches: `Worker`, the common engine of background, spool and listeners."""

from __future__ import annotations

import contextlib
import sys
import threading
from functools import partial
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

#: The policies for an event without room.
ON_FULL = ("block", "drop_newest", "drop_oldest")

#: An event number that is never reached.
NEVER = sys.maxsize

#: How long a thread without work sleeps at most. An interrupt may keep an event from waking it.
_IDLE_SECONDS = 5.0


class FullError(TemporaryDeliveryError):
    """There was no room for an event."""

    dropped_as = "overflow"


class Mark:
    """A number of events that must be done before a flush returns."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number: int = number


class Worker:
    """A thread that takes batches of waiting events and delivers them to a target.

    Events are numbered in the order in which they come. `put`, `settled` and `done` count the events that ever came,
    that are settled, and whose batches are finished. So the number of pending events is a difference, and a flush waits
    for a number: it needs no marker among the events.

    A subclass stores the waiting events:

    - `waiting` returns the number of waiting events. `take` takes some of them, and returns a batch and a token that
      `finish` gets once the batch is settled. Both are called under `lock`. `take` may return another object with a
      length if `prepared` makes a batch of it. `rest` is called when nothing waits.
    - To store an event, add one to `put`, and call `rouse` if the event's number is `wake_at` or above. Code that
      stores events without `lock` first compares `put` with `limit`, which `set_limit` updates: below it there is room,
      and the thread need not be woken. The comparison and the additions must contain no call, so that no other thread
      and no signal handler runs between them.

    A worker has one thread and is not started again. After `end` it delivers nothing, and a late answer of the target
    is ignored. A forked child makes a new worker.

    The worker may hold the sink weakly. When the last reference to the sink is gone, the sink calls `abandon`: the
    waiting events are delivered within the exit's deadline, and the thread ends.

    Args:
        owner: Returns the sink, or None once it is gone; usually a weak reference. The sink's ``_told(error, events)``
            is called for each failure.
        name: The sink's name, for the thread and for messages.
        target: The sink that gets the batches.
        ledger: The sink's counts.
        batch_size: How many events wake the thread at once.
        linger: How many seconds the first event of a batch waits for more.
        retry: How often a failed batch is tried again. Default ``RetryPolicy()``.
        dead_letter: A sink for events that the target refuses for good. Default None: they are dropped.

    `lock` is an RLock. A waiting caller holds no lock, so an interrupt may come at any moment.
    """

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
        self.lock: Any = threading.RLock()
        self.put: int = 0
        self.settled: int = 0
        self.done: int = 0
        #: An event with this number or a higher one wakes the thread.
        self.wake_at: int = 0
        #: Events with lower numbers need no check: there is room for them, and they do not wake the thread.
        self.limit: int = 0
        #: True at exit: each event is delivered in the thread that logs it.
        self.inline: bool = lifecycle.exiting()
        #: True if no more events are accepted.
        self.closed: bool = False
        #: Whether the thread ends after `urgent_until`, and whether it ends at once.
        self.stopping: bool = False
        self.ended: bool = False
        #: True if the thread ends as soon as nothing waits.
        self.concluding: bool = False
        #: The end of the time that a caller waits for the thread, by `now`.
        self.urgent_until: float = 0.0
        #: Each item wakes the thread. A SimpleQueue: a signal handler may call put() while it interrupts another put().
        self.wakeups: SimpleQueue[None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.delivery: Delivery = self._new_delivery(self.pause)
        self._owner = owner
        #: True once the sink is gone. From then on failures go to `_on_error`, which was the sink's.
        self._abandoned = False
        self._on_error: Any = report
        self._marks: list[Mark] = []
        #: Wakes the threads that wait for events to be settled.
        self.bells: Bells = Bells()
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

    # -- storing events; implemented by subclasses

    def waiting(self) -> int:
        """Return the number of waiting events. Called under the lock."""
        raise NotImplementedError

    def take(self) -> tuple[Any, Any] | None:
        """Take waiting events, oldest first; return None if there are none any more. Called under the lock."""
        raise NotImplementedError

    def tend(self) -> None:
        """Do what is due before the waiting events are counted. Called under the lock."""

    def rest(self) -> None:
        """Do the work that is due when nothing waits. Called under the lock."""

    def prepared(self, taken: Any) -> Batch:
        """Return the batch for *taken*, the result of `take`. Called without the lock, in the delivering thread."""
        batch: Batch = taken
        return batch

    def finish(self, batch: Any, token: Any) -> None:
        """Release the resources of *batch*, which is settled; *token* comes from `take`."""

    def discard(self) -> None:
        """Discard the waiting events, which were counted as lost. Called under the lock."""

    def set_limit(self) -> None:
        """Update `limit`, after a change of what it depends on; with or without the lock."""
        self.limit = -1 if self.closed or self.inline else self.wake_at

    # -- waiting for the thread

    def is_done(self, mark: Mark) -> bool:
        """Return True if a flush that waits for *mark* may return."""
        return self.done >= mark.number

    def settle_all(self, deadline: float, number: int | None = None) -> bool:
        """Wait until all events so far are settled; return False if *deadline*, by `now`, passes first.

        Args:
            deadline: The thread does not linger until then.
            number: Wait for so many events. Default None: for all that have come.
        """
        if threading.current_thread() is self.thread:
            return False  # called by the target or by on_error, in the thread itself, which cannot wait for itself
        mark = Mark(self.put if number is None else number)
        self._marks.append(mark)
        try:
            if not self.is_done(mark):
                self.urgent_until = max(self.urgent_until, deadline)
                self.rouse()
            return self.bells.wait(deadline - now(), partial(self.is_done, mark))
        finally:
            self._marks.remove(mark)
            if not self._marks and not self.stopping:
                self.urgent_until = 0.0

    def evicted(self, place: int, events: int) -> None:
        """Count an event as gone that waited at *place* among *events* waiting ones. Called under the lock."""
        number = self.put - events + place
        self.settled += 1
        self.done += 1
        for mark in tuple(self._marks):
            # An event after the mark now counts in `done`, although this flush does not wait for it: wait for one more.
            mark.number += number >= mark.number

    # -- the thread

    def rouse(self) -> None:
        """Wake the thread, or start it; if no thread can be started, deliver here."""
        if not self.wake():
            self.deliver_all_here()

    def wake(self) -> bool:
        """Wake the thread, or start it; return False if no thread can be started."""
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
            # Set before the thread runs, so that an event of a signal handler does not start another.
            self.thread = made
            try:
                threads.start(made)
            except BaseException as error:
                # The interpreter is shutting down, there are too many threads, or an interrupt came. The next event
                # tries again. If the thread runs after all, it finds in _run that it was replaced, and ends.
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
        """Deliver *taken*; return False if the delivery was stopped. Then the code that stopped it counts the rest."""
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
            done = len(taken)
            self.done += done
        self.bells.ring()

    def _next(self) -> tuple[Any, Any] | None:
        """Wait for events and take a batch; return None if the thread has to end."""
        due = float("inf")
        while True:
            self._forget_wakeups()
            moment = now()
            with self.lock:
                urgent = self.urgent_until > moment
                if self.ended or (self.stopping and not urgent):
                    return None
                self.tend()
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
                # Events stored without the lock, before `wake_at` was set, have not woken the thread.
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
        """The longest sleep of the thread while nothing waits, in seconds."""
        return _IDLE_SECONDS

    def sleep(self, seconds: float) -> bool:
        """Wait until the thread is woken; return False if *seconds* pass first."""
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
        """Wait at most *seconds* before the next attempt; return False to stop."""
        self._forget_wakeups()
        urgent = self.urgent_until - now()
        if self.ended or (self.stopping and urgent <= 0):
            return False
        if urgent > 0:
            # A caller waits: fit several attempts into the time left.
            seconds = min(seconds, urgent / 2)
        self.sleep(seconds)
        return not (self.ended or (self.stopping and self.urgent_until <= now()))

    def hasten(self, deadline: float) -> None:
        """Make the thread deliver without lingering, since a caller waits for it until *deadline*."""
        # Set it even without a thread: an event that is being stored right now may start one.
        self.urgent_until = max(self.urgent_until, deadline)
        if self.thread is not None:
            self.wakeups.put(None)

    # -- counting and reporting

    def settle(self, outcome: Outcome) -> None:
        """Count the outcome of some events."""
        events = outcome.events
        with self.lock:
            if self.ended:
                return  # `end` has counted them
            self.settled += events
            self.ledger.settle(outcome)

    def tell(self, error: Exception, events: int) -> None:
        """Report *error*, and the number of events lost to it, to the sink or, once it is gone, to its on_error."""
        if not self.ended:
            self._tell(error, events)

    def _tell(self, error: Exception, events: int) -> None:
        owner = self._owner()
        # Clear the mark of a delivering thread, so that other sinks accept what on_error logs.
        with delivering(value=False):
            if owner is not None:
                owner._told(error, events)
            elif self._abandoned:
                with contextlib.suppress(Exception):
                    self._on_error(SinkFailure(self.name, cleaned(error, None), events, time()))

    def _lose(self, taken: Any, error: BaseException) -> None:
        """Settle the rest of *taken* as lost, after an unexpected error in its delivery.

        Raises:
            BaseException: If *error* is an interrupt, and the caller's own thread delivers.
        """
        interrupted = self.thread is None and not isinstance(error, Exception)
        with self.lock:
            lost = self.done + len(taken) - self.settled
        self.settle(Outcome(dropped={"interrupted" if interrupted else "error": lost}))
        if interrupted:
            raise error
        self.tell(DeliveryError(describe(cleaned(error, None))), lost)

    # -- closing

    def close(self, deadline: float) -> tuple[bool, Outcome]:
        """Accept no more events, deliver until *deadline*, and end.

        Returns:
            True if all events were settled, and the result of `end`.
        """
        with self.lock:
            self.closed = True
            self.urgent_until = max(self.urgent_until, deadline)
            self.stopping = True
            self.set_limit()
        self.bells.ring()
        settled = self.settle_all(deadline)
        return settled, self.end()

    def end(self) -> Outcome:
        """End at once; return the lost events: ``unconfirmed`` in an attempt in progress, the others ``closed``."""
        with self.lock:
            self.closed = self.stopping = self.ended = True
            self.set_limit()
            lost, self.settled = self.put - self.settled, self.put
            self.done = self.put
            unconfirmed = min(lost, self.delivery.attempting)
            self.discard()
        self.wakeups.put(None)
        self.bells.ring()
        return Outcome(dropped={"unconfirmed": unconfirmed, "closed": lost - unconfirmed})

    def abandon(self, on_error: Any) -> None:
        """Deliver the waiting events within the exit's deadline, and end. For a sink that was garbage collected.

        It takes no lock and does not wait, so that a finalizer can call it.

        Args:
            on_error: Called with each failure from now on. If it is not callable, `report` is called.
        """
        self._on_error = on_error if callable(on_error) else report
        self._abandoned = True
        self.urgent_until = now() + lifecycle.EXIT_DEADLINE_SECONDS
        self.closed = self.stopping = True
        self.set_limit()
        lifecycle.join(self)
        self.wakeups.put(None)

    def _give_up_abandoned(self) -> None:
        lost = self.end().events
        self.ledger.drop("closed", lost)
        if lost:
            self._tell(DeliveryError("nobody refers to the sink any more, and its target takes nothing"), lost)
        with contextlib.suppress(Exception):
            self.target.flush(0)

    # -- an abandoned worker has exit and fork hooks of its own, see outfall.sinks.core.lifecycle

    delivers_later: ClassVar[bool] = True
    has_owner = False

    def drain(self, timeout: float) -> None:
        """Wait until the events of an abandoned sink are delivered."""
        self.settle_all(now() + timeout)

    def after_fork(self) -> None:
        """Reset the worker in a forked child, which delivers nothing: the waiting events are the parent's."""
        self.lock = threading.RLock()
        self._abandoned = False
        self.end()

    # -- without a thread: at exit, or if none can be started

    def deliver_here(self, batch: Batch) -> None:
        """Deliver *batch*, a new event, in this thread, at exit.

        Raises:
            FullError: If the target takes nothing.
        """
        if self.put > self.settled and not self._target_gone:
            # The worker's thread delivers older events first. If it hangs, later events do not wait for it again.
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
        """Deliver all waiting events in this thread, with one attempt."""
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
