"""A store: the segments of one process in a spool's directory, and the cursor that says how far they are delivered.

Nothing here knows of targets or threads. Methods whose docstrings say "guarded" need the lock that threads share.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outfall.sinks.core.flock import try_lock, unlock
from outfall.sinks.errors import SinkError
from outfall.sinks.spool import cursor as cursors
from outfall.sinks.spool.cursor import Cursor, CursorError
from outfall.sinks.spool.lines import own_raws_of, raws_of
from outfall.sinks.spool.segments import Appender, Reader, Segment, count_lines, is_segment, name_of, segments_in

if TYPE_CHECKING:
    from outfall.sinks.core.item import Raw

_NAME = re.compile(r"(\d{19,20})-(\d{1,10})-([0-9a-f]{8})")

#: The file with the owner's ledger, for `SpoolStatus`.
LEDGER_NAME = "status.json"

_OWN_FILES = frozenset({LEDGER_NAME, cursors.FILE_NAME})

#: An empty file that marks a directory as a spool while it contains no store.
MARK = ".outfall-spool"

_NOT_OPEN = -1

_CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Portion:
    """Consecutive lines of a segment, delivered as one batch.

    Args:
        segment: The number of the segment.
        start: The offset of the first line, in bytes.
        end: The offset after the last line.
        raws: The events of the lines, as items of a `Batch`.
        lines: The number of lines.
        corrupt: The number of lines that are no events.
        key: The idempotency key of the batch.
    """

    segment: int
    start: int
    end: int
    raws: tuple[Raw, ...]
    lines: int
    corrupt: int
    key: str


class Store:
    """The segments of one process in a spool's directory, oldest first, and how far they are delivered.

    A store is a directory that its owner locks by ``flock(2)``. The kernel releases the lock when the owner dies. Then
    another process may take the lock, and becomes the owner. `create` and `adopt` return stores.

    One thread may read (`take`, `begin`, `settle`) while another appends. Methods whose docstrings say "guarded" need
    the lock that both threads share.
    """

    def __init__(self, path: str, descriptor: int, *, sync: bool) -> None:
        self.path = path
        self._sync = sync
        #: True if this process created the store, False if it adopted it.
        self.mine = False
        self.name: str = os.path.basename(path)
        #: Oldest first. In a store that this process created, new events go to the last.
        self.segments: deque[Segment] = deque()
        #: Whether the last segment is appended to.
        self.appended: bool = False
        #: How far the first segment is settled, in bytes.
        self.offset: int = 0
        #: True while lines of the first segment are in flight.
        self.busy: bool = False
        self._lock_descriptor = descriptor
        #: The number of the newest segment so far. No number is reused: the cursor would regard the segment as settled.
        self._newest = 0
        #: A batch that was in flight when an earlier owner died.
        self._flight: Cursor | None = None
        #: What the cursor file contains.
        self._noted: Cursor | None = None
        self._cursor = cursors.CursorFile(path)
        self._reader = Reader()

    # -- creating

    @classmethod
    def create(cls, directory: str, *, sync: bool = False) -> Store:
        """Create a store in *directory* and lock it. A missing directory is created too.

        Args:
            directory: The spool's directory.
            sync: True to sync the cursor, full segments and directory entries to the medium at once.

        Raises:
            OSError: If a file or directory cannot be created.
        """
        mark(directory)
        while True:
            # The time comes first, so that sorting by name sorts by age. The rest makes the name unique.
            name = f"{time.time_ns():020}-{os.getpid()}-{os.urandom(4).hex()}"
            path = os.path.join(directory, name)
            os.mkdir(path)
            # Another process may have locked it already, taking its owner for dead. Create another one then.
            descriptor = _locked(path)
            if descriptor is not None:
                store = cls(path, descriptor, sync=sync)
                store.mine = True
                return store

    @classmethod
    def adopt(cls, path: str, *, sync: bool = False) -> tuple[Store, str | None] | None:
        """Take over the store at *path*; return None if it has an owner, or is no store.

        Returns:
            The store, and a description of what is wrong with its files, or None if nothing is.

        Raises:
            NewerFormatError: If a later version of Outfall has written there. The files stay as they are.
            OSError: If it cannot be read.
        """
        if not _NAME.fullmatch(os.path.basename(path)):
            return None
        descriptor = _locked(path)
        if descriptor is None:
            return None
        store = cls(path, descriptor, sync=sync)
        try:
            return store, store._recover()
        except BaseException:
            store.release()
            raise

    def _recover(self) -> str | None:
        """Find the segments and the offset to resume at; return what is wrong with the files, or None."""
        found = segments_in(self.path)
        wrong: str | None = None
        place: Cursor | None = None
        try:
            place = cursors.read(self.path)
        except CursorError as error:
            wrong = str(error)
        if place is None and wrong is None and found and min(found) > 1:
            wrong = "the cursor is missing"
        if place is not None and found:
            wrong = self._doubt(place, found)
            if wrong is not None:
                place = None
        if place is not None:
            # The last owner died after it moved the cursor and before it removed the segments that were settled.
            for number in [number for number in found if number < place.segment]:
                os.unlink(found.pop(number).path)
            if place.segment in found:
                self.offset = place.offset
                if place.end is not None:
                    self._flight = place
        for segment in found.values():
            segment.events = count_lines(segment.path, 0 if self.segments else self.offset)
            self.segments.append(segment)
        self._noted = place
        return wrong

    @staticmethod
    def _doubt(place: Cursor, found: dict[int, Segment]) -> str | None:
        """Return why the cursor *place* is wrong; None if it is consistent with the segments' *sizes*."""
        if place.segment not in found:
            # Segments are removed oldest first. The cursor is one past the last segment when all is settled.
            past = place == Cursor(max(found) + 1, 0)
            return None if past or min(found) > place.segment else "the cursor is ahead of the data"
        segment = found[place.segment]
        if max(place.offset, place.end or 0) > segment.size:
            return "the cursor is ahead of the data"
        if not all(_ends_a_line(segment.path, offset) for offset in (place.offset, place.end) if offset):
            return "the cursor points into the midst of a line"
        return None

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- appending; needs the lock

    def roll(self, appender: Appender) -> None:
        """Create the next segment, and append to it from now on.

        Args:
            appender: What appends. Its file is closed and replaced by the new one.

        Raises:
            OSError: If no segment can be created. Then nothing has changed.
        """
        if self._sync and appender.descriptor != _NOT_OPEN:
            os.fsync(appender.descriptor)
        if self._noted is None:
            # Create the cursor before the first segment. On a full disk it can be overwritten but not created, and
            # without a cursor nothing can be delivered, so that no segment could be removed.
            self._note(Cursor(self._newest + 1, 0))
        while True:
            number = self._newest + 1
            segment = Segment(number, os.path.join(self.path, name_of(number)))
            try:
                descriptor = appender.create(segment.path)
                break
            except FileExistsError:
                # An interrupt came after this file had been created and before it was recorded.
                self._newest += 1
        old = appender.descriptor
        # No call until the end of this block: interrupts and signal handlers run at calls.
        if self.appended:
            last = self.segments[-1]
            last.size = appender.end
            last.events = appender.events - appender.earlier
        self.segments += (segment,)
        self.appended = True
        self._newest += 1
        appender.earlier = appender.events
        appender.end = 0
        appender.descriptor = descriptor
        appender.limit = -1
        appender.unsure = False
        if old != _NOT_OPEN:
            os.close(old)
        if self._sync:
            cursors.sync_path(self.path)

    def drop_oldest(self) -> int | None:
        """Remove the oldest segment that is neither read nor appended to; return its `Segment.left`.

        Return None if there is none.
        """
        place = 1 if self.busy else 0
        if len(self.segments) - self.appended <= place:
            return None
        segment = self.segments[place]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(segment.path)
        del self.segments[place]
        if place == 0:
            # The cursor file names a segment that is gone. Recovery starts at the next one.
            self.offset = 0
            self._flight = None
            self._reader.forget()
        return segment.left

    # -- reading, in one thread; guarded where the docstring says so

    def hold(self, end: int) -> int:
        """Mark the first segment as `busy`; return how far `take` may read it, 0 if nothing is unread. Guarded.

        It stays `busy` until `settle` or `leave`.

        Args:
            end: The size of the segment that is appended to, in bytes. Ignored for other segments.
        """
        if not self.segments:
            return 0
        stop = end if self.appended and len(self.segments) == 1 else self.segments[0].size
        self.busy = self.offset < stop
        return stop if self.busy else 0

    def take(self, stop: int, lines: int, size: int) -> Portion:
        """Return the next lines.

        The batch that an earlier owner had in flight comes first: the same lines under the same key, whatever the
        limits.

        Args:
            stop: What `hold` returned.
            lines: The maximum number of lines.
            size: The maximum number of bytes. A single line may be longer.

        Raises:
            OSError: If the segment cannot be read.
        """
        head = self.segments[0]
        flight, self._flight = self._flight, None
        key = None
        if flight is not None and flight.end is not None and flight.segment == head.number and self.offset < flight.end:
            stop, key, lines, size = min(stop, flight.end), flight.key, stop, stop
        taken, after = self._reader.lines(head.path, head.number, self.offset, stop, lines, size)
        raws, corrupt = own_raws_of(taken) if self.mine else raws_of(taken)
        if key is None:
            key = f"{self.name}.{head.number}.{self.offset}-{after}"
        return Portion(head.number, self.offset, after, tuple(raws), len(raws) + corrupt, corrupt, key)

    def begin(self, portion: Portion) -> None:
        """Record in the cursor that *portion* is in flight, under its key, and that all before it is settled."""
        self._note(Cursor(portion.segment, portion.start, portion.end, portion.key))

    def settle(self, portion: Portion) -> None:
        """Note that *portion* is settled; the next `begin`, `rest` or `pass_on` writes it into the cursor. Guarded."""
        self.busy = False
        if self.segments and self.segments[0].number == portion.segment:
            self.offset = portion.end
            self.segments[0].settled += portion.lines

    def leave(self) -> None:
        """Put the batch in flight back, so that `take` returns it again. Guarded."""
        self.busy = False
        self._flight = self._noted if self._noted is not None and self._noted.end is not None else None
        self._reader.forget()

    def rest(self) -> None:
        """Record in the cursor how far all is settled, and that nothing is in flight.

        A batch that an earlier owner had in flight stays recorded.
        """
        if self.segments and self._flight is None:
            place = Cursor(self.segments[0].number, self.offset)
            if place != self._noted and (self.offset or self._noted is not None):
                self._note(place)

    def hold_spent(self) -> bool:
        """Mark the first segment as `busy` if all of it is settled and nothing is appended to it; return True if so.

        `pass_on` and `shift` remove it then. Guarded.
        """
        if not self.segments or (self.appended and len(self.segments) == 1):
            return False
        self.busy = self.offset >= self.segments[0].size
        return self.busy

    def pass_on(self) -> str:
        """Move the cursor to the next segment; return the path of the file to remove after `shift`.

        The cursor is written before the file is removed, so that it never names a missing file.
        """
        following = self.segments[1].number if len(self.segments) > 1 else self.segments[0].number + 1
        self._note(Cursor(following, 0))
        return self.segments[0].path

    def shift(self) -> int:
        """Forget the first segment, whose file the caller removes; return its `Segment.left`. Guarded."""
        segment = self.segments.popleft()
        self.busy = False
        self.offset = 0
        self._reader.forget()
        return segment.left

    def _note(self, place: Cursor) -> None:
        self._cursor.write(place, sync=self._sync)
        self._noted = place

    # -- files

    def check(self, appender: Appender) -> bool:
        """Return True if the directory and the segment appended to are intact, at their paths. Guarded."""
        if not self.appended:
            return True
        try:
            found = os.stat(self.segments[-1].path)
            own = os.fstat(appender.descriptor)
        except OSError:
            return False
        return os.path.samestat(found, own) and own.st_size == appender.end and self._cursor.is_there()

    def restore(self, appender: Appender) -> int:
        """Create the directory again after somebody deleted or moved it; return how many events are lost. Guarded.

        Two segments are still open, and are copied back: the one that is appended to, and the one that is read. Only
        the reading thread may call it.

        Raises:
            OSError: If that fails.
        """
        if self.mine:
            if self.appended and appender.descriptor != _NOT_OPEN:
                self._measure(appender)
            if not self._is_there():
                os.makedirs(self.path, exist_ok=True)
                descriptor = _locked(self.path)
                if descriptor is None:
                    msg = "another process has taken the directory that was made anew"
                    raise FileExistsError(msg)
                old, self._lock_descriptor = self._lock_descriptor, descriptor
                os.close(old)
        if self.appended and appender.descriptor == _NOT_OPEN:
            last = self.segments[-1]
            last.size, last.events = appender.end, appender.events - appender.earlier
            self.appended = False
        lost = self._restore_segments(appender)
        self._cursor.close()
        if self.mine and self._noted is not None:
            self._note(self._noted)
        return lost

    def _restore_segments(self, appender: Appender) -> int:
        lost = 0
        for segment in list(self.segments):
            path = segment.path
            current = self.appended and segment is self.segments[-1]
            read = self._reader.descriptor if segment.number == self._reader.number else _NOT_OPEN
            source = appender.descriptor if current else read
            if source != _NOT_OPEN:
                if self.mine and not _is_file(path, source):
                    _copy(source, path, appender.end if current else segment.size)
                    if current:
                        _reopen(appender, path)
                        self._reader.forget()  # it has the old file open, and new events go to the copy
            elif not os.path.exists(path) and not (self.busy and segment is self.segments[0]):
                lost += segment.left
                if segment is self.segments[0]:
                    self.offset = 0
                    self._reader.forget()
                self.segments.remove(segment)
        return lost

    def _measure(self, appender: Appender) -> None:
        """Set the appender's end to the actual size, after another program has cut the file or written to it."""
        size = os.fstat(appender.descriptor).st_size
        if size > appender.end:
            appender.amend()
        elif size < appender.end:
            appender.end = size
            if len(self.segments) == 1:
                self._reader.forget()
                if self.offset > size:
                    self.offset = 0  # all that is in the file was written after the cut

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._lock_descriptor))
        except OSError:
            return False

    def sync(self) -> None:
        """Sync the cursor and the directory entries to the medium."""
        with contextlib.suppress(FileNotFoundError):
            cursors.sync_path(self._path(cursors.FILE_NAME))
        cursors.sync_path(self.path)

    def publish(self, ledger: bytes) -> None:
        """Write *ledger* to its file. Errors are ignored: the spool works without the file."""
        path = self._path(LEDGER_NAME)
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, ledger)
            finally:
                os.close(descriptor)
            os.replace(f"{path}.tmp", path)

    def release(self) -> None:
        """Unlock the store and leave its files: the next process adopts it."""
        if self._lock_descriptor != _NOT_OPEN:
            # Closing the descriptor is not enough: a forked child may hold a copy of it, and with it the lock.
            with contextlib.suppress(OSError):  # see close_if_open
                unlock(self._lock_descriptor)
        self.forget()

    def forget(self) -> None:
        """Close all files without unlocking. For a forked child: the lock belongs to the parent."""
        self._reader.forget()
        self._cursor.close()
        descriptor, self._lock_descriptor = self._lock_descriptor, _NOT_OPEN
        if descriptor != _NOT_OPEN:
            cursors.close_if_open(descriptor)

    def remove(self) -> None:
        """Delete the store, whose events are all settled, and unlock it."""
        with contextlib.suppress(OSError):
            # The cursor goes last: without it, the next owner would deliver remaining segments again.
            for name in sorted(filter(_is_own, os.listdir(self.path)), key=cursors.FILE_NAME.__eq__):
                os.unlink(self._path(name))
            os.rmdir(self.path)
        self.release()


