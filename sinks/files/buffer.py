"""The buffer of a file sink: `Buffer`."""

from __future__ import annotations

from time import monotonic
from typing import Any

from outfall.sinks.core.lifecycle import here


class Buffer:
    """Lines that wait to be written, in order.

    Args:
        limit: The size in bytes at which the buffer is full; 0: no buffer.
        seconds: How long after the last write the lines are due.

    A line is added by ``lines += (line,)`` and ``size += len(line)``, without a call in between: neither another thread
    nor a signal handler can run there, so adding takes no lock. Everything else needs the sink's lock.
    """

    due: float
    in_flight: int
    limit: int
    lines: list[bytes]
    size: int

    __slots__ = ("_seconds", "due", "in_flight", "limit", "lines", "size")

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._seconds = seconds
        self.clear()

    def clear(self) -> None:
        """Drop all lines."""
        self.lines = []
        #: The size of the lines in bytes.
        self.size = 0
        #: The number of lines in the current write.
        self.in_flight = 0
        self.wind()

    def wind(self) -> None:
        """Set the time when lines added from now on are due, by the monotonic clock."""
        self.due = monotonic() + self._seconds

    @property
    def pending(self) -> int:
        """The number of lines that are not in the file yet."""
        return len(self.lines) + self.in_flight

    def withdraw(self, data: bytes) -> bool:
        """Remove the line *data*, compared by identity; return False if it was written, in whole or in part."""
        size = len(data)
        for index, waiting in enumerate(self.lines):
            if waiting is data:
                del self.lines[index]
                self.size -= size
                return True
        return False

    def put_back(self, lines: list[bytes], torn: int) -> None:
        """Put *lines* back to the front, without the first *torn* bytes, which are in the file."""
        lines[0] = lines[0][torn:]
        self.lines[:0] = lines
        size = sum(map(len, lines))
        self.size += size

    def stop(self) -> int:
        """Drop all lines, accept no more, and return how many were dropped."""
        self.limit = 0
        left, self.lines = self.lines, []
        return len(left)


def append_to_buffer(sink: Any, data: bytes) -> None:
    """Add *data*, a line, to the buffer of *sink*, without its lock.

    Raises:
        LookupError: If the pipeline has to add it.
    """
    buffer = sink._buffer
    try:
        size = len(data)
        late = monotonic() >= buffer.due or not here[0]
    except BaseException:
        sink._count_dropped("interrupted")
        raise
    # No call from here on, so neither another thread nor a signal handler can run.
    if late or buffer.size + size >= buffer.limit:
        raise LookupError
    buffer.lines += (data,)
    buffer.size += size
