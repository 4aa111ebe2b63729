"""Adapters from structlog to a sink.

A sink can be the last processor of a chain itself. With `SinkLoggerFactory` the chain ends as for any other logger, and
the logger passes the event to a sink. `tee` is a processor in the middle of a chain.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.chain import WITHOUT_RENDERER, chain_of
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.event.event import TextEvent, as_event, event_of_call
from outfall.sinks.event.levels import NUMBERS, level_name, parse_level
from outfall.sinks.event.record import utc_text

if TYPE_CHECKING:
    from collections.abc import Callable


class SinkLogger:
    """Pass the event of each log method to a sink. structlog's bound loggers wrap this logger.

    It accepts any result of a processor chain: the event dict itself (no last processor needed), the text of a
    renderer, or the arguments that `structlog.stdlib.render_to_log_kwargs`, ``render_to_log_args_and_kwargs`` and
    ``ProcessorFormatter.wrap_for_formatter`` make. Missing fields are added, as `SinkHandler` does for records:
    ``level`` from the method's name, ``logger`` from the logger's, and ``timestamp``, the time in UTC.

    It has the attributes that structlog's processors for the standard library use: `name`, `disabled`, `isEnabledFor`
    and `getEffectiveLevel`, which returns the sink's level.

    Args:
        sink: The sink. It is not owned.
        name: The logger's name, for the event's ``logger`` and `structlog.stdlib.add_logger_name`. Default ``"root"``.

    Raises:
        TypeError: If *sink* is not a `Sink`.

    Safe from any thread. It cannot be pickled, since the sink cannot; copies share the sink.
    """

    __slots__ = ("_sink", "name")

    #: Always False; structlog's ``filter_by_level`` reads it.
    disabled = False

    def __init__(self, sink: Sink, name: str = "root") -> None:
        self._sink = checked_sink(sink)
        self.name: str = name

    @property
    def sink(self) -> Sink:
        """The sink that gets the events."""
        return self._sink

    @property
    def level(self) -> float:
        """The sink's level number."""
        return self._sink.level

    def getEffectiveLevel(self) -> float:  # noqa: N802 - logging's name, which structlog calls
        """Return the sink's level number."""
        return self._sink.level

    def isEnabledFor(self, level: float) -> bool:  # noqa: N802 - logging's name, which structlog calls
        """Return True if the sink accepts events of *level*."""
        return level >= self._sink.level

    def _hand(
        self, method_name: str, args: tuple[Any, ...], kwargs: dict[str, Any], level: float | None = None
    ) -> None:
        number = NUMBERS[method_name] if level is None else level
        event: Any
        try:
            event = event_of_call(args, kwargs)
        except Exception:
            self._sink.handle(args[0] if args else kwargs)  # the sink counts and reports it
            return
        # The dict belongs to this call, so fields can be added to it. A text event keeps its level in an attribute.
        if isinstance(event, TextEvent):
            event.carried_level = number
            if not self._sink._text_seen:
                self._sink._look_at_text(event, chain_of(sys._getframe(1)), WITHOUT_RENDERER)
        else:
            if "level" not in event:
                event["level"] = method_name
                if level is not None and NUMBERS.get(method_name) != level:
                    event.setdefault("level_number", level)
            event.setdefault("logger", self.name)
            if "timestamp" not in event:
                event["timestamp"] = utc_text(time.time())
        self._sink.handle(event)

    def debug(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event of level debug."""
        self._hand("debug", args, kwargs)

    def info(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event of level info."""
        # A shortcut for the most frequent call: an event dict that has its level.
        if not args and "level" in kwargs and "msg" not in kwargs:
            if "logger" not in kwargs:
                kwargs["logger"] = self.name
            if "timestamp" not in kwargs:
                kwargs["timestamp"] = utc_text(time.time())
            self._sink.handle(kwargs)
        else:
            self._hand("info", args, kwargs)

    def warning(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event of level warning."""
        self._hand("warning", args, kwargs)

    def error(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event of level error."""
        self._hand("error", args, kwargs)

    def critical(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event of level critical."""
        self._hand("critical", args, kwargs)

    def exception(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event of level error; structlog has added the exception already."""
        self._hand("error", args, kwargs)

    def log(self, /, *args: Any, **kwargs: Any) -> None:
        """Pass on an event, with its level (a name or number) as the first argument; without a level it is INFO."""
        # structlog.BoundLogger passes any method name on, and calls log() with the event alone.
        level = None
        if args and (kwargs or len(args) > 1):
            with contextlib.suppress(TypeError, ValueError):
                level = parse_level(args[0])
        if level is None:
            self._hand("info", args, kwargs)
        else:
            self._hand(level_name(level), args[1:], kwargs, level)

    msg = info
    warn = warning
    err = error
    failure = error
    fatal = critical

    def __repr__(self) -> str:
        return f"<SinkLogger {self.name!r} to {self._sink!r}>"

    def __copy__(self) -> SinkLogger:
        """Return a logger on the same sink."""
        return SinkLogger(self._sink, self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> SinkLogger:
        """Return a logger on the same sink, as structlog's own loggers do for their file."""
        return SinkLogger(self._sink, self.name)

    def __reduce__(self) -> Any:
        """Raise a TypeError that names the remedy."""
        msg = (
            f"a logger bound to {type(self._sink).__name__} cannot be pickled: the sink holds open resources; "
            "pickle the lazy proxy that structlog.get_logger() returns, before bind()"
        )
        raise TypeError(msg)


class SinkLoggerFactory:
    """Make `SinkLogger` instances for ``structlog.configure(logger_factory=…)``.

    Args:
        sink: The sink. It is not owned: close it yourself, or let the exit hook drain it.

    Raises:
        TypeError: If *sink* is not a `Sink`.

    The logger's name is the argument of ``structlog.get_logger("name")``, else the name of the calling module, as with
    `structlog.stdlib.LoggerFactory`.
    """

    sink: Sink

    def __init__(self, sink: Sink) -> None:
        self.sink = checked_sink(sink)

    def __call__(self, *args: Any) -> SinkLogger:
        """Return a logger named after the first of *args*, else after the calling module."""
        return SinkLogger(self.sink, str(args[0]) if args else calling_module())

    def __repr__(self) -> str:
        return f"SinkLoggerFactory({self.sink!r})"


def calling_module() -> str:
    """Return the name of the calling module, skipping structlog and this package."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        module = str(frame.f_globals.get("__name__") or "?")
        if module.partition(".")[0] not in ("structlog", "outfall"):
            return module
        frame = frame.f_back
    return str(frame.f_globals.get("__name__") or "?")


def tee(sink: Sink) -> Callable[[Any, str, Any], Any]:
    """Return a structlog processor that gives each event to *sink* and returns it unchanged.

    Args:
        sink: The sink. It is not owned.

    Raises:
        TypeError: If *sink* is not a `Sink`.

    The sink filters an event without ``level`` by the method's name; the event itself gets no level.
    """
    checked_sink(sink)

    def tee_processor(_logger: Any, method_name: str, event_dict: Any) -> Any:
        try:
            event = as_event(event_dict, method_name)
        except TypeError:
            event = event_dict  # the sink counts and reports it
        sink.handle(event)
        return event_dict

    return tee_processor
