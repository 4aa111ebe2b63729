"""The position up to which a store is delivered: `Cursor`, and its file."""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

from outfall.sinks.errors import SinkError

#: The version of the format of a spool's files; files of a later version are not touched.
FORMAT = 1

FILE_NAME = "cursor.json"

#: The file of a cursor has two places of this size, padded with spaces, which are written alternately: if a write is
#: torn, the other place is valid.
_PLACE_BYTES = 512


class NewerFormatError(SinkError):
    """Files in a spool were written by a later version of Outfall. They are not touched."""


class CursorError(SinkError):
    """A cursor cannot be read or is corrupt. Its store is delivered from the beginning again."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a store of segments, and the batch in flight from there.

    Args:
        segment: The number of the segment.
        offset: The position in bytes. All events before it, also in earlier segments, have an outcome.
        end: The end of the batch in flight, in the same segment; None if there is none.
        key: The idempotency key of that batch.
    """

    segment: int
    offset: int
    end: int | None = None
    key: str = ""


def encode(cursor: Cursor, turn: int) -> bytes:
    """Return *cursor* as the content of a place in the file: one line, a JSON object with a checksum.

    Args:
        cursor: The cursor.
        turn: The number of cursors written before. The place with the higher turn is the current one.
    """
    flight = None if cursor.end is None else {"end": cursor.end, "key": cursor.key}
    fields: dict[str, Any] = {"format": FORMAT, "turn": turn, "segment": cursor.segment, "offset": cursor.offset}
    fields["in_flight"] = flight
    fields["check"] = _check(fields)
    return orjson.dumps(fields).ljust(_PLACE_BYTES - 1) + b"\n"


def decode(data: bytes) -> tuple[int, Cursor]:
    """Return the turn of the cursor in *data*, the content of one place, and the cursor.

    Raises:
        NewerFormatError: If it was written by a later version.
        CursorError: If it is corrupt.
    """
    try:
        fields: dict[str, Any] = orjson.loads(data)
        version, check = fields["format"], fields.pop("check", None)
        if isinstance(version, int) and version > FORMAT:
            msg = f"the cursor has format {version}; this version of Outfall knows {FORMAT}"
            raise NewerFormatError(msg)
        flight = fields["in_flight"]
        cursor = Cursor(
            fields["segment"],
            fields["offset"],
            None if flight is None else flight["end"],
            "" if flight is None else flight["key"],
        )
        turn: int = fields["turn"]
        sound = check == _check(fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        sound, turn, cursor = False, 0, Cursor(0, 0)
    if not sound:
        msg = "the cursor is garbled"
        raise CursorError(msg)
    return turn, cursor


def _check(fields: dict[str, Any]) -> str:
    return f"{zlib.crc32(orjson.dumps(fields)):08x}"


def read(directory: str) -> Cursor | None:
    """Return the cursor in *directory*; None if there is none.

    Raises:
        NewerFormatError: If it was written by a later version.
        CursorError: If it cannot be read.
    """
    try:
        descriptor = os.open(os.path.join(directory, FILE_NAME), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _newest(descriptor)[1]
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"the cursor cannot be read: {error.strerror}"
        raise CursorError(msg) from None


def _newest(descriptor: int) -> tuple[int, Cursor]:
    data = os.pread(descriptor, 2 * _PLACE_BYTES, 0)
    found: list[tuple[int, Cursor]] = []
    failure: CursorError | None = None
    for place in (data[:_PLACE_BYTES], data[_PLACE_BYTES:]):
        try:
            found.append(decode(place))
        except CursorError as error:
            failure = error
    if not found and failure is not None:
        raise failure
    return max(found, key=lambda turn_and_cursor: turn_and_cursor[0])


class CursorFile:
    """The file of a store's cursor; it stays open, so that storing a cursor is one system call.

    Args:
        directory: The directory of the store.

    Use it from one thread at a time.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._descriptor = -1
        self._turn = 0

    def write(self, cursor: Cursor, *, sync: bool = False) -> None:
        """Store *cursor*. The first call allocates the room for all later ones.

        Args:
            cursor: The new cursor.
            sync: Whether to flush it to the medium before this returns.

        Raises:
            OSError: If that fails. The previous cursor stays valid.
        """
        made = self._descriptor == -1 and self._open()
        data = encode(cursor, self._turn + 1)
        offset = _PLACE_BYTES * (self._turn % 2)
        if made:
            data, offset = data + b"\n".rjust(_PLACE_BYTES), 0
        written = os.pwrite(self._descriptor, data, offset)
        if written != len(data):
            if made:
                self.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), FILE_NAME)
        self._turn += 1
        if sync:
            os.fsync(self._descriptor)
            if made:
                sync_path(self._directory)

    def _open(self) -> bool:
        """Open the file; return True if it is new."""
        path = os.path.join(self._directory, FILE_NAME)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        made = not os.fstat(self._descriptor).st_size
        self._turn = 0
        with contextlib.suppress(CursorError):
            self._turn = 0 if made else _newest(self._descriptor)[0]
        return made

    def is_there(self) -> bool:
        """Return True unless the file was removed or replaced."""
        if self._descriptor == -1:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(os.path.join(self._directory, FILE_NAME)))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file; the next `write` opens it again by its path."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            close_if_open(descriptor)


def close_if_open(descriptor: int) -> None:
    """Close *descriptor*; other code may have closed it, as a process that becomes a daemon closes all it has."""
    try:
        os.close(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def sync_path(path: str) -> None:
    """Flush the file or directory at *path* to the medium."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
