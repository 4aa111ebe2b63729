"""What the sinks that hand events to other sinks have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from structlog import DropEvent

from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded
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
    """What `FanoutSink` and `FallbackSink` have in common."""

    shows_people = True

    #: The key under which a batch item's data holds what the sinks want.
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
        """Flush every child within one timeout; True if all said so."""
        deadline = now() + self._seconds(timeout)
        self._put_remainders(deadline)
        flushed = [sink.flush(max(0.0, deadline - now())) for sink in self.sinks]
        return all(flushed)

    def close(self, timeout: float | None = None) -> bool:
        """Close every child within one timeout; True if none had to give something up."""
        deadline = now() + self._seconds(timeout)
        super().close(timeout)
        closed = [sink.close(max(0.0, deadline - now())) for sink in self.sinks]
        return all(closed)

    @property
    def behind(self) -> tuple[Sink, ...]:
        """See `Forwarding.behind`."""
        return self.sinks

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return what each sink wants of an item that a disk has kept; see `Forwarding.restore_item`."""
        return self._split(data, level, time)

    def _split(self, data: bytes, level: float, time: float) -> Routed:
        made = restored(self._kind, data, level, time, self.sinks)
        if made is not None:
            return made
        # It was kept for another sink, or for other children.
        event = Encoded(data, level, time).event
        parts = [_encoded(sink, event) for sink in self.sinks]
        return Routed(data, level, time, tuple(parts))

    def _routed(self, batch: Sequence[Encoded]) -> list[Routed]:
        if not isinstance(batch, Batch):
            return [
                item if isinstance(item, Routed) else self._split(item.data, item.level, item.time) for item in batch
            ]
        # The same objects at each retry: they know who has the event already.
        notes = batch.notes.setdefault(self, {})
        items: list[Routed] = []
        for place, item in zip(batch.places, batch, strict=True):
            made = item if isinstance(item, Routed) else notes.get(place)
            items.append(made if isinstance(made, Routed) else self._split(item.data, item.level, item.time))
            notes[place] = items[-1]
        return items

    def _account(self, sink: Sink, items: int, answer: Answer) -> None:
        """Count what a child made of so many items, and tell its own on_error of what it refused or raised."""
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
    """Return what *sink* wants of *event*, None if it filters it; or what it raised."""
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
    """What the sinks of a router said to one batch."""

    def __init__(self) -> None:
        #: Why something waits, one for each sink.
        self.errors: list[Exception] = []
        #: These, and why something was refused.
        self.problems: list[Exception] = []
        self._waits: list[float] = []
        self._unknown = 0

    def add(self, answer: Answer) -> Answer:
        """Remember *answer*, of one more sink, and return it."""
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
        """Return the error to raise for all: a pause only if all want one."""
        return next((error for error in self.errors if not isinstance(error, PausedDeliveryError)), self.errors[0])

    def result(
        self, retry: list[int], rejected: dict[int, str], choose: Callable[[list[float]], float]
    ) -> BatchResult | None:
        """Return what became of the batch; None if all of it was taken.

        Args:
            retry: The places of the items that wait.
            rejected: Why an item was refused, by its place.
            choose: Which of several waits counts, ``min`` or ``max``.
        """
        if not (retry or rejected or self._unknown):
            return None
        return BatchResult(retry or (), rejected, self._unknown, choose(self._waits) if retry and self._waits else None)


def tell_owner(sink: Sink, error: Exception, events: int, event: object = None) -> None:
    """Tell the on_error that a child was given of its own; what it was not given, the router's is for."""
    if sink.on_error is not report and sink.on_error != "raise":
        sink._fail(error, event, events=events)
    else:
        sink._ledger.last_error = describe(cleaned(error, event))
