"""Between `logging` and sinks: records become events, and events records."""

from __future__ import annotations

import datetime as dt
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from structlog import DropEvent
from structlog.stdlib import ProcessorFormatter

from outfall.sinks.core import lifecycle
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.event.event import (
    METADATA,
    NaiveTimestamps,
    TextEvent,
    checked_naive,
    message_key,
    timestamp_of,
    without_metadata,
)
from outfall.sinks.event.jsonable import plain_key
from outfall.sinks.event.levels import NOTSET, NUMBERS, UNKNOWN, level_name, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from logging.config import BaseConfigurator

    from outfall.sinks.core.item import BatchResult, Encoded

#: Call-site keys as `structlog.processors.CallsiteParameter` names them, and the record's attribute for each.
_CALLSITE: dict[str, str] = {
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
_DEFAULT_CALLSITE = tuple(key for key in _CALLSITE if key not in ("filename", "module"))

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)
#: What formatters add, and what older versions of Python do not have.
_STANDARD_ATTRIBUTES = _STANDARD | {"message", "asctime", "taskName"}

#: Event keys that a record's own data takes; an ``extra`` of the same name gets this before it where they differ.
_EVENT_KEYS = frozenset({"event", "level", "level_number", "logger", "timestamp", "exception", "stack"})
_RESERVED_KEYS = (_EVENT_KEYS | _CALLSITE.keys()) - _STANDARD_ATTRIBUTES
#: Names that mean the same in an event and in a record, so that nothing else may take them there.
_SHARED = _STANDARD_ATTRIBUTES & (_CALLSITE.keys() | {"exc_info", "stack_info"})
_COLLISION = "extra_"

#: How many sets of a record's attributes are remembered.
_MAX_KNOWN = 256

#: From here on years have four digits without padding, which platforms do in different ways: 1970.
_FOUR_DIGIT_YEARS = 0


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


