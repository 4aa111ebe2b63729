"""Open a log file, and read its end."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from typing import TYPE_CHECKING, Literal

from outfall.sinks.core import flock
from outfall.sinks.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from outfall.sinks.core.flock import DirectoryLock

#: The modes of a file. ``"b"`` and ``"t"`` make no difference: bytes are written either way.
Mode = Literal["a", "w", "x", "ab", "wb", "xb", "at", "wt", "xt", "a+", "w+", "x+"]

#: 0 on platforms without the flag.
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)

#: How often the end of a file is read before an unfinished line counts as left by a killed process.
_TAIL_LOOKS = 4

#: All permission bits that a log file can have: read, write and execute for owner, group and others.
_MOST_PERMISSIONS = 0o777


#: The flags of ``open(2)`` for a log file. Without O_NONBLOCK, opening a pipe that has no reader would block.
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CLOEXEC | getattr(os, "O_NOCTTY", 0) | NONBLOCK


class _Opening(threading.local):
    appends: bool = False


#: Whether the sinks that this thread makes append to their files, whatever their mode.
opening: _Opening = _Opening()


@contextlib.contextmanager
def appending() -> Generator[None]:
    """Let sinks that are made in the block append to their files, whatever their mode, as if they had been open."""
    opening.appends = True
    try:
        yield
    finally:
        opening.appends = False


#: How often to retry an operation while other processes may rename the files.
OPEN_ATTEMPTS = 10


def open_file(path: str, flags: int, permissions: int | None) -> int:
    """Open *path* and return the descriptor.

    Args:
        path: The path.
        flags: `APPEND`, and perhaps O_TRUNC or O_EXCL.
        permissions: The bits of a file that is created, whatever the umask. None: ``0o666`` minus the umask.
    """
    if permissions is None:
        return os.open(path, flags, 0o666)
    try:
        # O_EXCL shows whether this call creates the file.
        descriptor = os.open(path, flags | os.O_EXCL, permissions)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        try:
            return os.open(path, flags & ~os.O_CREAT)
        except FileNotFoundError:  # a symbolic link to a missing file
            descriptor = os.open(path, flags, permissions)
    if hasattr(os, "fchmod"):  # not on Windows before Python 3.13
        try:
            os.fchmod(descriptor, permissions)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def open_current(lock: DirectoryLock, path: str, flags: int, permissions: int | None) -> int:
    """Open a file that other processes write to and rotate, as `open_file` does; return the descriptor.

    A regular file is opened for reading too, to check what other processes have left at its end. The descriptor has a
    shared ``flock``, so that no process compresses the file before the last writer has closed it.

    Args:
        lock: Keeps other processes from rotating the file.
        path: The path.
        flags: As for `open_file`.
        permissions: As for `open_file`.

    Raises:
        SinkError: If other processes moved the file away at each attempt.
    """
    for attempt in range(OPEN_ATTEMPTS + 1):
        with lock if attempt == OPEN_ATTEMPTS else contextlib.nullcontext():
            descriptor = _open_readable(path, flags, permissions)
            current = False
            try:
                current = _is_current(path, descriptor)
            finally:
                if not current:
                    os.close(descriptor)
        if current:
            return descriptor
        flags &= ~(os.O_TRUNC | os.O_EXCL)
        time.sleep(0.001)
    msg = f"{path!r} was moved away again and again while it was being opened"
    raise SinkError(msg)


def _open_readable(path: str, flags: int, permissions: int | None) -> int:
    # A pipe is opened only for writing: otherwise the sink itself would be a reader of the pipe.
    if os.path.isfile(path) or not os.path.exists(path):
        with contextlib.suppress(PermissionError):
            return open_file(path, flags & ~os.O_WRONLY | os.O_RDWR, permissions)
    return open_file(path, flags, permissions)


def _is_current(path: str, descriptor: int) -> bool:
    """Acquire a shared lock on the open file; return False if *path* no longer names the file."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        return True
    with contextlib.suppress(FileNotFoundError):
        return flock.try_lock(descriptor, shared=True) and os.path.samestat(os.stat(path), state)
    return False


