"""Finds type and message of an exception: from the exception itself, or from its text if that is unambiguous.

Sinks replace ``exc_info`` by three fields: ``exception``, the traceback as text, ``exception_type`` and
``exception_message``. They are JSON, so they pass through queues, spools and sockets like any other field. A format
with its own places for the three reads them by `failure_of`. If a processor has rendered the exception, an event that
is sent gets the type and message by `parts_of_text`; a line in a file does not.
"""

from __future__ import annotations

import builtins
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from outfall.sinks.event.jsonable import type_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping
    from types import TracebackType

ExcInfo = tuple[type[BaseException], BaseException, "TracebackType | None"]

#: The further fields besides ``exception``.
TYPE, MESSAGE = "exception_type", "exception_message"


class Failure(NamedTuple):
    """The exception of an event."""

    #: The name of its class with its module, as in a traceback; None if unknown.
    kind: str | None
    #: The result of ``str``, without notes; None if unknown.
    message: str | None
    #: The traceback as text.
    stack: str


def exc_info_of(value: Any) -> ExcInfo | None:
    """Return the exception for *value*, the value of an ``exc_info``; None if there is none.

    True stands for the exception that the calling thread is handling.

    Raises:
        TypeError: If *value* is of another type, so that ``exc_info`` is a field of the application.
    """
    kind = type(value)
    error: Any
    if issubclass(kind, BaseException):
        error = value
    elif kind is bool or kind is int:
        error = sys.exc_info()[1] if value else None
    elif value is None:
        return None
    elif issubclass(kind, tuple) and tuple.__len__(value) == 3:
        given: Any = tuple(tuple.__iter__(value))
        if issubclass(type(given[1]), BaseException):
            found: ExcInfo = given
            return found
        if given[0] is None and given[1] is None:
            return None
        raise TypeError
    else:
        raise TypeError
    # Read BaseException's own attribute: that of a subclass may raise.
    return None if error is None else (type(error), error, vars(BaseException)["__traceback__"].__get__(error))


def traceback_text(exc_info: ExcInfo) -> str:
    """Return *exc_info* as text, as the interpreter prints it."""
    return "".join(traceback.format_exception(*exc_info)).rstrip("\n")


def add_parts(event: MutableMapping[str, Any], error: BaseException) -> None:
    """Add type and message of *error* to *event*, unless it has such fields already."""
    event.setdefault(TYPE, _kind_of(error))
    event.setdefault(MESSAGE, _message_of(error))


def parts_of_text(event: Mapping[str, Any]) -> dict[str, str]:
    """Return type and message as fields, if the ``exception`` of *event* is the text of the one being handled.

    structlog's ``format_exc_info`` leaves only the text, but collectors need type and message too. The result is empty
    if the text is of another exception, or if *event* has a type already.
    """
    parts: dict[str, str] = {}
    try:
        text = event.get("exception")
        if isinstance(text, str) and TYPE not in event:
            exc_info = exc_info_of(True)
            # Compare the whole text: a processor may have removed a secret from it.
            if exc_info is not None and text.rstrip("\n") == traceback_text(exc_info):
                add_parts(parts, exc_info[1])
    except Exception:  # raised by a key or by the exception
        pass
    return parts


def _kind_of(error: BaseException) -> str:
    # As in type_name: a metaclass may override the attribute.
    kind = type(error)
    name: str = type.__dict__["__qualname__"].__get__(kind)
    try:
        module = type.__dict__["__module__"].__get__(kind)
    except AttributeError:
        module = None
    if isinstance(module, str) and module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    return _encodable(name)


