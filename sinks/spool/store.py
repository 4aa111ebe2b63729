"""A store: the segments of one process in a spool's directory, the cursor that guards them, and who owns them.

Nothing here knows of targets or threads. Threads that share a `Store` guard it with a lock where its methods say so.
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
from outfall.sinks.spool.segments import Appender, Reader, Segment, count_lines, is_segment, segments_in

if TYPE_CHECKING:
    from outfall.sinks.core.item import Raw

_NAME = re.compile(r"(\d{19,20})-(\d{1,10})-([0-9a-f]{8})")

#: The file with the owner's ledger, for `SpoolStatus`.
LEDGER_NAME = "status.json"

#: An empty file that marks the directory as a spool's while no store is in it.
MARK = ".outfall-spool"

_NOT_OPEN = -1

_CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Portion:
    """Some lines read from a store, in order: what is delivered as one batch.

    Args:
        segment: The number of the segment they stand in.
        start: Where the first begins, in bytes.
        end: Where the last ends.
        raws: The events in them, as items of a `Batch`.
        lines: How many lines they are.
        corrupt: How many of these are no events.
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

    A store is a directory, locked by ``flock(2)`` for as long as its owner lives. If the lock can be had, the owner is
    dead, and the store belongs to the process that takes the lock. `create` and `adopt` make one.

    One thread may read (`take`, `begin`, `settle`) while another appends. The methods that say "guarded" are called
    under a lock that both threads use.
    """

    def __init__(self, path: str, descriptor: int, *, sync: bool) -> None:
        self.path = path
        self._sync = sync
        #: Whether it was made here, and is not adopted.
        self.mine = False
        self.name: str = os.path.basename(path)
        #: Oldest first; the last is appended to, if this store is this process's own.
        self.segments: deque[Segment] = deque()
        #: Whether the last segment is appended to.
        self.appended: bool = False
        #: Up to where the first segment is settled, in bytes.
        self.offset: int = 0
        #: Whether lines of the first segment are on their way.
        self.busy: bool = False
        self._lock_descriptor = descriptor
        #: The number of the newest segment so far: none comes twice, since the cursor would take it for settled.
        self._newest = 0
        #: A batch that was in flight when an earlier owner died.
        self._flight: Cursor | None = None
        self._noted: Cursor | None = None
        self._cursor = cursors.CursorFile(path)
        self._reader = Reader()

    # -- made

    @classmethod
    def create(cls, directory: str, *, sync: bool = False) -> Store:
        """Make a new store in *directory*, which is made too, and lock it.

        Args:
            directory: Where stores are.
            sync: Whether the cursor, full segments and the names of files have to be on the medium at once.

        Raises:
            OSError: If that cannot be done.
        """
        mark(directory)
        while True:
            # By time first, so that names sort by age; the rest only has to be nobody else's.
            name = f"{time.time_ns():020}-{os.getpid()}-{os.urandom(4).hex()}"
            path = os.path.join(directory, name)
            os.mkdir(path)
            # Another process may have taken it for a dead one and locked it. Then make another.
            descriptor = _locked(path)
            if descriptor is not None:
                store = cls(path, descriptor, sync=sync)
                store.mine = True
                return store

    @classmethod
    def adopt(cls, path: str, *, sync: bool = False) -> tuple[Store, str | None] | None:
        """Take over the store at *path*; return None if it has an owner, or is none.

        Second is what was found to be wrong with it, in words, if something was.

        Raises:
            NewerFormatError: If a later version of Outfall has written there. It is left alone.
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
        """Find the segments and the place to go on from."""
        sizes = {number: os.path.getsize(self._path(name)) for number, name in segments_in(self.path)}
        wrong: str | None = None
        place: Cursor | None = None
        try:
            place = cursors.read(self.path)
        except CursorError as error:
            wrong = str(error)
        if place is None and wrong is None and sizes and min(sizes) > 1:
            wrong = "the cursor is missing"
        if place is not None and sizes:
            wrong = self._doubt(place, sizes)
            if wrong is not None:
                place = None
        if place is not None:
            # A kill came after the cursor had moved on and before the segments behind it were removed.
            for number in [number for number in sizes if number < place.segment]:
                os.unlink(self._path(Segment(number).name))
                del sizes[number]
            if place.segment in sizes:
                self.offset = place.offset
                if place.end is not None:
                    self._flight = place
        for number in sorted(sizes):
            segment = Segment(number, sizes[number])
            segment.events = count_lines(self._path(segment.name), 0 if self.segments else self.offset)
            self.segments.append(segment)
        self._noted = place
        return wrong

    def _doubt(self, place: Cursor, sizes: dict[int, int]) -> str | None:
        """Return why the cursor at *place* must not be believed; None if it may."""
        if place.segment not in sizes:
            # Segments are removed oldest first, those given up too. Past the last one is where all is settled.
            past = place == Cursor(max(sizes) + 1, 0)
            return None if past or min(sizes) > place.segment else "the cursor is ahead of the data"
        if max(place.offset, place.end or 0) > sizes[place.segment]:
            return "the cursor is ahead of the data"
        if not all(self._ends_a_line(place.segment, offset) for offset in (place.offset, place.end) if offset):
            return "the cursor points into the midst of a line"
        return None

    def _ends_a_line(self, number: int, offset: int) -> bool:
        descriptor = os.open(self._path(Segment(number).name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            at_the_end = os.fstat(descriptor).st_size == offset
            return at_the_end or os.pread(descriptor, 1, offset - 1) == b"\n"
        finally:
            os.close(descriptor)

    def path_of(self, segment: Segment) -> str:
        """Return the path of the file of *segment*."""
        return self._path(segment.name)

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- appended to; by the thread that has the owner's lock

    def roll(self, appender: Appender) -> None:
        """Go on in a new segment.

        Args:
            appender: What the new one is opened in; what it had open is closed.

        Raises:
            OSError: If no segment can be made. Then all is as it was.
        """
        if self._sync and appender.descriptor != _NOT_OPEN:
            os.fsync(appender.descriptor)
        if self._noted is None:
            # While there is room: on a full disk a cursor can be written over but none made, and without one nothing
            # could be delivered that makes room.
            self._note(Cursor(self._newest + 1, 0))
        while True:
            segment = Segment(self._newest + 1)
            try:
                descriptor = appender.create(self.path_of(segment))
                break
            except FileExistsError:
                # An interrupt came between the making of the file and what follows.
                self._newest += 1
        old = appender.descriptor
        # Up to the end of this block there is no call, and so no place for an interrupt or a signal handler.
        if self.appended:
            last = self.segments[-1]
            last.size = appender.end
            last.events = appender.events
        self.segments += (segment,)
        self.appended = True
        self._newest += 1
        appender.before += appender.events
        appender.end = appender.events = 0
        appender.descriptor = descriptor
        appender.limit = -1
        appender.unsure = False
        if old != _NOT_OPEN:
            os.close(old)
        if self._sync:
            cursors.sync_path(self.path)

    def drop_oldest(self) -> int | None:
        """Remove the oldest segment that is neither read nor appended to; return what `Segment.left` was.

        Return None if there is none.
        """
        place = 1 if self.busy else 0
        if len(self.segments) - self.appended <= place:
            return None
        segment = self.segments[place]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(segment.name))
        del self.segments[place]
        if place == 0:
            # The cursor in the file names a segment that is gone: whoever recovers begins with the next.
            self.offset = 0
            self._flight = None
            self._reader.forget()
        return segment.left

    # -- read; by one thread, which takes the owner's lock where it says "guarded"

    def hold(self, end: int) -> int:
        """Keep the first segment for reading; return up to where `take` may read, 0 if there is nothing now. Guarded.

        It is `busy` until `settle` or `leave`.

        Args:
            end: How long the segment that is appended to is; of no meaning for others.
        """
        if not self.segments:
            return 0
        stop = end if self.appended and len(self.segments) == 1 else self.segments[0].size
        self.busy = self.offset < stop
        return stop if self.busy else 0

    def take(self, stop: int, lines: int, size: int) -> Portion:
        """Return the next lines.

        Args:
            stop: What `hold` returned.
            lines: How many at most.
            size: How many bytes at most, unless one line alone is more.

        What an earlier owner had in flight comes first, the same lines under the same key, however many they are.

        Raises:
            OSError: If the segment cannot be read.
        """
        head = self.segments[0]
        flight, self._flight = self._flight, None
        key = None
        if flight is not None and flight.end is not None and flight.segment == head.number and self.offset < flight.end:
            stop, key, lines, size = min(stop, flight.end), flight.key, stop, stop
        taken, after = self._reader.lines(self._path(head.name), head.number, self.offset, stop, lines, size)
        raws, corrupt = own_raws_of(taken) if self.mine else raws_of(taken)
        if key is None:
            key = f"{self.name}.{head.number}.{self.offset}-{after}"
        return Portion(head.number, self.offset, after, tuple(raws), len(raws) + corrupt, corrupt, key)

    def begin(self, portion: Portion) -> None:
        """Record in the cursor that *portion* is on its way, under its key, and that all before it is settled."""
        self._note(Cursor(portion.segment, portion.start, portion.end, portion.key))

    def settle(self, portion: Portion) -> None:
        """Note that *portion* is settled. Guarded. The next `begin`, `rest` or `pass_on` records it in the cursor."""
        self.busy = False
        if self.segments and self.segments[0].number == portion.segment:
            self.offset = portion.end
            self.segments[0].settled += portion.lines

    def leave(self) -> None:
        """Put back what was taken: `take` returns it again. Guarded."""
        self.busy = False
        self._flight = self._noted if self._noted is not None and self._noted.end is not None else None
        self._reader.forget()

    def rest(self) -> None:
        """Record in the cursor how far all is settled, and that nothing is on its way, unless it says so already.

        A batch that an earlier owner had on its way stays recorded.
        """
        if self.segments and self._flight is None:
            place = Cursor(self.segments[0].number, self.offset)
            if place != self._noted and (self.offset or self._noted is not None):
                self._note(place)

    def hold_spent(self) -> bool:
        """Keep the first segment, for `pass_on` and `shift`, if it is settled to its end and nothing more can come.

        Return whether it is so. Guarded.
        """
        if not self.segments or (self.appended and len(self.segments) == 1):
            return False
        self.busy = self.offset >= self.segments[0].size
        return self.busy

    def pass_on(self) -> str:
        """Move the cursor on to the next segment; return the path of the file to remove after `shift`.

        The cursor is written before the segment is removed, so it never points into a file that is gone.
        """
        following = self.segments[1].number if len(self.segments) > 1 else self.segments[0].number + 1
        self._note(Cursor(following, 0))
        return self._path(self.segments[0].name)

    def shift(self) -> int:
        """Forget the first segment, whose file is to be removed; return what `Segment.left` was. Guarded."""
        segment = self.segments.popleft()
        self.busy = False
        self.offset = 0
        self._reader.forget()
        return segment.left

    def _note(self, place: Cursor) -> None:
        self._cursor.write(place, sync=self._sync)
        self._noted = place

    # -- the files themselves

    def check(self, appender: Appender) -> bool:
        """Return True if the directory and the segment appended to are where and what they should be. Guarded."""
        if not self.appended:
            return True
        try:
            found = os.stat(self._path(self.segments[-1].name))
            own = os.fstat(appender.descriptor)
        except OSError:
            return False
        return os.path.samestat(found, own) and own.st_size == appender.end and self._cursor.is_there()

    def restore(self, appender: Appender) -> int:
        """Make the directory again after it was deleted or moved away; return how many events are lost. Guarded.

        Two segments are still open and are copied back: the one that is appended to, and the one that is read. For the
        reading thread alone.

        Raises:
            OSError: If that cannot be done.
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
            self.segments[-1].size, self.segments[-1].events = appender.end, appender.events
            self.appended = False
        lost = self._restore_segments(appender)
        self._cursor.close()
        if self.mine and self._noted is not None:
            self._note(self._noted)
        return lost

    def _restore_segments(self, appender: Appender) -> int:
        lost = 0
        for segment in list(self.segments):
            path = self._path(segment.name)
            current = self.appended and segment is self.segments[-1]
            read = self._reader.descriptor if segment.number == self._reader.number else _NOT_OPEN
            source = appender.descriptor if current else read
            if source != _NOT_OPEN:
                if self.mine and not _is_file(path, source):
                    _copy(source, path, appender.end if current else segment.size)
                    if current:
                        _reopen(appender, path)
                        self._reader.forget()  # what comes is not in the file that it has open
            elif not os.path.exists(path) and not (self.busy and segment is self.segments[0]):
                lost += segment.left
                if segment is self.segments[0]:
                    self.offset = 0
                    self._reader.forget()
                self.segments.remove(segment)
        return lost

    def _measure(self, appender: Appender) -> None:
        """Take the segment appended to for as long as it is, after somebody else has cut it or written to it."""
        size = os.fstat(appender.descriptor).st_size
        if size > appender.end:
            appender.amend()
        elif size < appender.end:
            appender.end = size
            if len(self.segments) == 1:
                self._reader.forget()
                if self.offset > size:
                    self.offset = 0  # what is there was written since

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._lock_descriptor))
        except OSError:
            return False

    def sync(self) -> None:
        """Write the cursor, and the names of all files, to the medium."""
        with contextlib.suppress(FileNotFoundError):
            cursors.sync_path(self._path(cursors.FILE_NAME))
        cursors.sync_path(self.path)

    def publish(self, ledger: bytes) -> None:
        """Write *ledger* to its file. If that fails, the spool goes on without it."""
        path = self._path(LEDGER_NAME)
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, ledger)
            finally:
                os.close(descriptor)
            os.replace(f"{path}.tmp", path)

    def release(self) -> None:
        """Release the store as it is: the next process to take its lock adopts it."""
        if self._lock_descriptor != _NOT_OPEN:
            # Closing it would not do: a child forked meanwhile holds the same open directory.
            unlock(self._lock_descriptor)
        self.forget()

    def forget(self) -> None:
        """Close what is open, in a forked child: the lock stays with the parent."""
        self._reader.forget()
        self._cursor.close()
        descriptor, self._lock_descriptor = self._lock_descriptor, _NOT_OPEN
        if descriptor != _NOT_OPEN:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the store and release it: all that is in it is settled."""
        with contextlib.suppress(OSError):
            # The cursor last: without it, segments that are still there would be delivered again.
            for name in sorted(filter(_is_ours, os.listdir(self.path)), key=lambda name: name == cursors.FILE_NAME):
                os.unlink(self._path(name))
            os.rmdir(self.path)
        self.release()


def _is_ours(name: str) -> bool:
    return name in {cursors.FILE_NAME, LEDGER_NAME} or name.endswith(".tmp") or is_segment(name)


def mark(directory: str) -> None:
    """Make *directory* if it is missing, and mark it as a spool's.

    Raises:
        OSError: If it cannot be made.
    """
    os.makedirs(directory, exist_ok=True)
    with contextlib.suppress(OSError):  # there may be no room; stores mark the directory as well
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
    """Return True if some process has the store at *path*.

    Raises:
        OSError: If it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Shared, and released at once. A process that tries to adopt the store meanwhile fails, and tries again later.
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def owner_of(name: str) -> int:
    """Return the number of the process that made the store *name*."""
    match = _NAME.fullmatch(name)
    if match is None:
        msg = f"{name!r} is no name of a store"
        raise SinkError(msg)
    return int(match[2])


def _locked(path: str) -> int | None:
    """Return the descriptor of the directory at *path*, locked; None if another process has it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # The lock may be that of a directory which its last owner has removed meanwhile.
        if try_lock(descriptor) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_file(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _reopen(appender: Appender, path: str) -> None:
    # Under the same descriptor: a signal handler's write may be about to use it.
    opened = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.dup2(opened, appender.descriptor, inheritable=False)
    os.close(opened)


def _copy(source: int, path: str, size: int) -> None:
    """Copy the first *size* bytes of the open file *source* to a new file at *path*, whole or not at all."""
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
