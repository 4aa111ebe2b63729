"""What is on disk, without a target: killed before each call of the system in turn, and again while recovering."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

from outfall.sinks.core.item import data_in
from outfall.sinks.core.lock import WriteLock
from outfall.sinks.spool.store import MARK
from outfall.sinks.spool.stores import Depot
from tests.sinks._kills import Journal, in_killed_fork


def run(directory, seed, step=1):
    """Try every *step*-th call; return how many there were, in words. What is wrong is an assertion error."""
    chance = random.Random(seed)
    call = chance.randrange(step)
    tried = 0
    while True:
        place = Path(directory) / str(call)
        journal = Journal(Path(directory) / f"{call}.journal")
        killed = _live(place, journal, "first", call)
        again = killed and _live(place, journal, "second", chance.randrange(call + 40))
        assert not _live(place, journal, "third", -1)
        _judge(journal, killed + again)
        assert not [path for path in place.iterdir() if path.name != MARK], "the last one has left something"
        journal.close()
        shutil.rmtree(place)
        if not killed:
            return f"killed before {tried} of some {call} calls of the system, and again while recovering: passed"
        call += step
        tried += 1


def _live(directory, journal, by, killed_at):
    """Be a process that adopts, writes and delivers; return whether it was killed."""
    # Each cuts batches of its own from what it finds.
    lines = {"first": 2, "second": 3, "third": 5}[by]

    def deliver(depot, most):
        depot.tidy()
        while most and (found := depot.next(lines, 10**6)) is not None:
            store, portion = found
            depot.begin(store, portion)
            journal.note(json.dumps({"key": portion.key, "events": [json.loads(data_in(raw)) for raw in portion.raws]}))
            depot.settle(store, portion)
            depot.tidy()
            most -= 1

    def live():
        depot = Depot(
            str(directory), WriteLock(), max_bytes=10**6, segment_bytes=110, drops_oldest=False, sync=by == "second"
        )
        depot.adopt()
        for number in range(14):
            with depot._lock:
                assert depot.append(b'{"by":"%b","n":%d}\n' % (by.encode(), number))
            journal.note(json.dumps({"stored": [by, number]}))
            if number % 5 == 4:
                deliver(depot, 2)
        deliver(depot, 100)
        depot.rest()
        depot.close()

    return in_killed_fork(live, killed_at)


def _judge(journal, kills):
    notes = [json.loads(line) for line in journal.lines()]
    stored = [tuple(note["stored"]) for note in notes if "stored" in note]
    sent = [note for note in notes if "key" in note]
    first_seen = list(dict.fromkeys((event["by"], event["n"]) for note in sent for event in note["events"]))
    assert set(stored) <= set(first_seen), "an event that was stored was never sent"
    for by in {by for by, _ in first_seen}:
        numbers = [number for other, number in first_seen if other == by]
        assert numbers == sorted(numbers), "out of order"
    keys = {}
    for note in sent:
        assert keys.setdefault(note["key"], note["events"]) == note["events"], "a key stands for two batches"
    times = Counter(note["key"] for note in sent)
    assert sum(times.values()) - len(times) <= kills, "more than one batch was repeated for a kill"
    batches = Counter((event["by"], event["n"]) for events in keys.values() for event in events)
    assert max(batches.values(), default=1) == 1, "an event was sent under two keys"
