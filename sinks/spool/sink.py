"""Events kept on disk until they are delivered: `SpoolSink`."""

# `event.__class__ is dict` does not narrow a type for pyright, and WriteLock reads `holding` from the frame.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportUnusedVariable=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
import threading
from dataclasses import replace
from os import write as _os_write
from queue import Empty
from time import time
from typing import TYPE_CHECKING, Any, Literal

import orjson
from orjson import dumps

from outfall.sinks.core import flock
from outfall.sinks.core.arguments import checked_choice, checked_count, checked_seconds
from outfall.sinks.core.bells import Bells
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.item import Batch, Encoded, item_of
from outfall.sinks.core.lifecycle import here, notice_fork
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.reentrancy import active, delivering, thread
from outfall.sinks.core.reporting import cleaned, describe, report
from outfall.sinks.core.sink import Sink
from outfall.sinks.core.threads import check_threads
from outfall.sinks.delivery.deferred import ON_FULL, DeferredSink, FullError
from outfall.sinks.errors import DeliveryError
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.json import LINE
from outfall.sinks.event.levels import NOTSET, NUMBERS, Level
from outfall.sinks.spool.lines import line_of
from outfall.sinks.spool.store import mark
from outfall.sinks.spool.stores import NO_ROOM, Depot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from outfall.sinks.core.ledger import Outcome, SinkStats
    from outfall.sinks.core.sink import OnError
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.spool.store import Portion, Store

_FSYNCS = ("never", "interval", "always")

_LARGEST_SEGMENT_BYTES = 16 * 2**20

#: How many bytes a batch has at most, unless one event alone has more: what is read must fit into memory.
_BATCH_BYTES = 4 * 2**20

#: How often the files are looked after, and how long the thread waits after the disk has failed.
_CHORE_SECONDS = 1.0

#: How often a running process looks for what dead ones have left.
_ADOPT_SECONDS = 60.0

if sys.version_info >= (3, 11):
    _read_time = dt.datetime.fromisoformat
else:

    def _read_time(text: str) -> dt.datetime:
        return dt.datetime.fromisoformat(text[:-1] if text[-1:] == "Z" else text)


