"""The creation time of a file: `birth_time`."""

from __future__ import annotations

import os
import struct
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/stat.h; the layout is the same on every architecture.
_AT_FDCWD: Final = -100
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_MASK_OFFSET: Final = 0
_BTIME_OFFSET: Final = 80


def birth_time(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> float | None:
    """Return the time when the file at *path* was created, regardless of later writes.

    Args:
        path: Path of the file; symbolic links are followed.

    Returns:
        Epoch seconds, or None if the time is not known: there is no such file, permission is denied, or the file
        system, kernel or C library does not support it. Linux stamps files by a clock that ticks every few
        milliseconds, so the time may be that much earlier than the call that created the file.

    A copy has a birth time of its own, and so does a file that was moved to another file system. Neither `os.utime` nor
    a rename changes it. Some Windows systems give a new file the birth time of a file that had its name up to 15
    seconds before ("tunneling").

    Source: ``statx(2)``; `os.stat_result.st_birthtime`, which Python has on macOS, the BSDs and Windows.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    born = getattr(status, "st_birthtime", None)
    if born is None:
        if sys.platform == "win32":
            born = status.st_ctime  # the creation time on Windows; st_birthtime came with Python 3.12
        else:
            born = _linux_birth_time(os.fsencode(path)) if sys.platform == "linux" else None
    # File systems that do not keep the time return 0 or -1.
    return born if born is not None and born > 0 else None


def _linux_birth_time(path: bytes) -> float | None:
    ask = _statx()
    answer = bytearray(_STATX_SIZE)
    if ask is None or not ask(path, answer):
        return None
    (mask,) = struct.unpack_from("=I", answer, _MASK_OFFSET)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", answer, _BTIME_OFFSET)
    return float(seconds + nanoseconds / 1e9)


@cache
def _statx() -> Callable[[bytes, bytearray], bool] | None:
    """Return a function that fills a buffer for a path, and returns False on failure; None without such a C library."""
    try:
        # Imported on first use: only rotating files need it, and some Pythons are built without it.
        import ctypes

        statx: Any = ctypes.CDLL(None).statx  # in glibc since 2.28
    except (ImportError, OSError, AttributeError):
        return None
    buffer_type = ctypes.c_char * _STATX_SIZE
    statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, buffer_type)
    statx.restype = ctypes.c_int

    def ask(path: bytes, answer: bytearray) -> bool:
        return bool(statx(_AT_FDCWD, path, 0, _STATX_BTIME, buffer_type.from_buffer(answer)) == 0)

    return ask
