"""Find the events that a rotator loses when it copies a file and then truncates it.

``logrotate``'s *copytruncate* copies a log file to its end, waits for the disk, and truncates the file. Events that are
appended in between are in neither file. `RecentWrites` keeps the last bytes that were written and their offsets, and
`find_copies` searches for the copy; together they say which events are missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The `RecentWrites.end` of a file whose content is unknown.
UNKNOWN = -1

#: A copy that is older than the truncation by more than this was made for another purpose. For a large file a minute
#: may pass between the two, until the copy is on the disk.
COPY_MAX_AGE_SECONDS = 900

#: Larger compressed copies are not decompressed: that would take longer than an application should wait for its log.
MAX_DECOMPRESSED_BYTES = 256 * 1024 * 1024


class RecentWrites:
    """The last writes to a file, without a gap up to its `end`.

    It has no lock: the caller holds that of the sink.

    Args:
        limit_bytes: The maximum number of bytes to keep; the oldest are dropped first. The last write is kept whatever
            its size, unless this is 0.
    """

    __slots__ = ("_limit", "began_ns", "end", "items", "room")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        #: The writes, oldest first: one event, or several events and the end of each.
        self.items: deque[bytes | tuple[bytes, Sequence[int]]] = deque()
        #: How many more bytes may be kept; if negative, `trim` is due.
        self.room: int = limit_bytes
        #: The offset of the next write, or `UNKNOWN`.
        self.end: int = UNKNOWN
        #: The time of the file's first event, in nanoseconds since the epoch, if the file was empty before it.
        self.began_ns: int = 0

    def restart(self, end: int) -> None:
        """Forget all writes; the next one will be at *end*."""
        self.end = end
        self.items.clear()
        self.room = self._limit

    def add(self, data: bytes, ends: Sequence[int], at: int) -> None:
        """Record that *data* was written at offset *at*, with events that end at *ends* within it.

        If *at* is not `end`, forget all earlier writes: a signal handler may have written in between.
        """
        if not at:
            self.began_ns = time.time_ns()
        size = len(data)
        item = (data, ends) if len(ends) > 1 else data
        # No call within these lines: signal handlers run at calls.
        if self.end != at:
            self.restart(UNKNOWN)
            return
        self.items += (item,)
        self.end += size
        self.room -= size
        if self.room < 0:
            self.trim()

    def trim(self) -> None:
        """Forget the oldest writes beyond the limit."""
        items = self.items
        while self.room < 0 and len(items) > (1 if self._limit else 0):
            size = len(_data_of(items[0]))
            del items[0]
            self.room += size

    @property
    def start(self) -> int:
        """The offset of the first byte that is kept."""
        return self.end - (self._limit - self.room)

    def joined(self) -> bytes:
        """Return all kept bytes."""
        return b"".join(map(_data_of, self.items))

    def events(self) -> Iterator[tuple[int, bytes]]:
        """Yield the offset of each kept event, and the event, oldest first."""
        at = self.start
        for item in self.items:
            data, ends = (item, ()) if isinstance(item, bytes) else item
            begin = 0
            for end in ends or (len(data),):
                yield at + begin, data[begin:end]
                begin = end
            at += len(data)


def _data_of(item: bytes | tuple[bytes, Sequence[int]]) -> bytes:
    return item if isinstance(item, bytes) else item[0]


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a file, made before the file was truncated.

    Args:
        path: The path of the copy.
        begin: The offset of its first byte, as `RecentWrites` counts. Offsets continue after a truncation that was not
            noticed, so a second copy does not begin at 0.
        end: The offset after its last byte.
        status: The file's status.
        plain: False if it is compressed.
    """

    path: str
    begin: int
    end: int
    status: os.stat_result
    plain: bool

    def holds(self, start: int, end: int) -> bool:
        """Return True if the copy contains what was written from *start* to *end*."""
        return self.begin <= start and end <= self.end

    def drop_half_event(self, size: int) -> os.stat_result:
        """Cut off the last *size* bytes, a part of an event that is written again; return the new status.

        The copy was complete before the file was truncated, so no process appends to it. A compressor that reads the
        copy now may include the half event.
        """
        descriptor = self._open()
        try:
            status = os.fstat(descriptor)
            if status.st_size == self.status.st_size:
                os.ftruncate(descriptor, status.st_size - size)
                # Rotators use the modification time.
                os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        # The rotator may have renamed the copy since.
        names = [self.path]
        for _ in range(_LOOKS):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = os.open(name, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
                    if os.path.samestat(os.fstat(descriptor), self.status):
                        return descriptor
                    os.close(descriptor)
            with os.scandir(os.path.dirname(self.path)) as entries:
                names = [entry.path for entry in entries if entry.inode() == self.status.st_ino]
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)


