"""The worker that delivers a listener's events to one of its sinks: `Lane`."""

# A listener reads items from a queue and has a lane for each sink. It makes a ticket for each item, and adds the item's
# events to each lane, together with the ticket. A lane releases the ticket of each event that its sink has settled.
# Once every holder has released the ticket, the item is finished, and `QueueListener` calls task_done(). Listeners that
# read whole batches use another subclass of `Worker`, which stores batches.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structlog import DropEvent

from outfall.sinks.core.item import Batch
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.delivery.worker import NEVER, Worker
from outfall.sinks.errors import DeliveryError, SinkClosedError, reason_of

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from outfall.sinks.core.bells import Bells
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.ledger import Ledger
    from outfall.sinks.core.sink import Sink
    from outfall.sinks.delivery.delivery import RetryPolicy


class Ticket:
    """A queue item, finished once every holder has released it. The listener's lock protects it."""

    __slots__ = ("events", "holders", "queued")

    def __init__(self, *, queued: bool) -> None:
        #: True if the item comes from the queue, so that its `task_done` is due.
        self.queued: bool = queued
        #: The number of holders: the reader until it has added all events, and each event in a lane.
        self.holders: int = 1
        #: The number of events in the item.
        self.events: int = 0


class Lane(Worker):
    """The events that wait for one sink, and the thread that delivers them.

    Args:
        listener: A weak reference to the listener. Its ``_tell_of_sink(sink, error, events)`` gets each failure.
        name: The name of the thread.
        sink: Where the events go.
        ledger: The listener's counts for that sink, over all its starts.
        release: Called with the tickets of settled events, without a lock.
        bells: Rung when there is room.
        capacity: How many events it may hold, those in flight included.
        batch_size: How many events the sink gets at a time.
        linger: How many seconds the first event of a batch waits for more.
        respect_level: Whether the sink's level applies.
        retry: When a batch that failed is tried again. Default ``RetryPolicy()``.
        dead_letter: A sink for events that the sink refuses for good. Default None: they are dropped.
    """

    put: int
    settled: int
    stopping: bool

    def __init__(
        self,
        listener: weakref.ref[Any],
        name: str,
        sink: Sink,
        ledger: Ledger,
        *,
        release: Callable[[list[Ticket]], None],
        bells: Bells,
        capacity: int,
        batch_size: int,
        linger: float,
        respect_level: bool,
        retry: RetryPolicy | None,
        dead_letter: Sink | None,
    ) -> None:
        super().__init__(
            listener,
            name,
            sink,
            ledger,
            batch_size=min(batch_size, capacity),
            linger=linger,
            retry=retry,
            dead_letter=dead_letter,
        )
        self.bells = bells
        self._release = release
        self._capacity = capacity
        self._respect_level = respect_level
        #: Events that wait, oldest first, and the tickets of each batch in flight.
        self._items: list[tuple[dict[str, Any], Ticket]] = []
        self._in_hand: list[list[Ticket]] = []
        #: True from the first event dropped after a wait for room was in vain, until there is room.
        self.impatient: bool = False
        #: True once `end` has found events that were not settled.
        self.gave_up: bool = False

    # -- what the listener calls

    def has_room(self) -> bool:
        """Return True if there is room for one more event."""
        return not self.closed and self.put - self.done < self._capacity

    def is_idle(self) -> bool:
        """Return True if no event waits."""
        return not self._items

    def add(self, event: dict[str, Any], ticket: Ticket) -> bool:
        """Store *event*, under the listener's lock; return False if there is no room. Call `look` afterwards."""
        with self.lock:
            if not self.has_room():
                return False
            # No call within these lines: interrupts run at calls.
            self._items += ((event, ticket),)
            ticket.holders += 1
            self.put += 1
            self.impatient = False
        return True

    def look(self) -> None:
        """Wake the thread if it waits for what was added."""
        with self.lock:
            rouses = self.put > self.wake_at
            if rouses:
                self.wake_at = NEVER
        if rouses:
            self.rouse()

    def conclude(self, deadline: float) -> None:
        """Accept no more events. The thread ends once it has delivered those that wait, or at *deadline*."""
        with self.lock:
            self.closed = self.stopping = self.concluding = True
            self.urgent_until = deadline
        if self.thread is not None or self._items:
            self.rouse()

    def deliver_once(self) -> None:
        """Deliver one batch in the calling thread, without retries. An interrupt passes through."""
        with self.lock:
            self.stopping = True
            found = self.take()
        self._deliver(*found)

    def end(self) -> Outcome:
        """End at once and return the numbers of `Worker.end`."""
        with self.lock:
            self.gave_up = self.gave_up or self.put > self.settled
            return super().end()

    def left(self) -> list[Ticket]:
        """Return the tickets that are still held after `end`."""
        with self.lock:
            tickets = [ticket for batch in self._in_hand for ticket in batch]
            tickets += [ticket for _, ticket in self._items]
            self._in_hand.clear()
            self._items.clear()
        return tickets

    # -- what the worker asks

    def waiting(self) -> int:
        """Return how many events wait."""
        return len(self._items)

    def take(self) -> tuple[list[tuple[dict[str, Any], Ticket]], list[Ticket]]:
        """Take a batch and its tickets."""
        taken = self._items[: self.batch_size]
        del self._items[: self.batch_size]
        tickets = [ticket for _, ticket in taken]
        self._in_hand.append(tickets)
        return taken, tickets

    def prepared(self, taken: list[tuple[dict[str, Any], Ticket]]) -> Batch:
        """Return a batch of the events that pass the sink's level and processors."""
        return Batch([item for event, _ in taken if (item := self._item_of(event)) is not None])

    def _item_of(self, event: dict[str, Any]) -> Encoded | None:
        """Return the item for the sink; None if *event* is filtered or dropped."""
        try:
            if self.target.closed:
                msg = f"{self.target.name} is closed"
                raise SinkClosedError(msg)
            item = self.target.make_item(event, respect_level=self._respect_level)
        except DropEvent:
            item = None
        except Exception as error:
            self.settle(Outcome(dropped={reason_of(error): 1}))
            told = cleaned(error, event)
            self.tell(told if isinstance(told, Exception) else DeliveryError(describe(told)), 1)
            return None
        if item is None:
            with self.lock:
                if not self.ended:
                    self.ledger.filter()
                    self.settled += 1
        return item

    def _finish(self, taken: Any, token: list[Ticket]) -> None:
        with self.lock:
            mine = token in self._in_hand
            if mine:
                self._in_hand.remove(token)
        if mine:
            # Release first: a flush that sees the events settled then finds the item finished.
            self._release(token)
        super()._finish(taken, token)

    def _tell(self, error: Exception, events: int) -> None:
        self.ledger.last_error = describe(error)
        listener = self._owner()
        if listener is not None:
            # Clear the mark of a delivering thread, so that other sinks accept what on_error logs.
            with delivering(value=False):
                listener._tell_of_sink(self.target, error, events)
