"""How rows are declared and measured.

The rows of a group take turns, A B C A B C …, in one process: whatever slows the machine for a while slows them all. Of
each row the median over the rounds is shown. Ratios are taken within each round, and of those the median.

What is timed is one call that logs so many events: by the wall clock, or by the CPU time of the process, all its
threads included, or of the calling thread alone. CPU time says what a path costs whoever pays for it, and is hardly
disturbed by what else runs on the machine. Untimed are the set-up, one round to warm up, and what follows each
call: a collection of garbage, and proof that each event is in the file, which then is emptied. While a call is timed no
garbage is collected, whosever it is.
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

    #: Logs so many events. Returns None, or the seconds it took where it measured that itself.
    Run = Callable[[int], float | None]
    #: Gets an empty directory of its own; gives the `Run`, and cleans up after it.
    SetUp = Callable[[Path], AbstractContextManager[Run]]


def every_line_written(directory: Path, events: int) -> None:
    """Assert that the files in *directory* hold one whole line for each event, and empty them."""
    lines = 0
    for path in directory.iterdir():
        # By the path: sinks and handlers append, so that they go on at the new end.
        content = path.read_bytes()
        lines += content.count(b"\n")
        last = content[content.rfind(b"\n", 0, -1) + 1 :]
        assert content.endswith(b"\n"), f"{path.name} ends in half a line"
        assert all(part in last for part in PROOF), f"not the event: {last!r}"
        path.open("wb").close()
    assert lines == events, f"{lines} lines for {events} events"


def nothing_written(directory: Path, events: int) -> None:
    """Assert nothing: for what writes no file."""


@dataclass(frozen=True)
class Row:
    """One way for events to go.

    Args:
        name: What the table calls it.
        setup: A context manager that gets an empty directory and gives a callable that logs so many events. It may
            import what is not installed: such a row is left out and said to be.
        floor: Name of the row in the group that does the same with nothing around it. Default None: this is one.
        peer: Name of the row in the group that somebody else's library takes for the same. Default None.
        budget: Greatest ratio to the peer, or to the floor where there is no peer; without either, greatest median in
            the group's unit. Default None: no budget, just for comparison.
        proof: Called after each timed call with the directory and the number of events; raises if they are not there,
            and makes room for the next. Where not all have to be there, it returns the share that is. Default
            `every_line_written`.
    """

    name: str
    setup: SetUp
    floor: str | None = None
    peer: str | None = None
    budget: float | None = None
    proof: Callable[[Path, int], float | None] = every_line_written


@dataclass(frozen=True)
class Group:
    """Rows that are measured in turns.

    Args:
        name: What ``--only`` calls it.
        about: One line for the table's head.
        rows: The rows, in the order in which they take turns.
        rounds: How many turns each row has by default.
        events: How many events it logs in each by default.
        unit: What medians are shown in, per event.
        clock: What is measured: ``"wall"`` (default), ``"process"``, the CPU time of all threads, or ``"thread"``, that
            of the caller alone.
        per_event: False if a run returns one figure in seconds that is not to be divided by the number of events.

    Raises:
        ValueError: If two rows share a name, or a floor or peer is not in the group.
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
    """What was measured of one row.

    Args:
        row: The row.
        samples: What one event took in each round, in the group's unit.
        missing: Why there are no samples, or None.
        floor: The figures of the row's floor, or None.
        peer: The figures of the row's peer, or None.
        shares: Which part of the events arrived in each round, where the row's proof says so.
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
        """Half the distance between the quartiles, as a part of the median: how restless the machine was."""
        if len(self.samples) < 2:
            return None
        first, middle, third = quantiles(self.samples, n=4)
        return (third - first) / 2 / middle

    @property
    def floor_ratio(self) -> float | None:
        """How many times its floor this row takes."""
        return self._ratio(self.floor)

    @property
    def peer_ratio(self) -> float | None:
        """How many times its peer this row takes."""
        return self._ratio(self.peer)

    @property
    def measured(self) -> float | None:
        """What the budget is about."""
        if self.row.peer is not None:
            return self.peer_ratio
        return self.median if self.row.floor is None else self.floor_ratio

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None if there is none or nothing to tell it by."""
        if self.row.budget is None or self.measured is None:
            return None
        return self.measured <= self.row.budget

    def _ratio(self, other: Figures | None) -> float | None:
        if other is None or not other.samples or not self.samples:
            return None
        return median(own / its for own, its in zip(self.samples, other.samples, strict=True))


#: So many turns each row has at least, however long they take.
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
        group: What to measure.
        directory: An empty one, on the file system that is to be measured. It is empty again afterwards.
        rounds: How many turns each row has. Default the group's own number.
        events: How many events each row logs in a turn. Default the group's own number.
        seconds: After so long no new round is begun, once there were `FEWEST_ROUNDS`. Default None: all are had.

    Raises:
        AssertionError: If a row did not do what it was timed for.
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
            own = directory / f"{group.name}-{index:02}"  # proofs may remember something by it
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
    # What the set-up made is out of the collections between the turns, which then take next to no time.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
