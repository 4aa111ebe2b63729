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
    A forked child begins with an empty one.

    Args:
        name: The sink's name.
        accepted: Events that came to ``handle`` or ``deliver`` and passed level and processors, whatever became of
            them then.
        adopted: Events taken over from a dead process's spool.
        filtered: Events that the level or a processor kept out.
        delivered: Events put out.
        dropped: Events lost, by reason: ``error``, ``closed``, ``reentrant``, ``interrupted`` …
        retried: Attempts made again.
        dead_lettered: Events that the target refused and that went to the dead letter sink.
        spooled: Events safe on disk that are not yet delivered.
        pending: Events accepted and still in memory.
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
    """What became of some events.

    Args:
        delivered: How many the target has taken.
        dead_lettered: How many the dead letter sink has.
        dropped: How many were given up, by reason.
        retried: How many attempts were made again; no events.
    """

    delivered: int = 0
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    retried: int = 0

    @property
    def events(self) -> int:
        """How many events are settled by it."""
        return self.delivered + self.dead_lettered + sum(self.dropped.values())


class Ledger:
    """The counts of one sink; all counting is here.

    A sink that settles each event before ``handle`` returns does not count accepted ones: they are the sum of what
    became of them.

    `lock` is an RLock, held for a moment and never while anything else is called. A hot path that nothing can part (one
    addition, without a call in it) adds to a count without it: ``ledger.delivered += 1``. A forked child makes a new
    ledger.
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
        # A defaultdict: adding to an entry is one step for signal handlers that count too, get() and then set is not.
        self.dropped: defaultdict[str, int] = defaultdict(int)
        self.retried = 0
        self.dead_lettered = 0
        #: The last failure as one line of text, or None.
        self.last_error: str | None = None

    def filter(self, events: int = 1) -> None:
        """Count *events* that a level or a processor kept out."""
        with self.lock:
            self.filtered += events

    def drop(self, reason: str, events: int = 1) -> None:
        """Count *events* as lost for *reason*; a negative number takes some back."""
        with self.lock:
            self.dropped[reason] += events

    def settle(self, outcome: Outcome) -> None:
        """Count what became of some events."""
        with self.lock:
            self.delivered += outcome.delivered
            self.dead_lettered += outcome.dead_lettered
            self.retried += outcome.retried
            for reason, events in outcome.dropped.items():
                self.dropped[reason] += events

    def stats(self, name: str, *, pending: int = 0, targets: tuple[SinkStats, ...] = ()) -> SinkStats:
        """Return the counts as they stand, as those of the sink of this *name*.

        Args:
            name: The sink's name.
            pending: How many accepted events are still in memory.
            targets: The ledgers of the sinks behind it.
        """
        with self.lock:
            dropped = dict(self.dropped)
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
