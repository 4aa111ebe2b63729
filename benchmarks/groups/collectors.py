"""Events sent to an HTTP collector in another process: end to end, the caller's cost, and the share that arrives."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.collector import collector
from benchmarks.harness import Group, Row
from benchmarks.shippers import FLOOR, SHIPPERS, Shipper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

#: The share of events that arrived in the last round, by the row's directory.
_arrived: dict[Path, float] = {}


def _setup(shipper: Shipper, *, caller: bool) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with collector() as peer, shipper.open(peer.url) as (log, drain):

            def run(events: int) -> float:
                logged = max(1, events // shipper.part)
                begin = perf_counter()
                log(logged)
                end = perf_counter()
                drain()
                arrived, last = peer.wait(logged, shipper.patience_seconds)
                peer.counts(forget=True)
                assert arrived or not shipper.whole
                _arrived[directory] = arrived / logged
                # Scaled to all events of a round; end to end, to the events that arrived.
                return (end - begin) * events / logged if caller else (last - begin) * events / max(1, arrived)

            yield run

    return setup


def share_arrived(directory: Path, _events: int) -> float:
    """Return the share of events that arrived."""
    return _arrived.pop(directory)


def all_arrived(directory: Path, events: int) -> float:
    """Assert that all events have arrived."""
    share = share_arrived(directory, events)
    assert share == 1, f"{share:.1%} arrived"
    return share


def _row(shipper: Shipper, *, caller: bool, budget: float | None = None) -> Row:
    return Row(
        shipper.name,
        _setup(shipper, caller=caller),
        floor=None if shipper is FLOOR else FLOOR.name,
        budget=budget,
        proof=all_arrived if shipper.whole else share_arrived,
    )


#: The same number of events per second as the floor.
_BUDGETS = {"BackgroundSink(HTTPSink(NDJSON))": 1.0}

GROUP = Group(
    "collectors",
    "a burst of event dicts to an HTTP collector in another process, until the last has arrived; handlers get records",
    tuple(_row(shipper, caller=False, budget=_BUDGETS.get(shipper.name)) for shipper in SHIPPERS),
    rounds=5,
    events=20_000,
)

CALLER_GROUP = Group(
    "collectors-caller",
    "the same, until the last call has returned",
    tuple(_row(shipper, caller=True) for shipper in SHIPPERS),
    rounds=5,
    events=20_000,
)
