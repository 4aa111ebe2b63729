"""Counting: `SinkStats`, `Outcome`, and the `Ledger` that each sink has."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SinkStats:
    """A sink's ledger at one moment.

    With nothing pending, ``accepted + adopted == delivered + sum(dropped.values()) + dead_lettered + spooled``.
    The ledger of a forked child starts empty.

    Args:
        name: The sink's name.
        accepted: Events given to ``handle`` or ``deliver`` that passed level and processors, whatever their outcome.
        adopted: Events taken over from a dead process's spool.
        filtered: Events that the level or a processor rejected.
        delivered: Events that the sink has put out.
        dropped: Lost events by reason: ``error``, ``closed``, ``reentrant``, ``interrupted`` …
        retried: Repeated attempts.
        dead_lettered: Events that the target refused and the dead letter sink took.
        spooled: Events on disk that are not yet delivered.
        pending: Accepted events that are still in memory.
        last_error: The last failure as one line of text, or None.
        targets: The ledgers of the sinks behind this one.
    """

    name: str
    accepted: int = 0
    adopted: int = 0
    filtered: int = 0
    delivered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    retried: int = 0
    dead_lettered: int = 0
    spooled: int = 0
    pending: int = 0
    last_error: str | None = None
    targets: tuple[SinkStats, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of some events.

    Args:
        delivered: Events that the target took.
        dead_lettered: Events that the dead letter sink took.
        dropped: Lost events by reason.
        retried: Repeated attempts; not a number of events.
    """

    delivered: int = 0
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    retried: int = 0

    @property
    def events(self) -> int:
        """The number of events that are settled."""
        return self.delivered + self.dead_lettered + sum(self.dropped.values())


class Ledger:
    """The counters of one sink.

    Accepted events are not counted separately: their number is the sum of all outcomes and of pending events.

    `lock` is an RLock. It is held for a moment, and never while other code is called. A hot path adds to a counter
    without the lock, by ``ledger.delivered += 1``: without a call in it, an addition is atomic under the interpreter's
    global lock. A forked child makes a new ledger.
    """

    dead_lettered: int
    delivered: int
    filtered: int
    lock: Any
    retried: int

    __slots__ = ("dead_lettered", "delivered", "dropped", "filtered", "last_error", "lock", "retried")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.filtered = 0
        self.delivered = 0
        # With a defaultdict, adding to an entry is atomic for signal handlers that count too; get() and set is not.
        self.dropped: defaultdict[str, int] = defaultdict(int)
        self.retried = 0
        self.dead_lettered = 0
        #: The last failure as one line of text, or None.
        self.last_error: str | None = None

    def filter(self, events: int = 1) -> None:
        """Count *events* that a level or a processor rejected."""
        with self.lock:
            self.filtered += events

    def drop(self, reason: str, events: int = 1) -> None:
        """Count *events* as lost for *reason*; a negative number corrects the count."""
        with self.lock:
            self.dropped[reason] += events

    def settle(self, outcome: Outcome) -> None:
        """Count the outcome of some events."""
        with self.lock:
            self.delivered += outcome.delivered
            self.dead_lettered += outcome.dead_lettered
            self.retried += outcome.retried
            for reason, events in outcome.dropped.items():
                self.dropped[reason] += events

    def stats(self, name: str, *, pending: int = 0, targets: tuple[SinkStats, ...] = ()) -> SinkStats:
        """Return the current counts.

        Args:
            name: The sink's name.
            pending: The number of accepted events that are still in memory.
            targets: The ledgers of the sinks behind this one.
        """
        with self.lock:
            # Copied first, in one step: a signal handler may add to it. What was counted and taken back is left out.
            dropped = {reason: events for reason, events in dict(self.dropped).items() if events}
            return SinkStats(
                name=name,
                accepted=self.delivered + self.dead_lettered + pending + sum(dropped.values()),
                filtered=self.filtered,
                delivered=self.delivered,
                dropped=dropped,
                retried=self.retried,
                dead_lettered=self.dead_lettered,
                pending=pending,
                last_error=self.last_error,
                targets=targets,
            )
