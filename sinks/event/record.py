"""Converts between events and records of `logging`, for `SinkHandler`, `HandlerSink` and `PickleFrames`."""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from outfall.sinks.event.event import METADATA, NaiveTimestamps, message_key, timestamp_of
from outfall.sinks.event.exceptions import exc_info_of
from outfall.sinks.event.jsonable import plain_key
from outfall.sinks.event.levels import NUMBERS, UNKNOWN, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

#: Call-site keys, as `structlog.processors.CallsiteParameter` names them.
Callsite = Literal[
    "pathname",
    "filename",
    "module",
    "lineno",
    "func_name",
    "process",
    "process_name",
    "thread",
    "thread_name",
    "task_name",
]

#: The record's attribute for each of these keys.
CALLSITE: dict[str, str] = {
    "pathname": "pathname",
    "filename": "filename",
    "module": "module",
    "lineno": "lineno",
    "func_name": "funcName",
    "process": "process",
    "process_name": "processName",
    "thread": "thread",
    "thread_name": "threadName",
    "task_name": "taskName",
}
#: The default keys: without filename and module, which are parts of the pathname.
_USUAL_CALLSITE = tuple(key for key in CALLSITE if key not in ("filename", "module"))

_RECORD = logging.LogRecord("", 0, "", 0, "", (), None).__dict__
_STANDARD = frozenset(_RECORD)
#: The number of attributes of a record without extras, and the last one that a record sets itself.
_USUAL_NUMBER, _USUAL_LAST = len(_RECORD), next(reversed(_RECORD))
#: All standard attributes: also those that formatters add, and one that older versions of Python lack.
_STANDARD_ATTRIBUTES = _STANDARD | {"message", "asctime", "taskName"}

#: Event keys for a record's own data. An ``extra`` of the same name and another value gets `_COLLISION` before it.
_EVENT_KEYS = frozenset({"event", "level", "level_number", "logger", "timestamp", "exception", "stack"})
_RESERVED_KEYS = (_EVENT_KEYS | CALLSITE.keys()) - _STANDARD_ATTRIBUTES
#: Names with the same meaning in events and records, which nothing else may use.
_SHARED = _STANDARD_ATTRIBUTES & (CALLSITE.keys() | {"exc_info", "stack_info"})
_COLLISION = "extra_"

#: The lower-case name and the number of each upper-case level name.
_LEVELS = {name: (name.lower(), number) for name, number in NUMBERS.items() if name.isupper()}

#: uvicorn's loggers add a coloured message, and the one for requests has fields as arguments.
_UVICORN, _UVICORN_ACCESS, _COLORED = "uvicorn", "uvicorn.access", "color_message"
_ACCESS_FIELDS = ("client", "method", "path", "http_version", "status")

#: The number of sets of attributes to remember.
_MAX_KNOWN = 256

#: The time from which strftime is used: 1970. Platforms pad years of fewer than four digits in different ways.
_FOUR_DIGIT_YEARS = 0
_FIVE_DIGITS = 99_999


#: A cache: a second and its text, since formatting costs more than the rest of an event. Other threads can only replace
#: both at once.
_known_second = [(-1, "")]


def utc_text(when: float) -> str:
    """Return *when*, in epoch seconds, as ISO 8601 text in UTC, in the form of `structlog.processors.TimeStamper`."""
    second = int(when)
    microsecond = round((when - second) * 1_000_000)
    if 0 < microsecond < 1_000_000 and second >= _FOUR_DIGIT_YEARS:
        known, text = _known_second[0]
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            _known_second[0] = (second, text)
        # A format with zero padding takes twice as long.
        return f"{text}.{microsecond}Z" if microsecond > _FIVE_DIGITS else f"{text}.{microsecond:06d}Z"
    return dt.datetime.fromtimestamp(when, dt.timezone.utc).isoformat().replace("+00:00", "Z")


# -- from records to events


