"""Sinks that keep events in memory: `CaptureSink`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outfall.sinks.base import OnError, Sink
from outfall.sinks.event import copy_event, without_metadata
from outfall.sinks.failures import report
from outfall.sinks.levels import NOTSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class CaptureSink(Sink):
    """Keep events in `events`, for tests.

    Each is a snapshot: what the caller later changes in a nested dict or list is not seen. Metadata keys are left out.

    Args:
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Safe from any thread. A forked child begins with none. `close` keeps them.
    """

    def __init__(
        self,
        *,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        #: The events so far, oldest first.
        self.events: list[dict[str, Any]] = []
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    def emit(self, event: dict[str, Any]) -> None:
        """Keep a snapshot of *event*."""
        self.events.append(without_metadata(copy_event(event)))

    def clear(self) -> None:
        """Forget the events so far."""
        with self._lock:
            self.events.clear()

    def _describe(self) -> str:
        return f"with {len(self.events)} events"

    def after_fork(self) -> None:
        """Begin anew in a forked child, with no events."""
        super().after_fork()
        self.events = []
