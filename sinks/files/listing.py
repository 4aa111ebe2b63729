"""The regular files in a directory, listed once for all sinks that are opened in it one after another."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from bisect import bisect_left, insort
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator

#: Device and inode of a directory, and the time of its last change, in nanoseconds.
_Stamp = tuple[int, int, int]

#: Most file systems take times from a clock with ticks of 1 to 10 ms: two changes within one tick have the same stamp.
#: So a stamp identifies a state only after its tick is over, or on devices whose stamps are finer than ticks.
_SHORTEST_TICK_NS = 900_000
_LONGEST_TICK_NS = 20_000_000


class _Listing(NamedTuple):
    directory: str
    #: Taken before the directory was listed.
    stamp: _Stamp
    #: True if any later change gives the directory another stamp.
    lasts: bool
    #: The sorted names.
    names: list[str]


#: The last listing.
_last: list[_Listing | None] = [None]

#: The devices whose stamps are finer than ticks.
_fine: set[int] = set()


def _stamp_of(directory: str) -> _Stamp:
    state = os.stat(directory)
    return state.st_dev, state.st_ino, state.st_mtime_ns


def _lasts(stamp: _Stamp) -> bool:
    device, inode, changed = stamp
    last = _last[0]
    if last is not None and last.stamp[:2] == (device, inode) and 0 < changed - last.stamp[2] < _SHORTEST_TICK_NS:
        _fine.add(device)
    return device in _fine or time.time_ns() - changed > _LONGEST_TICK_NS


def names_in(directory: str, prefix: str = "") -> list[str]:
    """Return the names of the regular files in *directory* that begin with *prefix*, in order.

    Raises:
        OSError: If the directory cannot be read.
    """
    stamp = _stamp_of(directory)
    listing = _last[0]
    if listing is None or listing[:3] != (directory, stamp, True):
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        listing = _last[0] = _Listing(directory, stamp, _lasts(stamp), names)
    names = listing.names.copy()  # another thread may be adding one
    return list(takewhile(lambda name: name.startswith(prefix), islice(names, bisect_left(names, prefix), None)))


@contextlib.contextmanager
def kept_up(path: str) -> Generator[None]:
    """Keep the last listing valid while the code within the context creates the file at *path*."""
    directory, name = os.path.split(path)
    listing = _last[0]
    current = False
    if listing is not None and listing.directory == directory:
        with contextlib.suppress(OSError):
            current = listing.stamp == _stamp_of(directory)
    yield
    if listing is None or not current:
        return
    with contextlib.suppress(OSError):  # the next listing notices it
        place = bisect_left(listing.names, name)
        if listing.names[place : place + 1] != [name] and stat.S_ISREG(os.lstat(path).st_mode):
            insort(listing.names, name)
        stamp = _stamp_of(directory)
        _last[0] = listing._replace(stamp=stamp, lasts=_lasts(stamp))
