"""Reads fields of events for the formats of collectors: exact time, trace, level. Pure functions."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from outfall.sinks.event.depth import too_deep
from outfall.sinks.event.event import message_key, timestamp_of
from outfall.sinks.event.exceptions import take_failure
from outfall.sinks.event.jsonable import plain
from outfall.sinks.event.levels import level_name

if TYPE_CHECKING:
    from outfall.sinks.core.item import Encoded

#: The number of digits of the ids of traces and spans.
TRACE_DIGITS, SPAN_DIGITS = 32, 16

#: The latest time in nanoseconds, the largest signed integer of 64 bits: in the year 2262.
LATEST = 2**63 - 1

#: A time with a fraction of a second.
_FRACTION = re.compile(r"(.*\d\d:\d\d:\d\d)[.,](\d+)(.*)")
_LARGEST_SECONDS = 1e12
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - to be taken from another without a zone
_HEX = frozenset("0123456789abcdef")


def exact_time(event: Mapping[str, Any]) -> int | None:
    """Return the event's ``timestamp`` in nanoseconds since the epoch, from 0 to `LATEST`; None if it is not a time.

    All digits count, more than a float has: text may have nine digits after the second, numbers any.
    """
    stamp = event.get("timestamp")
    if isinstance(stamp, str):
        usual = _usual_time(stamp)
        if usual is not None:
            since = usual - _EPOCH
            return _within(((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000)
        match = _FRACTION.fullmatch(stamp)
        whole = timestamp_of({"timestamp": stamp if match is None else match[1] + match[3]})
        if whole is None:
            return None
        return _within(_of_seconds(whole) + (0 if match is None else int(match[2][:9].ljust(9, "0"))))
    if isinstance(stamp, (int, float)) and not isinstance(stamp, bool) and abs(stamp) < _LARGEST_SECONDS:
        return _within(int(Decimal(repr(stamp)) * 1_000_000_000))
    return None


def _usual_time(stamp: str) -> dt.datetime | None:
    """Parse a text of structlog's ``TimeStamper(fmt="iso")``; return None for any other text."""
    if len(stamp) == 27 and stamp[26] == "Z" and stamp[10] == "T":
        try:
            return dt.datetime.fromisoformat(stamp[:26])
        except ValueError:
            pass
    return None


def nanoseconds(item: Encoded, event: Mapping[str, Any]) -> int:
    """Return the time of *event* in nanoseconds: its `exact_time`, else the time of *item*."""
    exact = exact_time(event)
    return item_nanoseconds(item) if exact is None else exact


def item_nanoseconds(item: Encoded) -> int:
    """Return the time of *item* in nanoseconds since the epoch, from 0 to `LATEST`; 0 if it is not finite."""
    return _within(_of_seconds(item.time)) if math.isfinite(item.time) else 0


def take_time(item: Encoded, event: dict[str, Any]) -> int:
    """Return `nanoseconds`, and remove the ``timestamp`` from *event* if the time comes from it."""
    exact = exact_time(event)
    if exact is None:
        return nanoseconds(item, {})
    del event["timestamp"]
    return exact


def take_level(item: Encoded, event: dict[str, Any]) -> str | None:
    """Remove the level from *event*; return its name there, else the name of its number, or None if it is unknown."""
    event.pop("level_number", None)
    if isinstance(event.get("level"), str):
        return str(event.pop("level"))
    if item.level == math.inf:  # the level is unknown: leave the field as it is
        return None
    event.pop("level", None)
    return level_name(item.level)


def take_ids(event: dict[str, Any], trace: str, span: str) -> dict[str, str]:
    """Return the `hex_id` of trace and span under the names *trace* and *span*, and remove their fields.

    A field that is not an id stays in *event*.
    """
    made: dict[str, str] = {}
    for field, name, digits in (("trace_id", trace, TRACE_DIGITS), ("span_id", span, SPAN_DIGITS)):
        if field in event and (identity := hex_id(event[field], digits)) is not None:
            del event[field]
            made[name] = identity
    return made


