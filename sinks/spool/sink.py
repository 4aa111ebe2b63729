"""`SpoolSink`: keeps events on disk until they are delivered."""

# `event.__class__ is dict` does not narrow a type for pyright, and WriteLock reads `holding` from the frame.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportUnusedVariable=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import datetime as dt
import os
import sys
from dataclasses import replace
from functools import partial
from operator import attrgetter
from os import write as _os_write
from time import time
from typing import TYPE_CHECKING, Any, Literal

import orjson
from orjson import dumps

from outfall.sinks.core import flock
from outfall.sinks.core.arguments import checked_choice, checked_count, checked_seconds
from outfall.sinks.core.clock import now
from outfall.sinks.core.lifecycle import here, notice_fork
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.reentrancy import active, thread
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import Sink
from outfall.sinks.core.threads import check_threads
from outfall.sinks.delivery.deferred import DeferredSink
from outfall.sinks.delivery.worker import ON_FULL, FullError
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.json import LINE
from outfall.sinks.event.levels import NOTSET, NUMBERS, Level
from outfall.sinks.spool.lines import line_of
from outfall.sinks.spool.store import mark
from outfall.sinks.spool.stores import NO_ROOM, Depot
from outfall.sinks.spool.worker import SpoolWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.sink import OnError
    from outfall.sinks.delivery.delivery import RetryPolicy

_FSYNCS = ("never", "interval", "always")

#: The fields of `SinkStats` that other processes can read.
_PUBLISHED = (
    "accepted",
    "adopted",
    "filtered",
    "delivered",
    "dropped",
    "retried",
    "dead_lettered",
    "spooled",
    "last_error",
)

#: A subclass that overrides one of these does not take the shortcut in `handle`.
_HOOKS = ("deliver", "_put", "_take", "encode")

_LARGEST_SEGMENT_BYTES = 16 * 2**20

if sys.version_info >= (3, 11):
    _read_time = dt.datetime.fromisoformat
else:

    def _read_time(text: str) -> dt.datetime:
        return dt.datetime.fromisoformat(text[:-1] if text[-1:] == "Z" else text)


