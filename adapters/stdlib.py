"""Between `logging` and sinks: records become events, and events records."""

from __future__ import annotations

import datetime as dt
import logging
import logging.config
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from structlog.stdlib import ProcessorFormatter

from structlog import DropEvent

from outfall.sinks.base import OnError, Sink
from outfall.sinks.event import METADATA, TextEvent, timestamp_of, without_metadata
from outfall.sinks.failures import report
from outfall.sinks.levels import NOTSET, NUMBERS, UNKNOWN, level_name, level_of
from outfall.sinks.plain import plain_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

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

#: Event keys that a record's own data takes; an ``extra`` of the same name gets this before it.
_EVENT_KEYS = frozenset({"event", "level", "level_number", "logger", "timestamp", "exc_info", "exception", "stack"})
_COLLISION = "extra_"


class SinkHandler(logging.Handler):
    """Hand `logging` records to a sink, as events.

    An event gets the message with its arguments (``event``), the lower-case ``level``, ``logger``, ``timestamp`` (ISO
    8601, UTC), each ``extra`` field, the call site, ``exc_info`` and ``stack``. A dict as the message gives its items as
    fields. A structlog event dict, as `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` leaves it in
    ``record.msg``, is used as it is. Processors of the sink find the record under ``_record``, as structlog's
    processors expect; it is never written out.

    With a formatter set, its text is written instead.

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
        super().__init__(level)
        self._owns_sink = not isinstance(sink, Sink)
        made = sink if isinstance(sink, Sink) else build(sink)
        if not isinstance(made, Sink):
            msg = f"sink={sink!r} is neither a Sink nor a dict that describes one"
            raise TypeError(msg)
        self.sink: Sink = made
        names = (_DEFAULT_CALLSITE if callsite else ()) if isinstance(callsite, bool) else tuple(callsite)
        unknown = [key for key in names if key not in _CALLSITE]
        if unknown:
            msg = f"callsite={callsite!r}: {unknown[0]!r} is none of {', '.join(_CALLSITE)}"
            raise ValueError(msg)
        self._callsite = tuple((key, _CALLSITE[key]) for key in names)

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit *record* unless a filter keeps it out; return whether it was emitted."""
        # logging.Handler holds its lock here. The sink has its own, and only around the write.
        if self.filters:
            passed: Any = self.filter(record)
            if not passed:
                return False
            if isinstance(passed, logging.LogRecord):  # since Python 3.12 a filter may replace the record
                record = passed
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Hand *record* to the sink."""
        if self.formatter is not None:
            try:
                text = self.format(record)
            except Exception:  # noqa: BLE001 - told as logging tells it; the event is not lost with its formatting
                self.handleError(record)
            else:
                self.sink.handle(TextEvent(text, record.levelno))
                return
        self.sink.handle(self.event(record))

    def event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the event that *record* stands for."""
        message = record.msg
        attributes = record.__dict__
        if isinstance(message, dict) and "_name" in attributes and "_logger" in attributes:
            event = dict(message)
            event["_logger"] = attributes["_logger"]
            event["_name"] = attributes["_name"]
            event["_record"] = record
            event["_from_structlog"] = True
            if "level" not in event:
                event["level"] = record.levelname.lower()
            return event
        if isinstance(message, Mapping) and not record.args:
            event = dict(message)
        else:
            event = {"event": self._message(record)}
            if record.args and event["event"] is message:
                event["positional_args"] = record.args
        name = record.levelname
        event.setdefault("level", name.lower())
        if NUMBERS.get(name) != record.levelno:
            event["level_number"] = record.levelno
        event.setdefault("logger", record.name)
        if "timestamp" not in event:
            event["timestamp"] = (
                dt.datetime.fromtimestamp(record.created, dt.timezone.utc).isoformat().replace("+00:00", "Z")
            )
        if len(attributes) != len(_STANDARD) or not attributes.keys() <= _STANDARD:
            for key, value in attributes.items():
                if key not in _STANDARD_ATTRIBUTES:
                    event[_COLLISION + key if key in _EVENT_KEYS or key in METADATA else key] = value
        for key, attribute in self._callsite:
            value = attributes.get(attribute)
            if value is not None and key not in event:
                event[key] = value
        if record.exc_info:
            event["exc_info"] = record.exc_info
        elif record.exc_text:
            event["exception"] = record.exc_text
        if record.stack_info:
            event["stack"] = record.stack_info
        event["_record"] = record
        event["_from_structlog"] = False
        return event

    def _message(self, record: logging.LogRecord) -> Any:  # noqa: ANN401 - text, unless formatting fails
        try:
            return record.getMessage()
        except Exception:  # noqa: BLE001 - told as logging tells it; the text and its arguments are kept apart
            self.handleError(record)
            return record.msg

    def flush(self) -> None:
        """Flush the sink, within its `Sink.drain_timeout`."""
        self.sink.flush()

    def close(self) -> None:
        """Flush the sink, and close it if it was made from a description."""
        if self._owns_sink:
            self.sink.close()
        else:
            self.sink.flush()
        super().close()

    def __repr__(self) -> str:
        return f"<SinkHandler ({logging.getLevelName(self.level)}) to {self.sink!r}>"


