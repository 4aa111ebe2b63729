"""What a file sink keeps in memory before it writes it: `Buffer`."""

from __future__ import annotations

from time import monotonic
from typing import Any

from outfall.sinks.core.lifecycle import here


class Buffer:
    """Lines that wait to be written, in the order in which they came.

    Args:
        limit: How many bytes may wait; 0: none are kept.
        seconds: How long after the last write they are due to be written.

    A line is added by ``lines += (line,)`` and ``size += len(line)``, with no call in between: neither another thread
    nor a signal handler comes in there, so that adding takes no lock. All else is done under the sink's lock.
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
        """Forget all lines."""
        self.lines = []
        #: How many bytes wait.
        self.size = 0
        #: How many lines are being written.
        self.in_flight = 0
        self.wind()

    def wind(self) -> None:
        """Set when the lines that come from now on are due, by the monotonic clock."""
        self.due = monotonic() + self._seconds

    @property
    def pending(self) -> int:
        """How many lines are not in the file yet."""
        return len(self.lines) + self.in_flight

    def withdraw(self, data: bytes) -> bool:
        """Take the very line *data* out again; return False if it is not here as a whole any more."""
        for index, waiting in enumerate(self.lines):
            if waiting is data:
                del self.lines[index]
                self.size -= len(data)
                return True
        return False

    def put_back(self, lines: list[bytes], torn: int) -> None:
        """Let *lines*, taken out before, wait on in front of all others; the first *torn* bytes are written."""
        lines[0] = lines[0][torn:]
        self.lines[:0] = lines
        self.size += sum(map(len, lines))

    def stop(self) -> int:
        """Keep no lines from now on; forget those that wait, and return how many they were."""
        self.limit = 0
        left, self.lines = self.lines, []
        return len(left)


def append_to_buffer(sink: Any, data: bytes) -> None:
    """Let *data*, a line, wait in the buffer of *sink*, without its lock.

    Raises:
        LookupError: If the pipeline has to do it.
    """
    buffer = sink._buffer
    try:
        size = len(data)
        late = monotonic() >= buffer.due or not here[0]
    except BaseException:
        sink._count_dropped("interrupted")
        raise
    # No call from here on, and so no place for another thread or a signal handler.
    if late or buffer.size + size >= buffer.limit:
        raise LookupError
    buffer.lines += (data,)
    buffer.size += size
