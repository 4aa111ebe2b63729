"""Between events and records of `logging`, once for all: what `SinkHandler`, `HandlerSink` and `PickleFrames` share."""

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

#: The record's attribute for each.
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
#: Without filename and module, which are parts of the pathname.
_USUAL_CALLSITE = tuple(key for key in CALLSITE if key not in ("filename", "module"))

_RECORD = logging.LogRecord("", 0, "", 0, "", (), None).__dict__
_STANDARD = frozenset(_RECORD)
#: A record to which nobody added anything has so many attributes, of which this one was set last.
_USUAL_NUMBER, _USUAL_LAST = len(_RECORD), next(reversed(_RECORD))
#: With what formatters add, and what older versions of Python do not have.
_STANDARD_ATTRIBUTES = _STANDARD | {"message", "asctime", "taskName"}

#: Event keys that a record's own data takes; an ``extra`` of the same name gets this before it where they differ.
_EVENT_KEYS = frozenset({"event", "level", "level_number", "logger", "timestamp", "exception", "stack"})
_RESERVED_KEYS = (_EVENT_KEYS | CALLSITE.keys()) - _STANDARD_ATTRIBUTES
#: Names that mean the same in an event and in a record, so that nothing else may take them there.
_SHARED = _STANDARD_ATTRIBUTES & (CALLSITE.keys() | {"exc_info", "stack_info"})
_COLLISION = "extra_"

#: The lower-case name and the number of each level name of `logging`.
_LEVELS = {name: (name.lower(), number) for name, number in NUMBERS.items() if name.isupper()}

#: uvicorn's loggers add a message with colours, and the one for requests has its fields in the arguments.
_UVICORN, _UVICORN_ACCESS, _COLORED = "uvicorn", "uvicorn.access", "color_message"
_ACCESS_FIELDS = ("client", "method", "path", "http_version", "status")

#: How many sets of a record's attributes are remembered.
_MAX_KNOWN = 256

#: From here on years have four digits without padding, which platforms do in different ways: 1970.
_FOUR_DIGIT_YEARS = 0
_FIVE_DIGITS = 99_999


#: A second and its text, which is kept, since making it costs more than the rest of an event. Other threads can only
#: replace both at once.
_known_second = [(-1, "")]


def utc_text(when: float) -> str:
    """Return *when*, seconds since the epoch, as `structlog.processors.TimeStamper` writes it: ISO 8601 text in UTC."""
    second = int(when)
    microsecond = round((when - second) * 1_000_000)
    if 0 < microsecond < 1_000_000 and second >= _FOUR_DIGIT_YEARS:
        known, text = _known_second[0]
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            _known_second[0] = (second, text)
        # A format that fills up with zeros takes twice as long.
        return f"{text}.{microsecond}Z" if microsecond > _FIVE_DIGITS else f"{text}.{microsecond:06d}Z"
    return dt.datetime.fromtimestamp(when, dt.timezone.utc).isoformat().replace("+00:00", "Z")


# -- from records to events


class RecordReader:
    """What makes events of records.

    An event gets the message with its arguments (``event``), the lower-case ``level``, ``logger``, ``timestamp`` (ISO
    8601, UTC), each ``extra`` field, ``exc_info`` and ``stack``, and the call-site fields asked for. An ``extra`` that
    differs from the event's own field of that name gets ``extra_`` before its name.

    Args:
        callsite: True for the usual call-site fields, False for none, or their names.
        tell: Called with a record whose message does not fit its arguments. Default: nobody is told.

    Raises:
        ValueError: If *callsite* names a field that is none.

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
        #: By the names of a record's last attributes, those that are extra; False where that is not all there is to it.
        self._extra: dict[tuple[str, ...], tuple[str, ...] | Literal[False]] = {}

    def event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the event that *record* stands for."""
        attributes = record.__dict__
        message = attributes["msg"]
        # What is extra was set after all that a record has for itself.
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
        """Return which *names* of a record's last attributes are extra; False if it needs a closer look."""
        extra = tuple(name for name in names if name not in _STANDARD_ATTRIBUTES)
        taken = _EVENT_KEYS.union((_COLORED,), (key for key, _ in self._callsite))
        # The first is the last that a record sets itself: then those before it are its own.
        plain = names[:1] == (_USUAL_LAST,) and taken.isdisjoint(extra) and not any(map(_is_prefixed, extra))
        if len(self._extra) >= _MAX_KNOWN:
            self._extra.clear()
        return self._extra.setdefault(names, extra if plain else False)

    def _event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the event of any record."""
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
        """Return the beginning of an event: the message of *record*, or the fields that it is."""
        message: Any = record.msg
        if isinstance(message, Mapping) and not record.args:
            fields: dict[str, Any] = dict(message)
            for key in ("level", "level_number"):
                if key in fields and level_of({key: fields[key]}) != record.levelno:
                    # What the message says of another level must not decide which sinks take the record.
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
    # structlog's add_log_level was there: what render_to_log_kwargs put into "extra" is an event, and it knows best
    # when it happened.
    from_structlog = _same(attributes.get("level"), event["level"])
    for attribute, value in extra.items():
        key = _key_of(attribute)
        if key == "timestamp" and from_structlog and timestamp_of(attributes) is not None:
            event["timestamp"] = value
        elif key == "exception" and from_structlog:
            # Rendered by the chain, whose word it is; Logger.exception adds the live one on its own.
            event.pop("exc_info", None)
            event["exception"] = value
        elif key not in event and (key not in ("level_number", "exception") or _fits(key, value, event, record)):
            event[key] = value
        elif not _same(value, event.get(key)):
            event[_COLLISION + key] = value


def _fits(key: str, value: object, event: dict[str, Any], record: logging.LogRecord) -> bool:
    """Return True if an extra *value* may be the event's own *key*, which it does not have."""
    return _same(value, record.levelno) if key == "level_number" else "exc_info" not in event