def _is_own(name: str) -> bool:
    return name in _OWN_FILES or name.endswith(".tmp") or is_segment(name)


def mark(directory: str) -> None:
    """Mark *directory* as a spool. A missing directory is created.

    Raises:
        OSError: If it cannot be made.
    """
    os.makedirs(directory, exist_ok=True)
    with contextlib.suppress(OSError):  # the disk may be full; a store marks the directory as well
        os.close(os.open(os.path.join(directory, MARK), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))


def is_spool(directory: str) -> bool:
    """Return True if *directory* is a spool's, even an empty one."""
    return bool(stores_in(directory)) or os.path.exists(os.path.join(directory, MARK))


def stores_in(directory: str) -> list[str]:
    """Return the paths of all stores in *directory*, oldest first; none if there is no such directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [os.path.join(directory, name) for name in sorted(names) if _NAME.fullmatch(name)]


def is_alive(path: str) -> bool:
    """Return True if a process has locked the store at *path*.

    Raises:
        OSError: If it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A shared lock, released at once. A process that tries to adopt the store meanwhile fails, and retries later.
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def owner_of(name: str) -> int:
    """Return the process ID in the name of a store: that of its creator."""
    match = _NAME.fullmatch(name)
    if match is None:
        msg = f"{name!r} is no name of a store"
        raise SinkError(msg)
    return int(match[2])


def _locked(path: str) -> int | None:
    """Lock the directory at *path* and return its descriptor; None if another process has locked it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # The last owner may have removed the directory between the open and the lock.
        if try_lock(descriptor) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _ends_a_line(path: str, offset: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at_the_end = os.fstat(descriptor).st_size == offset
        return at_the_end or os.pread(descriptor, 1, offset - 1) == b"\n"
    finally:
        os.close(descriptor)


def _is_file(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _reopen(appender: Appender, path: str) -> None:
    # dup2 keeps the descriptor's number: an interrupted write may be about to use it.
    opened = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.dup2(opened, appender.descriptor, inheritable=False)
    os.close(opened)


def _copy(source: int, path: str, size: int) -> None:
    """Copy the first *size* bytes of the open file *source* to a new file at *path*, atomically."""
    temporary = f"{path}.tmp"
    target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        place = 0
        while True:  # see count_lines
            chunk = os.pread(source, min(_CHUNK_BYTES, size - place), place)
            if not chunk:
                break
            place += os.write(target, chunk)
    finally:
        os.close(target)
    os.replace(temporary, path)
