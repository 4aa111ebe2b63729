"""The thread that delivers the events on disk: `SpoolWorker`."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from outfall.sinks.core.bells import Flag
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, item_of
from outfall.sinks.core.lock import WriteLock
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.core.sink import Sink
from outfall.sinks.delivery.worker import Worker
from outfall.sinks.errors import DeliveryError

if TYPE_CHECKING:
    from outfall.sinks.delivery.worker import Mark
    from outfall.sinks.spool.sink import SpoolSink
    from outfall.sinks.spool.store import Portion, Store
    from outfall.sinks.spool.stores import Depot

#: The most bytes in a batch, which has to fit into memory. A single event may be larger.
_BATCH_BYTES = 4 * 2**20

#: How often the files are checked, and how long the thread waits after a disk error.
_CHORE_SECONDS = 1.0

#: How often a running process looks for stores of dead processes.
_ADOPT_SECONDS = 60.0

#: How long `conclude` waits at least for the thread to end, and for the disk.
_GRACE_SECONDS = 0.1


class SpoolWorker(Worker):
    """Delivers the events of a `Depot` in batches, checks its files, and adopts the stores of dead processes.

    `put` is the number of events stored when the thread last looked. `settled` counts all events with an outcome.
    `done` counts the events of this process that the cursor records as settled. Reading or changing files needs `lock`;
    it is not held while the thread waits for the target.

    Args:
        sink: The sink, for its settings.
        depot: The files on disk.
        sync_seconds: How often a second thread syncs the files to the medium; None for never.
    """

    put: int
    done: int
    ended: bool
    urgent_until: float

    def __init__(self, sink: SpoolSink, depot: Depot, sync_seconds: float | None) -> None:
        super().__init__(
            lambda: sink,
            sink.name,
            sink._target,
            sink._ledger,
            batch_size=sink._batch_size,
            linger=sink._linger_seconds,
            retry=sink._retry,
            dead_letter=sink._dead_letter,
        )
        self.depot = depot
        self._publish = sink.publish
        #: True while dead processes are known to have left stores that are not adopted yet.
        self.unadopted: bool = False
        #: When the thread looks for such stores next, by `now`.
        self.adopt_due: float = 0.0
        #: True at exit: the files are removed as soon as all is settled.
        self.leaving: bool = False
        self._left = False
        self._chores_due = 0.0
        #: Held by the thread that delivers because no thread could be started.
        self._alone = threading.Lock()
        self._sync_seconds = sync_seconds
        self._sync_ended = Flag()
        #: Held while news are reported.
        self._telling = WriteLock()
        #: True if `conclude` returned before the files were closed. The thread that held the lock closes them.
        self._left_open = False

    # -- called by `Worker`

    def set_limit(self) -> None:
        """Set whether the next event has to wake the thread."""
        self.depot.awake = not self.closed and self.wake_at > self.put
        self.depot.set_limit()

    def tend(self) -> None:
        """Look after the files, and remove what is settled."""
        self._do_chores()
        self.depot.tidy()

    def waiting(self) -> int:
        """Return how many events wait; adopted ones count as a whole batch, since they must not linger."""
        self.put = self.depot.out.events
        return self.put - self.depot.settled + self.batch_size * bool(self.depot.adopted)

    def take(self) -> tuple[Portion, Store] | None:
        """Take a batch, and record in the cursor that it is in flight."""
        found = self.depot.next(self.batch_size, _BATCH_BYTES)
        if found is None:
            self.depot.settle_missing()
            return None
        store, portion = found
        self.depot.begin(store, portion)
        if self.done != self.depot.settled:
            self._reach()
        return portion, store

    def rest(self) -> None:
        """Bring files and cursors up to date; at exit, remove them."""
        self.depot.rest()
        self._publish()
        leaving = self.leaving
        if leaving:
            self.depot.retire()
        self._left = leaving
        self._reach()

    def _reach(self) -> None:
        """Set `done`, and wake the callers that wait for it, or for room."""
        self.done = self.depot.settled
        self.bells.ring()

    def is_done(self, mark: Mark) -> bool:
        """Return True if all events up to *mark* and all events of dead processes are settled."""
        # In this order: adopting adds a store to `adopted` before it clears `unadopted`.
        adopted = not self.unadopted and not self.depot.adopted
        left = self._left == self.leaving or self.depot.out.events > mark.number
        return self.ended or (self.done >= mark.number and adopted and left)

    def prepared(self, taken: Portion) -> Batch:
        """Return the batch for the target."""
        restore = self.target.restore_item
        if getattr(restore, "__func__", None) is Sink.restore_item:
            return Batch(taken.raws, taken.key)
        items = map(item_of, taken.raws)
        return Batch([restore(item.data, item.level, item.time) for item in items], taken.key)

    # -- the thread

    def _run(self) -> None:
        if self._sync_seconds is not None:
            name, arguments = f"outfall {self.name} fsync", (self._sync_seconds,)
            try:
                threading.Thread(target=self._sync_at_intervals, args=arguments, name=name, daemon=True).start()
            except RuntimeError as error:
                self.tell(error, 0)
        super()._run()
        self._close_left_open()

    def _next(self) -> tuple[Portion, Store] | None:
        while True:
            try:
                return super()._next()
            except Exception as error:
                if not self._failed(error):
                    return None
            finally:
                if self.depot.news:
                    self.tell_news()

    def _deliver(self, taken: Portion, token: Store) -> bool:
        try:
            with delivering():
                left = self.delivery.deliver(self.prepared(taken))
        except BaseException as error:
            return self._failed(error)
        with self.lock:
            if self.ended:
                return False
            if left:
                self.depot.leave()
            else:
                self.depot.settle(token, taken)
        if self.depot.news:
            self.tell_news()  # before a flush returns
        return not left

    def _failed(self, error: BaseException) -> bool:
        """Put the batch back, report *error* and wait; return False if there is no next attempt."""
        with self.lock:
            if self.ended:
                return False
            self.depot.leave()
        if self.thread is None and not isinstance(error, Exception):
            raise error
        self.tell(error if isinstance(error, OSError) else DeliveryError(describe(cleaned(error, None))), 0)
        return self.pause(_CHORE_SECONDS)

    def pause(self, seconds: float) -> bool:
        """Wait at most *seconds* before the next attempt; return False if there is none."""
        return (self.thread is not None or self.urgent_until > now()) and super().pause(seconds)

    @property
    def idle_seconds(self) -> float:
        """Return the seconds until there is something to check."""
        return self.adopt_due - now()

    def sleep(self, seconds: float) -> bool:
        """Wait until the thread is woken; meanwhile check the files if events wait there."""
        until = now() + seconds
        while True:
            self.tell_news()
            left = until - now()
            if self.put == self.depot.settled and not self.depot.adopted:
                return super().sleep(left)
            woken = super().sleep(min(left, _CHORE_SECONDS))
            with self.lock:
                if not self.ended:
                    self._do_chores()
            if woken or now() >= until:
                return woken

    def _do_chores(self) -> None:
        """Check the files, and look for stores of dead processes, when each is due."""
        moment = now()
        if moment >= self._chores_due:
            self._chores_due = moment + _CHORE_SECONDS
            self.depot.check()
            self._publish()
        if moment >= self.adopt_due:
            self.unadopted = self.depot.adopt()
            self.adopt_due = moment + (_CHORE_SECONDS if self.unadopted else _ADOPT_SECONDS)

    def _sync_at_intervals(self, seconds: float) -> None:
        synced = (0, 0)
        while not self._sync_ended.wait(seconds):
            state = (self.depot.out.events, self.depot.settled)
            if state != synced:
                try:
                    self.depot.sync()
                except OSError as error:
                    self.tell(error, 0)
                else:
                    synced = state

    # -- called by the sink

    def seek(self, deadline: float) -> None:
        """Make the thread adopt the stores of processes that died since it last looked."""
        with contextlib.suppress(OSError):
            if self.unadopted or not self.depot.find_dead():
                return
            if self.lock.acquire(timeout=max(0.0, deadline - now())):
                try:
                    self.unadopted = True
                    self.adopt_due = 0.0
                finally:
                    self.lock.release()

    def settle_all(self, deadline: float, number: int | None = None) -> bool:
        """Wait until all stored events are settled; return False if *deadline*, by `now`, passes first."""
        depot = self.depot
        if self.stopping:
            return depot.waiting() <= 0  # closed: nothing is delivered any more
        if self.thread is None and not depot.out.events and not self.unadopted:
            return True
        if depot.out.unsure:
            depot.amend()
        settled = super().settle_all(deadline, depot.out.events) and not self.ended
        self.tell_news(deadline)  # what is known when a flush returns is reported
        return settled

    def deliver_all_here(self) -> None:
        """Deliver in this thread, since none can be started, for as long as a caller waits for it."""
        if not self._alone.acquire(timeout=max(0.0, self.urgent_until - now())):
            return
        try:
            while True:
                found = self._next() if self.urgent_until > now() else None
                if found is None or not self._deliver(*found):
                    break
        finally:
            self._alone.release()
        self._close_left_open()

    def _close_left_open(self) -> None:
        if self._left_open:
            with self.lock:
                self.depot.close()

    def conclude(self, deadline: float) -> bool:
        """Deliver until *deadline*, then end and close the files; return False if the thread did not end in time."""
        self.closed = True
        self.set_limit()
        self.settle_all(deadline)
        self.urgent_until = 0.0
        self.stopping = True
        self._sync_ended.set()
        self.wakeups.put(None)
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            released(thread.join, max(_GRACE_SECONDS, deadline - now()))
        stopped = thread is None or not thread.is_alive()
        held = self.lock.acquire(timeout=_GRACE_SECONDS)
        # If the lock is not free, the disk hangs or is slow. The events stay on disk, and the holder of the lock closes
        # the files, unless it has released the lock before `_left_open` is set.
        self.ended, self._left_open = True, not held
        if held or self.lock.acquire(blocking=False):
            try:
                if stopped and (self.depot.waiting() or self.depot.adopted):
                    with contextlib.suppress(OSError):
                        self.depot.tidy()
                        self.depot.rest()
                self.depot.close()
            finally:
                self.lock.release()
        self.bells.ring()
        return stopped

    def tell_news(self, deadline: float | None = None) -> None:
        """Report what has happened to files. With a *deadline*, wait until then for another thread that reports it."""
        seconds = 0.0 if deadline is None else max(0.0, deadline - now())
        while (seconds or self.depot.news) and self._telling.acquire(seconds):
            seconds = 0.0
            try:
                while True:  # see count_lines
                    if not self.depot.news:
                        break
                    self._tell(*self.depot.news.pop(0))
            finally:
                self._telling.release()
