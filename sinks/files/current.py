"""A file that other processes write to and rename: `SharedFileSink`."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from itertools import accumulate
from os import SEEK_CUR as _SEEK_CUR
from os import SEEK_END as _SEEK_END
from os import lseek as _lseek
from os import stat as _stat
from os import write as _os_write
from time import monotonic
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import flock
from outfall.sinks.files.file import FileSink
from outfall.sinks.files.opening import OPEN_ATTEMPTS, open_current
from outfall.sinks.files.output import NOT_OPEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from outfall.sinks.files.sharing import OpenFile

#: Events within this time share one ``stat`` of the path. A ``stat`` costs more than the write itself: it makes Linux
#: set a new modification time at the next write.
_LOOK_SECONDS = 0.000_05

#: If the last write is more recent than this, this thread has had no time to rename or delete the file since.
_GAP_SECONDS = 0.000_008

# Not on Windows, which does not support several processes.
_pread: Any = getattr(os, "pread", None)


class SharedFileSink(FileSink):
    """Keep track of the current file and its size; with *multiprocess*, also if other processes rotate it.

    The base class of the rotating sinks, which decide when the file is rotated.

    Each process holds a shared ``flock`` on the file that it writes to. A killed process may leave half a line; the
    next event, of any process, begins on a new line.
    """

    #: The size in bytes at which the file rolls over, in subclasses that have one.
    max_bytes: int = 0

    def __init__(self, filename: str | os.PathLike[str], *options: Any, multiprocess: bool, **named: Any) -> None:
        if multiprocess and not flock.AVAILABLE:
            msg = f"multiprocess={multiprocess!r}: this platform has no flock()"
            raise ValueError(msg)
        self.multiprocess: bool = bool(multiprocess)
        #: The number of bytes of events that the next write adds to the file.
        self._unwritten = 0
        #: When an event has to check the path next, and when the last event was written. The events since the last
        #: check, which are written again if the file was deleted before them, and the events to write again.
        self._look_due = self._wrote_at = 0.0
        self._unlooked: list[bytes] = []
        self._regained: list[bytes] = []
        super().__init__(filename, *options, **named)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        #: Keeps the other processes from rotating the file.
        self._directory_lock: AbstractContextManager[None] = contextlib.nullcontext()
        if self.multiprocess:
            lock = self._place.directory_lock(self.base_filename)
            self._directory_lock, self._opener = lock, partial(open_current, lock)

    def _follow(self, file: OpenFile) -> None:
        """Switch to *file*, as in `FileSink`; with *multiprocess* the next event checks the path itself."""
        if not self.multiprocess:
            super()._follow(file)

    def _catch_up(self) -> None:
        """With *multiprocess*, switch to the current file and find its size, if a file is open."""
        self._look_due = 0.0
        try:
            for _ in range(OPEN_ATTEMPTS):
                state = state_of(self.base_filename)
                if state is not None and (state.st_dev, state.st_ino) == self._shared_file.identity:
                    break
                self._move_on()
            else:
                return
        except Exception as error:
            self._shared_file.size = None
            self._note(error)
            return
        self._unlooked.clear()
        file, size = self._shared_file, state.st_size
        if not self._prefix and self._regular and size != file.size:
            prefix = self._missing_start(self._fd)
            if prefix:
                self._install(self._fd, prefix)
        self._shared_file.size = size
        if self._prefix:
            self._write_start()

    def _missing_start(self, descriptor: int) -> bytes:
        end = self._terminator_bytes
        if not (self.multiprocess and end and os.fstat(descriptor).st_size):
            return super()._missing_start(descriptor)
        try:
            if flock.ends_with(descriptor, end):
                return b""
            flock.await_writer(descriptor)
            return b"" if flock.ends_with(descriptor, end) else end
        except OSError:  # the file cannot be read
            return super()._missing_start(descriptor)

    def _write_start(self) -> None:
        """Write the bytes that must precede the next event, unless another process has written them."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._directory_lock)
            except Exception as error:
                self._note(error)
            descriptor = self._parked_fd
            missing = self._missing_start(descriptor)
            if missing:
                os.write(descriptor, missing)
            self._install(descriptor, b"")

    def _line_writer(self) -> Callable[[Any, bytes], bool] | None:
        return SharedFileSink._write_shared if self.multiprocess and self._counts_size else None

    def _write_shared(self, data: bytes) -> bool:
        """Write *data*, a line, if the file is the current one; return False if the pipeline has to write it."""
        # Before the write, ask the system whether another process has renamed the file, how large the file is, and
        # whether a process died in the midst of a line.
        descriptor, file = self._fd, self._shared_file
        now = monotonic()
        if now >= self._verify_at:
            return False
        looks = now >= self._look_due or now - self._wrote_at > _GAP_SECONDS
        if looks:
            state = _stat(self.base_filename)
            if (state.st_dev, state.st_ino) != file.identity:
                return False
            size = state.st_size
            self._look_due = now + _LOOK_SECONDS
            self._unlooked.clear()
        else:
            size = _lseek(descriptor, 0, _SEEK_END)
        if size != file.size and (not size or _pread(descriptor, 1, size - 1) != b"\n"):
            return False
        end = size + len(data)
        if end > self.max_bytes and self._is_bound_by_size():
            return False
        file.size = end
        written = _os_write(descriptor, data)
        if written != len(data):
            self._finish(data, written, (len(data),))
            return True
        if not looks:
            self._unlooked += (data,)
        # After the write, check whether a process died between that check and the write. If a signal handler has logged
        # in between, it has made this check.
        if _lseek(descriptor, 0, _SEEK_CUR) != end and file.size == end:
            self._mend(data, len(data))
        self._wrote_at = monotonic()
        return True

    def _mend(self, data: bytes, first: int) -> None:
        """Write the first event of *data*, *first* bytes, again if it follows the half line of a killed process."""
        if not self._regular or self._fd == NOT_OPEN:
            return
        self._shared_file.size = None
        end = self._terminator_bytes
        # The event has ended the broken line. The repeated event may follow another one.
        while end and not flock.stands_alone(self._fd, data, end, len(self._byte_order_mark)):
            data = data[:first]
            if _os_write(self._fd, data) != first:
                self._install(self._fd, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.base_filename)

    def _finish(self, data: bytes, written: int, ends: Sequence[int] = ()) -> None:
        if not (self.multiprocess and self._regular):
            super()._finish(data, written, ends)
            return
        if not written:
            written = _os_write(self._fd, data)
        if written == len(data):
            return
        # Other processes may have written since, so the rest would not follow the first half, and a truncation would
        # remove their events. So the half line stays, as after a kill, and gets a line break.
        self._kept = sum(1 for end in ends if end <= written)
        if written != (ends[self._kept - 1] if self._kept else 0):
            self._install(self._fd, self._terminator_bytes or b"\n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.base_filename)

    def _take_back(self, part: bytes) -> None:
        if not self.multiprocess:
            super()._take_back(part)

    def _is_bound_by_size(self) -> bool:
        """Return True if `max_bytes` applies."""
        return True

    def _move_on(self) -> None:
        """Switch to the file that another process has created."""
        if self._unlooked and not os.fstat(max(self._fd, self._parked_fd)).st_nlink:
            self._regained += self._unlooked
        self._unlooked.clear()
        self._exchange()

    def _write_regained(self) -> None:
        """Write the events that went to a deleted file again, like new ones."""
        while self._regained:
            again, self._regained = self._regained, []
            ends = list(accumulate(map(len, again)))
            try:
                self._write_whole(b"".join(again), ends)
            except Exception as error:
                lost = len(again) - self._kept
                self._ledger.delivered -= lost
                self._count_dropped("error", lost)
                self._note(error)
            self._kept = 0

    def _flush(self) -> None:
        if self._unlooked and self._fd != NOT_OPEN:
            self._catch_up()
        self._write_regained()
        super()._flush()

    def _note(self, error: Exception) -> None:
        """Report *error*, after which no event is lost, once the event is written."""
        raise NotImplementedError

    def after_fork(self) -> None:
        """Reset the sink in a forked child, which shares the open file; see `FileSink`."""
        if self.multiprocess and self._regular:
            # The child opens the path itself: with the parent's open file it would share the lock, and the offset would
            # not tell where the child's last write went.
            for descriptor in (self._fd, self._parked_fd):
                self._close_own(descriptor)
            super()._install(NOT_OPEN, b"")
        self._unwritten = 0
        self._unlooked.clear()
        self._regained.clear()
        super().after_fork()


def state_of(path: str) -> os.stat_result | None:
    """Return the status of the file at *path*; None if there is none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
