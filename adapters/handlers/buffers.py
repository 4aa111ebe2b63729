"""Drop-in twins of the handlers that keep records in memory: `BufferingHandler` and `MemoryHandler`."""

from __future__ import annotations

import logging
import logging.handlers
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.twin import Twin
from outfall.sinks.core.sink import Sink
from outfall.sinks.delivery.memory import BufferingSink, MemorySink
from outfall.sinks.event.levels import parse_level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outfall.sinks.core.ledger import SinkStats


class _RecordsSink(BufferingSink):
    """Keep account of the records in a handler's list, and have them in the sink's own buffer while it is flushed."""

    #: As of `Lent`, which is for sinks that write bytes.
    owner: Any = None

    #: The list.
    waiting: list[Any]

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self.waiting = []

    def keep(self, records: list[Any], record: logging.LogRecord) -> None:
        """Append *record* to the handler's list."""
        self.waiting = records
        records.append(record)
        self._taken += 1

    def take(self, records: list[Any]) -> None:
        """Take over what is in the list."""
        self.waiting = records
        self._buffer.extend(records)
        records.clear()

    def discard(self, records: list[Any], reason: str) -> None:
        """Throw away what is in the list, and count it."""
        self.take(records)
        self._discard(reason)

    def drain(self, timeout: float) -> None:
        """Do nothing at exit: `logging.shutdown` closes the handler."""

    def after_fork(self) -> None:
        """Begin anew in a forked child; what was logged before is the parent's."""
        self.waiting.clear()
        super().after_fork()

    def _stats(self) -> SinkStats:
        stats = super()._stats()
        waiting = len(self.waiting)
        return replace(stats, delivered=stats.delivered - waiting, pending=stats.pending + waiting)


class _HandingSink(_RecordsSink, MemorySink):
    def hand_on(self, records: list[Any], handler: logging.Handler) -> None:
        """Hand on what is in the list to *handler*; raise what it raised first, when all have been handed on."""
        if self._handing is not None:
            # The target has logged, in the midst of handing on: to be flushed with what comes next.
            return
        target = self._target
        if not isinstance(target, _Target) or target.handler is not handler:
            self._target = _Target(handler)
        failures: list[BaseException] = []
        self.take(records)
        try:
            # All, however many come meanwhile: they come into the list.
            self._hand_on(math.inf, failures)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        finally:
            with self._left:
                records[:0] = self._buffer
                self._buffer.clear()
        if failures:
            first = failures[0]
            failures.clear()
            try:
                raise first
            finally:
                # Its traceback holds this frame.
                del first

    def let_go(self) -> None:
        """Forget the target."""
        self._target = None


class _Target(Sink):
    """A handler as the target of a sink of records."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__(on_error="raise", name=type(handler).__name__)
        self.handler = handler

    def deliver(self, event: Mapping[str, Any] | str | bytes | logging.LogRecord) -> None:
        """Have the handler handle a record."""
        if isinstance(event, logging.LogRecord):
            self.handler.handle(event)
            self._ledger.delivered += 1
        else:
            super().deliver(event)


class BufferingHandler(Twin, logging.handlers.BufferingHandler):
    """A drop-in twin of `logging.handlers.BufferingHandler`: keep records in a list, for subclasses that do more.

    Args:
        capacity: How many records make it flush.

    Attributes:
        capacity: As above; read at each record.
        buffer: The list of records. May be changed, and be another.

    ``flush`` empties the buffer; a subclass overrides it to put the records somewhere before. ``shouldFlush`` may be
    overridden too. Where it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#memoryhandler
    """

    def __init__(self, capacity: int) -> None:
        Twin.__init__(self)
        self.capacity = capacity
        self.buffer: list[logging.LogRecord] = []

    def make_sink(self) -> _RecordsSink:
        """Return the sink, which keeps the ledger."""
        sink = _RecordsSink(0, on_error="raise", name=type(self).__name__)
        sink.flush_on_close = False
        return sink

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        """Return True if the buffer is up to capacity. Called when *record* is in it."""
        return len(self.buffer) >= self.capacity

    def emit(self, record: logging.LogRecord) -> None:
        """Append *record* to the buffer, and flush it if ``shouldFlush`` says so."""
        self.sink.keep(self.buffer, record)
        if self.shouldFlush(record):
            self.flush()

    def flush(self) -> None:
        """Empty the buffer."""
        with self.at_work() as sink:
            sink.discard(self.buffer, "discarded")

    def close(self) -> None:
        """Flush, and close."""
        try:
            self.flush()
        finally:
            logging.Handler.close(self)


class MemoryHandler(BufferingHandler, logging.handlers.MemoryHandler):
    """A drop-in twin of `logging.handlers.MemoryHandler`: hand records on to another handler, many at once.

    By a `MemorySink`.

    Args:
        capacity: How many records make it flush.
        flushLevel: A record of this level or above makes it flush; a number or a name.
        target: The handler that records are handed on to, by its ``handle``. Default None: they are kept until there is
            one.
        flushOnClose: Whether ``close`` flushes. With False what is in the buffer then is thrown away.

    Attributes:
        capacity: As above; like the next three read whenever they are needed.
        flushLevel: As above, a number.
        target: As above.
        flushOnClose: As above.
        buffer: The list of records. May be changed, and be another.

    A record leaves the buffer as it is handed on, so a target that raises midway sees none twice; it gets the others,
    and then what it raised is raised. A forked child begins with an empty buffer. Where else it differs from its
    namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#memoryhandler
    """

    def __init__(
        self,
        capacity: int,
        flushLevel: int = logging.ERROR,
        target: logging.Handler | None = None,
        flushOnClose: bool = True,
    ) -> None:
        BufferingHandler.__init__(self, capacity)
        named: Any = flushLevel
        self.flushLevel: Any = parse_level(named, "flushLevel") if isinstance(named, str) else flushLevel
        self.target = target
        self.flushOnClose = flushOnClose

    def make_sink(self) -> _RecordsSink:
        """Return the sink."""
        return _HandingSink(0, flush_on_close=False, on_error="raise", name=type(self).__name__)

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        """Return True if the buffer is up to capacity, or *record* of the flush level or above."""
        return len(self.buffer) >= self.capacity or record.levelno >= self.flushLevel

    def setTarget(self, target: logging.Handler | None) -> None:
        """Hand on to *target* from now on, beginning with the next flush."""
        self.acquire()
        try:
            self.target = target
        finally:
            self.release()

    def flush(self) -> None:
        """Hand on all that is in the buffer; without a target it is kept.

        Raises:
            Exception: What the target's ``handle`` has raised first, when it has been given all.
        """
        with self.at_work() as sink:
            if self.target:
                sink.hand_on(self.buffer, self.target)

    def close(self) -> None:
        """Flush, unless *flushOnClose* is False; let go of the target and of what is left in the buffer."""
        try:
            if self.flushOnClose:
                self.flush()
        finally:
            with self.at_work() as sink:
                self.target = None
                sink.let_go()
                sink.discard(self.buffer, "closed" if self.flushOnClose else "discarded")
                logging.Handler.close(self)
