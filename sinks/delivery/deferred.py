"""The common part of `BackgroundSink` and `SpoolSink`: they store events, and a `Worker` delivers them to a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structlog import DropEvent

from outfall.sinks.core.arguments import checked_count, checked_seconds
from outfall.sinks.core.clock import now
from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.core.lifecycle import here, notice_fork
from outfall.sinks.core.sink import Sink, checked_sink
from outfall.sinks.errors import TemporaryDeliveryError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from outfall.sinks.delivery.delivery import RetryPolicy


class DeferredSink(Sink):
    """Store events, by `_take`, for a worker that delivers them to *target*.

    Subclasses describe the arguments, and make the worker in `_fresh_state`.

    Raises:
        ValueError: If *block_timeout*, *batch_size* or *linger* is not usable.
        TypeError: If *target* is no sink.
    """

    # The worker's thread runs libraries that log while it delivers. `emit_batch` and `emit` only store the events.
    delivers_through_loggers = True
    delivers_later = True
    locks_emit = False
    counts_batches = True

    #: The worker, of a class that the subclass chooses.
    _worker: Any

    def __init__(
        self,
        target: Sink,
        *,
        block_timeout: float | dt.timedelta,
        batch_size: int,
        linger: float | dt.timedelta,
        retry: RetryPolicy | None,
        dead_letter: Sink | None,
        **options: Any,
    ) -> None:
        self._target = checked_sink(target, "target")
        self._block_seconds = checked_seconds(block_timeout, "block_timeout")
        self._batch_size = checked_count(batch_size, "batch_size", "events")
        self._linger_seconds = checked_seconds(linger, "linger")
        self._retry = retry
        self._dead_letter = dead_letter
        super().__init__(**options)
        target.surround(self)
        self._changed()

    # -- methods for applications

    @property
    def target(self) -> Sink:
        """The sink that gets the events."""
        return self._target

    def flush(self, timeout: float | None = None) -> bool:
        """Deliver everything that was accepted so far; return True if all of it is settled.

        Args:
            timeout: The time limit in seconds. Default None: `Sink.drain_timeout`, 5 s.
        """
        if not here[0]:
            notice_fork()
        deadline = now() + self._seconds(timeout)
        self._put_remainders(deadline)
        settled = self._worker.settle_all(deadline)
        flushed = self._target.flush(max(0.0, deadline - now()))
        return settled and flushed

    def hasten(self, deadline: float) -> None:
        """Make the thread deliver without lingering, at exit; `drain` waits for it until *deadline*."""
        super().hasten(deadline)
        if not self._closed:
            self._worker.hasten(deadline)

    # -- methods for the pipeline and for a sink around this one

    def emit(self, event: dict[str, Any]) -> None:
        """Store one event."""
        self._put(event)

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Store each item; items without room are left for a retry."""
        for index, item in enumerate(batch):
            try:
                self._take(item)
            except (TemporaryDeliveryError, OSError):
                if index == 0:
                    raise
                return BatchResult(retry=range(index, len(batch)))
        return None

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return the target's item for *event*, after the target's level and processors.

        Raises:
            DropEvent: If the target filters it.
        """
        item = self._target.make_item(event)
        if item is None:
            raise DropEvent
        return item

    @property
    def behind(self) -> tuple[Sink, ...]:
        """See `Forwarding.behind`."""
        return (self._target,)

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return the item as the target restores it; see `Forwarding.restore_item`."""
        return self._target.restore_item(data, level, time)

    def _put(self, event: dict[str, Any]) -> Exception | None:
        self._take(self.encode(event))
        return None

    def _take(self, item: Encoded) -> None:
        """Store *item*, after making room as the overflow policy says.

        Raises:
            FullError: If there is no room.
        """
        raise NotImplementedError

    def _reads_metadata(self) -> bool:
        return self._prepare_reads_metadata()

    def _prepare_reads_metadata(self) -> bool:
        return bool(self._processors) or self._target._prepare_reads_metadata()

    def _told(self, error: Exception, events: int) -> None:
        self._fail_unraised(error, None, events=events)
