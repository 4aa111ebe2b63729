"""What formats of collectors read from an event: its exact time, its trace, its exception. Pure functions."""

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
from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.jsonable import plain
from outfall.sinks.event.levels import level_name

if TYPE_CHECKING:
    from outfall.sinks.core.item import Encoded

#: Digits of the ids of traces and spans.
TRACE_DIGITS, SPAN_DIGITS = 32, 16

#: Nanoseconds go up to here: what 64 bits with a sign hold, in the year 2262.
LATEST = 2**63 - 1

#: A time of day with a fraction of a second, and what is around it.
_FRACTION = re.compile(r"(.*\d\d:\d\d:\d\d)[.,](\d+)(.*)")
_LARGEST_SECONDS = 1e12
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - to be taken from another without a zone
_HEX = frozenset("0123456789abcdef")


def exact_time(event: Mapping[str, Any]) -> int | None:
    """Return the event's ``timestamp`` in nanoseconds since the epoch, from 0 to `LATEST`; None if it tells no time.

    All its digits count, which a float has not: text with nine digits of a second, numbers as they are written.
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
    """Return the time of a text as structlog's ``TimeStamper(fmt="iso")`` makes it, None for any other."""
    if len(stamp) == 27 and stamp[26] == "Z" and stamp[10] == "T":
        try:
            return dt.datetime.fromisoformat(stamp[:26])
        except ValueError:
            pass
    return None


def nanoseconds(item: Encoded, event: Mapping[str, Any]) -> int:
    """Return when *event* happened, by `exact_time`, or else by *item*."""
    exact = exact_time(event)
    return item_nanoseconds(item) if exact is None else exact


def item_nanoseconds(item: Encoded) -> int:
    """Return the time of *item* in nanoseconds since the epoch, from 0 to `LATEST`; 0 if it is no number."""
    return _within(_of_seconds(item.time)) if math.isfinite(item.time) else 0


def take_time(item: Encoded, event: dict[str, Any]) -> int:
    """Return `nanoseconds`, and take the ``timestamp`` out of *event* if it is what told them."""
    exact = exact_time(event)
    if exact is None:
        return nanoseconds(item, {})
    del event["timestamp"]
    return exact


def take_level(item: Encoded, event: dict[str, Any]) -> str | None:
    """Return the level's name as *event* has it, or its number's, and take it out; None if it has no name."""
    event.pop("level_number", None)
    if isinstance(event.get("level"), str):
        return str(event.pop("level"))
    if item.level == math.inf:  # something that is no level
        return None
    event.pop("level", None)
    return level_name(item.level)


def take_id(event: dict[str, Any], field: str, digits: int) -> str | None:
    """Return the `hex_id` in *field*, and take it out; None if it has none."""
    identity = hex_id(event.get(field), digits)
    if identity is not None:
        del event[field]
    return identity


def take_utc_text(item: Encoded, event: dict[str, Any]) -> str:
    """Return `take_time` as `utc_text`."""
    stamp = event.get("timestamp")
    if isinstance(stamp, str) and stamp > "1970" and _usual_time(stamp) is not None:
        del event["timestamp"]
        return stamp
    return utc_text(take_time(item, event))


def _within(when: int) -> int:
    return when if 0 <= when <= LATEST else max(0, min(when, LATEST))


def _of_seconds(seconds: float) -> int:
    # A float has microseconds in this century and not much more; what is beyond them is noise.
    return round(seconds * 1_000_000) * 1_000


def utc_text(when: int) -> str:
    """Return *when*, in nanoseconds since the epoch, as ISO 8601 text: with microseconds, or nanoseconds if it has."""
    seconds, rest = divmod(when, 1_000_000_000)
    fraction = f"{rest:09}" if rest % 1_000 else f"{rest // 1_000:06}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction}Z"


def hex_id(value: object, digits: int) -> str | None:
    """Return the id of a trace (32 *digits*) or a span (16) in lower-case hexadecimal, or None if *value* is none.

    Taken are text of so many digits, with or without ``0x``, and numbers. An id of zeros is none, as W3C's Trace
    Context has it.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:0{digits}x}" if 0 < value < 16**digits else None
    if isinstance(value, str):
        text = value.lower().removeprefix("0x")
        if len(text) == digits and _HEX.issuperset(text) and text.strip("0"):
            return text
    return None


def text_of(value: object) -> str:
    """Return *value* as text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else dump(value).decode()


def dump(value: object) -> bytes:
    """Return *value*, which was JSON before, as JSON; bytes that it may have in it as text."""
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

    A level that nobody knows is a notice, so that no filter hides it.
    """
    if level == math.inf:
        return 5
    return next((severity for least, severity in _SEVERITIES if level >= least), 7)


def found_at(event: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return what *path* leads to, or None; a field whose name has the dots itself comes first."""
    if len(path) > 1 and (whole := event.get(".".join(path))) is not None:
        return whole
    found: Any = event
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def paths_of(fields: Mapping[str, str] | Iterable[str], argument: str) -> dict[str, tuple[str, ...]]:
    """Return the path of each field by the name it is to have; dots lead into nested fields."""
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
