"""`SinkHandler`: a `logging.Handler` that passes records to a sink, which `logging.config` may describe."""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from _thread import get_ident
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from outfall.sinks.core import lifecycle
from outfall.sinks.core.chain import WITHOUT_FORMATTER
from outfall.sinks.core.clock import now
from outfall.sinks.core.lock import WriteLock
from outfall.sinks.core.logginglock import released
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.core.threads import start
from outfall.sinks.event.event import TextEvent
from outfall.sinks.event.levels import NOTSET, Level, LevelName, parse_level
from outfall.sinks.event.record import Callsite, RecordReader
from outfall.sinks.files.opening import appending

if TYPE_CHECKING:
    from collections.abc import Collection
    from logging.config import BaseConfigurator
    from types import FrameType

#: The default formats of `logging.basicConfig`, which sets a formatter on each handler without one.
_BASIC_FORMATS = frozenset(default for _, default in logging._STYLES.values())


class SinkHandler(logging.Handler):
    """Pass each `logging` record to a sink as an event.

    An event gets the message with its arguments (``event``), the lower-case ``level``, ``logger``, ``timestamp`` (ISO
    8601, UTC), each ``extra`` field, ``exc_info`` and ``stack``. An ``extra`` field that differs from the event's own
    field of that name gets ``extra_`` before its name. If the message is a dict, its items become fields.

    A structlog event dict in ``record.msg``, as `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` leaves it, is
    used as it is. One that `structlog.stdlib.render_to_log_kwargs` put into ``extra`` keeps its own timestamp, level
    and exception. Processors of the sink find the record under ``_record``, as structlog's processors expect; it is
    never written out.

    If a formatter is set, the sink gets the formatter's text instead. The default formatter of `logging.basicConfig`,
    called without a ``format``, is ignored.

    Records of uvicorn lose their ``color_message``; those of its requests get the fields ``client``, ``method``,
    ``path``, ``http_version`` and ``status``.

    Args:
        sink: The sink: a `Sink`, a URL as `open_sink` takes it, or a dict that describes a sink as
            `logging.config.dictConfig` describes custom objects. In the dict ``"()"`` names the class, ``"args"`` holds
            positional arguments, ``"."`` attributes to set, and everything else is a keyword argument. Such dicts may
            be nested.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        callsite: The call-site fields to add: names of `structlog.processors.CallsiteParameter`, or True for path,
            line, function, process, thread and task. Default False: none.

    Raises:
        TypeError: If *sink* is neither a sink nor a description of one.
        ValueError: If *callsite* names an unknown field, *level* is not a level, or the URL has no meaning.

    `close` flushes a sink that was passed, and closes one made from a description or a URL. A record that comes later,
    as while `logging.config` replaces a configuration, has the latter made again; its files are appended to.

    Safe from any thread: the handler takes no lock, since the sink has its own. With ``on_error="raise"`` the sink's
    exceptions reach the caller of the log method.

    Source: https://docs.python.org/3/library/logging.html#handler-objects
    """

    def __init__(
        self,
        sink: Sink | Mapping[str, Any] | str,
        level: Level = NOTSET,
        *,
        callsite: bool | Collection[Callsite] = False,
    ) -> None:
        number = int(parse_level(level))
        self._reader = RecordReader(callsite, self.handleError)
        #: The function that makes an event of a record; None if a subclass overrides `event`.
        self._read = self._reader.event if type(self).event is SinkHandler.event else None
        #: The description or URL of a sink that the handler owns; None if a sink was passed.
        self._description = None if isinstance(sink, Sink) else sink
        #: The thread of each record that is on its way to the owned sink.
        self._in_flight: list[int] = []
        #: Whether the owned sink is closed. It changes together with `sink`, under the lock.
        self._ended = False
        #: A process may fork while another thread holds this lock; `WriteLock` is free in the child.
        self._exchange = WriteLock()
        self.sink: Sink = _sink_of(sink)
        #: Whether a subclass overrides `filter`.
        self._filters = type(self).filter is not logging.Filterer.filter
        try:
            # Last, since this registers the handler for logging.shutdown.
            super().__init__(number)
        except BaseException:
            if self._description is not None:
                self.sink.close()
            raise
        _register_level_name(sys._getframe(1))

    def setLevel(self, level: int | str) -> None:  # noqa: N802 - logging's name
        """Set the lowest level to accept: a name in any case, or a number."""
        super().setLevel(int(parse_level(level)))

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Set the formatter: the sink then gets its text instead of events."""
        # Ignore the default of basicConfig(handlers=[…]): the application has not asked for text.
        default = type(fmt) is logging.Formatter and fmt._fmt in _BASIC_FORMATS
        if not (default and _is_called_by(sys._getframe(1), "logging", "basicConfig")):
            super().setFormatter(fmt)

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit *record* unless a filter rejects it; return whether it was emitted."""
        # Without the lock that logging.Handler takes here: the sink has its own, held for the write alone.
        if self.filters or self._filters:
            passed: Any = self.filter(record)
            if not passed:
                return False
            # Since Python 3.12 a filter may replace the record.
            if isinstance(passed, logging.LogRecord):
                record = passed
        if self._description is None:
            self.emit(record)
            return True
        me, in_flight = get_ident(), self._in_flight
        try:
            in_flight.append(me)
            if self._ended:
                self._open_again()
            self.emit(record)
        finally:
            in_flight.remove(me)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Pass *record* to the sink."""
        event: Any
        if self.formatter is not None:
            try:
                event = self.format(record)
            except Exception:
                self.handleError(record)
            else:
                # Third-party formatters may return dicts, which are events.
                if isinstance(event, (str, bytes)):
                    event = TextEvent(event, record.levelno)
                    if not self.sink._text_seen:
                        chain = getattr(self.formatter, "processors", ())
                        self.sink._look_at_text(event, chain, WITHOUT_FORMATTER)
                self.sink.handle(event)
                return
        try:
            if self._read is None:
                event = self.event(record)
            else:
                event = self._read(record)
                if self.sink._reads_metadata() and "_record" not in event:
                    event["_record"] = record
                    event["_from_structlog"] = False
        except Exception:
            self.handleError(record)
            event = {"event": record.msg, "level_number": record.levelno, "logger": record.name}
        self.sink.handle(event)

    def event(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return an event for *record*."""
        event = self._reader.event(record)
        if "_record" not in event and self.sink._reads_metadata():
            event["_record"] = record
            event["_from_structlog"] = False
        return event

    @property
    def flushOnClose(self) -> bool:  # noqa: N802 - logging.shutdown reads it, since Python 3.12
        """Whether `close` and the end of the program flush: False for a sink with ``flush_on_close`` False."""
        return bool(getattr(self.sink, "flush_on_close", True))

    def flush(self) -> None:
        """Flush the sink, within its `Sink.drain_timeout`."""
        # Before Python 3.12 logging.shutdown does not read flushOnClose.
        if self.flushOnClose or not lifecycle.exiting():
            self.sink.flush()

    def close(self) -> None:
        """Flush the sink, and close it if it was made from a description or a URL; a later record opens it again."""
        super().close()
        if self._description is None:
            if self.flushOnClose:
                self.sink.flush()
            return
        with self._exchange:
            sink, self._ended = self.sink, True
            in_flight, self._in_flight = self._in_flight, []
        # New records open another sink from here on: wait for the records that still use this one.
        deadline = now() + sink.drain_timeout
        while in_flight and now() < deadline:
            # Do not wait for threads of the parent, in a forked child, nor for this thread, in a signal handler.
            if not {each.ident for each in threading.enumerate()}.intersection(in_flight) - {get_ident()}:
                break
            released(time.sleep, 0.001)
        sink.close()

    def _open_again(self) -> None:
        """Make another sink for a record that is logged after `close`; it does not truncate its file.

        `logging.config` closes all handlers before it removes them from their loggers, and exit hooks log after
        `logging.shutdown`.
        """
        try:
            with appending():
                made = _sink_of(self._description)
        except Exception:
            return  # the closed sink counts and reports the record
        with self._exchange:
            is_first = self._ended
            if is_first:
                self.sink, self._ended = made, False
        if is_first:
            # Nobody closes this handler again, unless `close` is called by hand.
            ending = threading.Thread(target=made.close, name=f"outfall closes {made.name}", daemon=True)
            weakref.finalize(self, start, ending).atexit = False
        else:
            made.close()

    def __repr__(self) -> str:
        return f"<SinkHandler ({logging.getLevelName(self.level)}) to {self.sink!r}>"


