"""What the drop-in twins of `logging`'s handlers have in common: `Twin`, and the `Account` that each keeps.

**The rules for who writes a twin.**

- *A twin is the original's class as a subclass sees it*: ``class XHandler(Twin, logging.handlers.XHandler)``. It
  inherits the original's methods and attributes, and overrides a method only where the original loses records,
  contradicts its documentation, or lacks something that Python 3.13 has. An override calls the handler's other methods
  where the original calls them, in the same order, and calls base classes by their names, as the original does.
- *Methods work on whatever has the attributes.* Subclasses lend methods to other classes, have two bases, call two
  constructors, or the original's constructor. So no method relies on state that only ``__init__`` of the twin sets:
  what a twin keeps for itself is made when it is needed, under a name that begins with an underscore.
- *What a subclass does not touch keeps the sinks' promises.* A shortcut past one of the handler's methods asks first,
  by `untouched`, whether that method is the twin's own.
- Subclasses have attributes of their own, of any name: those of twins begin with ``_outfall_``. What stands in them is
  `Kept`, so that a subclass that makes its handler picklable need not know of it.
- ``emit`` takes no lock: `logging.Handler.handle` holds the handler's. It gives what is raised to ``handleError``,
  once for each record.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable


class Kept:
    """What a handler keeps for itself: whoever pickles or copies the handler deeply gets None in its place."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


class Seen(Kept, tuple[Any, ...]):
    """Some values that belong together."""

    __slots__ = ()


class Account(Kept, Sink):  # type: ignore[misc]
    """Counts what a handler has put out and what it could not; it puts out nothing itself."""

    def __init__(self, name: str) -> None:
        super().__init__(on_error="raise", name=name)


class _Sink:
    """The attribute `Twin.sink`: made at its first use, and a plain attribute for a subclass that assigns another."""

    def __get__(self, handler: Any, owner: Any) -> Any:
        return self if handler is None else account_of(handler)


def account_of(handler: Any, kind: type[Sink] = Sink, make: Callable[[Any], Sink] | None = None) -> Any:
    """Return the sink of *handler*, any `logging.Handler`, that counts what becomes of its records.

    Args:
        handler: The handler.
        kind: What the sink must be an instance of.
        make: What makes it of the handler; by default the handler says.
    """
    account = getattr(handler, "_outfall_account", None)
    if not isinstance(account, kind):
        make = make or getattr(type(handler), "_outfall_make_sink", None)
        account = handler._outfall_account = Account(type(handler).__name__) if make is None else make(handler)
    return account


def count_failure(handler: Any, error: BaseException) -> None:
    """Count a record of *handler* that *error* has cost."""
    account_of(handler)._ledger.drop("error" if isinstance(error, Exception) else "interrupted")


def untouched(method: Any, function: Any) -> bool:
    """Return True if the bound *method* is *function*, and overridden by nobody."""
    return getattr(method, "__func__", None) is function


class Twin(logging.Handler):
    """A `logging.Handler` that keeps an `Account`. See the module for the rules."""

    #: What counts the handler's records: ``handler.sink.stats()``.
    sink: Any = _Sink()
    _outfall_account: Any = None

    if sys.version_info < (3, 12):

        def filter(self, record: logging.LogRecord) -> Any:
            """Return a false value if a filter keeps *record* out, else the record; a filter may replace it."""
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
            if passes is not record and isinstance(passes, logging.LogRecord):
                record = passes
            if passes:
                self.acquire()
                try:
                    self.emit(record)
                finally:
                    self.release()
            return passes
