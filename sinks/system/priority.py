"""The priorities and facilities of syslog, by name and number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from outfall.sinks.event.levels import UNKNOWN, level_of

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The facilities of `syslog.h`, in the order of their numbers.
Facility = Literal[
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
    "ntp",
    "security",
    "console",
    "solaris-cron",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
]

#: The priorities, in the order of their numbers.
PRIORITY_NAMES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


#: The priorities of levels that are not named, by the lowest number.
_PRIORITIES = ((50, "critical"), (40, "error"), (30, "warning"), (25, "notice"), (20, "info"))


def usual_priority(level: str) -> str:
    """Return the name of the priority of a level without an entry of its own, by its number."""
    number = level_of({"level": level})
    if number == UNKNOWN:
        return "warning"
    return next((name for least, name in _PRIORITIES if number >= least), "debug")


def number_of(value: str | int, names: Mapping[str, int], argument: str) -> int:
    """Return the number of *value*, which is one of *names* or a number.

    Raises:
        ValueError: If it is neither; the message names the *argument*.
    """
    known = names.get(value, names.get(value.lower())) if isinstance(value, str) else value
    # A bool is not a number here.
    if not isinstance(known, int) or isinstance(known, bool) or not 0 <= known <= max(names.values()):
        msg = f"{argument}={value!r} is not one of {', '.join(names)}, nor 0 to {max(names.values())}"
        raise ValueError(msg)
    return known
