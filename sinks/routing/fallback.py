"""Each event goes to the first of several sinks that takes it: `FallbackSink`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from structlog import DropEvent

from outfall.sinks.core.reporting import cleaned, describe, report
from outfall.sinks.errors import (
    PausedDeliveryError,
    ReentrantEventError,
    TemporaryDeliveryError,
    reason_of,
)
from outfall.sinks.event.levels import NOTSET, Level
from outfall.sinks.routing.parts import offer, routed, share
from outfall.sinks.routing.router import Answers, Router, prepared, tell_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.core.sink import OnError, Sink


class FallbackSink(Router):
    """Pass each event to *primary*; if that fails, to the next sink, until one takes it.

    Use it for a local file as a substitute for a network target, or for a second collector. Each event is tried with
    *primary* first, so a sink that fails should fail fast.

    A sink that filters an event, by its level or a processor, counts as having taken it: a filter is not a failure. A
    sink that raises has not taken the event. Its own ``on_error`` is called if it has one, and this sink's
    ``on_error`` too, with no event lost. If all sinks fail, one error is raised for all, and the event is lost.

    Behind a `BackgroundSink` or a `SpoolSink` the children's levels and processors run in the thread that logs. An
    event that no child takes is tried again, with *primary* first, if one of them may take it later.

    Args:
        primary: The sink for all events.
        *others: The substitutes, in this order. All sinks are owned: `close` closes them.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If one of the sinks is no `Sink`.
        ValueError: If one comes twice.

    Each child has its own ledger in ``stats().targets``: an event that *primary* did not take is dropped in its ledger
    and delivered in this one. It holds no lock, so it never waits for other threads. `flush` and `close` divide their
    timeout among the children.
    """

    _kind = "fallback"

    def __init__(
        self,
        primary: Sink,
        *others: Sink,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        super().__init__(primary, *others, level=level, processors=processors, on_error=on_error, name=name)

    @property
    def behind(self) -> tuple[Sink, ...]:
        """See `Forwarding.behind`: the others report what they held back when they are closed."""
        return self.sinks[:1]

    def emit(self, event: dict[str, Any]) -> None:
        """Pass *event* to the first child that takes it; raise if none does."""
        failures: list[tuple[Sink, Exception]] = []
        for sink in self.sinks:
            try:
                sink.deliver(event)
            except Exception as error:
                lost = sink._events_lost_to(error)
                failures.append((sink, error))
                if not isinstance(error, ReentrantEventError):  # a report could cause the loop
                    tell_owner(sink, error, lost, event)
                if not lost:  # it was emitted nevertheless
                    break
            else:
                break
        else:
            self._raise(failures, event)
        for _, failure in failures:
            if not isinstance(failure, ReentrantEventError):
                self._fail_unraised(failure, event)

    def _raise(self, failures: list[tuple[Sink, Exception]], event: object) -> NoReturn:
        told = [each for each in failures if not isinstance(each[1], ReentrantEventError)]
        if len(told) < 2:
            raise (told or failures)[0][1]
        error = self._all_failed(told, event)
        temporary = [failure for _, failure in told if isinstance(failure, TemporaryDeliveryError)]
        if not temporary:
            raise error
        waits = [failure.retry_after for failure in temporary if failure.retry_after is not None]
        raise TemporaryDeliveryError(str(error), min(waits) if waits else None)

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Pass each item's part to the first child that takes it.

        Raises:
            TemporaryDeliveryError: If no child could take anything.
        """
        batch = self._routed(batch)
        items: list[Any] = list(batch)
        left: Sequence[int] = range(len(items))
        again: set[int] = set()
        reasons: dict[int, list[str]] = {}
        refused: set[int] = set()
        seen = Answers()
        for place, sink in enumerate(self.sinks):
            failed = {index: items[index].refused[place] for index in left if place in items[index].refused}
            wanted = [index for index in left if index not in failed and items[index].parts[place] is not None]
            for _ in range(len(left) - len(failed) - len(wanted)):
                sink._ledger.filter()
            answer = offer(sink, share(batch, wanted, place))
            if isinstance(answer.error, PausedDeliveryError) and answer.error.in_doubt:
                # A sink that gets nothing but what others refuse never takes an event that would settle the doubt.
                settled = [at for at in answer.waiting if wanted[at] in refused]
                answer.refused.update(dict.fromkeys(settled, str(answer.error)))
                answer.waiting = [at for at in answer.waiting if wanted[at] not in refused]
            refused.update(wanted[at] for at in answer.refused)
            self._account(sink, len(wanted), seen.add(answer))
            again.update(wanted[at] for at in answer.waiting)
            failed.update((wanted[at], reason) for at, reason in answer.refused.items())
            for index, reason in failed.items():
                reasons.setdefault(index, []).append(f"{sink.name}: {reason}")
            left = sorted({*failed, *(wanted[at] for at in answer.waiting)})
            if not left:
                break
        retry = [index for index in left if index in again]
        if retry and len(retry) == len(items):
            raise seen.gentlest()
        for problem in seen.problems:
            self._fail_unraised(problem, None)
        rejected = {index: "; ".join(reasons[index]) for index in left if index not in again}
        return seen.result(retry, rejected, min)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return one batch item of *event* with a part for each child, after the child's level and processors.

        Raises:
            DropEvent: If the first child that does not fail filters it.
            Exception: The error of the children, if all fail.
        """
        parts: list[Encoded | None] = []
        refused: dict[int, str] = {}
        failures: list[tuple[Sink, Exception]] = []
        filtered = False
        for place, sink in enumerate(self.sinks):
            part, failure = prepared(sink, event)
            parts.append(part)
            if failure is not None:
                sink._count_dropped(reason_of(failure))
                tell_owner(sink, failure, 1, event)
                refused[place] = describe(cleaned(failure, event))
                failures.append((sink, failure))
            elif part is None and len(failures) == place:
                sink._ledger.filter()
                filtered = True
                break
        if len(failures) == len(self.sinks):
            self._raise(failures, event)
        for _, failure in failures:
            self._fail_unraised(failure, event)
        if filtered:
            raise DropEvent
        return routed(self._kind, parts, refused, self._encoded(event, b""))

    def _put(self, event: dict[str, Any]) -> Exception | None:
        # No lock is needed: each child has its own, and this sink only counts.
        self.emit(event)
        with self._ledger.lock:
            self._ledger.delivered += 1
        return None
