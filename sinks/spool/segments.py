"""Segments, the files that hold a spool's events: named, appended to, read and counted.

Nothing here knows of targets, threads or owners.
"""

from __future__ import annotations

import os
import re

from outfall.sinks.spool.cursor import FORMAT, NewerFormatError

_NAME = re.compile(r"(\d{8,18})\.v(\d{1,9})\.ndjson")

#: The descriptor of a file that is not open.
_NOT_OPEN = -1

_CHUNK_BYTES = 512 * 1024


class Segment:
    """One file of a store, as far as it is known.

    Args:
        number: Its place among the others of the store.
        size: In bytes. Of the segment that is being appended to, what it had when it was opened.
        events: How many lines it has; of the segment that is being appended to, those of its earlier life.
    """

    __slots__ = ("events", "number", "settled", "size")

    def __init__(self, number: int, size: int = 0, events: int = 0) -> None:
        self.number: int = number
        self.size: int = size
        self.events: int = events
        #: How many of the lines have been read and settled.
        self.settled: int = 0

    @property
    def left(self) -> int:
        """How many events in it are not settled; less than none if there were more than known."""
        return self.events - self.settled

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.number:08}.v{FORMAT}.ndjson"


class Appender:
    """The end of a segment that events are appended to; for one thread at a time.

    It lives longer than one segment, so that a hot path can hold on to it: `Store.roll` exchanges the file.
    """

    __slots__ = ("before", "descriptor", "end", "events", "found", "limit", "unsure")

    def __init__(self) -> None:
        self.descriptor: int = _NOT_OPEN
        #: How long the segment is, in bytes of whole lines.
        self.end: int = 0
        #: How many events were appended to the segment, and to others before.
        self.events: int = 0
        self.before: int = 0
        #: Up to this size events may be appended without a check; -1: none may. The owner sets it.
        self.limit: int = -1
        #: Whether an interrupt may have come between a write and its being counted.
        self.unsure: bool = False
        #: How many events `amend` has counted since the interrupted thread last asked.
        self.found: int = 0

    @staticmethod
    def create(path: str) -> int:
        """Return the descriptor of a new segment at *path*.

        Raises:
            OSError: If it cannot be made, or is there already.
        """
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Close the segment."""
        self.limit = -1
        # Forgotten before it is closed: a child forked in between must not close another file of the same number.
        descriptor, self.descriptor = self.descriptor, _NOT_OPEN
        if descriptor != _NOT_OPEN:
            os.close(descriptor)

    def append(self, line: bytes) -> None:
        """Append *line*, whole or not at all.

        Raises:
            OSError: If it is not there.
        """
        try:
            written = os.write(self.descriptor, line)
            if written != len(line):
                self.finish(line, written)
            self.end += len(line)
            self.events += 1
        except Exception:
            raise
        except BaseException:
            self.unsure = True
            raise

    def finish(self, line: bytes, written: int) -> None:
        """Write the rest of *line* after a short write, or take back what stands there and raise."""
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
        """Count the events that an interrupt has left uncounted; half a line is taken back."""
        size = os.fstat(self.descriptor).st_size if self.descriptor != _NOT_OPEN else self.end
        if size <= self.end:
            self.unsure = False
            return
        found = os.pread(self.descriptor, size - self.end, self.end)
        whole = found.rfind(b"\n") + 1
        if whole < len(found):
            self._cut(self.end + whole)
        events = found.count(b"\n")
        # Together: an interrupt could come at a call.
        self.events += events
        self.found += events
        self.end += whole
        self.unsure = False

    def _cut(self, end: int) -> None:
        """Cut off what stands beyond *end*; if that fails, close the file: nothing may be appended to half a line."""
        try:
            os.ftruncate(self.descriptor, end)
        except OSError:
            self.close()


class Reader:
    """Reads the lines of one segment after the other; for one thread at a time. It reads ahead."""

    def __init__(self) -> None:
        self.descriptor: int = _NOT_OPEN
        #: The number of the segment that is open.
        self.number: int = -1
        #: Lines read and not yet taken, from `_ready_at` on.
        self._ready: list[bytes] = []
        self._ready_at = 0
        #: The beginning of the line after them.
        self._half = b""
        self._read_to = 0

    def lines(self, path: str, number: int, start: int, stop: int, most: int, size: int) -> tuple[list[bytes], int]:
        """Return lines without their ends, and where the last one ends.

        Args:
            path: The file of the segment.
            number: Its number.
            start: Where to begin, in bytes: where the lines read before have ended, if it is the same segment.
            stop: Where a line ends beyond which nothing may be read.
            most: How many lines at most.
            size: How many bytes at most, unless one line alone is more.

        If the file ends before *stop*, what there is of it is returned as if it did not.

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
                after = min(after + length, stop)  # the last may have no end
                continue
            line = self._ready[self._ready_at]
            length = len(line) + 1
            if taken and after + length - start > size:
                break
            self._ready_at += 1
            taken.append(line)
            after = min(after + length, stop)  # the last may have no end
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
            # Half a line at the end of a file: its writer was killed.
            text, self._half = b"".join((*parts, chunk)), b""
        else:
            text, self._half = b"".join((*parts, chunk[:cut])), chunk[cut:]
        self._ready, self._ready_at = text.split(b"\n") if text else [], 0
        if text.endswith(b"\n"):
            self._ready.pop()

    def forget(self) -> None:
        """Close the file, and forget what was read ahead."""
        self._ready, self._ready_at, self._half, self._read_to = [], 0, b"", 0
        descriptor, self.descriptor = self.descriptor, _NOT_OPEN
        if descriptor != _NOT_OPEN:
            os.close(descriptor)


def segments_in(path: str) -> list[tuple[int, str]]:
    """Return number and name of each segment in the store at *path*, oldest first.

    Raises:
        NewerFormatError: If a later version of Outfall has written one.
        OSError: If the directory cannot be read.
    """
    found: list[tuple[int, str]] = []
    for name in os.listdir(path):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        if int(match[2]) > FORMAT:
            msg = f"{name} has format {int(match[2])}; this version of Outfall knows {FORMAT}"
            raise NewerFormatError(msg)
        found.append((int(match[1]), name))
    return sorted(found)


def is_segment(name: str) -> bool:
    """Return True if a file of that *name* is a segment, of any version."""
    return _NAME.fullmatch(name) is not None


def count_lines(path: str, offset: int = 0) -> int:
    """Return how many lines the file at *path* has from *offset* on, half a line at its end included."""
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