def _same(one: object, other: object) -> bool:
    # Of built-in scalars only: another type's == may return anything, or raise.
    return type(one) is type(other) and isinstance(one, (str, int, float)) and one == other


# -- from events to records


def record_of(
    event: Mapping[str, Any], level: float | None = None, naive: NaiveTimestamps = "utc"
) -> logging.LogRecord:
    """Return *event* as a log record.

    The message, ``level``, ``logger``, ``timestamp``, ``exc_info`` or ``exception``, ``stack`` and the call-site keys
    become the record's own attributes, and every other key an attribute as ``extra`` makes them; a key that a record
    has for itself gets ``extra_`` before its name.

    Args:
        event: The event.
        level: Its level number. Default: what its fields say.
        naive: What a ``timestamp`` of text without a zone is.
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
    """Return the record of *event* without its message and its further fields, and the event's time if it has one."""
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
    """Give *record* the event's own name for a level that `logging` has none for."""
    level = event.get("level")
    if isinstance(level, str) and level and level.lower() != record.levelname.lower():
        known = level_of({"level": level})
        registered = logging.getLevelName(record.levelname) == record.levelno  # pyright: ignore[reportDeprecated] - text to number
        if known == UNKNOWN or known != record.levelno or not registered:
            record.levelname = level.upper()


def _take_exception(record: logging.LogRecord, event: Mapping[str, Any]) -> Iterator[str]:
    """Set the attributes for exception and stack; give the keys that they stand for."""
    try:
        record.exc_info = exc_info_of(event.get("exc_info"))
        yield "exc_info"
    except TypeError:
        pass  # somebody's own field
    exception = event.get("exception")
    if exception and isinstance(exception, str):
        record.exc_text = exception
        yield "exception"
    # A stack_info that is no text asks for a stack; nobody rendered it, and it is too late to.
    for key in ("stack", "stack_info"):
        value = event.get(key)
        if value and isinstance(value, str) and not record.stack_info:
            record.stack_info = value
            yield key
        elif key == "stack_info" and not isinstance(value, str):
            yield key


# -- names that both have


def _is_prefixed(name: str) -> bool:
    return name.startswith(_COLLISION)


def _bare(name: str) -> str:
    while name.startswith(_COLLISION):
        name = name[len(_COLLISION) :]
    return name


def _key_of(attribute: str) -> str:
    """Return the event key for the ``extra`` *attribute*, undoing what `_attribute_of` does."""
    if attribute.startswith(_COLLISION):
        bare = _bare(attribute)
        if bare in _STANDARD_ATTRIBUTES and bare not in _SHARED:
            return attribute[len(_COLLISION) :]
        if bare in _RESERVED_KEYS:
            return _COLLISION + attribute
    return attribute


def _attribute_of(key: str) -> str:
    """Return the record attribute for the event *key* that no attribute of the record's own stands for."""
    bare = _bare(key)
    if bare in _STANDARD_ATTRIBUTES:
        return key if key != bare and bare in _SHARED else _COLLISION + key
    return key[len(_COLLISION) :] if key != bare and bare in _RESERVED_KEYS else key
