"""What a spool holds, read from its files by any process: `SpoolStatus`."""

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
from outfall.sinks.spool.segments import Reader, count_lines, name_of, segments_in
from outfall.sinks.spool.store import LEDGER_NAME, is_alive, is_spool, owner_of, stores_in


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What one process keeps in a spool, or has left there.

    Args:
        name: The name of the store's directory.
        pid: The ID of the process that created it. In another container this ID may belong to another process.
        alive: True if a process uses the store: its creator, or one that has adopted it.
        events: How many events are not delivered yet, corrupt lines included.
        bytes: The size of these events in bytes.
        in_flight: How many of these events were being sent when the cursor was written last.
        oldest: The timestamp of the oldest of these events, in seconds since the epoch; None if there is no event, or
            it has no timestamp.
        ledger: The counters that the process last wrote: the numbers of `SinkStats`, ``dropped``, ``last_error``, and
            ``time``, when they were written. None if there are none.
        problem: Why the other fields are unknown: files of a later version, or no permission. None if they are known.
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
    """What a spool's directory holds at one moment, read from its files without disturbing the processes that use it.

    Args:
        directory: The directory.
        stores: The stores of all processes, oldest first.
    """

    directory: str
    stores: tuple[StoreStatus, ...]

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> SpoolStatus:
        """Return the status of the spool in *directory*. It reads all undelivered events from disk.

        Raises:
            FileNotFoundError: If the directory does not exist, or holds no spool.
            OSError: If it cannot be read.
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
        """The size of these events in bytes."""
        return sum(store.bytes for store in self.stores)

    @property
    def oldest(self) -> float | None:
        """The timestamp of the oldest undelivered event, in seconds since the epoch; None if no event has one."""
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
        flight, oldest = _in_flight(path, files), _oldest(files)
        return StoreStatus(name, owner_of(name), alive, events, size, flight, oldest, _ledger(path))
    except FileNotFoundError:
        # A process has delivered it meanwhile and removed a file, or the whole store.
        return _status_of(path) if os.path.isdir(path) else None
    except (OSError, SinkError) as error:
        return StoreStatus(name, owner_of(name), alive, problem=str(error))


def unsettled(path: str) -> list[tuple[str, int]]:
    """Return the files of the store at *path* with unsettled events, oldest first, each with the offset to read from.

    Raises:
        NewerFormatError: If a later version has written there.
        OSError: If it cannot be read.
    """
    place = _place(path)
    segments = segments_in(path)
    if place is None or not segments or place.segment > max(segments) + 1:
        place = cursors.Cursor(0, 0)
    return [
        (segment.path, place.offset if number == place.segment else 0)
        for number, segment in segments.items()
        if number >= place.segment
    ]


def _place(path: str) -> cursors.Cursor | None:
    try:
        return cursors.read(path)
    except cursors.CursorError:
        return None


def _in_flight(path: str, files: list[tuple[str, int]]) -> int:
    place = _place(path)
    if place is None or place.end is None or not files or not files[0][0].endswith(name_of(place.segment)):
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
