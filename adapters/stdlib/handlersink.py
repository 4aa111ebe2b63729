"""`HandlerSink`: a sink that passes events to a `logging.Handler`."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from structlog import DropEvent
from structlog.stdlib import ProcessorFormatter

from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.event.event import NaiveTimestamps, checked_naive, without_metadata
from outfall.sinks.event.levels import NOTSET, UNKNOWN, Level, level_name, level_of
from outfall.sinks.event.record import bare_record_of, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded


class HandlerSink(Sink):
    """Pass each event to a `logging.Handler` as a `logging.LogRecord`.

    ``event`` becomes the message. ``level``, ``logger``, ``timestamp``, ``exc_info`` or ``exception``, ``stack`` and
    the call-site keys become the record's own attributes. Every other key becomes an attribute, as with ``extra``; a
    key that is also the name of a record's own attribute gets ``extra_`` before it. A handler that formats with
    `structlog.stdlib.ProcessorFormatter` gets the event dict in the form which that expects.

    Args:
        handler: The handler. Its level and filters apply. It is not owned: `close` flushes it and leaves it open.
        naive_timestamps: The zone of a ``timestamp`` that is text without one: ``"utc"`` (default) or ``"local"``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If *handler* is not a `logging.Handler`.
        ValueError: If *naive_timestamps* is neither.

    Safe from any thread: the sink holds no lock, since the handler has its own. Handlers of the standard library report
    their failures themselves, by ``handleError``; such an event counts as delivered here.
    """

    shows_people = True

    locks_emit = False

    def __init__(
        self,
        handler: logging.Handler,
        *,
        naive_timestamps: NaiveTimestamps = "utc",
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        if not isinstance(handler, logging.Handler):
            needless = "; a sink is used as it is" if isinstance(handler, Sink) else ""
            msg = f"handler={handler!r} is not a logging.Handler{needless}"
            raise TypeError(msg)
        self.handler = handler
        self.naive_timestamps: NaiveTimestamps = checked_naive(naive_timestamps)
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    @property
    def keeps_in_memory(self) -> bool:
        """True if the handler is a `QueueHandler` or `MemoryHandler` of the standard library."""
        handlers = sys.modules.get("logging.handlers")
        return handlers is not None and isinstance(self.handler, (handlers.QueueHandler, handlers.MemoryHandler))

    def emit(self, event: dict[str, Any]) -> None:
        """Pass *event* to the handler."""
        if not self._give(event):
            raise DropEvent

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Pass the events to the handler one by one."""
        # An event that the handler filters counts as delivered, not as rejected.
        return self._emit_each(batch, self._give_item)

    def _give_item(self, item: Encoded) -> None:
        self._give(item.event)

    def _give(self, event: dict[str, Any]) -> bool:
        record = self.record(event)
        if record.levelno < self.handler.level and level_of(event) != UNKNOWN:
            return False
        # Only False means filtered: handle() of third-party handlers may return None.
        return self.handler.handle(record) is not False

    def record(self, event: dict[str, Any]) -> logging.LogRecord:
        """Return a log record for *event*."""
        if not _formats_structlog(self.handler):
            return record_of(event, naive=self.naive_timestamps)
        record: Any = bare_record_of(event, None, self.naive_timestamps)[0]
        record.msg = without_metadata(event)
        record._logger = event.get("_logger")
        record._name = event.get("_name") or level_name(record.levelno)
        return record  # type: ignore[no-any-return]

    def _flush(self) -> None:
        self.handler.flush()

    def _describe(self) -> str:
        return f"to {self.handler!r}"


def _formats_structlog(handler: logging.Handler) -> bool:
    """Return True if *handler*, or the target of a `MemoryHandler`, formats with structlog's ProcessorFormatter."""
    target: Any = handler
    for _ in range(10):
        if isinstance(target, logging.Handler) and target.formatter is None:
            target = getattr(target, "target", target)
    return isinstance(getattr(target, "formatter", None), ProcessorFormatter)
