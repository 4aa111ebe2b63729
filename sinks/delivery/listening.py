"""What listeners have in common: `Listening`."""

from __future__ import annotations

import threading
from time import time
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_count, checked_seconds
from outfall.sinks.core.bells import Bells
from outfall.sinks.core.ledger import Ledger
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import SinkFailure, cleaned, describe, report
from outfall.sinks.core.sink import checked_sink

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy


class Listening:
    """The part of a listener that has its arguments, its counts, and its calls of ``on_error``.

    A subclass implements `start`, `stop`, `running` and `_describe`, and sets `_run`, whose ``lanes`` deliver.
    """

    if TYPE_CHECKING:
        running: Any
        start: Callable[[], Self]
        stop: Any
        _run: Any

    delivers_later: ClassVar[bool] = True
    has_owner = False

    #: The timeout of `stop` and `flush` for None, in seconds. Settable.
    drain_timeout: float = 5.0

    def _configure(
        self,
        sinks: tuple[Sink, ...],
        respect_sink_level: bool,
        batch_size: int,
        retry: RetryPolicy | None,
        dead_letter: Sink | None,
        on_error: Callable[[SinkFailure], object],
        name: str | None,
    ) -> None:
        #: The sinks; settable while the listener is stopped.
        self.sinks: tuple[Sink, ...] = tuple(checked_sink(sink, "sinks") for sink in sinks)
        if not callable(on_error):
            msg = f"on_error={on_error!r} is not callable"
            raise TypeError(msg)
        self.respect_sink_level: bool = bool(respect_sink_level)
        self.on_error: Callable[[SinkFailure], object] = on_error
        self.name: str = type(self).__name__ if name is None else str(name)
        self._batch_size = checked_count(batch_size, "batch_size", "events")
        self._retry = retry
        self._dead_letter = dead_letter

    def _fresh_state(self) -> None:
        #: Held during start and stop.
        self._life = threading.RLock()
        #: Rung after each change that a caller may wait for.
        self._bells = Bells()
        self._ledger = Ledger()
        #: The ledger for each sink, by the sink's identity.
        self._accounts: dict[int, tuple[Sink, Ledger]] = {}

    def _describe(self) -> str:
        """Return a description of the listener's source, without credentials."""
        raise NotImplementedError

    def _where(self) -> str:
        """Return the address for reports and metrics."""
        return ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        sinks = ", ".join(sink.name for sink in self.sinks)
        state = "" if self.running else " stopped"
        return f"<{type(self).__name__} of {self._describe()} to {sinks or 'nothing'}{state}>"

    def _seconds(self, timeout: float | None) -> float:
        return lifecycle.patience(self.drain_timeout) if timeout is None else checked_seconds(timeout, "timeout")

    def _account(self, sink: Sink) -> Ledger:
        return self._accounts.setdefault(id(sink), (sink, Ledger()))[1]

    def _tell(self, error: Exception, events: int, item: object = None) -> None:
        told = cleaned(error, item)
        self._ledger.last_error = describe(told)
        self._call_on_error(SinkFailure(self.name, told, events, time(), 0, self._where()))

    def _tell_of_sink(self, sink: Sink, error: Exception, events: int) -> None:
        if sink.on_error is not report and sink.on_error != "raise":
            sink._fail(error, None, events=events)
        self._call_on_error(sink._failed_with(error, events))

    def _call_on_error(self, failure: SinkFailure) -> None:
        try:
            with delivering(value=False):
                self.on_error(failure)
        except Exception as raised:
            report(SinkFailure(self.name, cleaned(raised, None), 0, time()))

    def hasten(self, deadline: float) -> None:
        """Make the threads deliver without waiting, at exit; `drain` waits for them until *deadline*."""
        run = self._run
        if run is not None:
            for lane in run.lanes:
                lane.hasten(deadline)