class RecordReader:
    """Convert log records to events.

    An event gets the message with its arguments (``event``), the lower-case ``level``, ``logger``, ``timestamp`` (ISO
    8601, UTC), each ``extra`` field, ``exc_info`` and ``stack``, and the requested call-site fields. An ``extra`` field
    that differs from the event's own field of that name gets ``extra_`` before its name.

    Args:
        callsite: True for the default call-site fields, False for none, or their names.
        tell: Called with a record whose arguments do not fit its message. Default: a function that does nothing.

    Raises:
        ValueError: If *callsite* names an unknown field.

    Safe from any thread.
    """

    __slots__ = ("_callsite", "_extra", "_tell")

    def __init__(
        self,
        callsite: bool | Collection[str] = False,
        tell: Callable[[logging.LogRecord], object] = lambda _: None,
    ) -> None:
        names = (_USUAL_CALLSITE if callsite else ()) if isinstance(callsite, bool) else tuple(callsite)
        unknown = [key for key in names if key not in CALLSITE]
        if unknown:
            msg = f"callsite={callsite!r}: {unknown[0]!r} is none of {', '.join(CALLSITE)}"
            raise ValueError(msg)
        self._callsite = tuple((key, CALLSITE[key]) for key in names)
        self._tell = tell
        #: A cache: the extra names, by the names of a record's last attributes; False if the slow method is needed.
        self._extra: dict[tuple[str, ...], tuple[str, ...] | Literal[False]] = {}

    def event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return an event for *record*."""
        attributes = record.__dict__
        message = attributes["msg"]
        # Extras are set after a record's own attributes.
        names = tuple(islice(attributes, _USUAL_NUMBER - 1, None))
        extra = self._extra.get(names)
        if extra is None:
            extra = self._learn(names)
        known = _LEVELS.get(attributes["levelname"])
        if extra is False or message.__class__ is not str or known is None or known[1] != attributes["levelno"]:
            return self._event(record)
        if attributes["args"] or record.__class__ is not logging.LogRecord:
            if attributes["name"] == _UVICORN_ACCESS:
                return self._event(record)
            try:
                message = record.getMessage()
            except Exception:
                return self._event(record)
        event: dict[str, Any] = {
            "event": message,
            "level": known[0],
            "logger": attributes["name"],
            "timestamp": utc_text(attributes["created"]),
        }
        if self._callsite:
            for key, attribute in self._callsite:
                value = attributes.get(attribute)
                if value is not None:
                    event[key] = value
        if attributes["exc_info"] or attributes["exc_text"] or attributes["stack_info"]:
            _add_exception_of(record, event)
        for name in extra:
            event[name] = attributes[name]
        return event

    def _learn(self, names: tuple[str, ...]) -> tuple[str, ...] | Literal[False]:
        """Return which *names* of a record's last attributes are extras; False if the slow method has to be used."""
        extra = tuple(name for name in names if name not in _STANDARD_ATTRIBUTES)
        taken = _EVENT_KEYS.union((_COLORED,), (key for key, _ in self._callsite))
        # If the first name is the last attribute that a record sets itself, those before it are its own.
        plain = names[:1] == (_USUAL_LAST,) and taken.isdisjoint(extra) and not any(map(_is_prefixed, extra))
        if len(self._extra) >= _MAX_KNOWN:
            self._extra.clear()
        return self._extra.setdefault(names, extra if plain else False)

    def _event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return an event for any record; the slow method."""
        attributes = record.__dict__
        if isinstance(record.msg, dict) and "_name" in attributes and "_logger" in attributes:
            return _left_by_structlog(record)
        event = self._said(record)
        name = record.levelname
        event["level"] = name.lower()
        if NUMBERS.get(name) != record.levelno:
            event["level_number"] = record.levelno
        event.setdefault("logger", record.name)
        if "timestamp" not in event:
            event["timestamp"] = utc_text(record.created)
        for key, attribute in self._callsite:
            value = attributes.get(attribute)
            if value is not None and key not in event:
                event[key] = value
        _add_exception_of(record, event)
        _add_extra(event, record)
        return event

    def _said(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the first fields of an event: the message of *record*, or its items if the message is a mapping."""
        message: Any = record.msg
        if isinstance(message, Mapping) and not record.args:
            fields: dict[str, Any] = dict(message)
            for key in ("level", "level_number"):
                if key in fields and level_of({key: fields[key]}) != record.levelno:
                    # Another level in the message must not decide which sinks accept the record.
                    fields[_COLLISION + key] = fields.pop(key)
            return fields
        try:
            event: dict[str, Any] = {"event": record.getMessage()}
        except Exception:
            self._tell(record)
            return {"event": message, "positional_args": record.args} if record.args else {"event": message}
        if (
            record.name == _UVICORN_ACCESS
            and isinstance(record.args, tuple)
            and len(record.args) == len(_ACCESS_FIELDS)
        ):
            event.update(zip(_ACCESS_FIELDS, record.args, strict=True))
        return event


