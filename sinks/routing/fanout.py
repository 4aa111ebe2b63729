"""Sinks that hand events to other sinks: `FanoutSink` and `FallbackSink`."""

# WriteLock reads `holding` from the frame.
# pyright: reportUnusedVariable=false

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from structlog import DropEvent

from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.reporting import cleaned, describe, report
from outfall.sinks.core.sink import OnError, Sink, checked_sink
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    ReentrantEventError,
    TemporaryDeliveryError,
    reason_of,
)
from outfall.sinks.event.event import as_event
from outfall.sinks.event.json import plain_line
from outfall.sinks.event.levels import NOTSET, Level
from outfall.sinks.routing.parts import Answer, Note, Routed, key_for, offer, restored, routed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.ledger import SinkStats


class _Router(Sink):
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
            _tell_owner(sink, PermanentDeliveryError(reason), refused)
        if answer.error is not None:
            _tell_owner(sink, answer.error, 0)

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


class FanoutSink(_Router):
    """Hand each event to several sinks; all are tried, whatever one does.

    Each child applies its own level, processors and renderer, and keeps its own account in ``stats().targets``. Here
    an event counts as delivered once it was handed to every child. A child that fails has counted the loss; its own
    ``on_error`` is told if it was given one, and the failure is raised when all children have been tried, so that this
    sink's ``on_error`` (or a router around it) is told as well.

    Behind a `BackgroundSink` or a `SpoolSink` the children's levels and processors run in the thread that logs, and a
    child that fails temporarily is given the events again without the others seeing them twice. An event that one child
    refuses for good counts there as refused, though the others have it.

    Args:
        *sinks: The children, one at least. They are owned: `close` closes them.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: What to call the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If one of *sinks* is no `Sink`.
        ValueError: If there is none, or one comes twice.

    Where all children are files that take events as they are, an event is encoded once, and one thread at a time writes
    to all of them; otherwise no lock is held. `flush` and `close` share their timeout among the children.
    """

    _kind = "fanout"

    #: The children and what puts a line out there, if all can do that at once; None: each event is handed on.
    _appenders: tuple[tuple[Sink, Callable[[Any, bytes], None]], ...] | None = None

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``."""
        # For children that append lines: one line is made for all, and one turn taken over all.
        appenders = self._appenders
        done = 0
        if appenders is not None:
            try:
                line = plain_line(event, self._level)
                if line:
                    turn = self._turn
                    try:
                        del turn[0]
                    except IndexError:
                        with self._lock:
                            for child, append in appenders:
                                append(child, line)
                                done += 1
                            self._ledger.delivered += 1
                        return
                    holding = True
                    try:
                        for child, append in appenders:
                            append(child, line)
                            done += 1
                        self._ledger.delivered += 1
                    finally:
                        try:
                            holding = False
                            turn += TURN
                        finally:
                            pass
                    return
                if line is not None:
                    self._ledger.filter()
                    return
            except Exception:
                pass
            except BaseException:
                # The child that it came in at has counted it there.
                self._count_dropped("interrupted")
                raise
        if not done:
            super().handle(event)
            return
        failure = self._hand(as_event(event), done)
        self._ledger.settle(Outcome(delivered=1))
        if failure is not None:
            self._fail(failure, event, events=0)

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        own = type(self)
        hooks = ("deliver", "emit", "_put", "_hand")
        usual = all(getattr(own, hook) is getattr(FanoutSink, hook) for hook in hooks)
        found = [(child, child.line_appender) for child in self.sinks]
        appenders = [(child, append) for child, append in found if append is not None]
        busy = self._processors or self._closed or self._reporting
        self._appenders = tuple(appenders) if usual and not busy and len(appenders) == len(found) else None

    def emit(self, event: dict[str, Any]) -> None:
        """Hand *event* to every child; raise what failed when all have been tried."""
        failure = self._hand(event)
        if failure is not None:
            raise failure

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Give every child its part of each item that it has not settled yet.

        Raises:
            TemporaryDeliveryError: If no child could take anything.
        """
        if self.plain:
            return self._emit_shared(batch if isinstance(batch, Batch) else Batch(batch))
        items = self._routed(batch)
        waiting: set[int] = set()
        seen = _Answers()
        progress = False
        for place, sink in enumerate(self.sinks):
            wanted = {
                index: part
                for index, item in enumerate(items)
                if place not in item.done and (part := item.parts[place]) is not None
            }
            if not wanted:
                continue
            indexes = list(wanted)
            answer = seen.add(offer(sink, Batch(wanted.values(), key_for(batch, indexes, place))))
            unsettled = {indexes[at] for at in answer.waiting}
            waiting |= unsettled
            progress = progress or len(unsettled) < len(indexes)
            for index in indexes:
                if index not in unsettled:
                    items[index].done.add(place)
            for at, reason in answer.refused.items():
                items[indexes[at]].refused[place] = f"{sink.name}: {reason}"
            self._account(sink, len(indexes), answer)
        if seen.errors and not progress and len(waiting) == len(items):
            raise seen.gentlest()
        rejected = {
            index: "; ".join(item.refused.values())
            for index, item in enumerate(items)
            if item.refused and index not in waiting
        }
        return seen.result(sorted(waiting), rejected, max)

    def _emit_shared(self, batch: Batch) -> BatchResult | None:
        """Give every child the same items, encoded once, and remember who has which only when one has failed."""
        mixed = Routed in batch.kinds()  # an event that was not plain has a part for each
        notes: dict[int, Note | Routed] = batch.notes.get(self, {})
        waiting: set[int] = set()
        seen = _Answers()
        progress = False
        outcomes: list[tuple[int, Sequence[int], set[int], dict[int, str]]] = []
        for number, sink in enumerate(self.sinks):
            indexes: Sequence[int] = range(len(batch))
            if notes:
                indexes = [at for at, place in enumerate(batch.places) if number not in notes[place].done]
            if mixed:
                indexes = [at for at in indexes if _part_of(batch[at], number) is not None]
            if not indexes:
                continue
            given = batch if len(indexes) == len(batch) else batch.part(indexes)
            change = partial(_part_of, number=number) if mixed else None
            answer = seen.add(offer(sink, given.under(str(number), change)))
            unsettled = {indexes[at] for at in answer.waiting}
            waiting |= unsettled
            progress = progress or len(unsettled) < len(indexes)
            refused = {indexes[at]: f"{sink.name}: {reason}" for at, reason in answer.refused.items()}
            outcomes.append((number, indexes, unsettled, refused))
            self._account(sink, len(indexes), answer)
        if not notes and not waiting and not any(refused for *_, refused in outcomes):
            return seen.result([], {}, max)
        notes = batch.notes.setdefault(self, {})
        for place in batch.places:
            notes.setdefault(place, Note())
        for number, indexes, unsettled, refused in outcomes:
            for index in indexes:
                if index not in unsettled:
                    notes[batch.places[index]].done.add(number)
            for index, reason in refused.items():
                notes[batch.places[index]].refused[number] = reason
        if seen.errors and not progress and len(waiting) == len(batch):
            raise seen.gentlest()
        rejected = {
            index: "; ".join(notes[place].refused.values())
            for index, place in enumerate(batch.places)
            if notes[place].refused and index not in waiting
        }
        return seen.result(sorted(waiting), rejected, max)

    @property
    def plain(self) -> bool:
        """See `Forwarding.plain`: if it is true of all children, they share what is encoded once."""
        own = type(self)
        usual = own.encode is FanoutSink.encode and own.make_item is Sink.make_item and not self._processors
        return usual and all(sink.plain and not sink.level for sink in self.sinks)

    @property
    def keeps_types(self) -> bool:
        """See `Forwarding.keeps_types`: if one of the children does."""
        return any(sink.keeps_types for sink in self.sinks)

    @property
    def needs_moment(self) -> bool:
        """See `Forwarding.needs_moment`: if one of the children does."""
        return any(sink.needs_moment for sink in self.sinks)

    @property
    def takes_any_number(self) -> bool:
        """See `Forwarding.takes_any_number`: if all children do."""
        return all(sink.takes_any_number for sink in self.sinks)

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return what each child wants of an item that a disk has kept; see `Forwarding.restore_item`."""
        # What all share was kept as it is.
        shared = self.plain and not data.startswith(_ROUTED)
        return Encoded(data, level, time) if shared else self._split(data, level, time)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event* as each child wants it, past the child's level and processors, as one batch item.

        Raises:
            DropEvent: If all children filter it.
            Exception: What a child raises, if no other one takes it.
        """
        line = _plain_line(event) if self.plain else None
        if line is not None and not (self.keeps_types and b"null" in line):
            return self._encoded(event, line[:-1])
        parts: list[Encoded | None] = []
        failures: list[tuple[Sink, Exception]] = []
        for sink in self.sinks:
            part, failure = _prepared(sink, event)
            parts.append(part)
            if failure is not None:
                sink._count_dropped(reason_of(failure))
                failures.append((sink, failure))
            elif part is None:
                sink._ledger.filter()
        for sink, failure in failures:
            _tell_owner(sink, failure, 1, event)
        if all(part is None for part in parts):
            if not failures:
                raise DropEvent
            raise failures[0][1] if len(failures) == 1 else self._all_failed(failures, event)
        for _, failure in failures:
            self._fail_unraised(failure, event)
        return routed(self._kind, parts, {}, self._encoded(event, b""))

    def _put(self, event: dict[str, Any]) -> Exception | None:
        # No lock: each child has its own, and this sink has nothing to guard but the count.
        failure = self._hand(event)
        with self._ledger.lock:
            self._ledger.delivered += 1
        return failure

    def _hand(self, event: dict[str, Any], first: int = 0) -> Exception | None:
        failures: list[tuple[Sink, Exception]] = []
        for sink in self.sinks[first:]:
            try:
                sink.deliver(event)
            except ReentrantEventError:
                pass  # counted by the child; telling could be what feeds the loop
            except Exception as error:
                failures.append((sink, error))
        for sink, failure in failures:
            _tell_owner(sink, failure, sink._events_lost_to(failure), event)
        if len(failures) < 2:
            return failures[0][1] if failures else None
        return self._all_failed(failures, event)


