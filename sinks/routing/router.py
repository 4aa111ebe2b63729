"""The common part of sinks that pass events to other sinks: `Router`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from structlog import DropEvent

from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded, item_of
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.core.reporting import cleaned, describe, report
from outfall.sinks.core.sink import OnError, Sink, checked_sink
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
)
from outfall.sinks.event.levels import NOTSET, Level
from outfall.sinks.routing.parts import Answer, Routed, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.ledger import SinkStats


class Router(Sink):
    """The common part of `FanoutSink` and `FallbackSink`."""

    shows_people = True

    #: The key in a batch item's data that has the sinks' parts.
    _kind: ClassVar[str]

    def __init__(
        self,
        *sinks: Sink,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        if not sinks:
            msg = "sinks=(): at least one sink is needed"
            raise ValueError(msg)
        for sink in sinks:
            checked_sink(sink, "sinks")
        if len({id(sink) for sink in sinks}) < len(sinks):
            msg = f"sinks={sinks!r}: the same sink comes twice"
            raise ValueError(msg)
        self.sinks = sinks
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)
        for sink in sinks:
            sink.surround(self)
        self._changed()

    def flush(self, timeout: float | None = None) -> bool:
        """Flush every child within one timeout; return True if each returned True."""
        deadline = now() + self._seconds(timeout)
        self._put_remainders(deadline)
        flushed = [sink.flush(max(0.0, deadline - now())) for sink in self.sinks]
        return all(flushed)

    def close(self, timeout: float | None = None) -> bool:
        """Close every child within one timeout; return True if none gave anything up."""
        deadline = now() + self._seconds(timeout)
        super().close(timeout)
        closed = [sink.close(max(0.0, deadline - now())) for sink in self.sinks]
        return all(closed)

    @property
    def behind(self) -> tuple[Sink, ...]:
        """See `Forwarding.behind`."""
        return self.sinks

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return a spooled item with a part for each sink; see `Forwarding.restore_item`."""
        return self._split(data, level, time)

    def _split(self, data: bytes, level: float, time: float) -> Routed:
        made = restored(self._kind, data, level, time, self.sinks)
        if made is not None:
            return made
        # It was stored for another sink, or for other children.
        event = Encoded(data, level, time).event
        parts = [_encoded(sink, event) for sink in self.sinks]
        return Routed(data, level, time, tuple(parts))

    def _routed(self, batch: Sequence[Encoded]) -> Batch:
        """Return *batch* with a part for each sink in every item, unless the sinks share their items."""
        batch = batch if isinstance(batch, Batch) else Batch(batch)
        return batch if self.plain or batch.kinds() <= {Routed} else batch.under("parts", self._whole)

    def _whole(self, raw: Any) -> Routed:
        item = item_of(raw)
        return item if isinstance(item, Routed) else self._split(item.data, item.level, item.time)

    def _account(self, sink: Sink, items: int, answer: Answer) -> None:
        """Count a child's *answer* to *items* items, and call its own on_error for what it refused or raised."""
        refused = len(answer.refused) + answer.unknown
        if not sink.counts_batches:
            delivered = items - len(answer.waiting) - refused
            sink._ledger.settle(Outcome(delivered, dropped={"rejected": refused} if refused else {}))
        if refused:
            reason = next(iter(answer.refused.values()), "the target did not say which events it refused")
            tell_owner(sink, PermanentDeliveryError(reason), refused)
        if answer.error is not None:
            tell_owner(sink, answer.error, 0)

    def _all_failed(self, failures: Sequence[tuple[Sink, Exception]], event: object) -> DeliveryError:
        told = "; ".join(f"{sink.name}: {describe(cleaned(failure, event))}" for sink, failure in failures)
        return DeliveryError(f"{len(failures)} of {len(self.sinks)} sinks failed: {told}")

    def _stats(self) -> SinkStats:
        return replace(super()._stats(), targets=tuple(sink.stats() for sink in self.sinks))

    def _reads_metadata(self) -> bool:
        return bool(self._processors) or any(sink._reads_metadata() for sink in self.sinks)

    def _prepare_reads_metadata(self) -> bool:
        return bool(self._processors) or any(sink._prepare_reads_metadata() for sink in self.sinks)

    @property
    def keeps_in_memory(self) -> bool:
        """True if one of the sinks does."""
        return any(sink.keeps_in_memory for sink in self.sinks)

    def _describe(self) -> str:
        return "to " + ", ".join(sink.name for sink in self.sinks)

    def _where(self) -> str:
        return "to " + ", ".join(sink._full_name() for sink in self.sinks)


def prepared(sink: Sink, event: dict[str, Any]) -> tuple[Encoded | None, Exception | None]:
    """Return the item of *event* for *sink*, None if the sink filters it, and the error that it raised."""
    try:
        return sink.make_item(event), None
    except DropEvent:
        return None, None
    except Exception as error:
        return None, error


def _encoded(sink: Sink, event: dict[str, Any]) -> Encoded | None:
    try:
        return sink.encode(event)
    except DropEvent:
        return None


class Answers:
    """The answers of a router's sinks to one batch."""

    def __init__(self) -> None:
        #: The errors because of which items wait, one for each sink.
        self.errors: list[Exception] = []
        #: These, and the reasons of refusals.
        self.problems: list[Exception] = []
        self._waits: list[float] = []
        self._unknown = 0

    def add(self, answer: Answer) -> Answer:
        """Store *answer*, of one more sink, and return it."""
        self._unknown += answer.unknown
        if answer.refused:
            self.problems.append(PermanentDeliveryError(next(iter(answer.refused.values()))))
        if answer.error is not None:
            self.errors.append(answer.error)
            self.problems.append(answer.error)
        if answer.retry_after is not None:
            self._waits.append(answer.retry_after)
        return answer

    def gentlest(self) -> Exception:
        """Return the error to raise for all; a `PausedDeliveryError` only if all are."""
        return next((error for error in self.errors if not isinstance(error, PausedDeliveryError)), self.errors[0])

    def result(
        self, retry: list[int], rejected: dict[int, str], choose: Callable[[list[float]], float]
    ) -> BatchResult | None:
        """Return the result of the batch; None if all of it was taken.

        Args:
            retry: The indexes of the items that wait.
            rejected: Why an item was refused, by index.
            choose: Selects one of several waits, ``min`` or ``max``.
        """
        if not (retry or rejected or self._unknown):
            return None
        return BatchResult(retry or (), rejected, self._unknown, choose(self._waits) if retry and self._waits else None)


def tell_owner(sink: Sink, error: Exception, events: int, event: object = None) -> None:
    """Call the on_error of a child that has one of its own; otherwise the router's is called."""
    if sink.on_error is not report and sink.on_error != "raise":
        sink._fail(error, event, events=events)
    else:
        sink._ledger.last_error = describe(cleaned(error, event))
