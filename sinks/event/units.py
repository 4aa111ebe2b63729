"""Parses sizes and time spans: ``"50 MB"``, ``"1h30m"``."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal

#: The type of a parameter in bytes: a number, or text such as ``"50 MB"`` or ``"64 KiB"``.
Size = int | str

#: The type of a parameter in seconds: a number, a timedelta, or text such as ``"1h30m"`` or ``"7 days"``.
Span = float | str | dt.timedelta

_BYTES = {
    "": 1,
    **dict.fromkeys(("b", "byte", "bytes"), 1),
    **{f"{letter}b": 1_000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1_024**power for power, letter in enumerate("kmgt", 1)},
}

_SECONDS = {
    **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Decimal(1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), Decimal(60)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), Decimal(3_600)),
    **dict.fromkeys(("d", "day", "days"), Decimal(86_400)),
    **dict.fromkeys(("w", "week", "weeks"), Decimal(604_800)),
}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SIZE = re.compile(rf"\s*({_NUMBER})\s*([a-z]*)\s*", re.IGNORECASE)
_PART = re.compile(rf"\s*({_NUMBER})\s*([a-z]+)\s*", re.IGNORECASE)


def bytes_of(size: str) -> int:
    """Return *size* as a number of bytes.

    Args:
        size: A number and a unit, in any case, with or without blanks: ``kB``, ``MB``, ``GB``, ``TB`` by 1 000,
            ``KiB``, ``MiB``, ``GiB``, ``TiB`` by 1 024, ``B`` or no unit for bytes. ``"1.5 MB"`` is 1 500 000.

    Raises:
        ValueError: If *size* is not such a text, or not a whole number of bytes.
    """
    found = _SIZE.fullmatch(size)
    factor = _BYTES.get(found[2].lower()) if found else None
    if found is None or factor is None:
        msg = f"{size!r} is not a size such as '50 MB' (kB, MB, GB by 1000; KiB, MiB, GiB by 1024)"
        raise ValueError(msg)
    number = Decimal(found[1]) * factor
    if number != number.to_integral_value():
        msg = f"{size!r} is not a whole number of bytes"
        raise ValueError(msg)
    return int(number)


def seconds_of(span: str) -> float:
    """Return *span* as a number of seconds.

    Args:
        span: Numbers with units, which are added: ``"1h30m"``, ``"7 days"``, ``"250 ms"``, ``"1 week 2 days"``. Units
            are ``ms``, ``s``, ``m``, ``h``, ``d``, ``w`` and their long names, in any case. A number without a unit is
            in seconds. Months and years are not units, since they have no fixed length.

    Raises:
        ValueError: If *span* is not such a text.
    """
    if re.fullmatch(rf"\s*{_NUMBER}\s*", span):
        return float(span)
    total, at = Decimal(0), 0
    while at < len(span):
        found = _PART.match(span, at)
        factor = _SECONDS.get(found[2].lower()) if found else None
        if found is None or factor is None:
            break
        total += Decimal(found[1]) * factor
        at = found.end()
    if not at or at < len(span):
        msg = f"{span!r} is not a span such as '1h30m' or '7 days' (ms, s, m, h, d, w)"
        raise ValueError(msg)
    return float(total)
