"""The way from a listener to one of its sinks: what waits for it, and the thread that delivers it."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from structlog import DropEvent

from outfall.sinks.core.bells import Flag
from outfall.sinks.core.clock import now as clock
from outfall.sinks.core.item import Batch, Encoded
from outfall.sinks.core.ledger import Outcome, SinkStats
from outfall.sinks.core.reentrancy import delivering
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.delivery.delivery import Delivery, RetryPolicy
from outfall.sinks.errors import DeliveryError, SinkClosedError, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.sink import Sink


class Ticket:
    """An item on its way, which is done with when all who have to do with it have let go.

    All of it under the lanes' lock.
    """

    __slots__ = ("events", "holders", "queued")

    def __init__(self, *, queued: bool) -> None:
        #: Whether it is from the queue, which wants to know when it is done with.
        self.queued: bool = queued
        #: How many have not let go yet.
        self.holders: int = 1
        #: How many events it has become.
        self.events: int = 0


class Mark:
    """A place in what waits; everything before it is settled once `reached` is set."""

    def __init__(self, passers: int, deadline: float) -> None:
        self.reached: Flag = Flag()
        #: By the monotonic clock.
        self.deadline = deadline
        self._left = passers

    def pass_by(self) -> None:
        """Be passed by one of those who have to. Called under the lanes' lock."""
        self._left -= 1
        if not self._left:
            self.reached.set()


class Account:
    """A sink's ledger behind a listener, over all its starts and stops."""

    def __init__(self) -> None:
        self.filtered = self.delivered = self.dead_lettered = self.retried = self.pending = 0
        self.dropped: defaultdict[str, int] = defaultdict(int)
        self.last_error: str | None = None

    def stats(self, sink: Sink) -> SinkStats:
        """Return it, with the sink's own ledger as that of its target."""
        dropped = dict(self.dropped)
        return SinkStats(
            name=sink.name,
            accepted=self.delivered + self.dead_lettered + sum(dropped.values()) + self.pending,
            filtered=self.filtered,
            delivered=self.delivered,
            dropped=dropped,
            retried=self.retried,
            dead_lettered=self.dead_lettered,
            pending=self.pending,
            last_error=self.last_error,
            targets=(sink.stats(),),
        )