class SinkHandler(logging.Handler):
    """Hand `logging` records to a sink, as events.

    An event gets the message with its arguments (``event``), the lower-case ``level``, ``logger``, ``timestamp`` (ISO
    8601, UTC), each ``extra`` field, the call site, ``exc_info`` and ``stack``. An ``extra`` that differs from the
    event's own field of that name gets ``extra_`` before its name. A dict as the message gives its items as fields. A
    structlog event dict, as `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` leaves it in ``record.msg``, is
    used as it is; one that `structlog.stdlib.render_to_log_kwargs` put into ``extra`` keeps its own timestamp, level
    and exception. Processors of the sink find the record under ``_record``, as structlog's processors expect; it is
    never written out.

    With a formatter set, its text is written instead. Mind that `logging.basicConfig` sets one.

    Args:
        sink: Where events go: a `Sink`, or a dict that describes one as `logging.config.dictConfig` describes custom
            objects: ``"()"`` names the class, ``"args"`` holds positional arguments, ``"."`` attributes to set, and
            everything else is a keyword argument. Such dicts may be nested.
        level: As for any handler. Default NOTSET.
        callsite: Whether call-site fields are added: True (default) for path, line, function, process, thread and task;
            False; or the names to add, as `structlog.processors.CallsiteParameter` has them.

    Raises:
        TypeError: If *sink* is neither a sink nor a description of one.
        ValueError: If *callsite* names a field that is none.

    The sink is not owned, so `close` only flushes it; one made from a description is closed. Takes no lock: the sink
    has its own. With ``on_error="raise"`` the sink's exceptions reach the caller of the log method.

    Source: https://docs.python.org/3/library/logging.html#handler-objects
    """

    def __init__(
        self,
        sink: Sink | Mapping[str, Any],
        level: int | str = NOTSET,
        *,
        callsite: bool | Collection[str] = True,
    ) -> None:
        names = (_DEFAULT_CALLSITE if callsite else ()) if isinstance(callsite, bool) else tuple(callsite)
        unknown = [key for key in names if key not in _CALLSITE]
        if unknown:
            msg = f"callsite={callsite!r}: {unknown[0]!r} is none of {', '.join(_CALLSITE)}"
            raise ValueError(msg)
        self._callsite = tuple((key, _CALLSITE[key]) for key in names)
        self._second = (-1, "")
        #: By the names of a record's attributes, those that are extra; False where that is not all there is to it.
        self._extra: dict[tuple[str, ...], tuple[str, ...] | Literal[False]] = {}
        self._owns_sink = isinstance(sink, Mapping)
        made = build(sink) if isinstance(sink, Mapping) else sink
        if not isinstance(made, Sink):
            msg = f"sink={sink!r} is neither a Sink nor a dict that describes one"
            raise TypeError(msg)
        self.sink: Sink = made
        try:
            # Last: logging.shutdown finds the handler from here on.
            super().__init__(level)
        except BaseException:
            if self._owns_sink:
                made.close()
            raise

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit *record* unless a filter keeps it out; return whether it was emitted."""
        # logging.Handler holds its lock here. The sink has its own, and only around the write.
        passed: Any = self.filter(record)
        if not passed:
            return False
        # Since Python 3.12 a filter may replace the record.
        self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Hand *record* to the sink."""
        event: Any
        if self.formatter is not None:
            try:
                event = self.format(record)
            except Exception:
                self.handleError(record)
            else:
                # Formatters of others return dicts as well.
                self.sink.handle(TextEvent(event, record.levelno) if isinstance(event, (str, bytes)) else event)
                return
        try:
            event = self.event(record)
        except Exception:
            self.handleError(record)
            event = {"event": record.msg, "level_number": record.levelno, "logger": record.name}
        self.sink.handle(event)

    def event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the event that *record* stands for."""
        message = record.msg
        attributes = record.__dict__
        if message.__class__ is str:
            # What the rest does, for the usual record: which of its attributes are extra is looked up by all names.
            names = tuple(attributes)
            extra = self._extra.get(names)
            if extra is None:
                extra = self._learn(names)
            if extra is not False:
                try:
                    event: dict[str, Any] = {"event": record.getMessage()}
                except Exception:
                    pass
                else:
                    self._add_origin(event, record)
                    _add_exception_of(record, event)
                    for name in extra:
                        event[name] = attributes[name]
                    self._add_metadata(event, record)
                    return event
        if isinstance(message, dict) and "_name" in attributes and "_logger" in attributes:
            event = dict(message)
            event["_logger"] = attributes["_logger"]
            event["_name"] = attributes["_name"]
            event["_record"] = record
            event["_from_structlog"] = True
            if "level" not in event:
                self._add_level(event, record)
            return event
        event = self._said(record)
        self._add_origin(event, record)
        _add_exception_of(record, event)
        self._add_extra(event, record)
        self._add_metadata(event, record)
        return event

    def _learn(self, names: tuple[str, ...]) -> tuple[str, ...] | Literal[False]:
        """Return which *names* of a record's attributes are extra; False if one of them needs a closer look."""
        extra = tuple(name for name in names if name not in _STANDARD_ATTRIBUTES)
        taken = _EVENT_KEYS.union(key for key, _ in self._callsite)
        plain = taken.isdisjoint(extra) and not any(map(_is_prefixed, extra))
        if len(self._extra) >= _MAX_KNOWN:
            self._extra.clear()
        return self._extra.setdefault(names, extra if plain else False)

    def _add_origin(self, event: dict[str, Any], record: logging.LogRecord) -> None:
        self._add_level(event, record)
        event.setdefault("logger", record.name)
        if "timestamp" not in event:
            event["timestamp"] = self._timestamp(record.created)
        if self._callsite:
            attributes = record.__dict__
            for key, attribute in self._callsite:
                value = attributes.get(attribute)
                if value is not None and key not in event:
                    event[key] = value

    def _add_metadata(self, event: dict[str, Any], record: logging.LogRecord) -> None:
        if self.sink._reads_metadata():
            event["_record"] = record
            event["_from_structlog"] = False

    def _timestamp(self, created: float) -> str:
        """Return *created*, epoch seconds, as ISO 8601 text in UTC, as `structlog.processors.TimeStamper` writes it."""
        second = int(created)
        microsecond = round((created - second) * 1_000_000)
        if 0 < microsecond < 1_000_000 and second >= _FOUR_DIGIT_YEARS:
            # The text of a second is kept, since making it costs more than the rest of the event. In one attribute,
            # which other threads can only replace as a whole.
            known, text = self._second
            if second != known:
                text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
                self._second = (second, text)
            return f"{text}.{microsecond:06d}Z"
        return dt.datetime.fromtimestamp(created, dt.timezone.utc).isoformat().replace("+00:00", "Z")

    def _said(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the beginning of an event: the message of *record*, or the fields that it is."""
        message: Any = record.msg
        if isinstance(message, Mapping) and not record.args:
            event = dict(message)
            for key in ("level", "level_number"):
                if key in event and level_of({key: event[key]}) != record.levelno:
                    # What the message says of another level must not decide which sinks take the record.
                    event[_COLLISION + key] = event.pop(key)
            return event
        try:
            return {"event": record.getMessage()}
        except Exception:
            self.handleError(record)
            return {"event": message, "positional_args": record.args} if record.args else {"event": message}

    @staticmethod
    def _add_level(event: dict[str, Any], record: logging.LogRecord) -> None:
        name = record.levelname
        event["level"] = name.lower()
        if NUMBERS.get(name) != record.levelno:
            event["level_number"] = record.levelno

    def _add_extra(self, event: dict[str, Any], record: logging.LogRecord) -> None:
        attributes = record.__dict__
        extra = {key: value for key, value in attributes.items() if key not in _STANDARD_ATTRIBUTES}
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
            elif key not in event and (
                key not in ("level_number", "exception") or self._fits(key, value, event, record)
            ):
                event[key] = value
            elif not _same(value, event.get(key)):
                event[_COLLISION + key] = value

    @staticmethod
    def _fits(key: str, value: object, event: dict[str, Any], record: logging.LogRecord) -> bool:
        """Return True if an extra *value* may be the event's own *key*, which it does not have."""
        return _same(value, record.levelno) if key == "level_number" else "exc_info" not in event

    @property
    def flushOnClose(self) -> bool:  # noqa: N802 - what logging.shutdown asks a handler for, since Python 3.12
        """Whether `close` and the end of the program flush: False for a sink with ``flush_on_close`` False."""
        return bool(getattr(self.sink, "flush_on_close", True))

    def flush(self) -> None:
        """Flush the sink, within its `Sink.drain_timeout`."""
        # Before Python 3.12 logging.shutdown does not ask.
        if self.flushOnClose or not lifecycle.exiting():
            self.sink.flush()

    def close(self) -> None:
        """Flush the sink, and close it if it was made from a description."""
        if self._owns_sink:
            self.sink.close()
        elif self.flushOnClose:
            self.sink.flush()
        super().close()

    def __repr__(self) -> str:
        return f"<SinkHandler ({logging.getLevelName(self.level)}) to {self.sink!r}>"


def _add_exception_of(record: logging.LogRecord, event: dict[str, Any]) -> None:
    exc_info: Any = record.exc_info
    if exc_info and not (isinstance(exc_info, tuple) and exc_info[0] is None):
        event["exc_info"] = exc_info
    elif record.exc_text:
        event["exception"] = record.exc_text
    if record.stack_info:
        event["stack"] = record.stack_info


def _same(one: object, other: object) -> bool:
    # Of built-in scalars only: another type's == may return anything, or raise.
    return type(one) is type(other) and isinstance(one, (str, int, float)) and one == other


def build(description: Any) -> Any:
    """Return what a `logging.config.dictConfig` description stands for: objects for dicts with ``"()"``.

    Also within other dicts and lists; ``ext://`` and ``cfg://`` texts are resolved.

    Raises:
        ValueError: If a name cannot be resolved.
    """
    from logging.config import BaseConfigurator

    configurator = getattr(description, "configurator", None) or BaseConfigurator({})
    return _built(description, configurator)


def _built(value: Any, configurator: BaseConfigurator) -> Any:
    if isinstance(value, Mapping):
        # By key, not by items(): dictConfig's dicts convert their values on access.
        items = {key: _built(value[key], configurator) for key in value}
        factory = items.pop("()", None)
        if factory is None:
            return items
        if isinstance(factory, str):
            factory = configurator.resolve(factory)
        attributes = items.pop(".", None) or {}
        made = factory(*items.pop("args", ()), **items)
        for name, attribute in attributes.items():
            setattr(made, name, attribute)
        return made
    if isinstance(value, list) or (isinstance(value, tuple) and not hasattr(value, "_fields")):
        made = [_built(value[index], configurator) for index in range(len(value))]
        return made if isinstance(value, list) else tuple(made)
    return configurator.convert(value) if type(value) is str else value


def _formats_structlog(handler: logging.Handler) -> bool:
    """Return True if *handler*, or the one that a `logging.handlers.MemoryHandler` keeps for, formats event dicts."""
    target: Any = handler
    for _ in range(10):
        if isinstance(target, logging.Handler) and target.formatter is None:
            target = getattr(target, "target", target)
    return isinstance(getattr(target, "formatter", None), ProcessorFormatter)


class HandlerSink(Sink):
    """Give events to a `logging.Handler`, as records.

    ``event`` becomes the message, ``level``, ``logger``, ``timestamp``, ``exc_info`` or ``exception``, ``stack`` and
    the call-site keys the record's own attributes, and every other key an attribute as ``extra`` makes them; a key
    that a record has for itself gets ``extra_`` before its name. A handler that formats with
    `structlog.stdlib.ProcessorFormatter` gets the event dict as that expects it.

    Args:
        handler: The handler. Its level and filters are applied. It is not owned: `close` flushes it and leaves it open.
        naive_timestamps: What a ``timestamp`` of text without a zone is: ``"utc"`` (default) or ``"local"``.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Raises:
        TypeError: If *handler* is no `logging.Handler`.
        ValueError: If *naive_timestamps* is neither.

    Holds no lock: the handler has its own. Handlers of the standard library report their failures themselves, by
    ``handleError``; such an event counts as delivered here.
    """

    locks_emit = False

    def __init__(
        self,
        handler: logging.Handler,
        *,
        naive_timestamps: NaiveTimestamps = "utc",
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        if not isinstance(handler, logging.Handler):
            msg = f"handler={handler!r} is not a logging.Handler"
            raise TypeError(msg)
        self.handler = handler
        self.naive_timestamps = checked_naive(naive_timestamps)
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def emit(self, event: dict[str, Any]) -> None:
        """Give *event* to the handler."""
        if not self._give(event):
            raise DropEvent

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Give the events to the handler, one by one."""
        # What the handler filters is settled, and no reason to reject.
        return self._emit_each(batch, self._give_item)

    def _give_item(self, item: Encoded) -> None:
        self._give(item.event)

    def _give(self, event: dict[str, Any]) -> bool:
        record = self.record(event)
        if record.levelno < self.handler.level and level_of(event) != UNKNOWN:
            return False
        # Handlers of others may return None from handle(); only a False is a filter's.
        return self.handler.handle(record) is not False

    def record(self, event: dict[str, Any]) -> logging.LogRecord:
        """Return *event* as a log record."""
        number = level_of(event)
        levelno = int(number) if math.isfinite(number) else logging.INFO
        logger = event.get("logger")
        record = logging.LogRecord(
            name=str(logger) if logger is not None else "root",
            level=levelno,
            pathname=str(event.get("pathname", "")),
            lineno=event.get("lineno", 0),
            msg=None,
            args=None,
            exc_info=None,
            func=event.get("func_name"),
        )
        self._name_level(record, event)
        created = timestamp_of(event, self.naive_timestamps)
        if created is not None:
            record.relativeCreated += (created - record.created) * 1000
            record.created = created
            record.msecs = float(int(created % 1 * 1000))
        for key, attribute in _CALLSITE.items():
            if key in event:
                setattr(record, attribute, event[key])
        if _formats_structlog(self.handler):
            structured: Any = record
            structured.msg = without_metadata(event)
            structured._logger = event.get("_logger")
            structured._name = event.get("_name") or level_name(levelno)
            return record
        said = message_key(event)
        message = event.get(said, "")
        record.msg = message if isinstance(message, str) else str(message)
        taken = {said, "level", "level_number", "logger", *_CALLSITE, *METADATA, *self._add_exception(record, event)}
        if created is not None:
            taken.add("timestamp")
        for key, value in event.items():
            if key not in taken:
                attribute = _attribute_of(key if isinstance(key, str) else plain_key(key))
                while attribute in record.__dict__:
                    attribute = _COLLISION + attribute
                record.__dict__[attribute] = value
        return record

    def _name_level(self, record: logging.LogRecord, event: dict[str, Any]) -> None:
        """Give *record* the event's own name for a level that `logging` has none for."""
        level = event.get("level")
        if isinstance(level, str) and level.lower() != record.levelname.lower():
            known = level_of({"level": level})
            registered = logging.getLevelName(record.levelname) == record.levelno  # pyright: ignore[reportDeprecated] - text to number
            if known == UNKNOWN or known != record.levelno or not registered:
                record.levelname = level.upper()

    def _add_exception(self, record: logging.LogRecord, event: dict[str, Any]) -> set[str]:
        """Set the attributes for exception and stack; return the keys that they stand for."""
        taken: set[str] = set()
        exc_info: Any = event.get("exc_info")
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif type(exc_info) in (bool, int):
            exc_info = sys.exc_info() if exc_info else None
        if exc_info is None:
            taken.add("exc_info")
        elif isinstance(exc_info, tuple) and len(exc_info) == 3:
            taken.add("exc_info")
            if exc_info[0] is not None:
                record.exc_info = exc_info
        exception = event.get("exception")
        if exception and isinstance(exception, str):
            record.exc_text = exception
            taken.add("exception")
        # A stack_info that is no text asks for a stack; nobody rendered it, and it is too late to.
        for key in ("stack", "stack_info"):
            value = event.get(key)
            if value and isinstance(value, str) and not record.stack_info:
                record.stack_info = value
                taken.add(key)
            elif key == "stack_info" and not isinstance(value, str):
                taken.add(key)
        return taken

    def _flush(self) -> None:
        self.handler.flush()

    def _describe(self) -> str:
        return f"to {self.handler!r}"
