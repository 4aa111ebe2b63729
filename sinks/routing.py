"""Sinks that hand events to other sinks: `FanoutSink`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outfall.sinks.base import OnError, Sink, SinkStats
from outfall.sinks.errors import DeliveryError, ReentrantEventError
from outfall.sinks.failures import cleaned, describe, report
from outfall.sinks.levels import NOTSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class FanoutSink(Sink):
    """Hand each event to several sinks; all are tried, whatever one does.

    Each child applies its own level, processors and renderer, and keeps its own account in ``stats().targets``. Here
    an event counts as delivered once it was handed to every child. A child that fails has counted the loss; its own
    ``on_error`` is told if it was given one, and the failure is raised when all children have been tried, so that this
    sink's ``on_error`` (or a router around it) is told as well.

    Args:
        *sinks: The children, one at least. They are owned: `close` closes them.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Raises:
        TypeError: If one of *sinks* is no `Sink`.
        ValueError: If there is none, or one comes twice.

    Holds no lock, and so waits for no other thread. `flush` and `close` share their timeout among the children.
    """

    def __init__(
        self,
        *sinks: Sink,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        if not sinks:
            msg = "sinks=(): at least one sink is needed"
            raise ValueError(msg)
        for sink in sinks:
            if not isinstance(sink, Sink):
                msg = f"sinks: {sink!r} is not a Sink"
                raise TypeError(msg)
        if len({id(sink) for sink in sinks}) < len(sinks):
            msg = f"sinks={sinks!r}: the same sink comes twice"
            raise ValueError(msg)
        self.sinks = sinks
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def emit(self, event: dict[str, Any]) -> None:
        """Hand *event* to every child; raise what failed when all have been tried."""
        failure = self._hand(event)
        if failure is not None:
            raise failure

    def _put(self, event: dict[str, Any]) -> Exception | None:
        # No lock: each child has its own, and this sink has nothing to guard but the count.
        failure = self._hand(event)
        with self._ledger_lock:
            self._delivered += 1
        return failure

    def _hand(self, event: dict[str, Any]) -> Exception | None:
        failures: list[tuple[Sink, Exception]] = []
        for sink in self.sinks:
            try:
                sink.deliver(event)
            except ReentrantEventError:
                pass  # counted by the child; telling could be what feeds the loop
            except Exception as error:  # noqa: BLE001 - the others must still be tried
                failures.append((sink, error))
        for sink, failure in failures:
            if sink.on_error is not report and sink.on_error != "raise":
                sink._fail(failure, event, events=sink._events_lost_to(failure))  # noqa: SLF001 - a sink too
        if len(failures) < 2:  # noqa: PLR2004
            return failures[0][1] if failures else None
        told = "; ".join(f"{sink.name}: {describe(cleaned(failure, event))}" for sink, failure in failures)
        return DeliveryError(f"{len(failures)} of {len(self.sinks)} sinks failed: {told}")

    def flush(self, timeout: float | None = None) -> bool:
        """Flush every child within one timeout; True if all said so."""
        deadline = time.monotonic() + self._seconds(timeout)
        flushed = [sink.flush(max(0.0, deadline - time.monotonic())) for sink in self.sinks]
        return all(flushed)

    def close(self, timeout: float | None = None) -> bool:
        """Close every child within one timeout; True if none had to give something up."""
        deadline = time.monotonic() + self._seconds(timeout)
        super().close(timeout)
        closed = [sink.close(max(0.0, deadline - time.monotonic())) for sink in self.sinks]
        return all(closed)

    def _stats(self) -> SinkStats:
        return replace(super()._stats(), targets=tuple(sink.stats() for sink in self.sinks))

    def _reads_metadata(self) -> bool:
        return bool(self._processors) or any(sink._reads_metadata() for sink in self.sinks)  # noqa: SLF001 - sinks too

    def _describe(self) -> str:
        return "to " + ", ".join(sink.name for sink in self.sinks)
