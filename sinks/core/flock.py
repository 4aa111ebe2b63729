"""A lock between processes, for what must not happen to one file in two of them at once."""

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

#: How long to wait for another process, which holds the lock for a few renames. One that is stopped must not stop all.
_PATIENCE_SECONDS = 5.0


class DirectoryLock:
    """An exclusive lock on a directory, re-entrant within its owner; its users take turns in a lock of their own.

    The directory itself is locked, by ``flock(2)``: no lock file is left behind, and none can be deleted while it is
    held. The kernel gives the lock back when its holder dies. It binds only those who ask for it.

    Args:
        directory: Path of the directory.

    Raises on entry:
        TemporaryDeliveryError: If it was not to be had for 5 seconds, and then again until it was.
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
        # Opened anew each time: a descriptor kept would be shared with forked children, and its lock with them.
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            deadline = monotonic() + self._patience
            pause = 0.000_5
            while True:  # a condition here would jump back outside the try from Python 3.12 on
                if try_lock(self._descriptor):
                    break
                if monotonic() >= deadline:
                    # Who has kept it so long may be stopped: from now on nobody waits for him that long again.
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
            # Said, not left to close: a child forked meanwhile holds the same open directory.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)

    def after_fork(self) -> None:
        """Let go, in a forked child, of what the parent holds."""
        self._depth = 0
        self._close()


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file, or share it; return False at once if another holder is in the way."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give the lock on an open file back, though a forked child may still have the same file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def await_writer(descriptor: int) -> None:
    """Wait until the ``write`` to an open file that is under way, if there is one, is done or its process is dead."""
    # While a line is written, others may read its first half: nothing but the inode's lock, which the writer holds
    # until the last byte, tells it from one that has been left. Linux takes that lock to remove an attribute, even one
    # that is not there. Elsewhere some time has to do.
    if hasattr(os, "removexattr"):
        with contextlib.suppress(OSError):
            os.removexattr(descriptor, "user.outfall.none")
    else:
        time.sleep(0.005)


def ends_with(descriptor: int, end: bytes) -> bool:
    """Return True if the file ends with a whole line; lines end with *end*. The descriptor has to be readable."""
    size = os.fstat(descriptor).st_size
    return not size or os.pread(descriptor, len(end), max(0, size - len(end))).endswith((end, b"\n"))


def stands_alone(descriptor: int, data: bytes, end: bytes, mark: int = 0) -> bool:
    """Return True if *data*, which this process has just appended, begins a line; lines end with *end*.

    *mark* is the length of what may come before the first line.

    The descriptor has to be readable and this process's alone: its offset is where *data* ends.
    """
    start = os.lseek(descriptor, 0, os.SEEK_CUR) - len(data)
    if start <= mark:
        return True
    before = min(start, len(end))
    try:
        found = os.pread(descriptor, before + len(data), start - before)
    except OSError:
        return True  # it may not be read: then nothing can be known
    # What is not ours any more was truncated away by somebody else.
    return found[before:] != data or found[:before].endswith((end, b"\n"))
