"""The base of the drop-in twins of `logging`'s handlers: `Twin`, and the `Account` that counts its records.

**Rules for twins.**

- *A twin is the original's class as a subclass sees it*: ``class XHandler(Twin, logging.handlers.XHandler)``. It
  inherits the original's methods and attributes, and overrides a method only where the original loses records,
  contradicts its documentation, or lacks something that Python 3.13 has. An override calls the handler's other methods
  where the original calls them, in the same order, and calls base classes by their names, as the original does.
- *Methods work on any object that has the attributes.* Subclasses lend methods to other classes, have two bases, call
  two constructors, or call the original's constructor. So no method relies on state that only ``__init__`` of the twin
  sets. A twin creates its private state when it first needs it.
- *What a subclass does not override keeps the sinks' promises.* A shortcut past one of the handler's methods first
  checks, by `is_not_overridden`, that the method is the twin's own.
- Private attributes of twins begin with ``_outfall_``, since subclasses may use any other name. Their values are
  `Transient`, so a subclass that makes its handler picklable need not handle them.
- ``emit`` takes no lock: `logging.Handler.handle` holds the handler's. It passes an exception to ``handleError``, once
  for each record.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable


class Transient:
    """A value that pickling and deep copies replace by None."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


class TransientTuple(Transient, tuple[Any, ...]):
    """A tuple that is neither pickled nor deeply copied."""

    __slots__ = ()


class Account(Transient, Sink):  # type: ignore[misc]
    """A sink that only counts the records of a handler: those delivered and those dropped."""

    def __init__(self, name: str) -> None:
        super().__init__(on_error="raise", name=name)


class _Sink:
    """The descriptor of `Twin.sink`: makes the sink at its first use; assigning another sink replaces it."""

    def __get__(self, handler: Any, owner: Any) -> Any:
        return self if handler is None else account_of(handler)


def account_of(handler: Any, kind: type[Sink] = Sink, make: Callable[[Any], Sink] | None = None) -> Any:
    """Return the sink that counts the records of *handler*, any `logging.Handler`; make it if there is none.

    Args:
        handler: The handler.
        kind: The class of the sink; a sink of another class is replaced.
        make: Makes the sink for the handler. Default: the method ``_outfall_make_sink`` of the handler, else a plain
            `Account`.
    """
    account = getattr(handler, "_outfall_account", None)
    if not isinstance(account, kind):
        make = make or getattr(type(handler), "_outfall_make_sink", None)
        account = handler._outfall_account = Account(type(handler).__name__) if make is None else make(handler)
    return account


def count_failure(handler: Any, error: BaseException) -> None:
    """Count a record that *handler* dropped because of *error*."""
    account_of(handler)._ledger.drop("error" if isinstance(error, Exception) else "interrupted")


def is_not_overridden(method: Any, function: Any) -> bool:
    """Return True if the bound *method* is *function*, which no subclass or instance overrides."""
    return getattr(method, "__func__", None) is function


class Twin(logging.Handler):
    """A `logging.Handler` with an `Account` of its records. The module's docstring has the rules."""

    #: The sink that counts the handler's records: ``handler.sink.stats()``.
    sink: Any = _Sink()
    _outfall_account: Any = None

    if sys.version_info < (3, 12):

        def filter(self, record: logging.LogRecord) -> Any:
            """Return a false value if a filter rejects *record*, else the record; a filter may replace it."""
            each: Any
            for each in self.filters:
                passes = each.filter(record) if hasattr(each, "filter") else each(record)
                if not passes:
                    return False
                if isinstance(passes, logging.LogRecord):
                    record = passes
            return record

        def handle(self, record: logging.LogRecord) -> Any:
            """Emit *record* under the handler's lock if the filters accept it; return the result of `filter`."""
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