def _left_by_structlog(record: logging.LogRecord) -> dict[str, Any]:
    """Return the event that `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` has left in *record*."""
    message: Any = record.msg
    event: dict[str, Any] = {**message, **{key: record.__dict__[key] for key in ("_logger", "_name")}}
    event["_record"] = record
    event["_from_structlog"] = True
    if "level" not in event:
        event["level"] = record.levelname.lower()
        if NUMBERS.get(record.levelname) != record.levelno:
            event["level_number"] = record.levelno
    return event


def _add_exception_of(record: logging.LogRecord, event: dict[str, Any]) -> None:
    exc_info: Any = record.exc_info
    if exc_info and not (isinstance(exc_info, tuple) and exc_info[0] is None):
        event["exc_info"] = exc_info
    elif record.exc_text:
        event["exception"] = record.exc_text
    if record.stack_info:
        event["stack"] = record.stack_info


def _add_extra(event: dict[str, Any], record: logging.LogRecord) -> None:
    attributes = record.__dict__
    extra = {key: value for key, value in attributes.items() if key not in _STANDARD_ATTRIBUTES}
    if _COLORED in extra and record.name.partition(".")[0] == _UVICORN:
        del extra[_COLORED]
    names = extra.keys()
    if names.isdisjoint(event) and names.isdisjoint(_EVENT_KEYS) and not any(map(_is_prefixed, names)):
        event.update(extra)
        return
    # If structlog's add_log_level has run, "extra" is an event of render_to_log_kwargs, and its timestamp counts.
    from_structlog = _same(attributes.get("level"), event["level"])
    for attribute, value in extra.items():
        key = _key_of(attribute)
        if key == "timestamp" and from_structlog and timestamp_of(attributes) is not None:
            event["timestamp"] = value
        elif key == "exception" and from_structlog:
            # The chain has rendered the exception; Logger.exception has added the exception itself.
            event.pop("exc_info", None)
            event["exception"] = value
        elif key not in event and (key not in ("level_number", "exception") or _fits(key, value, event, record)):
            event[key] = value
        elif not _same(value, event.get(key)):
            event[_COLLISION + key] = value


def _fits(key: str, value: object, event: dict[str, Any], record: logging.LogRecord) -> bool:
    """Return True if an extra *value* may become the event's own field *key*, which the event lacks."""
    return _same(value, record.levelno) if key == "level_number" else "exc_info" not in event


def _same(one: object, other: object) -> bool:
    # Only built-in scalars are compared: == of another type may return anything, or raise.
    return type(one) is type(other) and isinstance(one, (str, int, float)) and one == other


# -- from events to records