class SpoolSink(DeferredSink):
    """Write each event to disk, and have a thread deliver it to *target* from there.

    For events that must arrive though the target is away for hours and the process is killed meanwhile: when `handle`
    returns, the event is in a file. Each is delivered at least once.

    Level, processors and rendering, this sink's own and then the target's, run in the thread that logs, before the
    event is stored: what a processor has removed is nowhere on disk.

    Args:
        target: Where the events go. It is owned: `close` closes it.
        directory: Where the files are; made if it is missing. Its absolute path is fixed here. Any number of processes,
            and of sinks with the same target, may share it. It has to be on a local file system.
        max_bytes: What all segments that this process answers for may have together, those that it has adopted from
            dead processes included. Default 1 GiB.
        on_full: What happens to an event when there is no room, be it for *max_bytes* or because the disk is full.
            ``"block"`` (default): `handle` waits for room, for *block_timeout*, and drops the event then; after that
            every event is dropped at once until there is room again. ``"drop_newest"``: it is dropped.
            ``"drop_oldest"``: the oldest segment that is not being delivered is given up for it. All are counted as
            ``dropped["overflow"]``; what a full disk refuses for good, as ``dropped["error"]``.
        block_timeout: Seconds, or a timedelta. Default 1.0.
        fsync: When events are written to the medium and not only handed to the operating system, which a kill of the
            process does not touch but a loss of power does. ``"never"`` (default): when the system sees fit.
            ``"interval"``: every *fsync_interval*, by a thread. ``"always"``: before `handle` returns, the cursor
            before a batch is sent.
        fsync_interval: Seconds, or a timedelta. Default 1.0.
        segment_bytes: How large a file grows before the next one is begun, unless one event alone is larger. Default
            None: an eighth of *max_bytes*, at most 16 MiB.
        batch_size: How many events the target is given at a time. Default 2 000.
        linger: How long the first event of a batch waits for more, in seconds, or a timedelta. Default 0.2.
        retry: When a batch is tried again. Default ``RetryPolicy()``: for as long as it takes.
        dead_letter: A sink that gets the events that the target refuses for good. Not owned. Default None: they are
            counted as ``dropped["rejected"]``.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr. With ``"raise"``, what the caller's thread can know is raised (full, closed, disk); what the
            delivering thread meets is reported.
        name: What to call the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *max_bytes*, *on_full*, *block_timeout*, *fsync*, *fsync_interval*, *segment_bytes*, *batch_size*
            or *linger* is not usable, if *target* or a sink behind it only keeps what it is given (a background, a
            buffer, a queue, another spool), or the platform has no ``flock(2)`` (Windows).
        TypeError: If *target* or *dead_letter* is no sink, *directory* no path, or *retry* no `RetryPolicy`.

    The events of one process are delivered in order. What a dead process has left is adopted when the sink is made, at
    each `flush`, and every minute as long as the delivering thread runs; adopted and new events take turns. A kill
    at any instant loses nothing that `handle` returned for, and repeats at most one batch, with the same events under
    the same key. A line that is damaged is skipped and counted as ``dropped["corrupt"]``. If the directory is deleted
    or moved away, it is made anew from what this process has open; what is lost is counted as ``dropped["lost"]``.

    `flush` and `close` deliver until their timeout. What is not delivered then stays on disk, counted as ``spooled``;
    that is no loss, so `close` returns True.

    Safe from any thread and from signal handlers. The thread starts with the first event, with `start`, or with the
    sink if there is something to adopt; it is a daemon. A forked child has files and an account of its own, which begin
    with its first event. What the target's delivery itself logs is dropped as ``reentrant``.
    """

    def __init__(
        self,
        target: Sink,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int = 2**30,
        on_full: Literal["block", "drop_newest", "drop_oldest"] = "block",
        block_timeout: float | dt.timedelta = 1.0,
        fsync: Literal["never", "interval", "always"] = "never",
        fsync_interval: float | dt.timedelta = 1.0,
        segment_bytes: int | None = None,
        batch_size: int = 2_000,
        linger: float | dt.timedelta = 0.2,
        retry: RetryPolicy | None = None,
        dead_letter: Sink | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        if not flock.AVAILABLE:
            msg = f"directory={directory!r}: this platform has no flock(), which a spool needs"
            raise ValueError(msg)
        if not isinstance(directory, (str, bytes, os.PathLike)):
            msg = f"directory={directory!r} is not a path such as '/var/spool/app'"
            raise TypeError(msg)
        if not os.fsdecode(directory):
            msg = f"directory={directory!r} is empty; '.' is the working directory"
            raise ValueError(msg)
        #: The absolute path, as text; frozen here, so that a later chdir does not move it.
        self.directory: str = os.path.abspath(os.fsdecode(directory))
        self._max_bytes = checked_count(max_bytes, "max_bytes", "bytes")
        self._on_full = checked_choice(on_full, "on_full", ON_FULL)
        self._fsync = checked_choice(fsync, "fsync", _FSYNCS)
        self._sync_seconds = checked_seconds(fsync_interval, "fsync_interval")
        if segment_bytes is None:
            segment_bytes = max(1, min(_LARGEST_SEGMENT_BYTES, self._max_bytes // 8))
        self._segment_bytes = checked_count(segment_bytes, "segment_bytes", "bytes")
        #: orjson's options where one call of it makes an event a line; None: the whole pipeline.
        self._option: int | None = None
        _refuse_keepers(target)
        if os.path.isfile(self.directory):
            msg = f"directory={directory!r} is a file; a spool is a directory"
            raise ValueError(msg)
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
        try:
            mark(self.directory)
            self._unadopted = self._depot.find_dead()
        except OSError as error:
            self._fail(error, None, events=0)
        if self._unadopted:
            self._rouse()

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: What is on disk.
        self._depot = Depot(
            self.directory,
            self._lock,
            max_bytes=self._max_bytes,
            segment_bytes=self._segment_bytes,
            drops_oldest=self._on_full == "drop_oldest",
            sync=self._fsync == "always",
        )
        self._out = self._depot.out
        #: Held by who reads or changes files in the delivering thread's stead or as that thread, but not while it
        #: waits for the target.
        self._disk = threading.Lock()
        #: Held by who delivers in the stead of a thread that cannot be started.
        self._alone = threading.Lock()
        #: At exit the files are removed as soon as all is settled; and whether that has been looked to.
        self._leaving = False
        self._left = False
        #: For those who wait for something to be settled.
        self._progress = Bells()
        #: True while all is settled and recorded.
        self._resting = False
        #: Wakes the thread that syncs at intervals, to end.
        self._sync_ended = threading.Event()
        #: From when on fewer events than a batch are read.
        self._own_due = 0.0
        self._chores_due = 0.0
        self._adopt_due = 0.0
        #: Whether dead processes have left something that is not adopted yet, as far as is known.
        self._unadopted = False
        #: What was last written down of the account.
        self._published: tuple[object, ...] = ()
        #: Events dropped before they were stored.
        self._refused = 0
        #: Events that the delivery has dropped.
        self._given_up = 0

    # -- what applications call

    @property
    def used_bytes(self) -> int:
        """What the segments that this process answers for have on disk, those that it has adopted included."""
        return self._depot.size

    @property
    def max_bytes(self) -> int:
        """What they may have."""
        return self._max_bytes

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in a file, or it has been counted as dropped.
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
                    or "$outfall" in event
                    or (active and thread.delivering)
                    or not here[0]
                ):
                    # A line has to tell the event's time, or it needs an envelope.
                    stamp = event["timestamp"]
                    if stamp.__class__ is str:
                        _read_time(stamp)
                    elif not -_SECONDS < stamp < _SECONDS or stamp.__class__ is bool:
                        raise LookupError
                    if self._level and ("level_number" in event or NUMBERS[event["level"]] < self._level):
                        raise LookupError
                    data = dumps(event, None, option)
                    out = self._out
                    # Taking the lock by hand: see WriteLock.
                    turn = self._turn
                    del turn[0]
                    holding = True
                    try:
                        size = len(data)
                        if out.end + size > out.limit:
                            raise LookupError
                        written = _os_write(out.descriptor, data)
                        if written != size:
                            out.finish(data, written)
                        out.end += size
                        out.events += 1
                        return  # noqa: TRY300 - an else clause costs nothing, but the line reads worse there
                    except Exception:
                        raise
                    except BaseException:
                        out.unsure = True
                        out.limit = -1
                        raise
                    finally:
                        try:
                            holding = False
                            turn += TURN
                        finally:
                            pass
            except Exception:
                pass
            except BaseException:
                self._interrupted()
                raise
        super().handle(event)

    def start(self) -> None:
        """Start delivering what dead processes have left, without waiting for an event."""
        if not here[0]:
            notice_fork()
        if not self._closed:
            self._rouse()

    def flush(self, timeout: float | None = None) -> bool:
        """Deliver what this process has stored and what dead ones have left; return True when all of it is settled.

        Args:
            timeout: Seconds. None stands for `drain_timeout`, 5 s.
        """
        deadline = monotonic() + self._seconds(timeout)
        if not self._closed and not self._leaving:
            self._seek(deadline)
        return super().flush(max(0.0, deadline - monotonic()))

    def _seek(self, deadline: float) -> None:
        """Have the thread adopt what processes have left that died since it last looked."""
        with contextlib.suppress(OSError):
            if self._unadopted or not self._depot.find_dead():
                return
            if self._disk.acquire(timeout=max(0.0, deadline - monotonic())):
                try:
                    self._unadopted = True
                    self._adopt_due = 0.0
                finally:
                    self._disk.release()

    def close(self, timeout: float | None = None) -> bool:
        """Deliver what can be delivered until the timeout, then close the target; idempotent.

        What is left stays on disk. Returns True, unless the target had to give up something of its own.

        Args:
            timeout: Seconds. None stands for `drain_timeout`, 5 s.
        """
        deadline = monotonic() + self._seconds(timeout)
        if not self._begin_to_close(deadline):
            return self._close_result
        with self._lock:
            # Nothing that is on its way past the question whether this is closed is stored any more.
            self._out.limit = -1
            self._depot.awake = False
        self._settle_all(deadline)
        stopped = self._stop(deadline)
        closed = self._target.close(max(0.0, deadline - monotonic()))
        self._tell_news()
        # A target that is still at work for a thread that was given up has nothing that is not on disk as well.
        self._close_result = closed or not stopped
        return self._close_result

    def drain(self, timeout: float) -> None:
        """Deliver what waits, at exit. What comes later is stored, and delivered by who adopts it."""
        if self._closed:
            return
        self._leaving = True
        self.flush(timeout)

    # -- what the pipeline calls

    def _take(self, item: Encoded) -> None:
        if self._worker is None:
            check_threads()
        self._keep(line_of(item.data, item.level, item.time))

    @property
    def plain(self) -> bool:
        """Whether it is. False, since the line that is stored has to tell the event's time."""
        return False

    def _keep(self, line: bytes) -> None:
        """Store *line*, making room for it as the policy says.

        Raises:
            FullError: If there is none.
            OSError: If it cannot be written.
        """
        if len(line) > self._max_bytes:
            msg = f"{self.name}: an event of {len(line)} bytes is more than max_bytes={self._max_bytes}"
            raise FullError(msg)
        deadline = monotonic() + self._block_seconds
        while True:
            failure: Exception = FullError(f"{self.name} is full: {self._max_bytes} bytes wait for the target")
            seen = self._given_up + self._ledger.delivered
            try:
                stored = self._stored(line)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                stored, failure = False, error
            if stored:
                self._impatient = False
                return
            left = deadline - monotonic()
            if self._on_full != "block" or self._impatient or left <= 0:
                self._impatient = True
                raise failure
            self._await_room(left, seen)

    def _stored(self, line: bytes) -> bool:
        depot = self._depot
        try:
            with self._lock:
                self._check_open()
                stored = depot.append(line)
                if not depot.awake:
                    # In this order: an interrupt must not leave the thread asleep.
                    self._wakeups.put(None)
                    depot.awake = True
                    depot.set_limit()
        finally:
            if depot.news:
                self._tell_news()
        if self._worker is None:
            self._rouse()
        return stored

    def _await_room(self, seconds: float, seen: int) -> None:
        """Wait until something more than *seen* is settled."""
        # In small steps too: room on a disk is made by others.
        self._progress.wait(min(seconds, 0.1), lambda: self._given_up + self._ledger.delivered != seen or self._closed)

    def _interrupted(self) -> None:
        """Count an event whose storing a KeyboardInterrupt may have cut short."""
        with self._lock:
            found = self._out.amend() if self._out.unsure else 0
            self._depot.set_limit()
        if not found:
            self._count_dropped("interrupted")

    # -- the delivering thread

    def _start(self, worker: threading.Thread) -> None:
        super()._start(worker)
        if self._fsync == "interval":
            threading.Thread(
                target=self._sync_at_intervals,
                args=(self._generation,),
                name=f"outfall {self.name} fsync",
                daemon=True,
            ).start()

    def _not_started(self) -> None:
        self._depot.awake = False
        self._depot.set_limit()

    def _work(self, generation: int) -> None:
        self._own_due = monotonic() + self._linger_seconds
        while generation == self._generation and not self._stopping:
            self._step(generation)
        self._progress.ring()

    def _step(self, generation: int) -> None:
        """Deliver one batch, or wait for one."""
        try:
            found = self._next(generation)
            if found is None:
                self._rest(generation)
            else:
                self._deliver(*found, generation)
        except OSError as error:
            self._disk_failed(error, generation)
        except BaseException as error:
            with self._disk:
                if generation == self._generation:
                    self._depot.leave_all()
            self._disk_failed(DeliveryError(describe(cleaned(error, None))), generation)
        self._tell_news()
        self._progress.ring()

    def _deliver(self, store: Store, portion: Portion, generation: int) -> None:
        left: list[Batch] = []
        if portion.raws:
            with delivering():
                left = self._delivery.deliver(self._batch(portion))
        with self._disk:
            if generation != self._generation:
                return
            if left:
                self._depot.leave(store)
                return
            self._depot.settle(store, portion)
            if store is self._depot.own and portion.lines < self._batch_size:
                self._own_due = monotonic() + self._linger_seconds
            self._depot.tidy()

    def _next(self, generation: int) -> tuple[Store, Portion] | None:
        """Return what to deliver next, recorded as on its way; None if there is nothing now."""
        with self._disk:
            if generation != self._generation:
                return None
            self._do_chores()
            now = monotonic()
            waiting = self._depot.waiting()
            ready = now >= self._own_due or waiting >= self._batch_size or now < self._urgent_until
            found = self._depot.next(self._batch_size, _BATCH_BYTES, own=ready)
            if found is not None:
                try:
                    self._depot.begin(*found)
                except BaseException:
                    self._depot.leave(found[0])
                    raise
        return found

    def _batch(self, portion: Portion) -> Batch:
        restore = self._target.restore_item
        if getattr(restore, "__func__", None) is Sink.restore_item:
            return Batch(portion.raws, portion.key)
        items = map(item_of, portion.raws)
        return Batch([restore(item.data, item.level, item.time) for item in items], portion.key)

    def _rest(self, generation: int) -> None:
        """Wait for events."""
        depot = self._depot
        lingers = self._own_due - monotonic()
        if lingers > 0 and depot.waiting():
            self._wait(lingers)
            return
        with self._disk:
            if generation != self._generation:
                return
            depot.tidy()
            depot.rest()
            if not depot.sleep():
                return
            self._publish()
            leaving = self._leaving
            if leaving:
                depot.retire()
            self._left = leaving
            self._resting = True
        self._tell_news()
        self._progress.ring()
        if self._worker is None:
            return  # somebody does its work for as long as there is some
        self._wait(self._adopt_due - monotonic())
        self._resting = False
        if depot.awake:
            self._own_due = monotonic() + self._linger_seconds

    def _wait(self, seconds: float) -> bool:
        """Wait for so long, or until somebody wakes this thread; return whether somebody did."""
        woken = False
        with contextlib.suppress(Empty):
            self._wakeups.get(timeout=max(0.0, seconds))
            woken = True
            while True:
                self._wakeups.get_nowait()
        return woken

    def _do_chores(self) -> None:
        """Look after the files, and for those of dead processes, if it is time for that."""
        now = monotonic()
        if now >= self._chores_due:
            self._chores_due = now + _CHORE_SECONDS
            self._depot.check()
            self._publish()
        if now >= self._adopt_due:
            self._depot.adopt()
            # Somebody may have looked at one just then, and only so many are held at a time.
            self._unadopted = self._depot.find_dead()
            self._adopt_due = now + (_CHORE_SECONDS if self._unadopted else _ADOPT_SECONDS)

    def _publish(self) -> None:
        """Write the account down, for who looks from outside, if it has changed."""
        with self._ledger.lock:
            stats = self._stats()
        told = (stats.accepted, stats.adopted, stats.spooled, stats.retried, stats.last_error)
        if told == self._published:
            return
        self._published = told
        fields = {
            "time": time(),
            "accepted": stats.accepted,
            "adopted": stats.adopted,
            "filtered": stats.filtered,
            "delivered": stats.delivered,
            "dropped": stats.dropped,
            "retried": stats.retried,
            "dead_lettered": stats.dead_lettered,
            "spooled": stats.spooled,
            "last_error": stats.last_error,
        }
        self._depot.publish(dumps(fields, None, orjson.OPT_APPEND_NEWLINE))

    def _disk_failed(self, error: Exception, generation: int) -> None:
        if generation == self._generation:
            self._told(error, 0)
            self._pause(_CHORE_SECONDS, generation)

    def _pause(self, seconds: float, generation: int) -> bool:
        planned = until = monotonic() + seconds
        woken = False
        while True:
            now = monotonic()
            urgent = self._urgent_until - now
            if generation != self._generation or self._stopping or (self._worker is None and urgent <= 0):
                return False
            if woken and urgent > 0:
                return True
            # Somebody waits for this: several attempts in the time that is left, instead of one too late.
            until = min(until, now + urgent / 2) if urgent > 0 and until == planned else until
            left = until - now
            if left <= 0:
                return True
            woken = self._wait(min(left, _CHORE_SECONDS))
            with self._disk:
                if generation == self._generation:
                    self._do_chores()
            self._tell_news()

    def _settle_all(self, deadline: float) -> bool:
        if threading.current_thread() is self._worker:
            return False  # called by the target, or by on_error: it would wait for itself
        depot = self._depot
        if self._stopping:
            return depot.settled >= depot.stored  # closed: nothing is delivered any more
        if self._worker is None and not depot.stored and not self._unadopted:
            return True
        with self._lock:
            if self._out.unsure:
                self._out.amend()
            mark = depot.stored
        self._urgent_until = max(self._urgent_until, deadline)
        self._rouse()
        if self._worker is None:
            return self._work_here(mark, deadline)
        while not self._is_settled(mark):
            left = deadline - monotonic()
            if left <= 0 or self._stopping:
                return False
            self._progress.wait(left, lambda: self._is_settled(mark) or self._stopping)
        return True

    def _work_here(self, mark: int, deadline: float) -> bool:
        """Deliver in this thread, where no other can be started."""
        if not self._alone.acquire(timeout=max(0.0, deadline - monotonic())):
            return False
        try:
            while True:  # with a condition here, an interrupt could leave the lock held, from Python 3.12 on
                if monotonic() >= deadline or self._is_settled(mark):
                    break
                self._step(self._generation)
        finally:
            self._alone.release()
        return self._is_settled(mark)

    def _is_settled(self, mark: int) -> bool:
        depot = self._depot
        rests = self._resting and self._left == self._leaving
        # In this order: what is adopted is in `adopted` before it is said that nothing is left to be.
        adopted = not self._unadopted and not depot.adopted
        return depot.settled >= mark and adopted and (rests or depot.stored > mark)

    def _stop(self, deadline: float) -> bool:
        """End the delivering thread and let go of the files; return False if the thread had to be given up."""
        worker = self._worker
        self._stopping = True
        self._progress.ring()
        self._urgent_until = 0.0
        self._sync_ended.set()
        self._wakeups.put(None)
        if worker is not None and worker is not threading.current_thread():
            released(worker.join, max(_GRACE_SECONDS, deadline - monotonic()))
        stopped = worker is None or not worker.is_alive()
        if self._disk.acquire(timeout=_GRACE_SECONDS):
            try:
                with self._lock:
                    self._generation += 1
                if stopped:
                    with contextlib.suppress(OSError):
                        self._depot.tidy()
                        self._depot.rest()
                self._depot.close()
            finally:
                self._disk.release()
        else:
            # The disk itself hangs. What is on it stays.
            self._generation += 1
        self._progress.ring()
        return stopped

    def _sync_at_intervals(self, generation: int) -> None:
        synced = (0, 0)
        depot, ended = self._depot, self._sync_ended
        while not ended.wait(self._sync_seconds) and generation == self._generation:
            state = (depot.stored, depot.settled)
            if state != synced:
                try:
                    depot.sync()
                except OSError as error:
                    self._told(error, 0)
                else:
                    synced = state

    # -- counting and telling

    def _settle(self, outcome: Outcome, generation: int) -> None:
        with self._ledger.lock:
            if generation != self._generation:
                return  # what comes after close() is for whoever adopts it
            self._ledger.settle(outcome)
            self._given_up += sum(outcome.dropped.values())

    def _count_dropped(self, reason: str, events: int = 1) -> None:
        with self._ledger.lock:
            self._ledger.dropped[reason] += events
            self._refused += events

    def _tell_news(self) -> None:
        depot = self._depot
        while depot.news:
            error, events = depot.news.pop(0)
            self._told(error, events)

    def stats(self) -> SinkStats:
        """Return the ledger as it stands."""
        if not here[0]:
            notice_fork()
        with self._lock:
            return super().stats()

    def _stats(self) -> SinkStats:
        depot = self._depot
        stats = super()._stats()
        stored, adopted = depot.stored, depot.adopted_events
        lost = sum(depot.lost.values())
        dropped = dict(self._ledger.dropped)
        for reason, events in depot.lost.items():
            dropped[reason] = dropped.get(reason, 0) + events
        return replace(
            stats,
            accepted=stored + self._refused,
            adopted=adopted,
            dropped=dropped,
            spooled=stored + adopted - self._ledger.delivered - self._ledger.dead_lettered - self._given_up - lost,
        )

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        own = type(self)
        usual = all(
            getattr(own, hook) is getattr(SpoolSink, hook) for hook in ("deliver", "_put", "_take", "_keep", "encode")
        ) and not (self._processors or self._closed or self._reporting or self._fsync == "always")
        self._option = LINE if usual and self._target.plain and not self._target.level else None

    def _describe(self) -> str:
        return f"{self.directory!r} to {self._target!r}"

    def _where(self) -> str:
        return f"{self.directory!r} to {self._where_of(self._target)}"

    def after_fork(self) -> None:
        """Begin anew in a forked child: what is on disk, and its lock, are the parent's."""
        self._depot.forget()
        super().after_fork()


HAND_TAKEN.add(SpoolSink.handle.__code__)


def _refuse_keepers(target: Sink) -> None:
    """Raise if *target* only keeps what it is given, or a sink behind it does: the spool would forget it too early."""
    inner = getattr(target, "target", None)
    for sink in (*getattr(target, "sinks", ()), *([inner] if isinstance(inner, Sink) else [])):
        _refuse_keepers(sink)
    if not isinstance(target, Sink):
        return
    if isinstance(target, SpoolSink):
        why = "is a spool itself: use it as it is, or put the spool around its target"
    elif target.keeps_in_memory:
        why = (
            "keeps events in memory, where the end of the process loses them: put the spool around the sink that "
            "delivers, SpoolSink(sink.target, directory), or give a collector's function the directory, as in "
            "loki_sink(url, labels, spool=directory)"
        )
    else:
        return
    msg = f"target={target!r} {why}"
    raise ValueError(msg)


#: What counts as seconds in a timestamp.
_SECONDS = 1e12

#: How long close waits at the least for the thread to end, and for the disk.
_GRACE_SECONDS = 0.1
