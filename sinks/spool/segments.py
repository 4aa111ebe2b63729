"""Segments, the files that hold a spool's events: name, append, read and count.

Nothing here knows of targets, threads or owners.
"""

from __future__ import annotations

import contextlib
import os
import re

from outfall.sinks.spool.cursor import FORMAT, NewerFormatError, close_if_open

_NAME = re.compile(r"(\d{8,18})\.v(\d{1,9})\.ndjson")

#: The descriptor of a file that is not open.
_NOT_OPEN = -1

_CHUNK_BYTES = 512 * 1024


class Segment:
    """A file of a store, and what is known of its content.

    Args:
        number: The position among the segments of the store.
        path: The path of the file.
        size: The size in bytes. For the segment that is appended to: its size when it was opened.
        events: The number of lines. For the segment that is appended to: the number when it was opened.
    """

    __slots__ = ("events", "number", "path", "settled", "size")

    def __init__(self, number: int, path: str, size: int = 0, events: int = 0) -> None:
        self.number: int = number
        self.path: str = path
        self.size: int = size
        self.events: int = events
        #: How many of the lines are settled.
        self.settled: int = 0

    @property
    def left(self) -> int:
        """How many of its events are not settled; negative if the file has more lines than were known."""
        return self.events - self.settled


class Appender:
    """Appends events to the current segment. Use it from one thread at a time.

    It outlives the segment, so that a hot path can keep it: `Store.roll` exchanges the file.
    """

    __slots__ = ("descriptor", "earlier", "end", "events", "found", "limit", "unsure")

    def __init__(self) -> None:
        self.descriptor: int = _NOT_OPEN
        #: The size of the whole lines in the segment, in bytes.
        self.end: int = 0
        #: How many events were appended to all segments so far, and how many of them to earlier ones.
        self.events: int = 0
        self.earlier: int = 0
        #: Up to this size events may be appended without a check; -1 for none. The owner sets it.
        self.limit: int = -1
        #: True if an interrupt may have come between a write and its count.
        self.unsure: bool = False
        #: How many events `amend` has counted that an interrupted thread has not yet asked for.
        self.found: int = 0

    @staticmethod
    def create(path: str) -> int:
        """Create a segment at *path* and return its descriptor.

        Raises:
            OSError: If it cannot be created, or exists already.
        """
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Close the segment."""
        self.limit = -1
        # Clear the attribute first: a child forked in between must not close another file with the same number.
        descriptor, self.descriptor = self.descriptor, _NOT_OPEN
        if descriptor != _NOT_OPEN:
            close_if_open(descriptor)

    def append(self, line: bytes) -> None:
        """Append *line*, whole or not at all.

        Raises:
            OSError: If it could not be appended.
        """
        try:
            size = len(line)
            written = os.write(self.descriptor, line)
            if written != size:
                self.finish(line, written)
            self.end += size
            self.events += 1
        except Exception:
            raise
        except BaseException:
            self.unsure = True
            raise

    def finish(self, line: bytes, written: int) -> None:
        """Write the rest of *line* after a short write, or cut off the part that was written and raise."""
        rest = memoryview(line)
        try:
            while True:  # see count_lines
                written += os.write(self.descriptor, rest[written:])
                if written >= len(line):
                    break
        except Exception:
            self._cut(self.end)
            raise

    def amend(self) -> None:
        """Count events that an interrupt left uncounted; cut off half a line."""
        size = os.fstat(self.descriptor).st_size if self.descriptor != _NOT_OPEN else self.end
        if size <= self.end:
            self.unsure = False
            return
        found = os.pread(self.descriptor, size - self.end, self.end)
        whole = found.rfind(b"\n") + 1
        if whole < len(found):
            self._cut(self.end + whole)
        events = found.count(b"\n")
        # No call within these lines: interrupts run at calls.
        self.events += events
        self.found += events
        self.end += whole
        self.unsure = False

    def _cut(self, end: int) -> None:
        """Truncate the file to *end*. If that fails, close it: nothing may be appended to half a line."""
        try:
            os.ftruncate(self.descriptor, end)
        except OSError:
            self.close()


class Reader:
    """Reads the lines of one segment after another, ahead of the caller. Use it from one thread at a time."""

    def __init__(self) -> None:
        self.descriptor: int = _NOT_OPEN
        #: The number of the segment that is open.
        self.number: int = -1
        #: Lines that were read ahead; those before `_ready_at` are returned already.
        self._ready: list[bytes] = []
        self._ready_at = 0
        #: The incomplete line after them.
        self._half = b""
        self._read_to = 0

    def lines(self, path: str, number: int, start: int, stop: int, most: int, size: int) -> tuple[list[bytes], int]:
        """Return the next lines without line breaks, and the offset after the last one.

        Args:
            path: The file of the segment.
            number: The number of the segment.
            start: The offset to start at, in bytes. For the same segment as before: the offset returned last.
            stop: The offset to stop at, which is the end of a line.
            most: The maximum number of lines.
            size: The maximum number of bytes. A single line may be longer.

        If the file ends before *stop*, the rest of the file is returned as if it reached *stop*.

        Raises:
            OSError: If the file cannot be read.
        """
        if self.number != number or self.descriptor == _NOT_OPEN:
            self.forget()
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.number, self._read_to = number, start
        taken: list[bytes] = []
        after = start
        while after < stop and len(taken) < most:
            if self._ready_at == len(self._ready):
                self._read_ahead(stop)
                if not self._ready:
                    return taken, stop
            whole = self._ready[self._ready_at : self._ready_at + most - len(taken)]
            length = sum(map(len, whole)) + len(whole)
            if after + length - start <= size:
                self._ready_at += len(whole)
                taken += whole
                after = min(after + length, stop)  # the last line may lack its line break
                continue
            line = self._ready[self._ready_at]
            length = len(line) + 1
            if taken and after + length - start > size:
                break
            self._ready_at += 1
            taken.append(line)
            after = min(after + length, stop)  # the last line may lack its line break
        return taken, after

    def _read_ahead(self, stop: int) -> None:
        """Read the next whole lines into `_ready`."""
        parts = [self._half]
        while True:
            chunk = os.pread(self.descriptor, max(0, min(_CHUNK_BYTES, stop - self._read_to)), self._read_to)
            self._read_to += len(chunk)
            cut = chunk.rfind(b"\n") + 1
            if cut or not chunk:
                break
            parts.append(chunk)
        if not chunk or (self._read_to >= stop and cut < len(chunk)):
            # Half a line ends the file: its writer was killed.
            text, self._half = b"".join((*parts, chunk)), b""
        else:
            text, self._half = b"".join((*parts, chunk[:cut])), chunk[cut:]
        self._ready, self._ready_at = text.split(b"\n") if text else [], 0
        if text.endswith(b"\n"):
            self._ready.pop()

    def forget(self) -> None:
        """Close the file, and discard what was read ahead."""
        self._ready, self._ready_at, self._half, self._read_to = [], 0, b"", 0
        descriptor, self.descriptor = self.descriptor, _NOT_OPEN
        if descriptor != _NOT_OPEN:
            close_if_open(descriptor)


def name_of(number: int) -> str:
    """Return the name of the file of the segment with this *number*."""
    return f"{number:08}.v{FORMAT}.ndjson"


def segments_in(path: str) -> dict[int, Segment]:
    """Return the segments in the store at *path* by number, oldest first; their events are not counted.

    Raises:
        NewerFormatError: If a later version of Outfall has written one.
        OSError: If the directory cannot be read.
    """
    found: dict[int, Segment] = {}
    for name in os.listdir(path):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        if int(match[2]) > FORMAT:
            msg = f"{name} has format {int(match[2])}; this version of Outfall knows {FORMAT}"
            raise NewerFormatError(msg)
        number, file = int(match[1]), os.path.join(path, name)
        with contextlib.suppress(FileNotFoundError):  # its owner has removed it
            found[number] = Segment(number, file, os.path.getsize(file))
    return dict(sorted(found.items()))


def is_segment(name: str) -> bool:
    """Return True if *name* is the name of a segment, of any version of the format."""
    return _NAME.fullmatch(name) is not None


def count_lines(path: str, offset: int = 0) -> int:
    """Return the number of lines in the file at *path* from *offset* on, half a line at its end included."""
    count, last = 0, b"\n"
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:  # a condition here would jump back outside of the `try`, from Python 3.12 on
            chunk = os.pread(descriptor, _CHUNK_BYTES, offset)
            if not chunk:
                break
            count += chunk.count(b"\n")
            offset += len(chunk)
            last = chunk[-1:]
    finally:
        os.close(descriptor)
    return count + (last != b"\n")
