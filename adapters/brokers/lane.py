"""The delivery of batches from a broker's listener to its sinks: `Lane`, `Ticket`, `Run`."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import describe
from outfall.sinks.delivery.worker import Worker

if TYPE_CHECKING:
    import threading

    from outfall.adapters.brokers.listener import BrokerListener
    from outfall.sinks.core.item import Batch
    from outfall.sinks.core.ledger import Ledger
    from outfall.sinks.core.sink import Sink


class Ticket:
    """A batch of messages in flight. It is settled once each sink has settled it."""

    __slots__ = ("events", "holders", "tokens")

    def __init__(self, tokens: list[Any]) -> None:
        self.tokens: list[Any] = tokens
        #: How many events the sinks got from it.
        self.events: int = 0
        #: The number of sinks that have not settled it, plus 1 until the reader has handed it to all of them.
        self.holders: int = 1


class Lane(Worker):
    """The batches that wait for one sink, and the thread that delivers them.

    Args:
        listener: The listener, held weakly.
        sink: The sink.
        ledger: The listener's counts for that sink, over all its starts.
    """

    put: int

    def __init__(self, listener: BrokerListener, sink: Sink, ledger: Ledger) -> None:
        self.sink: Sink = sink
        self.batches: deque[tuple[Batch, Ticket]] = deque()
        super().__init__(
            weakref.ref(listener),
            f"{listener.name} {sink.name}",
            sink,
            ledger,
            batch_size=1,
            linger=0.0,
            retry=listener._retry,
            dead_letter=listener._dead_letter,
        )
        self.inline = False

    def add(self, batch: Batch, ticket: Ticket) -> None:
        """Add *batch* to the queue. *ticket* is released once the batch is settled."""
        with self.lock:
            self.batches.append((batch, ticket))
            self.put += len(batch)
            wake = self.put > self.wake_at
        if wake:
            self.rouse()

    def waiting(self) -> int:
        """Return how many events wait."""
        return sum(len(batch) for batch, _ in self.batches)

    def take(self) -> tuple[Batch, Ticket]:
        """Take the oldest batch."""
        return self.batches.popleft()

    def finish(self, batch: Batch, token: Ticket) -> None:
        """Release the ticket of a batch that is settled."""
        listener = self._owner()
        if listener is not None:
            listener._release_ticket(token)

    def discard(self) -> None:
        """Forget what waits: the broker still has it."""
        self.batches.clear()

    def _tell(self, error: Exception, events: int) -> None:
        listener = self._owner()
        if listener is not None:
            self.ledger.last_error = describe(error)
            with delivering(value=False):
                listener._tell_of_sink(self.sink, error, events)


class Run:
    """One start of a listener, until it is stopped."""

    def __init__(self, lanes: list[Lane], before: threading.Thread | None) -> None:
        self.lanes: list[Lane] = lanes
        self.thread: threading.Thread | None = None
        #: The last reader, if stop() has given up waiting for it. It has the connection until it ends.
        self.before: threading.Thread | None = before
        #: Each item wakes the reader.
        self.wakeups: SimpleQueue[None] = SimpleQueue()
        self.stopping: bool = False
        self.deadline: float = float("inf")
        #: True once stop() has given up waiting for the reader.
        self.abandoned: bool = False
        #: Unsettled batches, oldest first, and settled batches that are not acknowledged yet.
        self.tickets: deque[Ticket] = deque()
        self.settled: deque[Ticket] = deque()
        #: The number of the current read, and of the last one that found the broker empty and all settled.
        self.rounds: int = 0
        self.empty_round: int = 0
        #: How many callers wait in flush().
        self.flushing: int = 0
        self.complete: bool = False
        #: Whether the last read reached the broker.
        self.connected: bool = False

    def wake(self) -> None:
        """Wake the reader."""
        self.wakeups.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until the reader is woken, or *seconds* have passed."""
        with contextlib.suppress(Empty):
            self.wakeups.get(timeout=max(0.0, seconds))
            while True:
                self.wakeups.get_nowait()
