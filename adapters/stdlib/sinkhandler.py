"""From `logging` into sinks: `SinkHandler`, and what `logging.config` makes of descriptions."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from outfall.sinks.core import lifecycle
from outfall.sinks.core.chain import WITHOUT_FORMATTER
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.event.event import TextEvent
from outfall.sinks.event.levels import NOTSET, Level, LevelName, parse_level
from outfall.sinks.event.record import Callsite, RecordReader

if TYPE_CHECKING:
    from collections.abc import Collection
    from logging.config import BaseConfigurator
    from types import FrameType

#: The formats of `logging.basicConfig`, which gives a formatter to each handler that has none.
_BASIC_FORMATS = frozenset(default for _, default in logging._STYLES.values())


class SinkHandler(logging.Handler):
    """Hand `logging` records to a sink, as events.

    An event gets the message with its arguments (``event``), the lower-case ``level``, ``logger``, ``timestamp`` (ISO
    8601, UTC), each ``extra`` field, ``exc_info`` and ``stack``. An ``extra`` that differs from the
    event's own field of that name gets ``extra_`` before its name. A dict as the message gives its items as fields. A
    structlog event dict, as `structlog.stdlib.ProcessorFormatter.wrap_for_formatter` leaves it in ``record.msg``, is
    used as it is; one that `structlog.stdlib.render_to_log_kwargs` put into ``extra`` keeps its own timestamp, level
    and exception. Processors of the sink find the record under ``_record``, as structlog's processors expect; it is
    never written out.

    With a formatter set, its text is written instead; the one that `logging.basicConfig` makes of itself, without a
    ``format``, does not count.

    uvicorn's ``color_message`` is left out, and its requests have ``client``, ``method``, ``path``, ``http_version``
    and ``status`` as fields.

    Args:
        sink: Where events go: a `Sink`, or a dict that describes one as `logging.config.dictConfig` describes custom
            objects: ``"()"`` names the class, ``"args"`` holds positional arguments, ``"."`` attributes to set, and
            everything else is a keyword argument. Such dicts may be nested. Or a URL, as `open_sink` takes it.
        level: Records below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        callsite: The call-site fields to add: names as `structlog.processors.CallsiteParameter` has them, or True for
            path, line, function, process, thread and task. Default False, which adds none.

    Raises:
        TypeError: If *sink* is neither a sink nor a description of one.
        ValueError: If *callsite* names a field that is none, *level* is no level, or a URL has no meaning.

    The sink is not owned, so `close` only flushes it; one made from a description or a URL is closed. Takes no lock:
    the sink has its own. With ``on_error="raise"`` the sink's exceptions reach the caller of the log method.

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
        #: What makes an event of a record, unless a subclass does it in its own way.
        self._read = self._reader.event if type(self).event is SinkHandler.event else None
        self._owns_sink = isinstance(sink, (Mapping, str))
        self.sink: Sink = _sink_of(sink)
        #: Whether the sink's own class has a filter of its own.
        self._filters = type(self).filter is not logging.Filterer.filter
        try:
            # Last: logging.shutdown finds the handler from here on.
            super().__init__(number)
        except BaseException:
            if self._owns_sink:
                self.sink.close()
            raise
        _make_known(sys._getframe(1))

    def setLevel(self, level: int | str) -> None:  # noqa: N802 - logging's name
        """Set the level: a name in any case, or a number."""
        super().setLevel(int(parse_level(level)))

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Set the formatter, whose text is written instead of the event."""
        # Nobody asked for text: basicConfig(handlers=[…]) alone does this.
        default = type(fmt) is logging.Formatter and fmt._fmt in _BASIC_FORMATS
        if not (default and _is_called_by(sys._getframe(1), "logging", "basicConfig")):
            super().setFormatter(fmt)

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit *record* unless a filter keeps it out; return whether it was emitted."""
        # logging.Handler holds its lock here. The sink has its own, and only around the write.
        if self.filters or self._filters:
            passed: Any = self.filter(record)
            if not passed:
                return False
            # Since Python 3.12 a filter may replace the record.
            if isinstance(passed, logging.LogRecord):
                record = passed
        self.emit(record)
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
        """Return the event that *record* stands for."""
        event = self._reader.event(record)
        if "_record" not in event and self.sink._reads_metadata():
            event["_record"] = record
            event["_from_structlog"] = False
        return event

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
        """Flush the sink, and close it if it was made from a description or a URL."""
        if self._owns_sink:
            self.sink.close()
        elif self.flushOnClose:
            self.sink.flush()
        super().close()

    def __repr__(self) -> str:
        return f"<SinkHandler ({logging.getLevelName(self.level)}) to {self.sink!r}>"


def _sink_of(given: Any) -> Sink:
    """Return the sink that *given* is or describes.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(given, Mapping) and "()" not in given:
        named = given.get("class", "outfall.FileSink")
        msg = f"sink={dict(given)!r} has no '()', which names what makes the sink: {{'()': {named!r}, …}}"
        raise TypeError(msg)
    if isinstance(given, str) and ":" in given:
        from outfall.adapters.urls import open_sink

        return open_sink(given)
    return checked_sink(build(given) if isinstance(given, Mapping) else given)


def _is_called_by(caller: FrameType, module: str, function: str) -> bool:
    return caller.f_code.co_name == function and caller.f_globals.get("__name__") == module


def _make_known(caller: FrameType) -> None:
    """Let dictConfig, if it is the *caller*, set the level that it is asked for, such as ``"info"``.

    It looks the level up itself, in logging's registry, where only the upper-case names are, after it has made the
    handler. A second name for a level changes nothing else: the first stays what records show.
    """
    if _is_called_by(caller, "logging.config", "configure_handler"):
        level = caller.f_locals.get("level")
        if isinstance(level, str) and not isinstance(logging.getLevelName(level), int):  # pyright: ignore[reportDeprecated]
            number = int(parse_level(cast("LevelName", level)))
            shown = logging.getLevelName(number)
            logging.addLevelName(number, level)
            logging.addLevelName(number, shown)


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