def _message_of(error: BaseException) -> str:
    try:
        return _encodable(str.__str__(str(error)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        return f"<unrenderable message: {type_name(raised)}>"


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def failure_of(event: Mapping[str, Any]) -> Failure | None:
    """Return the exception in the field ``exception`` of *event*, which has plain values; None if there is none.

    Type and message come from ``exception_type`` and ``exception_message``, or from structlog's dict tracebacks. They
    are parsed from a traceback's text only if it is unambiguous: the type if there is a single traceback without
    causes, the message if it is one line.
    """
    exception = event.get("exception")
    if isinstance(exception, str) and exception:
        kind, message = event.get(TYPE), event.get(MESSAGE)
        if isinstance(kind, str):
            return Failure(kind, message if isinstance(message, str) else None, exception)
        return _of_text(exception)
    if isinstance(exception, list) and exception and all(isinstance(each, dict) for each in exception):
        kind, message = exception[0].get("exc_type"), exception[0].get("exc_value")
        return Failure(
            None if kind is None else _as_text(kind),
            None if message is None else _as_text(message),
            _stack_of_dicts(exception),
        )
    return None


def take_failure(event: dict[str, Any]) -> Failure | None:
    """Return `failure_of` of *event*, and remove the fields that the result contains."""
    failure = failure_of(event)
    if failure is not None and isinstance(event["exception"], str):
        del event["exception"]
        for field, part in ((TYPE, failure.kind), (MESSAGE, failure.message)):
            if part is not None and event.get(field) == part:
                del event[field]
    return failure


def _builtin_exceptions() -> Iterator[str]:
    for name, value in vars(builtins).items():
        if isinstance(value, type) and issubclass(value, BaseException):
            yield name


_HEADER = "Traceback (most recent call last):\n"
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_LAST_LINE = re.compile(r"([^\W\d]\w*(?:\.(?:[^\W\d]\w*|<locals>))*)(?:: (.*))?")

#: The text of an exception that was never raised: one line that begins with the name of a built-in exception.
_NEVER_RAISED = re.compile(f"(?:{'|'.join(sorted(_builtin_exceptions()))})(?:: .*)?")


def _of_text(text: str) -> Failure:
    unknown = Failure(None, None, text)
    if _NEVER_RAISED.fullmatch(text):
        kind, _, message = text.partition(": ")
        return Failure(kind, message, text)
    # With causes or contexts the exception comes last, but a message may contain the same words.
    if not text.startswith(_HEADER) or _CAUSE in text or _CONTEXT in text:
        return unknown
    lines = text[len(_HEADER) :].rstrip("\n").split("\n")
    # Frames are indented. The first line without indentation begins with the type.
    place = next((index for index, line in enumerate(lines) if line[:1] not in ("", " ")), None)
    match = None if place is None else _LAST_LINE.fullmatch(lines[place])
    if match is None:
        return unknown
    # Further lines may belong to the message or be notes.
    alone = place == len(lines) - 1
    return Failure(match[1], (match[2] or "") if alone else None, text)


def _stack_of_dicts(stacks: list[dict[str, Any]]) -> str:
    """Return structlog's dict tracebacks as text, the oldest first, as the interpreter prints them."""
    parts: list[str] = []
    for place in range(len(stacks) - 1, -1, -1):
        parts.append(_stack_of_dict(stacks[place]))
        if place:
            parts.append(_CAUSE if stacks[place].get("is_cause") else _CONTEXT)
    return "\n\n".join(parts)


def _stack_of_dict(stack: dict[str, Any]) -> str:
    lines: list[str] = []
    frames = stack.get("frames")
    if isinstance(frames, list) and frames:
        lines.append(_HEADER.rstrip("\n"))
        for frame in frames:
            place = frame if isinstance(frame, dict) else {}
            lines.append(f'  File "{place.get("filename")}", line {place.get("lineno")}, in {place.get("name")}')
    lines.append(f"{stack.get('exc_type')}: {stack.get('exc_value')}")
    notes = stack.get("exc_notes")
    if isinstance(notes, list):
        lines += map(_as_text, notes)
    members = stack.get("exceptions")
    if isinstance(members, list):
        for member in members:
            if isinstance(member, list) and member and all(isinstance(each, dict) for each in member):
                lines += ("  | " + line for line in ["", *_stack_of_dicts(member).split("\n")])
    return "\n".join(lines)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