def take_message(event: dict[str, Any]) -> str | None:
    """Return the message of *event* as text, and remove its field; None if there is none."""
    message = event.pop(message_key(event), None)
    return None if message is None else text_of(message)


def take_exception(event: dict[str, Any], **names: str) -> dict[str, str]:
    """Return the parts of the exception in *event*, and remove their fields; see `take_failure`.

    Args:
        event: The event.
        names: The names for the parts to return: ``kind``, ``message``, ``stack``.
    """
    failure = take_failure(event)
    if failure is None:
        return {}
    return {name: text for part, name in names.items() if (text := getattr(failure, part)) is not None}


def take_utc_text(item: Encoded, event: dict[str, Any]) -> str:
    """Return the result of `take_time` as text, by `utc_text`."""
    stamp = event.get("timestamp")
    if isinstance(stamp, str) and stamp > "1970" and _usual_time(stamp) is not None:
        del event["timestamp"]
        return stamp
    return utc_text(take_time(item, event))


def _within(when: int) -> int:
    return when if 0 <= when <= LATEST else max(0, min(when, LATEST))


def _of_seconds(seconds: float) -> int:
    # In this century a float is exact to microseconds; further digits are noise.
    return round(seconds * 1_000_000) * 1_000


def utc_text(when: int) -> str:
    """Return *when*, in nanoseconds since the epoch, as ISO 8601 text with microseconds, or nanoseconds if needed."""
    seconds, rest = divmod(when, 1_000_000_000)
    fraction = f"{rest:09}" if rest % 1_000 else f"{rest // 1_000:06}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction}Z"


def hex_id(value: object, digits: int) -> str | None:
    """Return the id of a trace (32 *digits*) or a span (16) in lower-case hexadecimal; None if *value* is not an id.

    *value* may be text with this number of digits, with or without ``0x``, or a number. An id of zeros is invalid
    (W3C Trace Context).
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:0{digits}x}" if 0 < value < 16**digits else None
    if isinstance(value, str):
        text = value.lower().removeprefix("0x")
        if len(text) == digits and _HEX.issuperset(text) and text.strip("0"):
            return text
    return None


def text_of(value: object) -> str:
    """Return *value* as text: text unchanged, any other value as JSON."""
    return value if isinstance(value, str) else dump(value).decode()


def dump(value: object) -> bytes:
    """Return *value*, decoded from JSON, as JSON again; bytes in it become text."""
    try:
        if not too_deep(value):
            return orjson.dumps(value, plain)
    except TypeError:  # an integer beyond 64 bits
        pass
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain)
    return text.encode("utf-8", "backslashreplace")


_SEVERITIES = ((50, 2), (40, 3), (30, 4), (25, 5), (20, 6))


def syslog_severity(level: float) -> int:
    """Return the number of the syslog severity, 7 (debug) to 2 (critical), for a level number.

    An unknown level becomes a notice, so that no filter hides it.
    """
    if level == math.inf:
        return 5
    return next((severity for least, severity in _SEVERITIES if level >= least), 7)


def found_at(event: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at *path*, or None; a field whose name contains the dots takes precedence."""
    if len(path) > 1 and (whole := event.get(".".join(path))) is not None:
        return whole
    found: Any = event
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def paths_of(fields: Mapping[str, str] | Iterable[str], argument: str) -> dict[str, tuple[str, ...]]:
    """Return the path of each field by its new name; dots in *fields* lead to nested fields."""
    if isinstance(fields, str) or not isinstance(fields, Iterable):
        msg = f"{argument}={fields!r} is neither a sequence of fields nor a mapping to them"
        raise TypeError(msg)
    pairs = fields.items() if isinstance(fields, Mapping) else [(field, field) for field in fields]
    made: dict[str, tuple[str, ...]] = {}
    for name, field in pairs:
        if not isinstance(name, str) or not isinstance(field, str):
            msg = f"{argument}={fields!r}: {name!r} and {field!r} have to be text"
            raise TypeError(msg)
        made[name] = tuple(field.split("."))
    return made
