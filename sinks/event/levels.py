"""Level names and their numbers.

The numbers are those of `logging`. The names are those of structlog, the usual aliases, and names registered with
`logging.addLevelName`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, Union, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Level names, so that type checkers find misspelt ones. At run time any case is accepted. Use ``cast`` for a name that
#: you have registered yourself.
LevelName = Literal[
    "notset", "trace", "debug", "info", "warning", "error", "critical",
    "informational", "msg", "notice", "warn", "err", "exception", "failure", "fatal", "crit", "alert", "emerg",
    "emergency", "panic",
    "NOTSET", "TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL",
    "NOTICE", "WARN", "ERR", "FATAL", "CRIT", "ALERT", "EMERG", "EMERGENCY", "PANIC",
]  # fmt: skip

#: The type of an argument that is a level: a name or a number.
Level = Union[LevelName, float]  # noqa: UP007 - evaluated by Python 3.10's typing, as in the annotations

NOTSET = logging.NOTSET
INFO = logging.INFO

#: The level number of an event with an unknown level name: above every level, so that no filter drops the event.
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

#: Level numbers by name in lower case, upper case and capitalised, so that usual spellings cost one lookup.
NUMBERS: dict[str, int] = {
    spelling: number
    for name, number in (_CANONICAL | _ALIASES).items()
    for spelling in (name, name.upper(), name.capitalize())
}
#: Longer texts are not parsed as numbers; int() raises beyond 4 300 digits.
_MAX_DIGITS = 19

_NAMES: dict[float, str] = {number: name for name, number in _CANONICAL.items()}


def _number_of_name(name: str) -> int | None:
    known = NUMBERS.get(name)
    if known is None:
        known = NUMBERS.get(name.strip().lower())
    if known is None:
        name = name.strip()
        # getLevelName also maps registered names to numbers (CPython bpo-29220); for other names it returns a text.
        for spelling in (name, name.upper(), name.lower(), name.title(), name.capitalize()):
            registered = logging.getLevelName(spelling)  # pyright: ignore[reportDeprecated] - the way before 3.11
            if isinstance(registered, int):
                return registered
        # level_name and logging write "level 35" for a number without a name.
        digits = name[6:] if name[:6].lower() == "level " else name
        if digits.isascii() and digits.isdigit() and len(digits) < _MAX_DIGITS:
            return int(digits)
    return known


def parse_level(level: str | float, argument: str = "level") -> float:
    """Return the number of *level*, a name in any case or a number.

    Args:
        level: For example ``"warning"``, ``"WARN"``, ``logging.WARNING`` or 30.
        argument: The name of the argument, for the error message.

    Raises:
        ValueError: If the name is known neither here nor to `logging`.
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

    ``level_number`` wins over ``level``. Without either, the carried level of a `LevelledEvent` counts, else INFO. An
    unknown name gives `UNKNOWN`, which passes every filter.
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
    """Return the lower-case name of a level number; `logging`'s registry has the uncommon ones.

    A number without a name gives ``"level 35"``, as from `logging.getLevelName`.
    """
    known = _NAMES.get(number)
    # The registry is a dict, so 35.0 finds the name of 35.
    return str(logging.getLevelName(cast("int", number))).lower() if known is None else known