def find_copies(
    recent: RecentWrites, standing: int, log: os.stat_result, path: str, since_ns: int, known: set[Identity]
) -> list[Copy]:
    """Return the copies that were made of a file before it was truncated, oldest first; none if one is not found.

    A copy is a file in the same directory whose name begins like the file's name up to the last dot: ``app.log.1``,
    ``app.log-20300101.gz``, ``app.1.log``. It must have been modified since *since_ns*, end within *recent*, and be
    equal to it byte by byte. Copies compressed by gzip, bzip2 or xz are decompressed. If several match, the longest is
    the copy. There are several copies if the file was truncated again before that was noticed.

    Args:
        recent: The last writes to the file, before and after the truncation.
        standing: The number of these bytes that were written after the truncation and are in the file.
        log: The truncated file's status.
        path: Its absolute path.
        since_ns: The time when the file was opened, or truncated before, in nanoseconds since the epoch, by the file
            system's clock.
        known: Copies of earlier contents.
    """
    oldest = max(since_ns, log.st_mtime_ns - COPY_MAX_AGE_SECONDS * 1_000_000_000)
    found: list[Copy] = []
    candidates = _candidates(path, oldest, log)
    for attempt in range(_LOOKS):
        copies = _copies_among(candidates, recent, recent.end - standing, known)
        if copies and (not found or copies[0].end >= found[0].end):
            found = copies
        # The rotator may be working again and renaming files. A file that is renamed while the directory is read may be
        # missed, or another one found under its name.
        before, candidates = candidates, _candidates(path, oldest, log)
        if found and _same_files(before, candidates):
            break
        time.sleep(0.0005 * (attempt + 1))
    return found


#: Device, inode, size and time of modification.
Identity = tuple[int, int, int, int]

_LOOKS = 10


def identity(status: os.stat_result) -> Identity:
    """Return values that identify a file in its present state."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _candidates(path: str, oldest_ns: int, log: os.stat_result) -> list[tuple[str, os.stat_result]]:
    directory, base = os.path.split(path)
    stem = base.rpartition(".")[0] or base
    found: list[tuple[str, os.stat_result]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(stem) and entry.name != base:
                    try:
                        status = entry.stat()
                    except OSError:
                        continue  # renamed meanwhile, or a dangling link
                    if (
                        stat.S_ISREG(status.st_mode)
                        and status.st_mtime_ns >= oldest_ns
                        and not os.path.samestat(status, log)
                    ):
                        found.append((entry.path, status))
    except OSError:
        pass
    return found


def _same_files(some: list[tuple[str, os.stat_result]], others: list[tuple[str, os.stat_result]]) -> bool:
    return {(path, status.st_ino) for path, status in some} == {(path, status.st_ino) for path, status in others}


def _copies_among(
    candidates: list[tuple[str, os.stat_result]], recent: RecentWrites, stop: int, known: set[Identity]
) -> list[Copy]:
    candidates = [(path, status) for path, status in candidates if identity(status) not in known]
    first = _first_copy(candidates, recent, stop)
    if first is None:
        return []
    found = [first]
    # A truncation that was not noticed makes a second copy, which begins with a later event.
    written = recent.joined()
    begins = [begin for begin, _ in recent.events() if first.end <= begin < stop]
    for path, status in candidates if begins else ():
        if path != first.path:
            content, plain = _content_from(path, status, 0, stop - begins[0])
            for begin in begins if content else ():
                if content and begin + len(content) <= stop and written.startswith(content, begin - recent.start):
                    found.append(Copy(path, begin, begin + len(content), status, plain))
                    break
    return found


def _first_copy(candidates: list[tuple[str, os.stat_result]], recent: RecentWrites, stop: int) -> Copy | None:
    written = recent.joined()
    start = recent.start
    enough = next((start + len(event) for start, event in recent.events()), recent.end)
    first: Copy | None = None
    for path, status in candidates:
        content, plain = _content_from(path, status, start, stop)
        if content is not None and written.startswith(content):
            end = start + len(content)
            # If less than one event can be compared, another file may match by chance. A match is the copy of an empty
            # file if it was made before the file's first event.
            if (end >= enough or end == stop or (not start and status.st_mtime_ns <= recent.began_ns)) and (
                first is None or end > first.end
            ):
                first = Copy(path, 0, end, status, plain)
    return first


def _content_from(path: str, status: os.stat_result, start: int, stop: int) -> tuple[bytes | None, bool]:
    """Return the content of a file from offset *start* on, decompressed, and whether the file is plain.

    The content is None unless it ends between *start* and *stop*.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            if not os.path.samestat(os.fstat(file.fileno()), status):
                return None, True
            magic = file.read(6)
            file.seek(0)
            unpacked = _unpacked(file, magic)
            if unpacked is not None:
                return (_end_of_stream(unpacked, start, stop) if stop <= MAX_DECOMPRESSED_BYTES else None), False
            size = os.fstat(file.fileno()).st_size
            if not start <= size <= stop:
                return None, True
            file.seek(start)
            return _read_all(file, size - start), True
    except Exception:
        return None, True


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def _unpacked(file: Any, magic: bytes) -> _Readable | None:
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ"):
        import lzma

        return lzma.LZMAFile(file)
    return None


_CHUNK_BYTES = 1024 * 1024


def _end_of_stream(stream: _Readable, start: int, stop: int) -> bytes | None:
    at = 0
    kept: list[bytes] = []
    while chunk := stream.read(_CHUNK_BYTES):
        at += len(chunk)
        if at > stop:
            return None
        if at > start:
            kept.append(chunk[max(0, len(chunk) - (at - start)) :])
    return b"".join(kept) if at >= start else None


def _read_all(file: _Readable, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
