"""Drop-in twins of the handlers that keep records in memory: `BufferingHandler` and `MemoryHandler`."""

from __future__ import annotations

import logging
import logging.handlers
import weakref
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.base import Account, Twin, account_of, untouched
from outfall.sinks.event.levels import parse_level

if TYPE_CHECKING:
    from outfall.sinks.core.ledger import SinkStats

_BufferingHandler = logging.handlers.BufferingHandler
_MemoryHandler = logging.handlers.MemoryHandler


class _Waiting(Account):
    """The account of a handler in whose buffer records wait."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = weakref.ref(handler)
        super().__init__(type(handler).__name__)

    def _stats(self) -> SinkStats:
        waiting = getattr(self._handler(), "buffer", ())
        return self._ledger.stats(self.name, pending=len(waiting))

    def after_fork(self) -> None:
        """Begin anew in a forked child; what was logged before is the parent's."""
        waiting = getattr(self._handler(), "buffer", None)
        if waiting is not None:
            waiting.clear()
        super().after_fork()


class BufferingHandler(Twin, _BufferingHandler):
    """A drop-in twin of `logging.handlers.BufferingHandler`: keep records in memory until there are many.

    Args:
        capacity: How many records make it flush.

    Attributes:
        capacity: As above; settable.
        buffer: The list of records. May be changed, and be another.

    ``flush`` empties the buffer; a subclass makes more of it. ``shouldFlush(record)`` may be overridden too, and is
    called when *record* is in the buffer. A forked child begins with an empty buffer. Where else it differs from its
    namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#memoryhandler
    """

    #: Whether records of the buffer are being handed on.
    _outfall_handing = False

    def __init__(self, capacity: int) -> None:
        _BufferingHandler.__init__(self, capacity)
        # Now, so that a child that is forked later knows what is the parent's.
        account_of(self)

    def _outfall_make_sink(self) -> Account:
        return _Waiting(self)

    def flush(self) -> None:
        """Empty the buffer."""
        self.acquire()
        try:
            _discard(self)
        finally:
            self.release()


class MemoryHandler(BufferingHandler, _MemoryHandler):
    """A drop-in twin of `logging.handlers.MemoryHandler`: hand records on to another handler, many at once.

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
        buffer: The list of records. May be changed, and be another, of any kind.

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

    def flush(self) -> None:
        """Hand on all that is in the buffer; without a target it is kept.

        Raises:
            Exception: What the target's ``handle`` has raised first, when it has been given all.
        """
        self.acquire()
        try:
            # What the target logs itself goes with the next flush.
            if self.target and not getattr(self, "_outfall_handing", False):
                _hand_on(self)
        finally:
            self.release()

    def close(self) -> None:
        """Flush, unless *flushOnClose* is False; let go of the target and of what is left in the buffer."""
        try:
            if self.flushOnClose:
                self.flush()
        finally:
            self.acquire()
            try:
                self.target = None
                if not self.flushOnClose and untouched(self.flush, MemoryHandler.flush):
                    _discard(self)
                _BufferingHandler.close(self)
            finally:
                self.release()


def _discard(handler: Any) -> None:
    """Throw away what is in the buffer of *handler*, and count it."""
    if handler.buffer:
        account_of(handler)._ledger.drop("discarded", len(handler.buffer))
    handler.buffer.clear()


def _hand_on(handler: Any) -> None:
    """Give each record in the buffer of *handler* to its target; raise what that raised first."""
    ledger = account_of(handler)._ledger
    waiting = list(handler.buffer)
    handler.buffer.clear()
    rest = iter(waiting)
    failures: list[Exception] = []
    handler._outfall_handing = True
    try:
        for record in rest:
            try:
                handler.target.handle(record)
            except Exception as error:
                failures.append(error)
    except BaseException:
        kept = list(rest)
        ledger.drop("interrupted")
        ledger.delivered -= len(kept) + 1
        kept += handler.buffer
        handler.buffer.clear()
        handler.buffer.extend(kept)
        raise
    finally:
        handler._outfall_handing = False
        ledger.delivered += len(waiting) - len(failures)
        if failures:
            ledger.drop("error", len(failures))
    if failures:
        try:
            raise failures[0]
        finally:
            # Their tracebacks hold this frame.
            failures.clear()