class FallbackSink(_Router):
    """Hand each event to *primary*; if that fails, to the next sink, until one takes it.

    For a local file beside a network target, or a second collector. Each event is tried with *primary* first, so what
    fails should fail fast.

    A sink that filters an event, by its level or a processor, has taken it: filters say what belongs where, and not
    that something is wrong. A sink that raises has not; its own ``on_error`` is told if it was given one, and this
    sink's too, as of a failure that cost nothing. If all fail, their errors are raised as one, and the event is lost.

    Behind a `BackgroundSink` or a `SpoolSink` the children's levels and processors run in the thread that logs. What
    no child takes and one of them may take later is tried again, with *primary* first.

    Args:
        primary: The sink that should have the events.
        *others: The sinks to try in its place, in this order. All are owned: `close` closes them.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: What to call the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If one of the sinks is no `Sink`.
        ValueError: If one comes twice.

    Each child keeps its own account in ``stats().targets``: what *primary* could not take is dropped there and
    delivered here. Holds no lock, and so waits for no other thread. `flush` and `close` share their timeout among the
    children.
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
        """See `Forwarding.behind`: what the others hold back is told when they are closed."""
        return self.sinks[:1]

    def emit(self, event: dict[str, Any]) -> None:
        """Hand *event* to the first child that takes it; raise if none does."""
        failures: list[tuple[Sink, Exception]] = []
        for sink in self.sinks:
            try:
                sink.deliver(event)
            except Exception as error:
                lost = sink._events_lost_to(error)
                failures.append((sink, error))
                if not isinstance(error, ReentrantEventError):  # telling could be what feeds the loop
                    _tell_owner(sink, error, lost, event)
                if not lost:  # it has been put out nevertheless
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
        """Give each item's part to the first child that takes it.

        Raises:
            TemporaryDeliveryError: If no child could take anything.
        """
        items = self._routed(batch)
        left: Sequence[int] = range(len(items))
        again: set[int] = set()
        reasons: dict[int, list[str]] = {}
        seen = _Answers()
        for place, sink in enumerate(self.sinks):
            failed = {index: items[index].refused[place] for index in left if place in items[index].refused}
            wanted = [index for index in left if index not in failed and items[index].parts[place] is not None]
            for _ in range(len(left) - len(failed) - len(wanted)):
                sink._ledger.filter()
            parts = [part for index in wanted if (part := items[index].parts[place]) is not None]
            answer = seen.add(offer(sink, Batch(parts, key_for(batch, wanted, place))))
            self._account(sink, len(wanted), answer)
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
        """Return *event* as each child wants it, past the child's level and processors, as one batch item.

        Raises:
            DropEvent: If the first child that does not fail filters it.
            Exception: What the children raise, if all fail.
        """
        parts: list[Encoded | None] = []
        refused: dict[int, str] = {}
        failures: list[tuple[Sink, Exception]] = []
        filtered = False
        for place, sink in enumerate(self.sinks):
            part, failure = _prepared(sink, event)
            parts.append(part)
            if failure is not None:
                sink._count_dropped(reason_of(failure))
                _tell_owner(sink, failure, 1, event)
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
        # No lock: each child has its own, and this sink has nothing to guard but the count.
        self.emit(event)
        with self._ledger.lock:
            self._ledger.delivered += 1
        return None


HAND_TAKEN.add(FanoutSink.handle.__code__)

#: How the data of an item begins that holds a part for each child of a fanout.
_ROUTED = b'{"fanout":['


def _plain_line(event: dict[str, Any]) -> bytes | None:
    try:
        return plain_line(event, NOTSET)
    except Exception:
        return None


def _part_of(item: Any, number: int) -> Any:
    """Return what the child of this *number* is given of *item*, as it waits: a part, or what all share."""
    return item.parts[number] if isinstance(item, Routed) else item


def _prepared(sink: Sink, event: dict[str, Any]) -> tuple[Encoded | None, Exception | None]:
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


class _Answers:
    """What the sinks of a router said to one batch."""

    def __init__(self) -> None:
        #: Why something waits, one for each sink.
        self.errors: list[Exception] = []
        #: These, and why something was refused.
        self.problems: list[Exception] = []
        self._waits: list[float] = []
        self._unknown = 0

    def add(self, answer: Answer) -> Answer:
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
        if not (retry or rejected or self._unknown):
            return None
        return BatchResult(retry or (), rejected, self._unknown, choose(self._waits) if retry and self._waits else None)


def _tell_owner(sink: Sink, error: Exception, events: int, event: object = None) -> None:
    """Tell the on_error that a child was given of its own; what it was not given, the router's is for."""
    if sink.on_error is not report and sink.on_error != "raise":
        sink._fail(error, event, events=events)
    else:
        sink._ledger.last_error = describe(cleaned(error, event))
