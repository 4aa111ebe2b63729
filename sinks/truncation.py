"""What a rotator that copies a file and then truncates it has missed.

``logrotate``'s *copytruncate* copies a log file to its end, waits for the disk, and truncates the file. What was
appended in between stands in neither. Here is what it takes to find out which events those are: `RecentWrites`, the
last bytes that were written and where they stood, and `copied_up_to`, the search for the copy.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The end of a file of which nothing is known.
UNKNOWN = -1

#: A copy that is older than the truncation by more than this was made for another purpose. Of a large file a minute
#: may pass between the two, until the copy is on the disk.
COPY_MAX_AGE_SECONDS = 900

#: Beyond this, finding out how long a compressed copy is would take longer than a logging application should wait.
MAX_DECOMPRESSED_BYTES = 256 * 1024 * 1024


class RecentWrites:
    """The last writes to a file, without a gap up to its `end`.

    Not locked: it belongs to whoever holds the sink's lock.

    Args:
        limit_bytes: How much is kept; the oldest goes first. The last write is kept whatever its size, unless this
            is 0.
    """

    __slots__ = ("_limit", "began_ns", "end", "items", "room")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        #: The writes, oldest first: one event, or several and where each ends.
        self.items: deque[bytes | tuple[bytes, Sequence[int]]] = deque()
        #: How many bytes more may be kept; below 0 `trim` is due.
        self.room = limit_bytes
        #: Offset at which the next write will stand, or `UNKNOWN`.
        self.end = UNKNOWN
        #: When the file's first event was written if it was empty before, in nanoseconds since the epoch.
        self.began_ns = 0

    def restart(self, end: int) -> None:
        """Forget all; the next write will stand at *end*."""
        self.end = end
        self.items.clear()
        self.room = self._limit

    def add(self, data: bytes, ends: Sequence[int] = ()) -> None:
        """Note that *data* was written at `end`; events end at *ends* in it, by default one at its end."""
        if not self.end:
            self.began_ns = time.time_ns()
        size = len(data)
        item = (data, ends) if len(ends) > 1 else data
        # No call, and so no place for an interrupt, between these.
        self.items += (item,)
        self.end += size
        self.room -= size
        if self.room < 0:
            self.trim()

    def trim(self) -> None:
        """Forget the oldest writes that are over the limit."""
        items = self.items
        while self.room < 0 and len(items) > (1 if self._limit else 0):
            size = len(_data_of(items[0]))
            del items[0]
            self.room += size

    @property
    def start(self) -> int:
        """Offset of the first byte that is kept."""
        return self.end - (self._limit - self.room)

    @property
    def first_end(self) -> int:
        """Offset at which the first write that is kept ends; `end` where there is none."""
        return self.start + len(_data_of(self.items[0])) if self.items else self.end

    def joined(self) -> bytes:
        """Return all that is kept."""
        return b"".join(map(_data_of, self.items))

    def events(self) -> Iterator[tuple[int, bytes]]:
        """Yield each event that is kept and its offset, oldest first."""
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


def copied_up_to(recent: RecentWrites, standing: int, log: os.stat_result, path: str, since_ns: int) -> int | None:
    """Return how many bytes of a file stand in the copy that was made before it was truncated, or None if unknown.

    A copy is a file beside it whose name begins as that of the file does, up to the last dot: ``app.log.1``,
    ``app.log-20300101.gz``, ``app.1.log``. It must have been modified since *since_ns*, end within *recent*, and agree
    with it byte for byte. Copies packed by gzip, bzip2 or xz are unpacked. Where several fit, the longest is the one.

    Args:
        recent: What was written last to the file, before and after the truncation.
        standing: How much of it was written after the truncation.
        log: The truncated file's status.
        path: Its absolute path.
        since_ns: When the file was opened or truncated before, in nanoseconds since the epoch, by its own clock.
    """
    written = recent.joined()
    start = recent.start
    stop = recent.end - standing
    oldest = max(since_ns, log.st_mtime_ns - COPY_MAX_AGE_SECONDS * 1_000_000_000)
    found: int | None = None
    for candidate, modified_ns in _candidates(path, oldest, log):
        content = _content_from(candidate, start, stop)
        if content is None or not written.startswith(content):
            continue
        length = start + len(content)
        if length >= (recent.first_end if start else 1) or length == stop:
            proven = True
        else:
            # It agrees, since there is next to nothing to compare. An empty copy of a file that was empty then: it
            # must be from between the file's becoming empty and its first event.
            proven = length == 0 and modified_ns <= recent.began_ns
        if proven and (found is None or length > found):
            found = length
    return found


def _candidates(path: str, oldest_ns: int, log: os.stat_result) -> list[tuple[str, int]]:
    directory, base = os.path.split(path)
    stem = base.rpartition(".")[0] or base
    found: list[tuple[str, int]] = []
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
                        found.append((entry.path, status.st_mtime_ns))
    except OSError:
        pass
    # A copy being compressed stands there twice, and only the uncompressed one is whole: "app.log.1" sorts first.
    return sorted(found)


def _content_from(path: str, start: int, stop: int) -> bytes | None:
    """Return what stands in a file from *start* on, unpacked, or None unless it ends between *start* and *stop*."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - names from scandir are text
            magic = file.read(6)
            file.seek(0)
            unpacked = _unpacked(file, magic)
            if unpacked is not None:
                return _end_of_stream(unpacked, start, stop) if stop <= MAX_DECOMPRESSED_BYTES else None
            size = os.fstat(file.fileno()).st_size
            if not start <= size <= stop:
                return None
            file.seek(start)
            return _read_all(file, size - start)
    except Exception:  # noqa: BLE001 - unreadable, still being compressed, or an algorithm that this Python lacks
        return None


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def _unpacked(file: Any, magic: bytes) -> _Readable | None:
    if magic.startswith(b"\x1f\x8b"):
        import gzip  # noqa: PLC0415 - only where there is something to unpack

        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"BZh"):
        import bz2  # noqa: PLC0415 - only where there is something to unpack

        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ"):
        import lzma  # noqa: PLC0415 - only where there is something to unpack

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
