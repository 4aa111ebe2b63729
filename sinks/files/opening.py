"""How a log file is opened, and what stands at its end."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How a file is opened. With ``"b"`` or ``"t"`` it means the same: bytes are written either way.
Mode = Literal["a", "w", "x", "ab", "wb", "xb", "at", "wt", "xt", "a+", "w+", "x+"]

#: 0 where the platform has no such thing.
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOCTTY = getattr(os, "O_NOCTTY", 0)

#: How often the end of a file is looked at before a line without an end counts as a dead writer's.
_TAIL_LOOKS = 4

#: What a log file can have: read, write and execute for owner, group and others.
_MOST_PERMISSIONS = 0o777


def flags_for(mode: str, *, first: bool) -> int:
    """Return the flags of ``open(2)`` for *mode*; only the *first* opening truncates or insists on a new file."""
    # O_NONBLOCK only for the opening: without it a pipe that nobody reads would block the application here.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CLOEXEC | _NOCTTY | NONBLOCK
    if first:
        flags |= os.O_TRUNC if "w" in mode else os.O_EXCL if "x" in mode else 0
    return flags


def open_file(path: str, flags: int, permissions: int | None) -> int:
    """Open *path* and return the descriptor.

    Args:
        path: The path.
        flags: As `flags_for` makes them.
        permissions: The bits for a file that is made here, whatever the umask. None: what the umask leaves.
    """
    if permissions is None:
        return os.open(path, flags, 0o666)
    try:
        # O_EXCL tells whether it is this call that makes the file.
        descriptor = os.open(path, flags | os.O_EXCL, permissions)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        try:
            return os.open(path, flags & ~os.O_CREAT)
        except FileNotFoundError:  # a symbolic link to a file that is yet to be made
            descriptor = os.open(path, flags, permissions)
    if hasattr(os, "fchmod"):  # not on Windows before Python 3.13
        try:
            os.fchmod(descriptor, permissions)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def ends_within_line(path: str, ends: Sequence[bytes]) -> bool:
    """Return True if the file at *path* ends with none of *ends*, and nobody is about to write the rest."""
    longest = max(map(len, ends))
    with contextlib.suppress(OSError):  # write-only for us: then nothing can be known
        reader = os.open(path, os.O_RDONLY | _CLOEXEC | NONBLOCK)
        try:
            for attempt in range(_TAIL_LOOKS):
                size = os.fstat(reader).st_size
                tail = _read_at(reader, max(0, size - longest), longest)
                if tail.endswith(tuple(ends)) or not size:
                    return False
                # Another process may be in the midst of writing its line; a dead one's half line stays as it is.
                time.sleep(0.001 * attempt)
            return True
        finally:
            os.close(reader)
    return False


def ends_with(path: str, descriptor: int, part: bytes) -> bool:
    """Return True if *part* is the last in the file that *descriptor* writes to, which can be read at *path*."""
    # The file is open for writing alone, and others may append to it: ours is only what can be read at its end.
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
        ValueError: If it is none.
    """
    if not isinstance(mode, str) or mode.replace("b", "").replace("t", "").replace("+", "") not in ("a", "w", "x"):
        msg = f"mode={mode!r} is not 'a', 'w' or 'x'"
        raise ValueError(msg)
    return mode


def checked_permissions(permissions: int | None) -> int | None:
    """Return *permissions*.

    Raises:
        ValueError: If they are no bits that somebody can mean.
    """
    if permissions is None:
        return None
    if isinstance(permissions, int) and not isinstance(permissions, bool):
        owner, group, others = permissions >> 6 & 7, permissions >> 3 & 7, permissions & 7
        # Nobody means to give others what the owner has not: such a number was written without its 0o.
        if 0 <= permissions <= _MOST_PERMISSIONS and (group | others) & ~owner == 0:
            return permissions
    msg = f"permissions={permissions!r} is not a set of permission bits"
    if re.fullmatch("(0o?)?[0-7]{3}", str(permissions)):
        msg += f": write 0o{str(permissions)[-3:]}"
    else:
        msg += " such as 0o640, up to 0o777"
    raise ValueError(msg)


def checked_path(filename: str | bytes | os.PathLike[str], *, dated: bool = False) -> str:
    """Return *filename* as an absolute path; with *dated* a date may have its place there.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is empty, or has a character that no path can have, or a place for a date that nobody fills.
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
