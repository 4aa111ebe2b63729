"""Checks of arguments that several sinks take, each with a message that names the argument and the value."""

from __future__ import annotations

import datetime as dt
from typing import TypeVar

from outfall.sinks.event.units import Size, Span, bytes_of, seconds_of

_Choice = TypeVar("_Choice", bound=str)

#: The highest port of TCP and UDP.
MAX_PORT = 65_535


def checked_size(size: Size, argument: str, unit: str = "bytes") -> int:
    """Return *size*, a whole number from 0 up; of bytes also as text, such as ``"50 MB"``.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(size, str) and unit == "bytes":
        try:
            return bytes_of(size)
        except ValueError as error:
            msg = f"{argument}={error}"
            raise ValueError(msg) from None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        msg = f"{argument}={size!r} is not a whole number of {unit} from 0 up"
        raise ValueError(msg)
    return size


def checked_count(number: Size, argument: str, unit: str) -> int:
    """Return *number*, a whole one from 1 up; of bytes also as text.

    Raises:
        ValueError: If it is none.
    """
    checked = checked_size(number, argument, unit)
    if not checked:
        msg = f"{argument}={number!r} is not 1 or more {unit}"
        raise ValueError(msg)
    return checked


def checked_choice(choice: _Choice, argument: str, choices: tuple[_Choice, ...]) -> _Choice:
    """Return *choice*, one of *choices*.

    Raises:
        ValueError: If it is none.
    """
    if choice not in choices:
        msg = f"{argument}={choice!r} is none of {', '.join(map(repr, choices))}"
        raise ValueError(msg)
    return choice


def checked_seconds(duration: Span, argument: str) -> float:
    """Return *duration* in seconds: a number from 0 up, a timedelta, or text such as ``"1h30m"``.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(duration, str):
        try:
            return seconds_of(duration)
        except ValueError as error:
            msg = f"{argument}={error}"
            raise ValueError(msg) from None
    seconds = duration.total_seconds() if isinstance(duration, dt.timedelta) else duration
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0:
        msg = f"{argument}={duration!r} is not a number of seconds from 0 up, a timedelta, nor text such as '1h30m'"
        raise ValueError(msg)
    return seconds


def is_loopback(host: str) -> bool:
    """Return True if *host* is this machine by its very name: what is sent there crosses no network."""
    if host.lower() == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
