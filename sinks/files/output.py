"""The open file of a sink: `Output`."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from os import write as _os_write
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.core.bytesink import ByteSink
from outfall.sinks.core.clock import now
from outfall.sinks.errors import SinkClosedError, SinkError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.files.opening import (
    APPEND,
    NONBLOCK,
    checked_mode,
    checked_path,
    checked_permissions,
    ends_with,
    ends_within_line,
    open_file,
    opening,
)
from outfall.sinks.files.sealing import last_sealed_line, write_sealed
from outfall.sinks.files.sharing import OpenFile, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outfall.sinks.event.units import Span
    from outfall.sinks.files.opening import Mode

#: The descriptor of a file that is not open. Writing to it fails with EBADF, so hot paths need no check.
NOT_OPEN = -1

#: How long a descriptor is used before it is checked again that no other code has closed it.
VERIFY_SECONDS = 1.0

#: Errors after which the descriptor stays usable: there may be room for the next event.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})


class NotInTimeError(TimeoutError):
    """A pipe or terminal was full until the deadline."""


class Output(ByteSink):
    """Keep a file open and write whole events to it, or nothing. The base class of `FileSink`.

    Subclasses set `_opener` if other processes rename the file, and override `_finish` and `_write_or_reopen`
    if other processes write to it.

    Args:
        filename: Path of the file; a relative one is resolved now.
        mode: ``"a"`` to append, ``"w"`` to truncate at the first opening, ``"x"`` to fail if the file exists.
        permissions: Permission bits for a file that is created here. None: ``0o666`` minus the umask.
        timeout: How long an event waits, in seconds, for the reader of a pipe or terminal that is full.
        **options: See `ByteSink`.
    """

    #: True if the size of the file is counted.
    _counts_size: ClassVar[bool] = False

    #: Opens the file, given path, flags and permission bits.
    _opener: Callable[[str, int, int | None], int] = staticmethod(open_file)

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: Mode,
        *,
        permissions: int | None,
        timeout: Span,
        **options: Any,
    ) -> None:
        #: The absolute path, as text; frozen here, so that a later chdir does not move the file.
        self.base_filename: str = checked_path(filename)
        self._place = place_of(self.base_filename)
        #: The open file.
        self._shared_file = OpenFile()
        self.mode: str = checked_mode(mode)
        self.permissions: int | None = checked_permissions(permissions)
        self._timeout = checked_seconds(timeout, "timeout")
        self._fd = NOT_OPEN
        #: An open descriptor that hot paths must not use yet, since `_prefix` has to be written first.
        self._parked_fd = NOT_OPEN
        #: Bytes to write before the next event: a terminator for half a line, or a byte order mark.
        self._prefix = b""
        self._regular = True
        #: True for a pipe or terminal, where a write depends on the reader: it may block or take a part of a line.
        self._may_block = False
        #: True while a line may be half written. Events of signal handlers go to the buffer then.
        self._mid_line = False
        #: `_given_up`: close() did not get the lock in time. `_released`: close() has closed the file. After either the
        #: file must not be opened again. Before that, close() itself may open it, to write the buffer.
        self._given_up = self._released = False
        #: True once the path was opened. Only the first opening truncates (mode "w") or requires a new file ("x").
        self._opened_before = opening.appends
        #: How many events of the last write are completely in the file.
        self._kept = 0
        #: How many bytes of the first unwritten event are in the pipe.
        self._torn = 0
        #: When to check next that no other code has closed the descriptor, by the monotonic clock.
        self._verify_at = 0.0
        #: An error to report, after which no event is lost.
        self._notice: Exception | None = None
        #: True after a wait for a full pipe has timed out. Events do not wait again until the pipe is read.
        self._stalled = False
        super().__init__(**options)

    # -- writing

    def write(self, data: bytes) -> None:
        """Write *data*, one rendered event, completely or not at all."""
        self._write_lines(data, (len(data),))

    def _write_lines(self, data: bytes, ends: Sequence[int]) -> None:
        """Write *data*, whose events end at *ends*, sealed if the renderer seals lines; see `_write_whole`."""
        if self._sealer is None:
            self._write_whole(data, ends)
        else:
            write_sealed(self, data, ends)

    #: The renderer, if it seals lines, and True while it does so.
    _sealer: Any = None
    _sealing = False

    def _take_sealer(self, renderer: Any) -> None:
        if renderer is not None:
            if self.terminator != "\n":
                msg = f"terminator={self.terminator!r}: the lines of a chain end in '\\n'"
                raise ValueError(msg)
            renderer.claim(self)
        self._sealer = renderer

    def _last_line(self) -> bytes | None:
        """Return the last sealed line of this file, or of the newest earlier file that has one."""
        return last_sealed_line(self.base_filename, self._names_of_earlier())

    def _names_of_earlier(self) -> list[str]:
        """Return the paths of the earlier files, newest first."""
        return []

    def _write_whole(self, data: bytes, ends: Sequence[int]) -> None:
        """Write *data*, whose events end at *ends*; if that fails, only whole events remain, `_kept` of them."""
        self._kept = 0
        if monotonic() >= self._verify_at:
            self._verify()
        self._mid_line = self._may_block or self._sealing
        try:
            self._write_or_reopen(data, ends)
        except BaseException as error:
            self._shared_file.size = None
            if self._may_block and not (self._prefix or isinstance(error, Exception)):
                self._end_unknown_line()
            raise
        finally:
            self._mid_line = self._sealing

    def _write_or_reopen(self, data: bytes, ends: Sequence[int]) -> None:
        file, size = self._shared_file, len(data)
        try:
            # No call within these lines: a signal handler could count as well, or switch to another file.
            if file.size is not None:
                file.size += size
            written = _os_write(self._fd, data)
        except OSError as error:
            file.size = None
            if self._may_block and isinstance(error, BlockingIOError):
                self._finish(data, 0, ends)
                return
            if self._fd != NOT_OPEN:
                if error.errno in _NO_ROOM:
                    raise
                # The descriptor is useless: other code has closed it, a pipe has no reader, or a mount is stale.
                self._verify()
                descriptor, self._fd = self._fd, NOT_OPEN
                with contextlib.suppress(OSError):
                    self._close_own(descriptor)
            prefix = self._take_descriptor()
            self._mid_line = self._may_block or self._sealing
            try:
                self._finish(prefix + data, 0, [len(prefix) + end for end in ends])
                self._shared_file.size = None
            except BaseException:
                if prefix and not self._kept and self._fd != NOT_OPEN:
                    done = min(self._torn, len(prefix))
                    self._torn -= done
                    if done < len(prefix):
                        self._install(self._fd, prefix[done:])
                raise
        else:
            if written != len(data):
                self._finish(data, written, ends)

    def _finish(self, data: bytes, written: int, ends: Sequence[int] = ()) -> None:
        """Write the rest of *data* after a short write; if that fails, remove the incomplete event."""
        view = memoryview(data)
        self._torn = 0
        try:
            while written < len(data):
                try:
                    written += _os_write(self._fd, view[written:])
                except BlockingIOError:
                    if not self._may_block:
                        raise
                    self._await_room()
        except BaseException as error:
            self._kept = sum(1 for end in ends if end <= written)
            keep = ends[self._kept - 1] if self._kept else 0
            if isinstance(error, NotInTimeError):
                self._torn = written - keep
            elif self._may_block and not isinstance(error, Exception):
                self._end_unknown_line()
            else:
                self._take_back(data[keep:written])
            raise

    def _end_unknown_line(self) -> None:
        """Begin the next event on a new line: after an interrupt it is unknown how much a pipe took of the last one."""
        if self._fd != NOT_OPEN:
            self._install(self._fd, self._terminator_bytes or b"\n")

    def _await_room(self) -> None:
        """Wait until the pipe has room, for `_timeout` or until the deadline of `flush` or `close`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        deadline = self._deadline
        left = (0.0 if self._stalled else self._timeout) if deadline is None else max(0.0, deadline - now())
        if not poll.poll(1000 * left):
            self._stalled = True
            raise NotInTimeError(errno.ETIMEDOUT, "nobody reads it", self.base_filename)
        self._stalled = False

    def _take_back(self, part: bytes) -> None:
        """Remove *part*, an incomplete event, from the end of the file; if that fails, the next write ends its line."""
        if not part:
            return
        try:
            if self._regular and ends_with(self.base_filename, self._fd, part):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(part))
                return
        except OSError:
            pass
        self._install(self._fd, self._terminator_bytes or b"\n")

    # -- opening

    def _exchange(self) -> None:
        """Open the path again, and switch the sinks that wrote to the same file as this one."""
        left = self._shared_file
        self._take_file_at_path()
        for other in self._place.others(self):
            if other._shared_file is left:
                other._follow(self._shared_file)

    def _follow(self, file: OpenFile) -> None:
        """Switch to *file*, which another sink has opened, if it is at this sink's path. Called under the lock."""
        with contextlib.suppress(OSError):
            state = os.stat(self.base_filename)
            if (state.st_dev, state.st_ino) == file.identity and self._fd != self._parked_fd:
                Output._take_file_at_path(self)

    def _take_file_at_path(self) -> None:
        """Open the path and put that file under the descriptor of the open file."""
        current = self._fd if self._fd != NOT_OPEN else self._parked_fd
        if current != NOT_OPEN and not self._is_own(current):
            current = NOT_OPEN
        opened, prefix = self._open_file()
        if current != NOT_OPEN:
            state = os.fstat(opened)
            self._next_identity = state.st_dev, state.st_ino
            # dup2 is atomic. This may be a signal handler that interrupts a write, which still uses the number: it must
            # stand for the sink's file at any time.
            os.dup2(opened, current, inheritable=False)
            os.close(opened)
            opened = current
        self._install(opened, prefix)

    def _install(self, descriptor: int, prefix: bytes) -> None:
        """Use *descriptor* from now on. The shortcut does not use it until *prefix* is written."""
        if descriptor == NOT_OPEN:
            self._shared_file = OpenFile()
        else:
            state = os.fstat(descriptor)
            identity = state.st_dev, state.st_ino
            self._place.opened(self, identity)
        self._shared_file.size = None
        self._verify_at = monotonic() + VERIFY_SECONDS
        self._prefix = prefix
        self._fd, self._parked_fd = (NOT_OPEN, descriptor) if prefix else (descriptor, NOT_OPEN)

    def _take_descriptor(self) -> bytes:
        """Make `_fd` an open descriptor; return the prefix that the caller has to write first."""
        if self._given_up or self._released:
            msg = f"{self.name} is closed"
            raise SinkClosedError(msg)
        if self._parked_fd == NOT_OPEN:
            self._install(*self._open_file())
        if self._parked_fd != NOT_OPEN:
            self._fd, self._parked_fd = self._parked_fd, NOT_OPEN
        prefix, self._prefix = self._prefix, b""
        return prefix

    def _open_file(self) -> tuple[int, bytes]:
        """Open the path; return the descriptor and the bytes to write first."""
        flags = APPEND
        if not self._opened_before:
            flags |= os.O_TRUNC if "w" in self.mode else os.O_EXCL if "x" in self.mode else 0
        descriptor = self._opener(self.base_filename, flags, self.permissions)
        try:
            state = os.fstat(descriptor)
            regular = stat.S_ISREG(state.st_mode)
            # A pipe stays non-blocking, as it was opened, so that flush and close can keep their deadlines.
            if self._sealer is not None and not regular:
                raise OSError(errno.EINVAL, "a chain is written to regular files alone", self.base_filename)
            may_block = bool(NONBLOCK) and not regular and (stat.S_ISFIFO(state.st_mode) or os.isatty(descriptor))
            prefix = b""
            if regular and (state.st_size or self._byte_order_mark):
                prefix = self._missing_start(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._opened_before = True
        self._regular = regular
        if may_block != self._may_block:
            self._may_block = may_block
            self._changed()
        return descriptor, prefix

    def _missing_start(self, descriptor: int) -> bytes:
        """Return the bytes that must precede the next event: a byte order mark, or a terminator for half a line."""
        if os.fstat(descriptor).st_size == 0:
            return b"" if type(self._renderer) is OrjsonRenderer else self._byte_order_mark
        end = self._terminator_bytes
        if not end:
            return b""
        ends = (end, b"\n" if type(self._renderer) is OrjsonRenderer else "\n".encode(self._bare_encoding))
        return end if ends_within_line(self.base_filename, ends) else b""

    # If other code closes the descriptor, the next file, socket or pipe that is opened gets its number. The sink must
    # neither write to that nor close it.

    def _is_own(self, descriptor: int) -> bool:
        """Return True if *descriptor* still refers to the file that this sink opened."""
        while True:
            known = self._shared_file.identity
            try:
                state = os.fstat(descriptor)
            except OSError:
                return False
            if (state.st_dev, state.st_ino) in (known, self._next_identity):
                return True
            if known == self._shared_file.identity:  # else a signal handler has switched to another file meanwhile
                return False

    #: Device and inode of the file that is about to replace the open one.
    _next_identity: tuple[int, int] | None = None

    def _close_own(self, descriptor: int) -> None:
        if descriptor != NOT_OPEN and self._is_own(descriptor):
            os.close(descriptor)

    def _verify(self) -> None:
        """Check that the descriptor is still this sink's own. If it is not, the next write opens the path again."""
        self._verify_at = monotonic() + VERIFY_SECONDS
        descriptor = max(self._fd, self._parked_fd)
        if descriptor == NOT_OPEN or self._is_own(descriptor):
            return
        self._fd = self._parked_fd = NOT_OPEN
        self._shared_file = OpenFile()
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            msg = (
                f"descriptor {descriptor}, of {self.base_filename!r}, was closed by somebody else and is another file "
                "now, which may have got events of the last second"
            )
            self._notice = SinkError(msg)

    def _release(self) -> None:
        self._released = True
        self._place.leave(self)
        self._fd, self._parked_fd, descriptors = NOT_OPEN, NOT_OPEN, (self._fd, self._parked_fd)
        for descriptor in descriptors:
            self._close_own(descriptor)

    def _describe(self) -> str:
        return repr(self.base_filename)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._lock = self._place.lock()

    def after_fork(self) -> None:
        """Reset the sink in a forked child, which keeps the open file."""
        # The first opening truncates. In the child it would remove what the parent has written since.
        self._opened_before = True
        self._kept = self._torn = 0
        self._mid_line = False
        if self._sealer is not None:
            self._sealer.state = None  # the parent continues its chain, the child starts another
        super().after_fork()