class Lane:
    """What waits for one sink, and the thread that delivers it in batches.

    Args:
        sink: Where it goes.
        account: Where it is counted, under *lock*.
        lock: The lock of all lanes of a listener.
        room: A condition of *lock*, told when there may be room in a lane.
        capacity: How many events may be in it, those being delivered included.
        batch_size: How many the sink is given at a time.
        linger_seconds: How long the first of a batch waits for more.
        respect_level: Whether the sink's level applies.
        retry: How often a failed batch is tried again. Default ``RetryPolicy()``.
        dead_letter: A sink for events that the target refuses for good. Default None: they are dropped.
        tell: Called with the sink, an exception and the number of events lost to it.
        let_go: Called with the tickets of events that are settled.
    """

    def __init__(
        self,
        sink: Sink,
        account: Account,
        *,
        lock: threading.RLock,
        room: threading.Condition,
        capacity: int,
        batch_size: int,
        linger_seconds: float,
        respect_level: bool,
        retry: RetryPolicy | None,
        dead_letter: Sink | None,
        tell: Callable[[Sink, Exception, int], None],
        let_go: Callable[[list[Ticket]], None],
    ) -> None:
        self.sink = sink
        self.account = account
        self._lock = lock
        self._room = room
        self._work = threading.Condition(lock)
        self._capacity = capacity
        self._batch_size = batch_size
        self._linger_seconds = linger_seconds
        self._respect_level = respect_level
        self._told = tell
        self._let_go = let_go
        self._waiting: deque[tuple[dict[str, Any], Ticket] | Mark] = deque()
        #: How many of these are marks.
        self._marks = 0
        #: Those whose delivery has begun, and how many of them are not settled.
        self._in_hand: list[Ticket] = []
        self._unsettled = 0
        #: Until when somebody waits for all of it; by the monotonic clock.
        self._urgent_until = 0.0
        self._hurry = False
        #: True when nothing more comes, and when it has to be done then.
        self._finished = False
        self._deadline = float("inf")
        self._abandoned = False
        #: True once an event was dropped after somebody had waited for room in vain, until there is some.
        self.impatient: bool = False
        self._delivery = Delivery(
            sink,
            retry=retry,
            dead_letter=dead_letter,
            settle=self._settle,
            tell=self._tell,
            pause=self._pause,
        )

    # -- what the listener calls, under the lock

    def has_room(self) -> bool:
        """Return True if one more event may come in."""
        return not self._abandoned and len(self._waiting) - self._marks + len(self._in_hand) < self._capacity

    def is_idle(self) -> bool:
        """Return True if nothing waits, so that its sink has nothing to do."""
        return not self._waiting

    def put(self, event: dict[str, Any], ticket: Ticket) -> None:
        """Have *event* delivered."""
        ticket.holders += 1
        self._waiting.append((event, ticket))
        self.account.pending += 1
        self.impatient = False
        self._work.notify()

    def drop(self, reason: str) -> None:
        """Count an event as dropped that does not come in."""
        self.account.dropped[reason] += 1

    def mark(self, mark: Mark) -> None:
        """Have *mark* reached when all that is in the lane now is settled, and that soon."""
        self._waiting.append(mark)
        self._marks += 1
        self.make_haste(mark.deadline)

    def finish(self, deadline: float) -> None:
        """Have the thread end when it has delivered what is in the lane, or at *deadline*."""
        self._finished = True
        self._deadline = deadline
        self.make_haste(deadline)

    def make_haste(self, deadline: float) -> None:
        """Linger no more, and try again at once where an attempt has failed: somebody waits until *deadline*."""
        self._urgent_until = max(self._urgent_until, deadline)
        self._hurry = True
        self._work.notify()

    def abandon(self) -> tuple[int, list[Ticket]]:
        """Count what is left as lost; return how many events that are, and the tickets to let go of."""
        self._abandoned = self._finished = True
        account = self.account
        lost = account.pending
        account.pending = 0
        unconfirmed = min(lost, self._unsettled, self._delivery.attempting)
        if unconfirmed:
            account.dropped["unconfirmed"] += unconfirmed
        if lost > unconfirmed:
            account.dropped["closed"] += lost - unconfirmed
        tickets = [*self._in_hand, *(waiting[1] for waiting in self._waiting if not isinstance(waiting, Mark))]
        self._in_hand = []
        self._waiting.clear()
        self._marks = 0
        self._work.notify()
        return lost, tickets

    # -- the thread

    def run(self) -> None:
        """Deliver what comes, until it is finished; what a thread does."""
        with delivering():
            while (batch := self._next()) is not None:
                self.deliver(batch)

    def _next(self) -> list[tuple[dict[str, Any], Ticket]] | None:
        lingered_until: float | None = None
        with self._lock:
            while True:
                if self._abandoned:
                    return None
                self._pass_marks()
                count = len(self._waiting)
                if count:
                    moment = clock()
                    if lingered_until is None:
                        lingered_until = moment + self._linger_seconds
                    urgent = self._finished or moment < self._urgent_until
                    if count >= self._batch_size or moment >= lingered_until or urgent:
                        return self._take()
                    self._work.wait(lingered_until - moment)
                elif self._finished:
                    return None
                else:
                    self._work.wait()

    def _pass_marks(self) -> None:
        while self._waiting and isinstance(mark := self._waiting[0], Mark):
            self._waiting.popleft()
            self._marks -= 1
            if not (self._marks or self._finished):
                self._urgent_until = 0.0
                self._hurry = False
            mark.pass_by()

    def _take(self) -> list[tuple[dict[str, Any], Ticket]]:
        taken: list[tuple[dict[str, Any], Ticket]] = []
        while self._waiting and len(taken) < self._batch_size:
            first = self._waiting[0]
            if isinstance(first, Mark):
                break
            taken.append(first)
            self._waiting.popleft()
        self._in_hand = [ticket for _, ticket in taken]
        self._unsettled = len(taken)
        return taken

    def deliver(self, batch: list[tuple[dict[str, Any], Ticket]]) -> None:
        """Deliver these events, the sink's level and processors first, and let go of their tickets."""
        try:
            items = [item for event, _ in batch if (item := self._prepared(event)) is not None]
            left = self._delivery.deliver(Batch(items)) if items else []
        except BaseException as error:
            self._lose_rest(error)
            left = []
        if left:
            return  # who has told it to stop counts them, and lets go
        with self._lock:
            tickets, self._in_hand = self._in_hand, []
            self._room.notify_all()
        self._let_go(tickets)

    def _prepared(self, event: dict[str, Any]) -> Encoded | None:
        """Return what to give to the sink; None if *event* is settled without it."""
        try:
            if self.sink.closed:
                msg = f"{self.sink.name} is closed"
                raise SinkClosedError(msg)
            item = self.sink.make_item(event, respect_level=self._respect_level)
        except DropEvent:
            item = None
        except Exception as error:
            self._settle(Outcome(dropped={reason_of(error): 1}))
            told = cleaned(error, event)
            self._tell(told if isinstance(told, Exception) else DeliveryError(describe(told)), 1)
            return None
        if item is None:
            with self._lock:
                if not self._abandoned:
                    self.account.filtered += 1
                    self.account.pending -= 1
                    self._unsettled -= 1
        return item

    def _settle(self, outcome: Outcome) -> None:
        with self._lock:
            if self._abandoned:
                return
            account = self.account
            account.pending -= outcome.events
            self._unsettled -= outcome.events
            account.delivered += outcome.delivered
            account.dead_lettered += outcome.dead_lettered
            account.retried += outcome.retried
            for reason, events in outcome.dropped.items():
                account.dropped[reason] += events

    def _lose_rest(self, error: BaseException) -> None:
        with self._lock:
            lost = self._unsettled
        self._settle(Outcome(dropped={"error": lost}))
        self._tell(DeliveryError(describe(cleaned(error, None))), lost)

    def _tell(self, error: Exception, events: int) -> None:
        with self._lock:
            if self._abandoned:
                return
            self.account.last_error = describe(error)
        # Not under the mark of a delivering thread: what on_error logs, other sinks may take.
        with delivering(value=False):
            self._told(self.sink, error, events)

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt; return False if the delivery has to stop."""
        with self._lock:
            moment = clock()
            until = moment + seconds
            while True:
                if self._abandoned or moment >= self._deadline:
                    return False
                if self._hurry:
                    # Somebody waits for this: an attempt at once, and several in the time that is left.
                    self._hurry = False
                    return True
                urgent = self._urgent_until - moment
                if 0 < urgent < float("inf"):
                    until = min(until, moment + max(urgent / 2, _LEAST_PAUSE_SECONDS))
                if moment >= until:
                    return True
                self._work.wait(min(until, self._deadline) - moment)
                moment = clock()


_LEAST_PAUSE_SECONDS = 0.01