def _sink_of(given: Any) -> Sink:
    """Return the sink that *given* is or describes.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(given, Mapping) and "()" not in given:
        named = given.get("class", "outfall.FileSink")
        msg = f"sink={dict(given)!r} has no '()', the class of the sink: {{'()': {named!r}, …}}"
        raise TypeError(msg)
    if isinstance(given, str) and ":" in given:
        from outfall.adapters.urls import open_sink

        return open_sink(given)
    return checked_sink(build(given) if isinstance(given, Mapping) else given)


def _is_called_by(caller: FrameType, module: str, function: str) -> bool:
    return caller.f_code.co_name == function and caller.f_globals.get("__name__") == module


def _register_level_name(caller: FrameType) -> None:
    """Register the level name that dictConfig, the *caller*, is about to set, such as ``"info"``.

    dictConfig makes the handler and then looks the level up in logging's registry, which has upper-case names only. A
    second name for a level changes nothing else: records still show the first one.
    """
    if _is_called_by(caller, "logging.config", "configure_handler"):
        level = caller.f_locals.get("level")
        if isinstance(level, str) and not isinstance(logging.getLevelName(level), int):  # pyright: ignore[reportDeprecated]
            number = int(parse_level(cast("LevelName", level)))
            shown = logging.getLevelName(number)
            logging.addLevelName(number, level)
            logging.addLevelName(number, shown)


def build(description: Any) -> Any:
    """Build the object that a `logging.config.dictConfig` description describes, from a dict with ``"()"``.

    Dicts with ``"()"`` within other dicts and lists are built too; ``ext://`` and ``cfg://`` texts are resolved.

    Raises:
        ValueError: If a name cannot be resolved.
    """
    from logging.config import BaseConfigurator

    configurator = getattr(description, "configurator", None) or BaseConfigurator({})
    return _built(description, configurator)


def _built(value: Any, configurator: BaseConfigurator) -> Any:
    if isinstance(value, Mapping):
        # By key: the dicts of dictConfig convert values on access by key, but not in items().
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
