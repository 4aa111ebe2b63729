"""What is in a spool, as anybody can see it from outside: `SpoolStatus`."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, cast

import orjson

from outfall.sinks.core.item import item_of
from outfall.sinks.errors import SinkError
from outfall.sinks.spool import cursor as cursors
from outfall.sinks.spool.lines import raw_of
from outfall.sinks.spool.segments import Reader, Segment, count_lines, segments_in
from outfall.sinks.spool.store import LEDGER_NAME, is_alive, is_spool, owner_of, stores_in


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What one process has in a spool, or has left there.

    Args:
        name: The name of its directory.
        pid: The number of the process that made it. In another container it may be another's here.
        alive: Whether some process has it now: the one that made it, or one that has adopted it.
        events: How many events are not delivered yet, corrupt lines included.
        bytes: How many bytes they are.
        in_flight: How many of them are being sent, as far as is recorded.
        oldest: When the oldest of them happened, in seconds since the epoch; None if there is none, or it does not say.
        ledger: What the process last wrote down of its account: the numbers of `SinkStats`, ``dropped``,
            ``last_error``, and when it was written, ``time``. None if there is none.
        problem: Why the rest is not known: files of a later version, or without permission. None if all is well.
    """

    name: str
    pid: int
    alive: bool
    events: int = 0
    bytes: int = 0
    in_flight: int = 0
    oldest: float | None = None
    ledger: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """What is in a spool's directory at one moment, read from its files without disturbing the processes that use it.

    Args:
        directory: The directory.
        stores: What each process has there, oldest first.
    """

    directory: str
    stores: tuple[StoreStatus, ...]

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> SpoolStatus:
        """Return the status of the spool in *directory*. Reads as much as there is on disk.

        Raises:
            FileNotFoundError: If there is no such directory, or no spool in it.
            OSError: If it may not be read.
        """
        path = os.fsdecode(directory)
        os.listdir(path)
        if not is_spool(path):
            raise FileNotFoundError(errno.ENOENT, "there is no spool in it", path)
        stores = [status for store in stores_in(path) if (status := _status_of(store)) is not None]
        return cls(path, tuple(stores))

    @property
    def events(self) -> int:
        """How many events are not delivered yet."""
        return sum(store.events for store in self.stores)

    @property
    def bytes(self) -> int:
        """How many bytes they are."""
        return sum(store.bytes for store in self.stores)

    @property
    def oldest(self) -> float | None:
        """When the oldest event happened that is not delivered yet, in seconds since the epoch, or None."""
        return min((store.oldest for store in self.stores if store.oldest is not None), default=None)


def _status_of(path: str) -> StoreStatus | None:
    """Return the status of the store at *path*; None if it is gone."""
    name = os.path.basename(path)
    alive = False
    try:
        alive = is_alive(path)
        files = unsettled(path)
        events = size = 0
        for file, offset in files:
            events += count_lines(file, offset)
            size += max(0, os.path.getsize(file) - offset)
        return StoreStatus(
            name,
            owner_of(name),
            alive,
            events,
            size,
            _in_flight(path, files),
            _oldest(files),
            _ledger(path),
        )
    except FileNotFoundError:
        # Delivered meanwhile, or adopted and removed.
        return _status_of(path) if os.path.isdir(path) else None
    except (OSError, SinkError) as error:
        return StoreStatus(name, owner_of(name), alive, problem=str(error))


def unsettled(path: str) -> list[tuple[str, int]]:
    """Return the files of the store at *path* with unsettled events, oldest first, and where in each these begin.

    Raises:
        NewerFormatError: If a later version has written there.
        OSError: If it cannot be read.
    """
    try:
        place = cursors.read(path)
    except cursors.CursorError:
        place = None
    segments = segments_in(path)
    if place is None or not segments or place.segment > segments[-1][0] + 1:
        place = cursors.Cursor(0, 0)
    return [
        (os.path.join(path, name), place.offset if number == place.segment else 0)
        for number, name in segments
        if number >= place.segment
    ]


def _in_flight(path: str, files: list[tuple[str, int]]) -> int:
    try:
        place = cursors.read(path)
    except cursors.CursorError:
        return 0
    if place is None or place.end is None or not files or not files[0][0].endswith(Segment(place.segment).name):
        return 0
    return len(_lines(files[0][0], place.offset, place.end, 1_000_000))


def _lines(file: str, start: int, stop: int, most: int) -> list[bytes]:
    reader = Reader()
    try:
        return reader.lines(file, 0, start, stop, most, stop)[0]
    finally:
        reader.forget()


def _oldest(files: list[tuple[str, int]]) -> float | None:
    for file, offset in files:
        size = os.path.getsize(file)
        for line in _lines(file, offset, size, 1):
            raw = raw_of(line)
            return None if raw is None else item_of(raw).time
    return None


def _ledger(path: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(path, LEDGER_NAME), "rb") as file:
            decoded: object = orjson.loads(file.read())
    except (FileNotFoundError, ValueError):
        return None
    return cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else None
