"""`QueueListener`: reads a queue and delivers its events to sinks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from queue import Empty, Full
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import lifecycle, threads
from outfall.sinks.core.arguments import checked_count, checked_seconds
from outfall.sinks.core.bells import Flag
from outfall.sinks.core.clock import now
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import SinkFailure, report
from outfall.sinks.core.threads import check_threads
from outfall.sinks.delivery.lane import Lane, Ticket
from outfall.sinks.delivery.listening import Listening
from outfall.sinks.delivery.queues import SHUT_DOWN, is_closed, put_nowait, renew, task_done
from outfall.sinks.errors import DeliveryError, TemporaryDeliveryError
from outfall.sinks.event.event import LevelledEvent, TextEvent, as_event
from outfall.sinks.network.frames import JSONFrames

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy


class _Mark:
    """A marker in the queue, for which `QueueListener.flush` waits."""

    def __init__(self) -> None:
        #: Set once the reader has reached it.
        self.reached: Flag = Flag()
        #: The number of events that each lane had got by then.
        self.numbers: list[int] = []


class _Run:
    """The state of a started listener, from start to stop."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes
        #: The reader.
        self.thread: threading.Thread | None = None
        self.stopping: Flag = Flag()
        self.deadline = float("inf")
        #: True once reading has ended, and once a sentinel was read. The listener's lock protects both.
        self.ended = False
        self.told_to_stop = False
        #: True once the listener has abandoned it.
        self.abandoned = False
        #: The item that the reader is passing on; only the reader uses this.
        self.ticket: Ticket | None = None

    @property
    def reading(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    @property
    def threads(self) -> list[threading.Thread]:
        """The running threads, the reader first."""
        return [
            thread for thread in (self.thread, *(lane.thread for lane in self.lanes)) if thread and thread.is_alive()
        ]


class QueueListener(Listening):
    """Read events from a queue and deliver them to *sinks*, in batches.

    Args:
        queue: The queue that a `QueueSink` puts events into, in this process or another.
        *sinks: The sinks that get the events, by ``emit_batch``. They are not owned: close them after the listener.
        respect_sink_level: Whether a sink's level applies. Default False, as in the standard library, since the events
            in the queue have passed a level already. Processors always apply.
        batch_size: The number of events in a batch. Default 500.
        linger: How long the first event of a batch waits for more events, in seconds or as a timedelta. Default 0: a
            batch has the events that came while the sink was busy with the previous one.
        capacity: The largest number of events in memory for each sink, including those being delivered. Default 10 000.
            While no sink has room, events stay in the queue.
        block_timeout: How long the listener waits for a sink without room while the other sinks have nothing to do, in
            seconds or as a timedelta. Then that sink's events without room are dropped, as ``dropped["overflow"]`` in
            its ledger, until it has room. Default 1.0.
        retry: The policy for retries. Default ``RetryPolicy()``: retry until the sink takes the batch.
        dead_letter: A sink that gets the events that a sink refuses for good. It is not owned. Default None: they count
            as ``dropped["rejected"]``.
        on_error: Called with a `SinkFailure` for lost events, failed attempts and invalid items in the queue. A sink's
            own ``on_error`` is called too. Default `report`.
        name: The name of the listener in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *batch_size* or *capacity* is not a whole number from 1 up, or *linger* or *block_timeout* is not
            a duration.
        TypeError: If *queue* has no ``get`` (unless `dequeue` is overridden), one of *sinks* or *dead_letter* is not a
            sink, *retry* is not a `RetryPolicy`, or *on_error* is not callable.

    One thread reads the queue, and one thread for each sink delivers, so that a sink that fails or hangs does not
    affect the others. Items may be bytes with one JSON object, as `QueueSink` puts them; dicts; and text, JSON or not.
    Other items count as ``dropped["garbage"]``. ``task_done`` is called for each item when all sinks are done with it,
    so ``queue.join()`` waits for the delivery.

    Use it as a context manager, or call `start` and `stop`, which may be called repeatedly. ``None`` in the queue,
    whoever put it there, stops the listener. Safe from any thread. In a forked child the listener is not started, and a
    queue for threads is empty: the parent delivers its items. At the exit of the process the queue is delivered, within
    the deadline that all sinks share.

    Source: `logging.handlers.QueueListener`, whose `dequeue`, `prepare`, `handle` and `enqueue_sentinel` may be
    overridden as there.
    """

    _sentinel: Any = None

    #: The timeout of `stop` and `flush` if *timeout* is None, in seconds. Settable.
    drain_timeout: float = 5.0

    def __init__(
        self,
        queue: Any,
        *sinks: Sink,
        respect_sink_level: bool = False,
        batch_size: int = 500,
        linger: float | dt.timedelta = 0.0,
        capacity: int = 10_000,
        block_timeout: float | dt.timedelta = 1.0,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        on_error: Callable[[SinkFailure], object] = report,
        name: str | None = None,
    ) -> None:
        if type(self).dequeue is QueueListener.dequeue and not callable(getattr(queue, "get", None)):
            msg = f"queue={queue!r} has no get"
            raise TypeError(msg)
        self._configure(sinks, respect_sink_level, batch_size, retry, dead_letter, on_error, name)
        self.queue: Any = queue
        self._linger_seconds = checked_seconds(linger, "linger")
        self._capacity = checked_count(capacity, "capacity", "events")
        self._block_seconds = checked_seconds(block_timeout, "block_timeout")
        self._fresh_state()
        for sink in sinks:
            self._lane(sink)  # refuses what a delivery cannot use
        self._accounts.clear()
        lifecycle.join(self)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._run: _Run | None = None
        #: Guards tickets and the end of reading. A lane's lock may be taken while this one is held, not vice versa.
        self._lock = threading.RLock()
        self._pending = 0
        #: The number of sentinels in the queue that were for an earlier start.
        self._stale_sentinels = 0
        #: The markers in the queue, by their items there.
        self._marks: dict[bytes, _Mark] = {}

    # -- methods for applications

    @property
    def running(self) -> bool:
        """True between `start` and `stop`, unless a sentinel from elsewhere has stopped it."""
        run = self._run
        return run is not None and run.reading

    @property
    def delivers_in_this_thread(self) -> bool:
        """True in the listener's own threads, which cannot wait for themselves."""
        run = self._run
        return run is not None and threading.current_thread() in run.threads

    def start(self) -> Self:
        """Start to read the queue, unless it is started already; return the listener.

        Raises:
            RuntimeError: If no thread can be started any more.
        """
        check_threads()
        with self._life:
            if self.running:
                return self
            lifecycle.arm()  # the queue may be one of multiprocessing
            self.stop()  # cleans up after a sentinel from elsewhere
            run = _Run([self._lane(sink) for sink in self.sinks])
            run.thread = threading.Thread(target=self._read, args=(run,), name=f"outfall {self.name}", daemon=True)
            # Set before the reader runs, which reads it.
            self._run = run
            try:
                threads.start(run.thread)
            except BaseException:
                run.abandoned = run.ended = True
                self._run = None
                raise
            _listeners[id(self.queue)] = self
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Deliver the queue, and stop; do nothing if the listener is not started.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.

        Returns:
            False if events had to be given up. Then those of an attempt in progress count as
            ``dropped["unconfirmed"]``, others that were read as ``dropped["closed"]``; the rest stays in the queue.
        """
        deadline = now() + self._seconds(timeout)
        with self._life:
            run = self._run
            if run is None:
                return True
            run.deadline = deadline
            run.stopping.set()
            for lane in run.lanes:
                lane.hasten(deadline)
            put = run.reading and self._enqueue(self.enqueue_sentinel, run, deadline)
            if self.delivers_in_this_thread:  # called by a sink
                return False
            if run.reading and run.thread is not None:
                released(run.thread.join, max(0.0, deadline - now()))
            for lane in run.lanes:
                lane.conclude(deadline)
            self._bells.ring()
            for worker in run.threads:
                released(worker.join, max(0.0, deadline - now()))
            self._run = None
            _listeners.pop(id(self.queue), None)
            run.abandoned = True
            lost = [
                self._give_up(lane, f"{self.name} was stopped before {lane.target.name} had taken everything")
                for lane in run.lanes
            ]
            complete = not (any(lost) or run.threads)
            with self._lock:
                if put and not run.told_to_stop:
                    self._stale_sentinels += 1
            return complete

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all items that are in the queue now are delivered or dropped; return False on a timeout.

        If the listener is not started, True means that no item that it has read is waiting. If listeners in other
        processes read the same queue, the result may be False, since it cannot be known when they have delivered.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        deadline = now() + self._seconds(timeout)
        run = self._run
        if run is None or not run.reading or is_closed(self.queue):
            return not self._pending
        if self.delivers_in_this_thread:
            return False
        mark = _Mark()
        token = _MARK + os.urandom(16)
        self._marks[token] = mark
        try:
            put = self._enqueue(lambda: put_nowait(self.queue, token), run, deadline)
            if not (put and mark.reached.wait(max(0.0, deadline - now()))):
                return False
        finally:
            self._marks.pop(token, None)
        for lane in run.lanes:
            lane.hasten(deadline)
        settled = [lane.settle_all(deadline, number) for lane, number in zip(run.lanes, mark.numbers, strict=True)]
        return all(settled) and not any(lane.gave_up for lane in run.lanes)

    def stats(self) -> SinkStats:
        """Return the ledger of the items read, with a ledger for each sink in ``targets``.

        An item counts as delivered when all sinks are done with it. The ledger for a sink counts its outcomes there,
        and has the sink's own ledger in its ``targets``.
        """
        run = self._run
        targets: list[SinkStats] = []
        for sink, ledger in list(self._accounts.values()):
            behind = (sink.stats(),)
            lanes = [lane for lane in (run.lanes if run else ()) if lane.target is sink]
            with contextlib.ExitStack() as held:
                for lane in lanes:
                    held.enter_context(lane.lock)
                pending = sum(lane.put - lane.settled for lane in lanes)
                targets.append(ledger.stats(sink.name, pending=pending, targets=behind))
        with self._lock:
            return self._ledger.stats(self.name, pending=self._pending, targets=tuple(targets))

    def _describe(self) -> str:
        return f"a {type(self.queue).__name__}"

    # -- the hooks of logging.handlers.QueueListener

    def dequeue(self, block: bool) -> Any:
        """Return the next item of the queue; wait for one if *block* is true.

        Raises:
            queue.Empty: If there is none and *block* is false.
        """
        if hasattr(self.queue, "put_nowait"):
            return self.queue.get(block)
        return self.queue.get()  # multiprocessing.SimpleQueue

    def prepare(self, item: Any) -> dict[str, Any]:
        """Convert *item* to an event.

        Raises:
            ValueError: If it is bytes but not a JSON object.
            TypeError: If it is of a type that cannot be an event.
        """
        if isinstance(item, (bytes, bytearray, memoryview)):
            return _json_objects.decode(bytes(item))
        if isinstance(item, str):
            try:
                return _json_objects.decode(item.encode())
            except ValueError:
                return TextEvent(item)
        return as_event(item)

    def handle(self, item: Any) -> None:
        """Convert *item* by `prepare`, and give the event to each sink.

        The reading thread calls this. In another thread, while the listener is not started, it delivers at once.

        Raises:
            Exception: The exceptions of `prepare`.
        """
        event = as_event(self.prepare(item))
        if "timestamp" not in event and not isinstance(event, LevelledEvent):
            # The event may have to wait for a sink: it carries the time at which it was read.
            event = LevelledEvent(event, None, time.time())
        run = self._run
        reading = run is not None and threading.current_thread() is run.thread
        ticket = run.ticket if run is not None and reading and run.ticket is not None else Ticket(queued=False)
        try:
            with self._lock:
                self._pending += 1
                ticket.events += 1
            if run is None or not self._distribute(run, event, ticket):
                self._deliver_here(event, ticket)
        finally:
            if not reading:
                # The code of _release, inlined: an interrupt could come in the call.
                with self._lock:
                    ticket.holders -= 1
                    events = 0 if ticket.holders else ticket.events
                    self._pending -= events
                    self._ledger.delivered += events

    def enqueue_sentinel(self) -> None:
        """Put the sentinel into the queue, which stops the reading thread."""
        put_nowait(self.queue, self._sentinel)

    # -- the reading thread

    def _read(self, run: _Run) -> None:
        failures = 0
        with delivering():
            while now() < run.deadline and not run.abandoned:
                try:
                    item = self.dequeue(True)
                except Empty:  # an override may time out
                    continue
                except SHUT_DOWN:
                    break
                except Exception as error:
                    failures += 1
                    if self._failed_to_dequeue(error, run, failures):
                        break
                    continue
                failures = 0
                if item is self._sentinel:
                    task_done(self.queue)
                    if self._is_stale(run):
                        continue
                    break
                if run.abandoned:  # stop() has timed out: leave the item to the next start
                    self._return(item)
                    break
                self._take(run, item)
        with self._lock:
            run.ended = True
        for lane in run.lanes:
            lane.conclude(run.deadline)

    def _is_stale(self, run: _Run) -> bool:
        """Return True for a sentinel that an earlier stop has left in the queue."""
        with self._lock:
            run.told_to_stop = True
            if not self._stale_sentinels:
                return False
            self._stale_sentinels -= 1
            run.told_to_stop = run.abandoned
            return not run.abandoned

    def _failed_to_dequeue(self, error: Exception, run: _Run, failures: int) -> bool:
        """Report *error* and wait a little; return True if reading has to stop."""
        if is_closed(self.queue):
            return True
        # Either an item cannot be unpickled, or the queue itself is closed or broken.
        garbage = not isinstance(error, (OSError, EOFError, ValueError)) and failures <= _GARBAGE_IN_A_ROW
        if garbage:
            self._ledger.drop("garbage")
            task_done(self.queue)
        self._tell(error, int(garbage))
        if not garbage:
            run.stopping.wait(min(0.001 * 2 ** min(failures, 10), 1.0))
        return run.stopping.is_set() and not garbage

    def _take(self, run: _Run, item: Any) -> None:
        if isinstance(item, bytes) and item.startswith(_MARK):
            task_done(self.queue)
            mark = self._marks.get(item)
            if mark is not None:  # else it belongs to another listener, or to a flush that has timed out
                mark.numbers = [lane.put for lane in run.lanes]
                mark.reached.set()
            return
        ticket = run.ticket = Ticket(queued=True)
        try:
            self.handle(item)
            if not ticket.events:  # an overridden `handle` has delivered the item itself
                with self._lock:
                    self._pending += 1
                    ticket.events = 1
        except Exception as error:
            lost = 0 if ticket.events else 1
            if lost:
                self._ledger.drop("garbage" if type(self).handle is QueueListener.handle else "error")
            self._tell(error, lost, item)
        finally:
            run.ticket = None
            self._release([ticket])

    def _return(self, item: Any) -> None:
        task_done(self.queue)
        try:
            put_nowait(self.queue, item)
        except Exception as error:
            self._ledger.drop("closed")
            self._tell(error, 1, item)

    def _release(self, tickets: list[Ticket]) -> None:
        """Release *tickets*; count the items that are finished now."""
        done = events = 0
        with self._lock:
            for ticket in tickets:
                ticket.holders -= 1  # see _add for why there is no condition
                finished = not ticket.holders
                done += finished and ticket.queued
                events += finished and ticket.events
            self._pending -= events
            self._ledger.delivered += events
        for _ in range(done):
            task_done(self.queue)

    def _distribute(self, run: _Run, event: dict[str, Any], ticket: Ticket) -> bool:
        """Put *event* into the lanes, waiting for room; return False if reading has ended."""
        with self._lock:
            if run.ended:
                return False
            full = self._add(run.lanes, event, ticket)
        for lane in run.lanes:
            lane.look()
        deadline = now() + self._block_seconds
        try:
            while True:  # a condition here would jump back outside the try from Python 3.12 on
                if not full:
                    break
                full = self._await_room(run, full, deadline)
                waits = full
                full = self._add(waits, event, ticket)
                for lane in waits:
                    lane.look()
        except BaseException:
            for lane in full:
                lane.ledger.drop("interrupted")
            raise
        return True

    def _await_room(self, run: _Run, full: list[Lane], deadline: float) -> list[Lane]:
        """Wait a little for room in one of the *full* lanes; return those that the event still waits for."""
        moment = now()
        if run.abandoned or run.ended or moment >= run.deadline:
            for lane in full:
                lane.ledger.drop("closed")
            return []
        waits = full
        if any(lane.is_idle() for lane in run.lanes if lane not in full):
            waits = [lane for lane in full if not (lane.impatient or moment >= deadline)]
            for lane in full:
                if lane not in waits:
                    lane.impatient = True
                    lane.ledger.drop("overflow")
                    lane.tell(TemporaryDeliveryError(f"there was no room while {lane.target.name} did not keep up"), 1)
        if waits:
            self._bells.wait(_LOOK_SECONDS, lambda: any(lane.has_room() for lane in waits))
        return waits

    def _add(self, lanes: Iterable[Lane], event: dict[str, Any], ticket: Ticket) -> list[Lane]:
        """Put *event* into *lanes*; return those that have no room."""
        full: list[Lane] = []
        with self._lock:
            for lane in lanes:
                # No condition at the end of the loop, nor a comprehension with one: from Python 3.12 on its jump back
                # is outside the `with`, and an interrupt there would leave the lock held.
                full += () if lane.add(event, ticket) else (lane,)
        return full

    def _deliver_here(self, event: dict[str, Any], ticket: Ticket) -> None:
        """Deliver *event* to each sink in this thread, without retries."""
        for sink in self.sinks:
            lane = self._lane(sink)
            self._add((lane,), event, ticket)
            try:
                lane.deliver_once()
            finally:
                self._give_up(lane, f"{sink.name} did not take it")

    # -- counting and reporting

    def _lane(self, sink: Sink) -> Lane:
        return Lane(
            weakref.ref(self),
            f"{self.name} {sink.name}",
            sink,
            self._account(sink),
            release=self._release,
            bells=self._bells,
            capacity=self._capacity,
            batch_size=self._batch_size,
            linger=self._linger_seconds,
            respect_level=self.respect_sink_level,
            retry=self._retry,
            dead_letter=self._dead_letter,
        )

    def _give_up(self, lane: Lane, why: str) -> int:
        """End *lane*, count and report its remaining events as lost, and return their number."""
        lost = lane.end()
        lane.ledger.settle(lost)
        if lost.events:
            lane._tell(DeliveryError(why), lost.events)
        self._release(lane.left())
        return lost.events

    def _enqueue(self, put: Callable[[], object], run: _Run, deadline: float) -> bool:
        """Call *put*, repeatedly while the queue is full; return False if it fails until *deadline*."""
        while True:
            try:
                put()
            except Full:
                if not run.reading or now() >= deadline:
                    return False
                released(time.sleep, _LOOK_SECONDS)
            except SHUT_DOWN:
                return False
            except Exception as error:
                self._tell(error, 0)
                return False
            else:
                return True

    # -- fork and exit, see outfall.sinks.core.lifecycle

    def drain(self, timeout: float) -> None:
        """Deliver the queue at exit; the listener continues, since other exit hooks still log."""
        if self.running and not self.flush(timeout):
            self._tell(DeliveryError("the process ends before all that is in the queue was delivered"), 0)

    def after_fork(self) -> None:
        """Reset the listener in a forked child: it is not started, and its ledger and a queue for threads are empty."""
        renew(self.queue)
        _listeners.pop(id(self.queue), None)
        self._fresh_state()


_json_objects = JSONFrames()

#: The beginning of a marker in the queue. No JSON begins like this.
_MARK = b"\x00outfall mark "

#: The number of failures in a row after which the queue itself counts as broken.
_GARBAGE_IN_A_ROW = 100

#: Seconds between two checks for changes that wake no thread.
_LOOK_SECONDS = 0.01

#: The running listeners, by the identity of their queue.
_listeners: weakref.WeakValueDictionary[int, QueueListener] = weakref.WeakValueDictionary()


def listener_of(queue: object) -> QueueListener | None:
    """Return the listener that reads *queue* in this process, or None."""
    listener = _listeners.get(id(queue))
    return listener if listener is not None and listener.queue is queue else None