def ends_within_line(path: str, ends: Sequence[bytes]) -> bool:
    """Return True if the file at *path* ends with none of *ends*, and no process is writing the rest of its line."""
    longest = max(map(len, ends))
    with contextlib.suppress(OSError):  # the file cannot be read, so nothing is known
        reader = os.open(path, os.O_RDONLY | _CLOEXEC | NONBLOCK)
        try:
            for attempt in range(_TAIL_LOOKS):
                size = os.fstat(reader).st_size
                tail = _read_at(reader, max(0, size - longest), longest)
                if tail.endswith(tuple(ends)) or not size:
                    return False
                # Another process may be writing its line; the half line of a killed process does not change.
                time.sleep(0.001 * attempt)
            return True
        finally:
            os.close(reader)
    return False


def ends_with(path: str, descriptor: int, part: bytes) -> bool:
    """Return True if the file that *descriptor* writes to, and that is at *path*, ends with *part*."""
    # Other processes may append to the file too, so its end has to be read. It is read by the path, since *descriptor*
    # is open for writing only.
    size = os.fstat(descriptor).st_size
    reader = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        same = os.path.samestat(os.fstat(reader), os.fstat(descriptor))
        return same and size >= len(part) and _read_at(reader, size - len(part), len(part) + 1) == part
    finally:
        os.close(reader)


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def checked_mode(mode: str) -> str:
    """Return *mode*.

    Raises:
        ValueError: If it is not one of `Mode`.
    """
    if not isinstance(mode, str) or mode.replace("b", "").replace("t", "").replace("+", "") not in ("a", "w", "x"):
        msg = f"mode={mode!r} is not 'a', 'w' or 'x'"
        raise ValueError(msg)
    return mode


def checked_permissions(permissions: int | None) -> int | None:
    """Return *permissions*.

    Raises:
        ValueError: If they are not permission bits, or not plausible ones.
    """
    if permissions is None:
        return None
    if isinstance(permissions, int) and not isinstance(permissions, bool):
        owner, group, others = permissions >> 6 & 7, permissions >> 3 & 7, permissions & 7
        # If others may do more than the owner, the number was written without its 0o.
        if 0 <= permissions <= _MOST_PERMISSIONS and (group | others) & ~owner == 0:
            return permissions
    msg = f"permissions={permissions!r} is not a set of permission bits"
    if re.fullmatch("(0o?)?[0-7]{3}", str(permissions)):
        msg += f": write 0o{str(permissions)[-3:]}"
    else:
        msg += " such as 0o640, up to 0o777"
    raise ValueError(msg)


def checked_path(filename: str | bytes | os.PathLike[str], *, dated: bool = False) -> str:
    """Return *filename* as an absolute path; with *dated* it may have a placeholder for a date.

    Raises:
        TypeError: If it is not a path.
        ValueError: If it is empty, has a character that no path can have, or, without *dated*, a placeholder for a
            date.
    """
    if not isinstance(filename, (str, bytes, os.PathLike)):
        msg = f"filename={filename!r} is not a path such as 'app.jsonl'"
        if hasattr(filename, "write"):
            msg += ": for an open file there is StreamSink(file)"
        elif isinstance(filename, int):
            msg += f": for a descriptor there is StreamSink(open({filename!r}, 'wb'))"
        raise TypeError(msg)
    path = os.fsdecode(filename)
    if not path or "\0" in path:
        msg = f"filename={filename!r} is not a path such as 'app.jsonl': it {'has a NUL' if path else 'is empty'}"
        raise ValueError(msg)
    if not dated and re.search(r"\{(date|time|now)\b[^{}]*\}", path):
        msg = f"filename={filename!r}: write TimedRotatingFileSink('app-{{date:%Y-%m-%d}}.jsonl', when='midnight')"
        raise ValueError(msg)
    return os.path.abspath(path)
