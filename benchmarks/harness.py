"""Declares rows and measures them.

The rows of a group are measured alternately, A B C A B C …, in one process, so that a disturbance of the machine
affects all of them. The result of a row is the median over its rounds. Ratios are computed within each round, and the
result is the median of these.

One call that logs a number of events is timed: by the wall clock, by the CPU time of the process with all its threads,
or by that of the calling thread. CPU time includes the cost of all threads, and depends little on other programs. Not
timed are the set-up, one round to warm up, and the work after each call: a garbage collection, and the check that each
event is in the file, which is then emptied. Garbage collection is off during a timed call.
"""

from __future__ import annotations

import gc
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter, process_time, thread_time
from typing import TYPE_CHECKING, Literal

from benchmarks.events import PROOF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    #: Logs a number of events. Returns None, or the seconds it took if it measured them itself.
    Run = Callable[[int], float | None]
    #: Gets its own empty directory; yields the `Run`, and cleans up after it.
    SetUp = Callable[[Path], AbstractContextManager[Run]]


def every_line_written(directory: Path, events: int) -> None:
    """Assert that the files in *directory* contain one whole line for each event, and empty them."""
    lines = 0
    for path in directory.iterdir():
        # Truncated by path: sinks and handlers append, so they continue at the new end.
        content = path.read_bytes()
        lines += content.count(b"\n")
        last = content[content.rfind(b"\n", 0, -1) + 1 :]
        assert content.endswith(b"\n"), f"{path.name} ends in half a line"
        assert all(part in last for part in PROOF), f"not the event: {last!r}"
        path.open("wb").close()
    assert lines == events, f"{lines} lines for {events} events"


def nothing_written(directory: Path, events: int) -> None:
    """Assert nothing, for rows that write no file."""


@dataclass(frozen=True)
class Row:
    """One way to log events.

    Args:
        name: The name in the table.
        setup: A context manager that gets an empty directory and yields a callable that logs a number of events. It may
            import packages that are not installed: then the row is left out, and the table says so.
        floor: The name of the row in the group that does the same with no library around it. Default None: this row is
            a floor.
        peer: The name of the row in the group that does the same by another library. Default None.
        budget: The greatest ratio to the peer, or to the floor if there is no peer; without either, the greatest median
            in the group's unit. Default None: no budget.
        proof: Called after each timed call with the directory and the number of events. It raises if events are
            missing, and makes room for the next call. If not all have to arrive, it returns the share that did.
            Default `every_line_written`.
    """

    name: str
    setup: SetUp
    floor: str | None = None
    peer: str | None = None
    budget: float | None = None
    proof: Callable[[Path, int], float | None] = every_line_written


@dataclass(frozen=True)
class Group:
    """Rows that are measured alternately.

    Args:
        name: The name for ``--only``.
        about: One line for the head of the table.
        rows: The rows, in their order.
        rounds: The default number of rounds.
        events: The default number of events in a round.
        unit: The unit of medians, per event.
        clock: ``"wall"`` (default), ``"process"`` for the CPU time of all threads, or ``"thread"`` for that of the
            calling thread.
        per_event: False if a run returns a number of seconds that is not to be divided by the number of events.

    Raises:
        ValueError: If two rows have the same name, or a floor or peer is not in the group.
    """

    name: str
    about: str
    rows: tuple[Row, ...]
    rounds: int = 100
    events: int = 2_000
    unit: Literal["µs", "ms"] = "µs"
    clock: Literal["wall", "process", "thread"] = "wall"
    per_event: bool = True

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            msg = f"two rows of the group {self.name!r} have one name"
            raise ValueError(msg)
        for row in self.rows:
            for other in (row.floor, row.peer):
                if other is not None and other not in names:
                    msg = f"{row.name!r} is compared with {other!r}, which the group {self.name!r} does not have"
                    raise ValueError(msg)


