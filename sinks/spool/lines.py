"""Lines of a spool's files: the event's own JSON if it has level and time, else an envelope around it."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from orjson import dumps, loads

from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.jsonable import cut
from outfall.sinks.event.levels import UNKNOWN, level_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outfall.sinks.core.item import Raw

#: The first key of an envelope. An event with this key is always written in an envelope.
KEY = "$outfall"

_START = b'{"$outfall":1,'
_BEFORE_EVENT = b',"event":'

_OPEN, _CLOSE = b"{}"


def line_of(data: bytes, level: float, time: float) -> bytes:
    """Return an item's *data* as one line, with a line break; `raw_of` restores the item from it.

    Data that is a JSON object from which level and time can be read is the line itself. Other data is put into an
    envelope ``{"$outfall":1,"time":…,"level":…,"event":{…}}``; data that is not a JSON object is under ``"text"`` or
    ``"base64"`` instead of ``"event"``. An unknown level is null.
    """
    event = _object(data) if b"\n" not in data else None
    if event is not None:
        if KEY not in event and timestamp_of(event) == time and level_of(event) == level:
            return data + b"\n"
        content = b'"event":' + data
    else:
        try:
            content = b'"text":' + dumps(data.decode())
        except UnicodeDecodeError:
            content = b'"base64":"' + b64encode(data) + b'"'
    return b'%b"time":%b,"level":%b,%b}\n' % (_START, dumps(time), dumps(level), content)


def raw_of(line: bytes) -> Raw | None:
    """Return the item in *line*, which has no line break, for a `Batch`; None if there is no event in it."""
    event = _object(line)
    if event is None:
        return None
    if KEY not in event:
        return line
    # An envelope of another version cannot be read as an event.
    if event[KEY] != 1:
        return None
    try:
        level = event["level"]
        return _content(line, event), UNKNOWN if level is None else float(level), float(event["time"]), False
    except (KeyError, TypeError, ValueError):
        return None


def own_raws_of(lines: list[bytes]) -> tuple[list[Raw], int]:
    """Return the same as `raws_of`, for lines that this process has written itself: JSON is not parsed again."""
    if [1 for line in lines if not line or line[0] != _OPEN or line[-1] != _CLOSE or line.startswith(_START)]:
        return raws_of(lines)  # an envelope, or a line of another writer
    return list(lines), 0


def raws_of(lines: Iterable[bytes]) -> tuple[list[Raw], int]:
    """Return the items in *lines*, and the number of corrupt lines."""
    raws: list[Raw] = []
    corrupt = 0
    for line in lines:
        try:
            # A shortcut for usual lines, without a call of `raw_of`: this runs for each event.
            event: Any = loads(line)
            if event.__class__ is dict and KEY not in event and line[:1] == b"{":
                raws.append(line)
                continue
        except ValueError:
            pass
        raw = raw_of(line)
        if raw is not None:
            raws.append(raw)
        else:
            # A loss of power may leave zeros in a file; there may be events before and after them.
            parts = [raw_of(part) for part in line.split(b"\0") if part] if b"\0" in line else []
            raws += [part for part in parts if part is not None]
            corrupt += None in parts or not parts
    return raws, corrupt


def _content(line: bytes, envelope: dict[str, Any]) -> bytes:
    if "text" in envelope:
        return str.encode(envelope["text"])
    if "base64" in envelope:
        return b64decode(envelope["base64"], validate=True)
    event: object = envelope["event"]
    if not isinstance(event, dict):
        raise TypeError
    # Slice the event out of the line: rendering it again could lose digits. Only numbers come before it.
    place = line.find(_BEFORE_EVENT)
    whole = place > 0 and line.startswith(_START) and next(reversed(envelope)) == "event"
    return line[place + len(_BEFORE_EVENT) : -1] if whole else dumps(cut(event))


def _object(text: bytes) -> dict[str, Any] | None:
    if text[:1] != b"{" or text[-1:] != b"}":
        return None
    try:
        decoded: dict[str, Any] = loads(text)
    except ValueError:
        return None
    return decoded
