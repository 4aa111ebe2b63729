"""Converts the text of options to values, by the annotation of the parameter.

It knows numbers, sizes such as ``50MB``, spans such as ``1h30m``, ``true`` and ``false``, lists separated by commas,
and sinks as percent-encoded URLs.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.sink import Sink


def converted(name: str, text: str, annotation: str) -> Any:
    """Convert *text* to a value for a parameter with *annotation*.

    Raises:
        ValueError: If *text* is not such a value, or a URL cannot hold one.
    """
    if text.lower() == "none" and "None" in annotation:
        return None
    for pattern, convert in _CONVERTERS if not re.match(r"(Iterable\[)?Callable|OnError", annotation) else ():
        if re.search(pattern, annotation):
            made = convert(name, text, annotation)
            if made is not _NOT_THIS:
                return made
    msg = f"{name}: a URL cannot hold such a value: pass it to open_sink() as an argument"
    raise ValueError(msg)


#: The result of a converter that does not apply: the next one is tried.
_NOT_THIS = object()


def boolean(name: str, text: str) -> bool:
    """Convert *text* to True or False.

    Raises:
        ValueError: If it is neither.
    """
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    msg = f"{name}={text!r} is neither true nor false"
    raise ValueError(msg)


def _refuse_mapping(name: str, _text: str, _annotation: str) -> Any:
    msg = f"{name} is a mapping: write {name}.KEY=VALUE"
    raise ValueError(msg)


def _maybe_boolean(name: str, text: str, annotation: str) -> Any:
    if "Literal[True]" in annotation:
        return boolean(name, text) or None
    if re.fullmatch(r"bool( \| None)?", annotation) or text.lower() in ("true", "false"):
        return boolean(name, text)
    return _NOT_THIS


def _span(_name: str, text: str, annotation: str) -> Any:
    if "tuple" in annotation and "," in text:
        return tuple(_number(part) for part in text.split(","))
    return _number(text)


def _number(text: str) -> Any:
    """Return *text* as a number if it is one, else unchanged: the sink parses spans, sizes and names."""
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
    except ValueError:
        return text


def _whole(name: str, text: str, annotation: str) -> Any:
    if name.endswith("permissions"):
        if re.fullmatch(r"(0o)?[0-7]{3,4}", text):
            return int(text.removeprefix("0o"), 8)
    elif re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    elif name.endswith("bytes") or not re.fullmatch(r"int( \| None)?", annotation):
        return text
    msg = f"{name}={text!r} is not a whole number"
    raise ValueError(msg)


def _float(name: str, text: str, annotation: str) -> Any:
    made = _number(text)
    if isinstance(made, str) and "str" not in annotation and "Level" not in annotation:
        msg = f"{name}={text!r} is not a number"
        raise ValueError(msg)
    return made


def _time(name: str, text: str, _annotation: str) -> Any:
    try:
        return dt.time.fromisoformat(text)
    except ValueError:
        msg = f"{name}={text!r} is not a time of day such as 03:30"
        raise ValueError(msg) from None


def _pair(_name: str, text: str, _annotation: str) -> Any:
    return tuple(text.split(",", 1)) if "," in text else _NOT_THIS


def _sink(name: str, text: str, _annotation: str) -> Sink:
    from outfall.adapters.urls.registry import open_sink

    try:
        return open_sink(text)
    except ValueError as error:
        msg = f"{name}: {error}"
        raise ValueError(msg) from None


#: The converters, by a pattern for the annotation, in the order in which they are tried.
_CONVERTERS: tuple[tuple[str, Callable[[str, str, str], Any]], ...] = (
    (r"^Mapping\[[^|]*\]( \| None)?$", _refuse_mapping),
    (r"\bbool\b|Literal\[True\]", _maybe_boolean),
    (r"\bSpan\b|timedelta", _span),
    (r"\bSize\b|\bint\b", _whole),
    (r"\bfloat\b|\bLevel\b", _float),
    (r"dt\.time\b", _time),
    (r"\bSink\b", _sink),
    (r"tuple\[", _pair),
    (r"(Iterable|Collection|Sequence|list)\[str", lambda _name, text, _annotation: text.split(",")),
    (r"\bstr\b|PathLike|Literal|\b(Level|Mode|When|Method)\b|NaiveTimestamps", lambda _name, text, _annotation: text),
)
