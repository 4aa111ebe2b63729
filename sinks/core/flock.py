"""Locks between processes, by ``flock(2)``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.errors import TemporaryDeliveryError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from types import TracebackType

#: Whether the platform has ``flock(2)``.
AVAILABLE = sys.platform != "win32"

#: The longest wait for another process, in seconds. Each holds the lock for a few renames only, unless it is stopped.
_PATIENCE_SECONDS = 5.0


class DirectoryLock:
    """An exclusive lock on a directory, between processes.

    The directory itself is locked, by ``flock(2)``: no lock file is left behind, and none can be deleted while it is
    held. The kernel releases the lock when its holder dies. The lock is advisory. It is re-entrant, but not
    thread-safe: the threads of its owner share it under a lock of their own.

    Args:
        directory: Path of the directory.

    Raises on entry:
        TemporaryDeliveryError: If another process has held it for 5 seconds. Later attempts wait for 0.05 seconds only,
            until one succeeds.
        OSError: If the directory cannot be opened, or its file system has no such locks.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._descriptor = -1
        self._depth = 0
        self._patience = _PATIENCE_SECONDS

    def __enter__(self) -> None:
        if self._depth:
            self._depth += 1
            return
        # Opened at each entry: forked children would share a lasting descriptor, and its lock.
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            deadline = monotonic() + self._patience
            pause = 0.000_5
            while True:  # a condition here would jump back outside the try from Python 3.12 on
                if try_lock(self._descriptor):
                    break
                if monotonic() >= deadline:
                    # The holder may be stopped: later attempts wait less.
                    self._patience = _PATIENCE_SECONDS / 100
                    msg = f"another process has kept the lock on {self._directory!r} for {_PATIENCE_SECONDS:g} s"
                    raise TemporaryDeliveryError(msg)
                time.sleep(pause)
                pause = min(pause * 1.5, 0.02)
        except BaseException:
            self._close()
            raise
        self._patience = _PATIENCE_SECONDS
        self._depth = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            # Closing does not release it if a child that was forked meanwhile holds the same open directory.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)

    def after_fork(self) -> None:
        """Close the parent's descriptor in a forked child, without releasing the parent's lock."""
        self._depth = 0
        self._close()


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file, exclusively or shared; return False at once if another holder prevents it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release the lock on an open file, even if a forked child has the same file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def await_writer(descriptor: int) -> None:
    """Wait for a ``write`` to an open file, if one is in progress, until it is done or its process is dead."""
    # While a line is being written, a reader may see its first half, which looks like one that a killed process left.
    # The writer holds the inode's lock until the last byte. Linux takes that lock to remove an attribute, even one that
    # does not exist. On other systems a short sleep has to do.
    if hasattr(os, "removexattr"):
        with contextlib.suppress(OSError):
            os.removexattr(descriptor, "user.outfall.none")
    else:
        time.sleep(0.005)


def ends_with(descriptor: int, end: bytes) -> bool:
    """Return True if the file is empty or ends with *end* or a line break. The descriptor has to be readable."""
    size = os.fstat(descriptor).st_size
    return not size or os.pread(descriptor, len(end), max(0, size - len(end))).endswith((end, b"\n"))


def stands_alone(descriptor: int, data: bytes, end: bytes, mark: int = 0) -> bool:
    """Return True if *data*, which this process has just appended, begins a line.

    Args:
        descriptor: The open file. It has to be readable, and no other process may share it: its offset is the end of
            *data*.
        data: The appended bytes.
        end: What ends a line.
        mark: The length of a byte order mark before the first line.
    """
    start = os.lseek(descriptor, 0, os.SEEK_CUR) - len(data)
    if start <= mark:
        return True
    before = min(start, len(end))
    try:
        found = os.pread(descriptor, before + len(data), start - before)
    except OSError:
        return True  # assume so without permission to read
    # If *data* is not there any more, another process has truncated the file.
    return found[before:] != data or found[:before].endswith((end, b"\n"))
