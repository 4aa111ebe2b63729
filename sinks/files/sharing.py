"""State shared by the sinks of one process on one file: `Place` and `OpenFile`.

A configuration that is loaded twice, a notebook cell that is run again, or two modules that each open the application's
log lead to several sinks on one file, by one path or by links. They share one lock and one count of the file's size,
and when one of them switches to another file, the others follow.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from _thread import RLock
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outfall.sinks.core import lifecycle
from outfall.sinks.core.flock import DirectoryLock
from outfall.sinks.core.lock import WriteLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outfall.sinks.files.output import Output


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file that sinks of this process have open; used under the lock of their `Place`.

    Args:
        identity: Device and inode; None while nothing is open.
        size: Size in bytes as the sinks count it; None if the system has to be asked.
    """

    identity: tuple[int, int] | None = None
    size: int | None = None


class Place:
    """Sinks of this process whose paths led to one file when they were made."""

    rolling: int
    counts_size: bool

    def __init__(self) -> None:
        #: The thread that is moving files, or 0: events of hooks and signal handlers must not cause another rollover.
        self.rolling = 0
        #: True if a sink counts the size of the file and has to see all writes to it.
        self.counts_size = False
        self._members: tuple[weakref.ref[Output], ...] = ()
        self._file: tuple[int, int] | None = None
        self._directory_locks: dict[str, DirectoryLock] = {}
        self._process = 0
        self._lock = WriteLock()

    def lock(self) -> WriteLock:
        """Return the lock that all members share; a forked child gets a new one."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._lock = WriteLock()
            self.rolling = 0
            for lock in self._directory_locks.values():
                lock.after_fork()
        return self._lock

    def directory_lock(self, path: str) -> DirectoryLock:
        """Return the lock between processes for the directory of *path*; acquired while `lock` is held."""
        directory = os.path.dirname(path)
        made = self._directory_locks.get(directory)
        return made or self._directory_locks.setdefault(directory, DirectoryLock(directory))

    def join(self, sink: Output) -> None:
        """Add *sink* to the members."""
        with _guard:
            self._members = (*(member for member in self._members if member() is not None), weakref.ref(sink))
        self._tell()

    def leave(self, sink: Output) -> None:
        """Remove *sink* from the members, if it is one."""
        with _guard:
            before, self._members = self._members, tuple(m for m in self._members if m() not in (None, sink))
        if before != self._members:
            self._tell()

    def others(self, sink: Output) -> Iterator[Output]:
        """Yield all members except *sink*."""
        for member in self._members:
            other = member()
            if other is not None and other is not sink:
                yield other

    def opened(self, sink: Output, identity: tuple[int, int]) -> None:
        """Record that *sink* has opened the file of *identity*; the members that have it open share its size."""
        before, self._file = self._file, identity
        if before is not None and before != identity:
            _places_of_files.pop(before, None)
        _places_of_files[identity] = self  # it may have other paths: hard links
        # Set its own first: a sink that a signal handler makes after this line finds it.
        sink._shared_file = OpenFile(identity)
        for member in self._members:
            other = member()
            if other is not None and other is not sink and other._shared_file.identity == identity:
                sink._shared_file = other._shared_file

    def has_open(self, identity: tuple[int, int]) -> bool:
        """Return True if a member has the file of *identity* open."""
        members = [member() for member in self._members]
        return any(sink is not None and sink._shared_file.identity == identity for sink in members)

    def _tell(self) -> None:
        members = [sink for member in self._members if (sink := member()) is not None]
        counts_size = any(sink._counts_size for sink in members)
        if counts_size != self.counts_size:
            self.counts_size = counts_size
            for sink in members:
                sink._changed()


def place_of(path: str) -> Place:
    """Return the place for a new sink on *path*: that of the sinks on the same file, if there are any."""
    real = os.path.realpath(path)
    identity: tuple[int, int] | None = None
    with contextlib.suppress(OSError):
        state = os.stat(path)
        identity = state.st_dev, state.st_ino
    with _guard:
        found = _places.get(real)
        if found is None:
            # By a hard link, perhaps.
            found = None if identity is None else _places_of_files.get(identity)
            found = _places[real] = found if identity and found and found.has_open(identity) else Place()
    return found


#: By real path, and by the file that was opened last. They live as long as their members.
_places: weakref.WeakValueDictionary[str, Place] = weakref.WeakValueDictionary()
_places_of_files: weakref.WeakValueDictionary[tuple[int, int], Place] = weakref.WeakValueDictionary()

#: Guards these dicts and the members of places. Re-entrant, for signal handlers that create sinks.
_guard: Any = RLock()


def _in_child() -> None:
    global _guard  # noqa: PLW0603 - another thread of the parent may have held it
    _guard = RLock()


lifecycle.call_in_child(_in_child)
