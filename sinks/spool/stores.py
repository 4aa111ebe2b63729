"""The stores of one process in a spool's directory, its own and adopted ones, within a limit of bytes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from outfall.sinks.errors import SinkError
from outfall.sinks.spool.cursor import sync_path
from outfall.sinks.spool.segments import Appender
from outfall.sinks.spool.store import Store, is_alive, stores_in

if TYPE_CHECKING:
    from outfall.sinks.core.lock import WriteLock
    from outfall.sinks.spool.store import Portion

#: Errors of a full disk, which may have room again for the next event.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

#: How many stores of dead processes are adopted at a time. The others are adopted later.
_MOST_ADOPTED = 64


class Depot:
    """The stores of one process in a spool's directory.

    Any thread appends, and holds the lock for that. One thread reads, and takes the lock where it has to.

    Args:
        directory: The spool's directory.
        lock: Guards what threads share.
        max_bytes: The most bytes that all segments may hold together, those of adopted stores included.
        segment_bytes: The size of a segment. A single event may be larger.
        drops_oldest: True to remove the oldest segment when there is no room.
        sync: True to sync everything to the medium at once.
    """

    def __init__(
        self, directory: str, lock: WriteLock, *, max_bytes: int, segment_bytes: int, drops_oldest: bool, sync: bool
    ) -> None:
        self.directory = directory
        self._lock = lock
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._drops_oldest = drops_oldest
        self._sync = sync
        #: What appends to the current segment. Hot paths append by themselves, up to its limit.
        self.out: Appender = Appender()
        #: False while the worker thread sleeps. Then each event has to go through `append`, whose caller wakes it.
        self.awake: bool = False
        self.own: Store | None = None
        #: Stores of dead processes, oldest first.
        self.adopted: deque[Store] = deque()
        #: How many events the adopted stores held.
        self.adopted_events: int = 0
        #: How many events were lost or dropped on disk, by reason.
        self.lost: defaultdict[str, int] = defaultdict(int)
        #: Errors to report, each with the number of events lost.
        self.news: list[tuple[Exception, int]] = []
        #: Why the directory cannot be created again; None if nothing is wrong.
        self._broken: OSError | None = None
        #: How many of this process's own events are settled.
        self.settled: int = 0
        #: How many bytes the segments hold, apart from the one that is appended to: `out` knows its size.
        self._full_bytes = 0
        self._own_last = False
        #: Full segments that are not synced yet.
        self._unsynced: list[str] = []
        #: The size at which the next segment starts. It grows while no segment can be created.
        self._roll_at = segment_bytes
        #: True while one segment replaces another; signal handlers append to `_meanwhile` then.
        self._arranging = False
        self._meanwhile: list[bytes] = []
        self._left_alone: set[str] = set()

    # -- appending; needs the lock

    def amend(self) -> None:
        """Count the events that an interrupt left uncounted."""
        with self._lock:
            if self.out.unsure:
                self.out.amend()

    @property
    def size(self) -> int:
        """How many bytes all segments hold."""
        return self._full_bytes + self.out.end

    def append(self, line: bytes) -> bool:
        """Append *line*; make room as the policy says. Return False if there is no room.

        Raises:
            OSError: If it cannot be written.
        """
        if self._lock.depth > 1:
            self._append_within(line)
            return True
        out = self.out
        if out.unsure:
            out.amend()
        if self._broken is not None:
            raise self._broken
        while True:
            if not self._make_room(len(line)):
                return False
            try:
                out.append(line)
            except OSError as error:
                if error.errno not in NO_ROOM or not (self._drops_oldest and self._drop_one()):
                    raise
            else:
                break
        if self._sync:
            os.fsync(out.descriptor)
        self.set_limit()
        return True

    def _append_within(self, line: bytes) -> None:
        """Append *line* for a signal handler or a ``__del__`` that interrupted this thread while it held the lock."""
        if self._arranging:
            self._meanwhile.append(line)
            return
        out = self.out
        size = os.fstat(out.descriptor).st_size
        # The interrupted append may have written its line, or half of it, without counting it yet.
        half = size > out.end and os.pread(out.descriptor, 1, size - 1) != b"\n"
        out.append(b"\n" + line if half else line)

    def set_limit(self) -> None:
        """Set the size up to which hot paths append by themselves."""
        # No call in these lines, so that no other thread comes between: the lock is not needed.
        room = self._max_bytes - self._full_bytes
        ready = self.awake and self._broken is None and self.out.descriptor != -1
        most = room if room < self._roll_at else self._roll_at  # noqa: FURB136 - min() is a call
        self.out.limit = most if ready else -1

    def _measure(self) -> None:
        """Add up the sizes of the segments, after one was started, adopted or removed."""
        self._full_bytes = sum([segment.size for store in self._stores() for segment in store.segments])

    def _make_room(self, size: int) -> bool:
        out = self.out
        while self._full_bytes + out.end + size > self._max_bytes:
            if self._drops_oldest and self._drop_one():
                continue
            if not out.end or (self._full_bytes and not self._drops_oldest):
                return False
            # Start a new segment: only segments that nothing is appended to are removed.
            if not self._roll():
                return False
        if out.descriptor == -1 or (out.end and out.end + size > self._roll_at):
            self._roll()
        return True

    def _roll(self) -> bool:
        """Start a new segment; return False if none can be created and the open one stays in use.

        Raises:
            OSError: If none can be created and none is open.
        """
        out = self.out
        self._arranging = True
        try:
            if self.own is None:
                self.own = Store.create(self.directory, sync=self._sync)
            own = self.own
            if own.appended:
                self._unsynced.append(own.segments[-1].path)
            try:
                own.roll(out)
            except OSError as error:
                if out.descriptor == -1:
                    raise
                # The open segment still takes events.
                self.news.append((error, 0))
                self._roll_at = out.end + self._segment_bytes
                return False
            self._roll_at = self._segment_bytes
            self._measure()
            return True
        finally:
            self._arranging = False
            while self._meanwhile:
                self._append_late(self._meanwhile.pop(0))

    def _append_late(self, line: bytes) -> None:
        try:
            self.out.append(line)
        except OSError as error:
            # The line counted as stored already.
            self.lost["error"] += 1
            self.out.events += 1
            self.out.earlier += 1
            self.settled += 1
            self.news.append((error, 1))

    def _drop_one(self) -> bool:
        """Remove the oldest segment that can be; return False if there is none."""
        for store in self._stores():
            left = store.drop_oldest()
            if left is not None:
                self._forget(store, left, "overflow", "there was no room for newer ones")
                return True
        return False

    def _stores(self) -> list[Store]:
        own = self.own
        return [*self.adopted] if own is None else [*self.adopted, own]

    def _forget(self, store: Store, left: int, reason: str, why: str) -> None:
        """Count the events *left* in segments of *store* that are gone, and report them."""
        if left > 0:
            self.lost[reason] += left
            self.news.append((SinkError(f"{store.name}: {why}"), left))
        elif left < 0:
            # More lines than were written: another program added some, or damage split a line.
            self.adopted_events -= left
        if store is self.own:
            self.settled += left
        self._measure()
        self.set_limit()

    # -- reading; in one thread, without the lock

    def waiting(self) -> int:
        """Return how many events of this process are not settled."""
        return self.out.events - self.settled

    def next(self, lines: int, size: int) -> tuple[Store, Portion] | None:
        """Return the next lines to deliver, from the own store and an adopted one in turn; None if there are none.

        Args:
            lines: The maximum number of lines.
            size: The maximum number of bytes.

        Raises:
            OSError: If a segment cannot be read.
        """
        candidates = [] if self.own is None else [self.own]
        if self.adopted:
            candidates.insert(1 if not self._own_last else 0, self.adopted[0])
        for store in candidates:
            with self._lock:
                stop = store.hold(self.out.end)
            if not stop:
                continue
            self._own_last = store is self.own
            try:
                portion = store.take(stop, lines, size)
            except BaseException:
                self.leave()
                self._restore(store)
                raise
            return store, portion
        return None

    def begin(self, store: Store, portion: Portion) -> None:
        """Record that *portion* is in flight.

        Raises:
            OSError: If it cannot be recorded. Do not send it then: a kill could repeat more than one batch.
        """
        # A kill may repeat one batch, not one per store. So the other stores record first what was sent before.
        for other in self._stores():
            if other is not store:
                other.rest()
        store.begin(portion)

    def settle(self, store: Store, portion: Portion) -> None:
        """Note that *portion* is settled, and count its corrupt lines as lost."""
        with self._lock:
            store.settle(portion)
            if store is self.own:
                self.settled += portion.lines
            if portion.corrupt:
                self.lost["corrupt"] += portion.corrupt
                where = f"{store.name}, segment {portion.segment}, bytes {portion.start} to {portion.end}"
                self.news.append((SinkError(f"lines that are no events: {where}"), portion.corrupt))

    def leave(self) -> None:
        """Put the batch in flight back."""
        busy = [store for store in self._stores() if store.busy]
        with self._lock:
            for store in busy:
                store.leave()

    def tidy(self) -> None:
        """Remove settled segments and empty adopted stores; write the cursors.

        Raises:
            OSError: If a cursor cannot be written.
        """
        for store in self._stores():
            if store.appended and len(store.segments) == 1:
                continue  # all that it has is appended to
            while True:
                with self._lock:
                    spent = store.hold_spent()
                if not spent:
                    break
                try:
                    path = store.pass_on()
                except BaseException:
                    self.leave()
                    raise
                with self._lock:
                    left = store.shift()
                    self._forget(store, left, "corrupt", "some of what was written is not there any more")
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self.news.append((error, 0))
            if store is not self.own and not store.segments:
                with self._lock:
                    self.adopted.remove(store)
                store.remove()

    def rest(self) -> None:
        """Write the cursors while nothing is in flight.

        Raises:
            OSError: If one cannot be written.
        """
        for store in self._stores():
            store.rest()

    def settle_missing(self) -> None:
        """Count events as lost that are in no file, because another program has cut the file and written to it."""
        with self._lock:
            own = self.own
            left = self.waiting()
            if left and own is not None and own.appended and len(own.segments) == 1 and own.offset >= self.out.end:
                own.segments[0].settled += left
                self._forget(own, left, "corrupt", "events are missing in the segment that is written")

    def find_dead(self) -> bool:
        """Return True if a dead process has left a store that nobody has adopted.

        Raises:
            OSError: If the directory cannot be read.
        """
        held = {store.path for store in list(self.adopted)}
        for path in stores_in(self.directory):
            if path not in held and path not in self._left_alone:
                with contextlib.suppress(OSError):
                    if not is_alive(path):
                        return True
        return False

    def adopt(self) -> bool:
        """Adopt the stores of dead processes; return True if some of them have to wait."""
        held = {store.path for store in self._stores()}
        waits = False
        for path in stores_in(self.directory):
            if path in held or path in self._left_alone:
                continue
            if len(self.adopted) >= _MOST_ADOPTED:
                return self.find_dead()
            try:
                found = Store.adopt(path, sync=self._sync)
            except (OSError, SinkError) as error:
                # The next call finds the same error. It is reported once.
                self._left_alone.add(path)
                self.news.append((error, 0))
                continue
            if found is None:
                # A process owns it, or held the lock for a moment, to look whether it is owned.
                with contextlib.suppress(OSError):
                    waits = waits or not is_alive(path)
                continue
            store, wrong = found
            if wrong is not None:
                told = f"{store.name}: {wrong}; it is delivered from the beginning of what is there"
                self.news.append((SinkError(told), 0))
            with self._lock:
                self.adopted.append(store)
                events = sum(segment.events for segment in store.segments)
                self.adopted_events += events
                self._measure()
                self.set_limit()
        return waits

    def check(self) -> None:
        """Check the files of the own store; restore what is missing."""
        own = self.own
        if own is None:
            return
        with self._lock:
            if self.out.unsure:
                self.out.amend()
            sound = self._broken is None and own.check(self.out)
        if not sound and self._restore(own):
            self.news.append((SinkError(f"{own.name}: its files were removed or changed by somebody else"), 0))

    def _restore(self, store: Store) -> bool:
        """Restore the files of *store* that another program has removed; return False if that fails."""
        with self._lock:
            out = self.out
            if out.unsure:
                out.amend()
            appended = store.appended
            self._arranging = True
            try:
                left = store.restore(out)
            except OSError as error:
                if store is self.own:
                    if self._broken is None:
                        self.news.append((error, 0))
                    # Refuse events: they cannot be written to disk.
                    self._broken = error
                return False
            finally:
                self._arranging = False
                self.set_limit()
            if store is self.own:
                self._broken = None
                if appended and not store.appended:
                    out.earlier = out.events
                    out.end = 0
            self._forget(store, left, "lost", "segments were removed by somebody else")
            return True

    def publish(self, ledger: bytes) -> None:
        """Write *ledger* into this process's own store, for `SpoolStatus`."""
        own = self.own
        if own is not None and self._broken is None:
            own.publish(ledger)

    def sync(self) -> None:
        """Sync all that was appended so far to the medium.

        Raises:
            OSError: If that fails.
        """
        with self._lock:
            own = self.own
            if own is None or self.out.descriptor == -1:
                return
            paths, self._unsynced = self._unsynced, []
            descriptor = os.dup(self.out.descriptor)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                sync_path(path)
        with contextlib.suppress(FileNotFoundError):
            own.sync()

    # -- closing

    def retire(self) -> None:
        """Remove the own store if all its events are settled. The next event creates another."""
        with self._lock:
            own = self.own
            if own is None or self.out.unsure or self._broken is not None or self.waiting():
                return
            self.own = None
            self.out.close()
            self.out.earlier = self.out.events
            self.out.end = 0
            self._measure()
        own.remove()

    def close(self) -> None:
        """Remove the stores whose events are settled, and unlock the others for the next process to adopt."""
        with self._lock:
            if self.out.unsure:
                self.out.amend()
            waits = self.out.events > self.settled
            self.out.close()
            own, self.own = self.own, None
            adopted = list(self.adopted)
            self.adopted.clear()
        if own is not None:
            if waits or self._broken is not None:
                own.release()
            else:
                own.remove()
        for store in adopted:
            if store.segments:
                store.release()
            else:
                store.remove()

    def forget(self) -> None:
        """Close all files without unlocking. For a forked child: the locks belong to the parent."""
        self.out.close()
        for store in self._stores():
            store.forget()