class SpoolSink(DeferredSink):
    """Write each event to disk; a thread delivers it to *target* from there.

    Use it for events that must arrive even if the target is unreachable for hours and the process is killed meanwhile:
    when `handle` returns, the event is in a file. Each event is delivered at least once.

    Level, processors and rendering, first this sink's and then the target's, run in the thread that logs, before the
    event is stored: data that a processor has removed is not on disk.

    Args:
        target: The sink that gets the events. It is owned: `close` closes it.
        directory: The directory of the files; it is made if it is missing. The constructor makes the path absolute. Any
            number of processes, and of sinks with the same target, may share it. It has to be on a local file system.
        max_bytes: The largest size of all segments of this process, including those adopted from dead processes.
            Default 1 GiB.
        on_full: What happens to an event without room, because of *max_bytes* or of a full disk. ``"block"`` (default):
            `handle` waits for room, at most *block_timeout*, and then drops the event; the next events are dropped at
            once until there is room again. ``"drop_newest"``: the event is dropped. ``"drop_oldest"``: the oldest
            segment that is not being delivered is dropped. All count as ``dropped["overflow"]``; events that a full
            disk refuses for good, as ``dropped["error"]``.
        block_timeout: How long an event waits for room, in seconds or as a timedelta. Default 1.0.
        fsync: When to flush files to the medium. Without a flush, events survive a kill of the process, but not a loss
            of power. ``"never"`` (default): when the operating system does it. ``"interval"``: every *fsync_interval*,
            by a thread. ``"always"``: each event before `handle` returns, and the cursor before a batch is sent.
        fsync_interval: The interval in seconds, or a timedelta. Default 1.0.
        segment_bytes: The size of a file after which the next one is begun; only a single event that is larger exceeds
            it. Default None: an eighth of *max_bytes*, at most 16 MiB.
        batch_size: The number of events in a batch. Default 2 000.
        linger: How long the first event of a batch waits for more events, in seconds or as a timedelta. Default 0.2.
        retry: The policy for retries. Default ``RetryPolicy()``: retry until the target takes the batch.
        dead_letter: A sink that gets the events that the target refuses for good. It is not owned. Default None: they
            count as ``dropped["rejected"]``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr. With ``"raise"``, errors in the caller's thread are raised (full, closed, disk), and errors in the
            delivering thread are reported.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *max_bytes*, *on_full*, *block_timeout*, *fsync*, *fsync_interval*, *segment_bytes*, *batch_size*
            or *linger* is not usable, if *target* or a sink behind it only stores events (a background, a buffer, a
            queue, another spool), or the platform has no ``flock(2)`` (Windows).
        TypeError: If *target* or *dead_letter* is not a sink, *directory* is not a path, or *retry* is not a
            `RetryPolicy`.

    The events of one process are delivered in order. Events of dead processes are adopted when the sink is made, at
    each `flush`, and every minute while the delivering thread runs; adopted and new events take turns. A kill at any
    instant loses no event for which `handle` has returned, and repeats at most one batch, with the same events under
    the same key. A damaged line is skipped and counted as ``dropped["corrupt"]``. If the directory is deleted or moved
    away, it is restored from the files that this process has open; lost events count as ``dropped["lost"]``.

    `flush` and `close` deliver until their timeout. Events that are not delivered then stay on disk and count as
    ``spooled``; they are not lost, so `close` returns True.

    Safe from any thread and from signal handlers. The thread is a daemon. It starts with the first event, with `start`,
    or with the sink if there are events to adopt. A forked child has its own files and ledger, which begin with its
    first event. Events that the target's delivery itself logs are dropped as ``reentrant``.
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
        #: orjson's options if one call of it renders a plain event as a line; None: use the pipeline.
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
            self._worker.unadopted = self._depot.find_dead()
        except OSError as error:
            self._fail(error, None, events=0)
        if self._worker.unadopted:
            self._worker.wake()

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: The files on disk.
        self._depot = Depot(
            self.directory,
            self._lock,
            max_bytes=self._max_bytes,
            segment_bytes=self._segment_bytes,
            drops_oldest=self._on_full == "drop_oldest",
            sync=self._fsync == "always",
        )
        self._out = self._depot.out
        interval = self._fsync == "interval"
        self._worker: SpoolWorker = SpoolWorker(self, self._depot, self._sync_seconds if interval else None)
        #: True after a wait for room has timed out, until there is room again.
        self._impatient = False
        #: The values that `publish` wrote last.
        self._published: dict[str, object] = {}
        #: The number of events dropped before they were stored.
        self._refused = 0

    # -- methods for applications

    @property
    def used_bytes(self) -> int:
        """The size of all segments of this process, including adopted ones."""
        return self._depot.size

    @property
    def max_bytes(self) -> int:
        """The largest size of these segments."""
        return self._max_bytes

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event; failures go to ``on_error``. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event is in a file, or it has been counted as dropped.
        """
        # A shortcut for plain events while there is room; all others take the pipeline.
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
                    # Without a valid timestamp in it, a line needs an envelope.
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
        """Start to deliver events of dead processes, without waiting for a new event."""
        if not here[0]:
            notice_fork()
        if not self._closed:
            self._worker.wake()

    def flush(self, timeout: float | None = None) -> bool:
        """Deliver the events of this process and of dead ones; return True if all have an outcome.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        deadline = now() + self._seconds(timeout)
        if not self._closed and not self._worker.leaving:
            self._worker.seek(deadline)
        return super().flush(max(0.0, deadline - now()))

    def close(self, timeout: float | None = None) -> bool:
        """Deliver events until the timeout, then close the target; return False if the target gave up events itself.

        Events that are not delivered stay on disk. Further calls return the same result.

        Args:
            timeout: The time limit in seconds. Default None: `drain_timeout`, 5 s.
        """
        deadline = now() + self._seconds(timeout)
        if not self._begin_to_close(deadline):
            return self._close_result
        stopped = self._worker.conclude(deadline)
        closed = self._target.close(max(0.0, deadline - now()))
        if self._depot.news:
            self._worker.tell_news()
        # If the thread did not stop in time, the target's events are on disk as well.
        self._close_result = closed or not stopped
        return self._close_result

    def drain(self, timeout: float) -> None:
        """Deliver stored events at exit. Later events are stored; the process that adopts them delivers them."""
        if self._closed:
            return
        self._worker.leaving = True
        self.flush(timeout)

    # -- methods for the pipeline

    @property
    def plain(self) -> bool:
        """False, since a stored line needs the event's time."""
        return False

    def _take(self, item: Encoded) -> None:
        """Store *item*; without room for it, apply the policy *on_full*.

        Raises:
            FullError: If there is no room.
            OSError: If it cannot be written.
        """
        worker = self._worker
        if worker.thread is None:
            check_threads()
        line = line_of(item.data, item.level, item.time)
        if len(line) > self._max_bytes:
            msg = f"{self.name}: an event of {len(line)} bytes is more than max_bytes={self._max_bytes}"
            raise FullError(msg)
        deadline = now() + self._block_seconds
        while True:
            failure: OSError | None = None
            seen = worker.settled
            try:
                if self._stored(line):
                    self._impatient = False
                    return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                failure = error
            left = deadline - now()
            if self._on_full != "block" or self._impatient or left <= 0:
                self._impatient = True
                raise failure or FullError(f"{self.name} is full: {self._max_bytes} bytes wait for the target")
            # In small steps, since other programs may free room on the disk.
            worker.bells.wait(min(left, 0.1), partial(self._has_settled_more, seen))

    def _has_settled_more(self, than: int) -> bool:
        return self._worker.settled != than or self._closed

    def _stored(self, line: bytes) -> bool:
        depot, worker = self._depot, self._worker
        stored = False
        try:
            with self._lock:
                if self._closed:
                    self._check_open()
                before = self._out.events
                try:
                    stored = depot.append(line)
                except BaseException:
                    depot.amend()
                    stored = self._out.events > before
                    self._out.found = 0
                    raise
                if worker.thread is None and self._lock.depth > 1:
                    # A signal handler that interrupted the holder of the lock leaves the start to the next event: the
                    # thread must not be started with the lock held.
                    return stored
                if not depot.awake:
                    # In this order, so that an interrupt cannot leave the thread asleep.
                    worker.wakeups.put(None)
                    depot.awake = True
                    depot.set_limit()
            if worker.thread is None:
                worker.wake()
        except BaseException:
            if stored:  # the caller counts it as interrupted, but it is on disk
                self._count_dropped("interrupted", -1)
            raise
        finally:
            if depot.news:
                worker.tell_news()
        return stored

    def _interrupted(self) -> None:
        """Count an event after a KeyboardInterrupt while it was being stored."""
        with self._lock:
            self._depot.amend()
            # Another thread may have found the event, if it got the lock first.
            found, self._out.found = self._out.found, 0
            self._depot.set_limit()
        if not found:
            self._count_dropped("interrupted")

    def publish(self) -> None:
        """Write the ledger to a file for `SpoolStatus`, if it has changed."""
        with self._ledger.lock:
            stats = self._counted()
        fields: dict[str, object] = dict(zip(_PUBLISHED, attrgetter(*_PUBLISHED)(stats), strict=True))
        if fields != self._published:
            self._published = fields
            self._depot.publish(dumps({"time": time(), **fields}, None, orjson.OPT_APPEND_NEWLINE))

    # -- counting and reporting

    def _count_dropped(self, reason: str, events: int = 1) -> None:
        with self._ledger.lock:
            self._ledger.dropped[reason] += events
            self._refused += events

    def stats(self) -> SinkStats:
        """Return the current ledger."""
        if not here[0]:
            notice_fork()
        with self._lock:
            return super().stats()

    def _stats(self) -> SinkStats:
        return replace(self._counted(), targets=(self._target.stats(),))

    def _counted(self) -> SinkStats:
        """Return the ledger without the targets' ledgers; called under the sink's lock."""
        depot = self._depot
        stats = self._ledger.stats(self.name)
        accepted, adopted = self._out.events + self._refused, depot.adopted_events
        dropped = {**stats.dropped}
        for reason, events in depot.lost.items():
            dropped[reason] = dropped.get(reason, 0) + events
        settled = stats.delivered + stats.dead_lettered + sum(dropped.values())
        return replace(stats, accepted=accepted, adopted=adopted, dropped=dropped, spooled=accepted + adopted - settled)

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        busy = self._processors or self._closed or self._reporting or self._fsync == "always"
        own = [hook for hook in _HOOKS if getattr(type(self), hook) is not getattr(SpoolSink, hook)]
        usual = not (busy or own) and self._target.plain and not self._target.level
        self._option = LINE if usual else None

    def _describe(self) -> str:
        return f"{self.directory!r} to {self._target!r}"

    def _where(self) -> str:
        return f"{self.directory!r} to {self._where_of(self._target)}"

    def after_fork(self) -> None:
        """Reset the sink in a forked child: the files on disk, and their locks, are the parent's."""
        self._depot.forget()
        super().after_fork()


HAND_TAKEN.add(SpoolSink.handle.__code__)


def _refuse_keepers(target: Sink) -> None:
    """Raise if *target* or a sink behind it only stores events: the spool would delete them too early.

    Raises:
        ValueError: If so.
    """
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


#: A timestamp that is a number below this is in seconds.
_SECONDS = 1e12