@dataclass(frozen=True)
class Figures:
    """The results of one row.

    Args:
        row: The row.
        samples: The time of one event in each round, in the group's unit.
        missing: Why there are no samples, or None.
        floor: The results of the row's floor, or None.
        peer: The results of the row's peer, or None.
        shares: The share of events that arrived in each round, if the row's proof returns it.
    """

    row: Row
    samples: tuple[float, ...]
    missing: str | None = None
    floor: Figures | None = field(default=None, repr=False)
    peer: Figures | None = field(default=None, repr=False)
    shares: tuple[float, ...] = ()

    @property
    def arrived(self) -> float | None:
        """The median of the shares, or None."""
        return median(self.shares) if self.shares else None

    @property
    def median(self) -> float | None:
        """The median over the rounds, in the group's unit."""
        return median(self.samples) if self.samples else None

    @property
    def spread(self) -> float | None:
        """Half the distance between the quartiles, as a share of the median: how much the machine was disturbed."""
        if len(self.samples) < 2:
            return None
        first, middle, third = quantiles(self.samples, n=4)
        return (third - first) / 2 / middle

    @property
    def floor_ratio(self) -> float | None:
        """The ratio to the floor, or None."""
        return self._ratio(self.floor)

    @property
    def peer_ratio(self) -> float | None:
        """The ratio to the peer, or None."""
        return self._ratio(self.peer)

    @property
    def measured(self) -> float | None:
        """The number that the budget limits, or None."""
        if self.row.peer is not None:
            return self.peer_ratio
        return self.median if self.row.floor is None else self.floor_ratio

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None if there is no budget or no result."""
        if self.row.budget is None or self.measured is None:
            return None
        return self.measured <= self.row.budget

    def _ratio(self, other: Figures | None) -> float | None:
        if other is None or not other.samples or not self.samples:
            return None
        return median(own / its for own, its in zip(self.samples, other.samples, strict=True))


#: The least number of rounds, however long they take.
FEWEST_ROUNDS = 3


def measure(
    group: Group,
    directory: Path,
    *,
    rounds: int | None = None,
    events: int | None = None,
    seconds: float | None = None,
) -> list[Figures]:
    """Measure *group*; return the figures of its rows, in their order.

    Args:
        group: The group.
        directory: An empty directory, on the file system to measure. It is empty again afterwards.
        rounds: The number of rounds. Default: the group's own.
        events: The number of events in a round. Default: the group's own.
        seconds: No further round starts after this time, once there were `FEWEST_ROUNDS`. Default None: no limit.

    Raises:
        AssertionError: If a row did not log all events.
    """
    rounds = group.rounds if rounds is None else rounds
    events = group.events if events is None else events
    factor = {"µs": 1e6, "ms": 1e3}[group.unit] / (events if group.per_event else 1)
    clock = {"wall": perf_counter, "process": process_time, "thread": thread_time}[group.clock]
    samples: dict[str, list[float]] = {}
    shares: dict[str, list[float | None]] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        runs: list[tuple[Row, Run, Path]] = []
        for index, row in enumerate(group.rows):
            own = directory / f"{group.name}-{index:02}"  # proofs use it as a key
            own.mkdir()
            stack.callback(shutil.rmtree, own)
            try:
                run = stack.enter_context(row.setup(own))
            except ImportError as error:
                missing[row.name] = f"{error.name or error} is not installed"
            else:
                runs.append((row, run, own))
                samples[row.name], shares[row.name] = [], []
        for row, run, own in runs:
            run(events)
            row.proof(own, events)
        stack.enter_context(_without_garbage_collection())
        for _ in _turns(rounds, seconds):
            for row, run, own in runs:
                gc.collect()
                begin = clock()
                taken = run(events)
                end = clock()
                samples[row.name].append((end - begin if taken is None else taken) * factor)
                shares[row.name].append(row.proof(own, events))
    figures: dict[str, Figures] = {}

    def figures_of(name: str | None) -> Figures | None:
        if name is None:
            return None
        if name not in figures:
            row = next(row for row in group.rows if row.name == name)
            figures[name] = Figures(
                row,
                tuple(samples.get(name, ())),
                missing.get(name),
                figures_of(row.floor),
                figures_of(row.peer),
                tuple(share for share in shares.get(name, ()) if share is not None),
            )
        return figures[name]

    return [made for row in group.rows if (made := figures_of(row.name)) is not None]


def _turns(rounds: int, seconds: float | None) -> Iterator[int]:
    began = perf_counter()
    for turn in range(rounds):
        if seconds is not None and turn >= FEWEST_ROUNDS and perf_counter() - began > seconds:
            return
        yield turn


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    # Later collections skip the objects that the set-up made, and take next to no time.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
