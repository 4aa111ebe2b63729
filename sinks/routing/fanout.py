"""Each event goes to all of several sinks: `FanoutSink`."""

# WriteLock reads `holding` from the frame.
# pyright: reportUnusedVariable=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structlog import DropEvent

from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.core.lock import HAND_TAKEN, TURN
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import (
    ReentrantEventError,
    reason_of,
)
from outfall.sinks.event.event import as_event
from outfall.sinks.event.json import plain_line
from outfall.sinks.event.levels import NOTSET
from outfall.sinks.routing.parts import Note, Routed, offer, part_of, routed, share
from outfall.sinks.routing.router import Answers, Router, prepared, tell_owner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


#: A subclass that overrides one of these does not take the shortcut in `handle`.
_HOOKS = ("deliver", "emit", "_put", "_hand")


class FanoutSink(Router):
    """Pass each event to several sinks; all are tried, even if one fails.

    Each child applies its own level, processors and renderer, and has its own ledger in ``stats().targets``. In this
    sink's ledger an event is delivered once it was passed to every child. A child that fails counts the loss, and its
    own ``on_error`` is called if it has one. The failure is raised after all children have been tried, so that this
    sink's ``on_error`` (or a router around it) is called too.

    Behind a `BackgroundSink` or a `SpoolSink` the children's levels and processors run in the thread that logs. A child
    that fails temporarily gets the events again; the others do not get them twice. An event that one child refuses for
    good counts as rejected, even if the others have taken it.

    Args:
        *sinks: The children, at least one. They are owned: `close` closes them.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        TypeError: If one of *sinks* is no `Sink`.
        ValueError: If there is none, or one comes twice.

    If all children are files without processors, levels and renderers of their own, an event is encoded once, and one
    thread at a time writes to all of them; otherwise no lock is held. `flush` and `close` divide their timeout among
    the children.
    """

    _kind = "fanout"

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``."""
        # If all children append lines, one line is made for all, under one turn.
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
                # The interrupted child has counted it in its own ledger.
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
        busy = self._processors or self._closed or self._reporting
        own = [hook for hook in _HOOKS if getattr(type(self), hook) is not getattr(FanoutSink, hook)]
        found = [(child, append) for child in self.sinks if (append := child.line_appender) is not None]
        #: The children and the functions that append a line to them; None if a child has no such function.
        self._appenders = None if busy or own or len(found) < len(self.sinks) else tuple(found)

    def emit(self, event: dict[str, Any]) -> None:
        """Pass *event* to every child; raise the failures after all have been tried."""
        failure = self._hand(event)
        if failure is not None:
            raise failure

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Pass to every child its part of each item that the child has not settled yet.

        Raises:
            TemporaryDeliveryError: If no child could take anything.
        """
        batch = self._routed(batch)
        mixed = Routed in batch.kinds()  # an event that is not plain has a part for each child
        # The notes may be about other parts of a divided batch alone.
        notes: dict[int, Note] = batch.notes.get(self, {})
        waiting: set[int] = set()
        seen = Answers()
        progress = False
        outcomes: list[tuple[int, Sequence[int], set[int], dict[int, str]]] = []
        for number, sink in enumerate(self.sinks):
            indexes: Sequence[int] = range(len(batch))
            if notes:
                indexes = [
                    at for at, place in enumerate(batch.places) if place not in notes or number not in notes[place].done
                ]
            if mixed:
                indexes = [at for at in indexes if part_of(batch[at], number) is not None]
            if not indexes:
                continue
            answer = seen.add(offer(sink, share(batch, indexes, number, mixed=mixed)))
            unsettled = {indexes[at] for at in answer.waiting}
            waiting |= unsettled
            progress = progress or len(unsettled) < len(indexes)
            refused = {indexes[at]: f"{sink.name}: {reason}" for at, reason in answer.refused.items()}
            outcomes.append((number, indexes, unsettled, refused))
            self._account(sink, len(indexes), answer)
        # Notes of which sink has accepted which event are needed only after a failure.
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
        """See `Forwarding.plain`: True if it is true of all children, which then share one encoding."""
        own = type(self)
        usual = own.encode is FanoutSink.encode and own.make_item is Sink.make_item and not self._processors
        return usual and all(sink.plain and not sink.level for sink in self.sinks)

    @property
    def keeps_types(self) -> bool:
        """See `Forwarding.keeps_types`: True if a child does."""
        return any(sink.keeps_types for sink in self.sinks)

    @property
    def needs_moment(self) -> bool:
        """See `Forwarding.needs_moment`: True if a child does."""
        return any(sink.needs_moment for sink in self.sinks)

    @property
    def takes_any_number(self) -> bool:
        """See `Forwarding.takes_any_number`: True if all children do."""
        return all(sink.takes_any_number for sink in self.sinks)

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return a spooled item with a part for each child; see `Forwarding.restore_item`."""
        # An item that all children share was stored as it is.
        shared = self.plain and not data.startswith(_ROUTED)
        return Encoded(data, level, time) if shared else self._split(data, level, time)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return one batch item of *event* with a part for each child, after the child's level and processors.

        Raises:
            DropEvent: If all children filter it.
            Exception: The error of a child, if no other child takes the event.
        """
        line = _plain_line(event) if self.plain else None
        if line is not None and not (self.keeps_types and b"null" in line):
            return self._encoded(event, line[:-1])
        parts: list[Encoded | None] = []
        failures: list[tuple[Sink, Exception]] = []
        for sink in self.sinks:
            part, failure = prepared(sink, event)
            parts.append(part)
            if failure is not None:
                sink._count_dropped(reason_of(failure))
                failures.append((sink, failure))
            elif part is None:
                sink._ledger.filter()
        for sink, failure in failures:
            tell_owner(sink, failure, 1, event)
        if all(part is None for part in parts):
            if not failures:
                raise DropEvent
            raise failures[0][1] if len(failures) == 1 else self._all_failed(failures, event)
        for _, failure in failures:
            self._fail_unraised(failure, event)
        return routed(self._kind, parts, {}, self._encoded(event, b""))

    def _put(self, event: dict[str, Any]) -> Exception | None:
        # No lock is needed: each child has its own, and this sink only counts.
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
                pass  # the child has counted it; a report could cause the loop
            except Exception as error:
                failures.append((sink, error))
        for sink, failure in failures:
            tell_owner(sink, failure, sink._events_lost_to(failure), event)
        if len(failures) < 2:
            return failures[0][1] if failures else None
        return self._all_failed(failures, event)


HAND_TAKEN.add(FanoutSink.handle.__code__)

#: The beginning of an item's data that has a part for each child of a fanout.
_ROUTED = b'{"fanout":['


def _plain_line(event: dict[str, Any]) -> bytes | None:
    try:
        return plain_line(event, NOTSET)
    except Exception:
        return None
