"""How far a spool has been delivered: `Cursor`, and the file it is kept in."""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

from outfall.sinks.errors import SinkError

#: The version of the format of a spool's files; a later one is left alone.
FORMAT = 1

FILE_NAME = "cursor.json"
TEMPORARY_NAME = "cursor.tmp"

#: Every cursor is made this long, with spaces: where there is no room for a new file, the old one is written over.
_BYTES = 256


class NewerFormatError(SinkError):
    """Files in a spool were written by a later version of Outfall. They are left as they are."""


class CursorError(SinkError):
    """A cursor cannot be read or trusted: what it was to guard is delivered from its beginning, once more."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a store of segments, and the batch that is on its way from there.

    Args:
        segment: The number of the segment.
        offset: In bytes. All that is before is settled, earlier segments included.
        end: Where the batch in flight ends, in the same segment; None if there is none.
        key: The idempotency key of that batch.
    """

    segment: int
    offset: int
    end: int | None = None
    key: str = ""


def encode(cursor: Cursor) -> bytes:
    """Return *cursor* as the content of its file: one JSON object with a check sum, in one line."""
    flight = None if cursor.end is None else {"end": cursor.end, "key": cursor.key}
    fields: dict[str, Any] = {"format": FORMAT, "segment": cursor.segment, "offset": cursor.offset, "in_flight": flight}
    fields["check"] = _check(fields)
    return orjson.dumps(fields).ljust(_BYTES - 1) + b"\n"


def decode(data: bytes) -> Cursor:
    """Return the cursor in *data*.

    Raises:
        NewerFormatError: If it was written by a later version.
        CursorError: If it is not what `encode` made.
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
        sound = check == _check(fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        sound, cursor = False, None
    if not sound or cursor is None:
        msg = "the cursor is garbled"
        raise CursorError(msg)
    return cursor


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
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"the cursor cannot be opened: {error.strerror}"
        raise CursorError(msg) from None
    try:
        return decode(os.read(descriptor, 16 * _BYTES))
    except OSError as error:
        msg = f"the cursor cannot be read: {error.strerror}"
        raise CursorError(msg) from None
    finally:
        os.close(descriptor)


def replace(directory: str, cursor: Cursor, *, sync: bool = False) -> None:
    """Put *cursor* in the place of the one in *directory*, in one step.

    Where no file can be made (no room, no permission), the old one is written over, which takes neither: a kill does
    not tear so short a write.

    Args:
        directory: Where the file is.
        cursor: The new one.
        sync: Whether it has to be on the medium, and not only with the operating system, before this returns.

    Raises:
        OSError: If neither can be done.
    """
    data = encode(cursor)
    path, temporary = (os.path.join(directory, name) for name in (FILE_NAME, TEMPORARY_NAME))
    try:
        _write(temporary, data, os.O_CREAT | os.O_TRUNC, sync=sync)
        os.replace(temporary, path)
    except OSError as error:
        try:
            _write(path, data, 0, sync=sync)
        except FileNotFoundError:
            raise error from None
    else:
        if sync:
            sync_path(directory)


def _write(path: str, data: bytes, flags: int, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_path(path: str) -> None:
    """Have the file or directory at *path* written to the medium."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