def build(description: Any) -> Any:  # noqa: ANN401 - a description is any nest of dicts and lists
    """Return what a `logging.config.dictConfig` description stands for: objects for dicts with ``"()"``.

    Also within other dicts and lists; ``ext://`` and ``cfg://`` texts are resolved.

    Raises:
        ValueError: If a name cannot be resolved.
    """
    configurator = getattr(description, "configurator", None) or logging.config.BaseConfigurator({})
    return _built(description, configurator)


def _built(value: Any, configurator: logging.config.BaseConfigurator) -> Any:  # noqa: ANN401
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
    if isinstance(value, (list, tuple)):
        return [_built(value[index], configurator) for index in range(len(value))]
    return configurator.convert(value) if type(value) is str else value


class HandlerSink(Sink):
    """Give events to a `logging.Handler`, as records.

    ``event`` becomes the message, ``level``, ``logger``, ``timestamp``, ``exc_info`` or ``exception``, ``stack`` and the
    call-site keys the record's own attributes, and every other key an attribute as ``extra`` makes them; a key that a
    record has for itself gets ``extra_`` before its name. A handler that formats with
    `structlog.stdlib.ProcessorFormatter` gets the event dict as that expects it.

    Args:
        handler: The handler. Its level and filters are applied. It is not owned: `close` flushes it and leaves it open.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Raises:
        TypeError: If *handler* is no `logging.Handler`.

    Holds no lock: the handler has its own. Handlers of the standard library report their failures themselves, by
    ``handleError``; such an event counts as delivered here.
    """

    locks_emit = False

    def __init__(
        self,
        handler: logging.Handler,
        *,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        if not isinstance(handler, logging.Handler):
            msg = f"handler={handler!r} is not a logging.Handler"
            raise TypeError(msg)
        self.handler = handler
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def emit(self, event: dict[str, Any]) -> None:
        """Give *event* to the handler."""
        record = self.record(event)
        if record.levelno < self.handler.level and level_of(event) != UNKNOWN:
            raise DropEvent
        # Handlers of others may return None from handle(); only a False is a filter's.
        if self.handler.handle(record) is False:
            raise DropEvent

    def record(self, event: dict[str, Any]) -> logging.LogRecord:
        """Return *event* as a log record."""
        number = level_of(event)
        levelno = logging.INFO if number == UNKNOWN else int(number)
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
        if number == UNKNOWN:
            record.levelname = str(event["level"]).upper()
        created = timestamp_of(event)
        if created is not None:
            record.relativeCreated += (created - record.created) * 1000
            record.created = created
            record.msecs = (created - int(created)) * 1000
        for key, attribute in _CALLSITE.items():
            if key in event:
                setattr(record, attribute, event[key])
        if isinstance(self.handler.formatter, ProcessorFormatter):
            record.msg = without_metadata(event)
            record._logger = event.get("_logger")  # type: ignore[attr-defined]  # noqa: SLF001 - as structlog sets it
            record._name = event.get("_name") or level_name(levelno)  # type: ignore[attr-defined]  # noqa: SLF001
            return record
        message = event.get("event", "")
        record.msg = message if isinstance(message, str) else str(message)
        self._add_exception(record, event)
        for field, value in event.items():
            key = field if isinstance(field, str) else plain_key(field)
            if key in METADATA or key in _EVENT_KEYS or key in _CALLSITE or key == "stack_info":
                continue
            name = key[len(_COLLISION) :] if key.startswith(_COLLISION) and key[len(_COLLISION) :] in _EVENT_KEYS else key
            record.__dict__[_COLLISION + name if name in _STANDARD_ATTRIBUTES else name] = value
        return record

    def _add_exception(self, record: logging.LogRecord, event: dict[str, Any]) -> None:
        exc_info: Any = event.get("exc_info")
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif exc_info is True or exc_info == 1:
            exc_info = sys.exc_info()
        if isinstance(exc_info, tuple) and len(exc_info) == 3 and exc_info[0] is not None:  # noqa: PLR2004
            record.exc_info = exc_info
        exception = event.get("exception")
        if isinstance(exception, str):
            record.exc_text = exception
        elif exception is not None:
            record.__dict__["exception"] = exception
        stack = event.get("stack", event.get("stack_info"))
        if isinstance(stack, str):
            record.stack_info = stack

    def _flush(self) -> None:
        self.handler.flush()

    def _describe(self) -> str:
        return f"to {self.handler!r}"
