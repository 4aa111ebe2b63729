"""Drop-in twins of the handlers that keep records in memory: `BufferingHandler` and `MemoryHandler`."""

from __future__ import annotations

import logging
import logging.handlers
import weakref
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.base import Account, Twin, account_of, is_not_overridden
from outfall.sinks.event.levels import parse_level

if TYPE_CHECKING:
    from outfall.sinks.core.ledger import SinkStats

_BufferingHandler = logging.handlers.BufferingHandler
_MemoryHandler = logging.handlers.MemoryHandler


class _BufferAccount(Account):
    """The account of a handler that buffers records; they count as pending."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = weakref.ref(handler)
        super().__init__(type(handler).__name__)

    def _stats(self) -> SinkStats:
        waiting = getattr(self._handler(), "buffer", ())
        return self._ledger.stats(self.name, pending=len(waiting))

    def after_fork(self) -> None:
        """Empty the buffer in a forked child: the parent delivers those records."""
        waiting = getattr(self._handler(), "buffer", None)
        if waiting is not None:
            waiting.clear()
        super().after_fork()


class BufferingHandler(Twin, _BufferingHandler):
    """A drop-in twin of `logging.handlers.BufferingHandler`: buffer records in memory up to a number.

    Args:
        capacity: The number of buffered records that triggers a flush.

    Attributes:
        capacity: As above; settable.
        buffer: The list of records. It may be changed, and another list may be assigned.

    ``flush`` empties the buffer; a subclass overrides it to use the records. ``shouldFlush(record)`` may be overridden
    too, and is called after *record* was added to the buffer. A forked child begins with an empty buffer. Other
    deliberate differences from its namesake: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#memoryhandler
    """

    #: Whether the buffer is being flushed to the target.
    _outfall_flushing = False

    def __init__(self, capacity: int) -> None:
        _BufferingHandler.__init__(self, capacity)
        # Now: the account empties the buffer in a child that is forked later.
        account_of(self)

    def _outfall_make_sink(self) -> Account:
        return _BufferAccount(self)

    def flush(self) -> None:
        """Empty the buffer."""
        self.acquire()
        try:
            _discard(self)
        finally:
            self.release()


class MemoryHandler(BufferingHandler, _MemoryHandler):
    """A drop-in twin of `logging.handlers.MemoryHandler`: buffer records and hand them to another handler in batches.

    Args:
        capacity: The number of buffered records that triggers a flush.
        flushLevel: A record of this level or above triggers a flush; a number or a name.
        target: The handler that gets the records, by its ``handle``. Default None: records stay in the buffer until a
            target is set.
        flushOnClose: Whether ``close`` flushes. With False it discards the buffered records.

    Attributes:
        capacity: As above. This and the next three may be set at any time.
        flushLevel: As above, a number.
        target: As above.
        flushOnClose: As above.
        buffer: The list of records. It may be changed, and another sequence of any kind may be assigned.

    A record leaves the buffer before the target gets it, so the target sees no record twice. If the target raises, it
    still gets the other records; then `flush` raises the first exception. A forked child begins with an empty buffer.
    Other deliberate differences from its namesake: :doc:`/explanation/handlers`.

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

    def flush(self) -> None:
        """Give the buffered records to the target; without a target they stay.

        Raises:
            Exception: The first exception of the target's ``handle``, raised after the target was given all records.
        """
        self.acquire()
        try:
            # Records that the target itself logs wait for the next flush.
            if self.target and not getattr(self, "_outfall_flushing", False):
                _flush_to_target(self)
        finally:
            self.release()

    def close(self) -> None:
        """Flush, unless *flushOnClose* is False; drop the target and the records left in the buffer."""
        try:
            if self.flushOnClose:
                self.flush()
        finally:
            self.acquire()
            try:
                self.target = None
                if not self.flushOnClose and is_not_overridden(self.flush, MemoryHandler.flush):
                    _discard(self)
                _BufferingHandler.close(self)
            finally:
                self.release()


def _discard(handler: Any) -> None:
    """Discard the buffered records of *handler*, and count them."""
    if handler.buffer:
        account_of(handler)._ledger.drop("discarded", len(handler.buffer))
    handler.buffer.clear()


def _flush_to_target(handler: Any) -> None:
    """Give each buffered record of *handler* to its target; raise the target's first exception."""
    ledger = account_of(handler)._ledger
    waiting = list(handler.buffer)
    handler.buffer.clear()
    rest = iter(waiting)
    failures: list[Exception] = []
    handler._outfall_flushing = True
    try:
        for record in rest:
            try:
                handler.target.handle(record)
            except Exception as error:
                failures.append(error)
    except BaseException:
        kept = list(rest)
        ledger.drop("interrupted")
        undelivered = len(kept) + 1
        ledger.delivered -= undelivered
        kept += handler.buffer
        handler.buffer.clear()
        handler.buffer.extend(kept)
        raise
    finally:
        handler._outfall_flushing = False
        delivered = len(waiting) - len(failures)
        ledger.delivered += delivered
        if failures:
            ledger.drop("error", len(failures))
    if failures:
        try:
            raise failures[0]
        finally:
            # Their tracebacks refer to this frame: without this they form a cycle.
            failures.clear()
