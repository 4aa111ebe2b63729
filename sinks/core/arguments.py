"""Checks of arguments that several sinks share; each error message names the argument and the value."""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

from outfall.sinks.event.units import Size, Span, bytes_of, seconds_of

_Choice = TypeVar("_Choice", bound=str)

#: The highest port of TCP and UDP.
MAX_PORT = 65_535


def checked_size(size: Size, argument: str, unit: str = "bytes") -> int:
    """Return *size* as a whole number from 0 up; a size in bytes may be text, such as ``"50 MB"``.

    Raises:
        ValueError: If it is not such a size.
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
    """Return *number* as a whole number from 1 up; a number of bytes may be text.

    Raises:
        ValueError: If it is not such a number.
    """
    checked = checked_size(number, argument, unit)
    if not checked:
        msg = f"{argument}={number!r} is not 1 or more {unit}"
        raise ValueError(msg)
    return checked


def checked_choice(choice: _Choice, argument: str, choices: tuple[_Choice, ...]) -> _Choice:
    """Return *choice*, which must be one of *choices*.

    Raises:
        ValueError: If it is not; the message suggests the nearest choice.
    """
    if choice not in choices:
        near = nearest(choice, choices)
        meant = f"; did you mean {near!r}?" if near else ""
        msg = f"{argument}={choice!r} is none of {', '.join(map(repr, choices))}{meant}"
        raise ValueError(msg)
    return choice


def checked_functions(functions: Iterable[Any], argument: str, what: str) -> tuple[Any, ...]:
    """Return *functions* as a tuple.

    Args:
        functions: The functions.
        argument: The name of the argument.
        what: What each function should be, for the error message.

    Raises:
        TypeError: If *functions* is not iterable, or one of them is a class or cannot be called.
    """
    if callable(functions) or isinstance(functions, str) or not isinstance(functions, Iterable):
        msg = f"{argument}={_shown(functions)} is not a sequence: write {argument}=[{_shown(functions)}]"
        raise TypeError(msg)
    return tuple(checked_function(function, argument, what) for function in functions)


def checked_function(function: Any, argument: str, what: str) -> Any:
    """Return *function*, which should be *what*: called as structlog calls processors and renderers.

    Raises:
        TypeError: If it cannot be called, takes other arguments, or is a class, which has to be instantiated first.
    """
    if isinstance(function, type):
        msg = f"{argument}={function.__name__} is a class; write {function.__name__}(…)"
        raise TypeError(msg)
    if not callable(function):
        msg = f"{argument}={function!r} is not callable; {what} is needed"
        raise TypeError(msg)
    try:
        signature = inspect.signature(function if inspect.isroutine(function) else function.__call__)
    except (TypeError, ValueError):  # of a callable that is not written in Python
        return function
    try:
        signature.bind(None, "", {})
    except TypeError:
        # Without the defaults, which may be secrets.
        takes = ", ".join(signature.parameters)
        msg = f"{argument}={_shown(function)}({takes}) does not take (logger, method_name, event_dict)"
        raise TypeError(msg) from None
    return function


def _shown(value: Any) -> str:
    return str(value.__name__) if hasattr(value, "__name__") else repr(value)


def nearest(name: object, names: Iterable[str]) -> str | None:
    """Return the one of *names* that *name* is probably a misspelling of, or None."""
    import difflib

    plain = {known.replace("_", "").lower(): known for known in names}
    wanted = str(name).replace("_", "").lower()
    found = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.75)
    return plain[found[0]] if found else None


def unknown_argument(owner: str, name: str, value: object, names: Iterable[str], hint: str = "") -> TypeError:
    """Return the error for an argument *name* that *owner* does not have; it suggests the nearest of *names*.

    Args:
        owner: The name of the class or function.
        name: The argument.
        value: Its value. Only numbers are shown, since any other value may be a secret.
        names: The arguments that *owner* has.
        hint: The end of the message if none of them is near.
    """
    given = f"{name}={value!r}" if isinstance(value, (int, float)) else f"{name}=…"
    near = nearest(name, names)
    meant = f"; did you mean {near}=?" if near else hint
    return TypeError(f"{owner} has no argument {name}: {given}{meant}")


def checked_seconds(duration: Span, argument: str) -> float:
    """Return *duration* in seconds; it may be a number from 0 up, a timedelta, or text such as ``"1h30m"``.

    Raises:
        ValueError: If it is not such a duration.
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
    """Return True if *host* is ``localhost`` or a loopback address, so that nothing sent there crosses a network."""
    if host.lower() == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
