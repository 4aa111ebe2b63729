"""Level names and their numbers.

The numbers are those of `logging`; the names are those of structlog, the usual aliases, and whatever was registered
with `logging.addLevelName`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, Union, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Level names, so that type checkers see a misspelt one. Any case is taken; a name of your own is for ``cast``.
LevelName = Literal[
    "notset", "trace", "debug", "info", "warning", "error", "critical",
    "informational", "msg", "notice", "warn", "err", "exception", "failure", "fatal", "crit", "alert", "emerg",
    "emergency", "panic",
    "NOTSET", "TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL",
    "NOTICE", "WARN", "ERR", "FATAL", "CRIT", "ALERT", "EMERG", "EMERGENCY", "PANIC",
]  # fmt: skip

#: What an argument that is a level takes: a name or a number.
Level = Union[LevelName, float]  # noqa: UP007 - evaluated by Python 3.10's typing, as in the annotations

NOTSET = logging.NOTSET
INFO = logging.INFO

#: Greater than every level: what an event gets whose level nobody knows, so that no filter swallows it.
UNKNOWN = float("inf")

_CANONICAL: dict[str, int] = {
    "notset": logging.NOTSET,
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_ALIASES: dict[str, int] = {
    "informational": logging.INFO,
    "msg": logging.INFO,
    "notice": 25,
    "warn": logging.WARNING,
    "err": logging.ERROR,
    "exception": logging.ERROR,
    "failure": logging.ERROR,
    "fatal": logging.CRITICAL,
    "crit": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emerg": logging.CRITICAL,
    "emergency": logging.CRITICAL,
    "panic": logging.CRITICAL,
}

#: Every known spelling in lower case, upper case and capitalised, so that the usual ones cost one dict lookup.
NUMBERS: dict[str, int] = {
    spelling: number
    for name, number in (_CANONICAL | _ALIASES).items()
    for spelling in (name, name.upper(), name.capitalize())
}
#: Longer texts are no levels; int() raises at some 4 300 digits.
_MAX_DIGITS = 19

_NAMES: dict[float, str] = {number: name for name, number in _CANONICAL.items()}


def _number_of_name(name: str) -> int | None:
    known = NUMBERS.get(name)
    if known is None:
        known = NUMBERS.get(name.strip().lower())
    if known is None:
        name = name.strip()
        # getLevelName maps registered names to numbers as well (CPython bpo-29220); for others it makes up a text.
        for spelling in (name, name.upper(), name.lower(), name.title(), name.capitalize()):
            registered = logging.getLevelName(spelling)  # pyright: ignore[reportDeprecated] - the way before 3.11
            if isinstance(registered, int):
                return registered
        # "level 35" is what level_name and logging call a number without a name.
        digits = name[6:] if name[:6].lower() == "level " else name
        if digits.isascii() and digits.isdigit() and len(digits) < _MAX_DIGITS:
            return int(digits)
    return known


def parse_level(level: str | float, argument: str = "level") -> float:
    """Return the number of *level*, a name in any case or a number.

    Args:
        level: For example ``"warning"``, ``"WARN"``, ``logging.WARNING`` or 30.
        argument: What to call it in the error message.

    Raises:
        ValueError: If the name is not known here nor to `logging`.
        TypeError: If *level* is neither text nor a number.
    """
    if isinstance(level, str):
        number = _number_of_name(level)
        if number is None:
            import difflib

            known = ", ".join(_CANONICAL)
            near = difflib.get_close_matches(level.strip().lower(), [*_CANONICAL, *_ALIASES], n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            msg = (
                f"{argument}={level!r} is not a known level; use a number, one of {known}, "
                f"or a name registered with logging.addLevelName{meant}"
            )
            raise ValueError(msg)
        return number
    if isinstance(level, (int, float)) and not isinstance(level, bool):
        if level != level:
            msg = f"{argument}={level!r} is not a level"
            raise ValueError(msg)
        return level
    msg = f"{argument}={level!r} is not a level: a name or a number is needed, not {type(level).__name__}"
    raise TypeError(msg)


def level_of(event: Mapping[str, Any]) -> float:
    """Return the level number of *event*; never raises.

    ``level_number`` wins over ``level``; without either, the level the event was carried in with counts (that of a
    `LevelledEvent`), else INFO. A name nobody knows gives `UNKNOWN`, which passes every filter.
    """
    try:
        number = event.get("level_number")
        if isinstance(number, (int, float)) and not isinstance(number, bool) and number == number:
            return number
        level = event.get("level")
        if level is None:
            carried = getattr(event, "carried_level", None)
            return INFO if carried is None else carried
        if isinstance(level, str):
            known = _number_of_name(level)
            return UNKNOWN if known is None else known
        if isinstance(level, (int, float)) and not isinstance(level, bool) and level == level:
            return level
    except Exception:
        pass
    return UNKNOWN


def level_name(number: float) -> str:
    """Return the lower-case name of a level number, after `logging`'s registry for the uncommon ones.

    A number without a name gives ``"level 35"``, as `logging.getLevelName` words it.
    """
    known = _NAMES.get(number)
    # The registry is a dict by number: 35.0 is found as 35.
    return str(logging.getLevelName(cast("int", number))).lower() if known is None else known
