"""One file and eight threads: the cost of waiting for each other. There is no budget."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from benchmarks.groups import file, floors, stdlib
from benchmarks.harness import Group, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.harness import Run

THREADS = 8


def _shared(row: Row, peer: str | None = None) -> Row:
    """Return *row* with its events logged by `THREADS` threads at the same time."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with row.setup(directory) as run:

            def run_shared(events: int) -> None:
                shares = [events // THREADS + (index < events % THREADS) for index in range(THREADS)]
                threads = [Thread(target=run, args=(share,)) for share in shares]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            yield run_shared

    return replace(row, setup=setup, peer=peer, budget=None)


def _row(group: Group, name: str) -> Row:
    return next(row for row in group.rows if row.name == name)


_PEER = _row(stdlib.GROUP, "FileHandler + json")

GROUP = Group(
    "threads",
    f"{THREADS} threads on one file; µs for each event of all threads together",
    (
        # O_APPEND keeps the lines whole, so the floor needs no lock.
        _shared(floors.WRITTEN),
        _shared(_row(file.GROUP, "FileSink"), peer=_PEER.name),
        _shared(_row(stdlib.GROUP, "SinkHandler → FileSink, callsite=False"), peer=_PEER.name),
        _shared(_PEER),
    ),
    rounds=10,
    events=8_000,
)
