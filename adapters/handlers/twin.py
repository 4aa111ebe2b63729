"""What the drop-in twins of `logging`'s handlers have in common: `Twin`, and `Lent` for the sinks behind them.

**The rules for who writes a twin.**

- It is a subclass of its namesake, after `Twin`: ``class XHandler(Twin, logging.handlers.XHandler)``, so that
  `isinstance` and the special cases of `logging.config` hold, and it overrides all that the namesake does.
- *The handler's attributes are the truth*, plain attributes as in the namesake, and the sink is only how: before each
  use the handler tells the sink what they are now (`Twin.lend`), and what the sink finds out it sets on its owner at
  once. So whatever is assigned acts at the next event, a subclass may make an attribute a property, and a copy of a
  handler (`copy.copy`) shares stream, socket and lock with it and has its own attributes.
- The sink is made at its first use, by `Twin.make_sink`: a subclass that never calls our ``__init__``, or calls that of
  the namesake, works too. It is made with ``on_error="raise"``, so that a failure never goes to `report`. `Twin.emit`
  gives what is raised to `handleError`, also where the event was put out nevertheless; ``flush`` and ``close`` raise it
  as their namesakes do.
- Each use of the sink is within ``with self.at_work() as sink``: under the handler's lock, which is taken before the
  sink's and never after it, and with ``sink.owner`` the handler. The sink's hooks call the owner's methods
  (``sink.rotate`` calls ``owner.rotate``), and the handler's own methods call what the sink's class does
  (``RotatingFileSink.rotate(sink, …)``): that is how overriding a method in a subclass takes effect. The owner is
  forgotten after each use, so a handler and its sink make no cycle, and a handler dies with its last reference.
- What is put out is made by ``self.format(record)`` and travels as a `TextEvent`, or as another event that holds what
  the handler has made of the record (a pickle, a mail, fields), through `Sink.deliver`. Streams and files take the text
  itself, by `put_text`, since there the way through the pipeline would cost more than the write.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.errors import reason_of
from outfall.sinks.event.event import TextEvent

if TYPE_CHECKING:
    from types import TracebackType

    from outfall.sinks.core.bytesink import ByteSink
    from outfall.sinks.core.sink import Sink

    _ByteSink = ByteSink
else:
    # At run time the sink's class comes after it.
    _ByteSink = object


class Lent(_ByteSink):
    """Mixed into the class of a sink that works for a twin, before the sink's own class."""

    #: The handler that uses the sink now; None between two uses.
    owner: Any = None

    def put_text(self, text: str | bytes) -> None:
        """Write *text* under the lock, and count it, as `Sink.deliver` does with events."""
        done = False
        try:
            # As WriteLock describes it, for what calls would cost.
            turn = self._lock.turn
            try:
                del turn[0]
                holding = True
            except IndexError:
                holding = False
            if holding:
                try:
                    self.write(text)  # type: ignore[arg-type] # of streams takes text as well
                    self._ledger.delivered += 1
                    done = True
                finally:
                    try:
                        holding = False
                        turn += TURN
                    finally:
                        pass
            else:
                with self._lock:
                    self.write(text)  # type: ignore[arg-type]
                    self._ledger.delivered += 1
                    done = True
        except BaseException as error:
            if done:  # interrupted at the way out
                self._ledger.delivered -= 1
            dropped_as = reason_of(error)
            self._count_dropped(dropped_as if isinstance(error, Exception) else "interrupted")
            raise


class _NoLock:
    """Stands in for the lock of a handler that has none."""

    def acquire(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


NO_LOCK = _NoLock()

HAND_TAKEN.add(Lent.put_text.__code__)


def is_own(method: Any, function: Any) -> bool:
    """Return True if the bound *method* is *function* of the twin itself, and overridden by nobody."""
    return getattr(method, "__func__", None) is function


class Twin(logging.Handler):
    """A `logging.Handler` that leaves its work to a sink. See the module for the rules.

    `filter` and `handle` are those of Python 3.13 on every version: a filter may replace the record.
    """

    _sink: Any
    #: None before ``__init__`` and in subclasses that want none.
    lock: Any = None

    # -- for twins to implement

    def make_sink(self) -> Sink:
        """Return the sink, made with ``on_error="raise"``; called once, at the first use."""
        raise NotImplementedError

    def lend(self, sink: Any) -> None:
        """Tell *sink* the attributes of the handler; called before each use."""

    def put(self, record: logging.LogRecord) -> None:
        """Put *record* out, or raise; the default hands its text to the sink."""
        with self.at_work() as sink:
            sink.deliver(self.text_event(record))

    # -- what twins use

    @property
    def sink(self) -> Any:
        """The sink that does the work, for its `stats`; what it is told to do is the handler's business."""
        try:
            return self.__dict__["_sink"]
        except KeyError:
            return self.__dict__.setdefault("_sink", self.make_sink())

    def at_work(self) -> _Work:
        """Use the sink: ``with self.at_work() as sink``."""
        return _Work(self)

    def text_event(self, record: logging.LogRecord) -> TextEvent:
        """Return *record* as the text that `format` makes of it."""
        return TextEvent(self.format(record), record.levelno)

    # -- what `logging` calls

    def filter(self, record: logging.LogRecord) -> Any:
        """Return a false value if a filter keeps *record* out, else the record to emit, which a filter may replace."""
        each: Any
        for each in self.filters:
            passes = each.filter(record) if hasattr(each, "filter") else each(record)
            if not passes:
                return False
            if isinstance(passes, logging.LogRecord):
                record = passes
        return record

    def handle(self, record: logging.LogRecord) -> Any:
        """Emit *record* under the handler's lock if the filters let it pass; return what `filter` did."""
        passes = self.filter(record)
        if isinstance(passes, logging.LogRecord):
            record = passes
        if passes:
            self.acquire()
            try:
                self.emit(record)
            finally:
                self.release()
        return passes

    def emit(self, record: logging.LogRecord) -> None:
        """Put *record* out; a failure goes to `handleError`."""
        try:
            self.put(record)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)


class _Work:
    """One use of a twin's sink."""

    __slots__ = ("_before", "_handler", "_sink")

    def __init__(self, handler: Twin) -> None:
        self._handler = handler
        self._sink: Any = None
        self._before: Any = None

    def __enter__(self) -> Any:
        handler = self._handler
        handler.acquire()
        try:
            sink = self._sink = handler.sink
            # A use within another: by a hook, by a signal handler that logs, by a copy of the handler.
            self._before = sink.owner
            sink.owner = handler
            handler.lend(sink)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return sink

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        handler, before = self._handler, self._before
        try:
            if self._sink is not None:
                self._sink.owner = before
                if before is not None and before is not handler:
                    before.lend(self._sink)
        finally:
            handler.release()