def record_of(
    event: Mapping[str, Any], level: float | None = None, naive: NaiveTimestamps = "utc"
) -> logging.LogRecord:
    """Return a log record for *event*.

    The message, ``level``, ``logger``, ``timestamp``, ``exc_info`` or ``exception``, ``stack`` and the call-site keys
    become the record's own attributes. Every other key becomes an attribute, as with ``extra``; a key that is also the
    name of a record's own attribute gets ``extra_`` before it.

    Args:
        event: The event.
        level: Its level number. Default None: from its fields.
        naive: The zone of a ``timestamp`` that is text without one.
    """
    record, created = bare_record_of(event, level, naive)
    said = message_key(event)
    message = event.get(said, "")
    record.msg = message if isinstance(message, str) else str(message)
    taken = {said, "level", "level_number", "logger", *CALLSITE, *METADATA, *_take_exception(record, event)}
    if created is not None:
        taken.add("timestamp")
    for key, value in event.items():
        if key not in taken:
            attribute = _attribute_of(key if isinstance(key, str) else plain_key(key))
            while attribute in record.__dict__:
                attribute = _COLLISION + attribute
            record.__dict__[attribute] = value
    return record


def bare_record_of(
    event: Mapping[str, Any], level: float | None, naive: NaiveTimestamps
) -> tuple[logging.LogRecord, float | None]:
    """Return a record for *event* without message and further fields; and the event's time, or None."""
    number = level_of(event) if level is None else level
    logger = event.get("logger")
    line = event.get("lineno", 0)
    record = logging.LogRecord(
        name=str(logger) if logger is not None else "root",
        level=int(number) if math.isfinite(number) else logging.INFO,
        pathname=str(event.get("pathname", "")),
        lineno=line,
        msg=None,
        args=None,
        exc_info=None,
        func=event.get("func_name"),
    )
    _name_level(record, event)
    created = timestamp_of(event, naive)
    if created is not None:
        record.relativeCreated += (created - record.created) * 1000
        record.created = created
        record.msecs = float(int(created % 1 * 1000))
    for key, attribute in CALLSITE.items():
        if key in event:
            record.__dict__[attribute] = event[key]
    return record, created


def _name_level(record: logging.LogRecord, event: Mapping[str, Any]) -> None:
    """Set the level name of *record* to the event's own, if `logging` has no name for the level."""
    level = event.get("level")
    if isinstance(level, str) and level and level.lower() != record.levelname.lower():
        known = level_of({"level": level})
        registered = logging.getLevelName(record.levelname) == record.levelno  # pyright: ignore[reportDeprecated] - text to number
        if known == UNKNOWN or known != record.levelno or not registered:
            record.levelname = level.upper()


def _take_exception(record: logging.LogRecord, event: Mapping[str, Any]) -> Iterator[str]:
    """Set the record's attributes for exception and stack; yield the event keys that they come from."""
    try:
        record.exc_info = exc_info_of(event.get("exc_info"))
        yield "exc_info"
    except TypeError:
        pass  # a field of the application that has this name
    exception = event.get("exception")
    if exception and isinstance(exception, str):
        record.exc_text = exception
        yield "exception"
    # A stack_info that is not text requests a stack, which can no longer be found here.
    for key in ("stack", "stack_info"):
        value = event.get(key)
        if value and isinstance(value, str) and not record.stack_info:
            record.stack_info = value
            yield key
        elif key == "stack_info" and not isinstance(value, str):
            yield key


# -- names of keys and attributes


def _is_prefixed(name: str) -> bool:
    return name.startswith(_COLLISION)


def _bare(name: str) -> str:
    while name.startswith(_COLLISION):
        name = name[len(_COLLISION) :]
    return name


def _key_of(attribute: str) -> str:
    """Return the event key for the ``extra`` *attribute*: the inverse of `_attribute_of`."""
    if attribute.startswith(_COLLISION):
        bare = _bare(attribute)
        if bare in _STANDARD_ATTRIBUTES and bare not in _SHARED:
            return attribute[len(_COLLISION) :]
        if bare in _RESERVED_KEYS:
            return _COLLISION + attribute
    return attribute


def _attribute_of(key: str) -> str:
    """Return the record attribute for an event *key* that has no standard attribute."""
    bare = _bare(key)
    if bare in _STANDARD_ATTRIBUTES:
        return key if key != bare and bare in _SHARED else _COLLISION + key
    return key[len(_COLLISION) :] if key != bare and bare in _RESERVED_KEYS else key
