"""Kills writers by the hundred, and looks at what the collector has got."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from outfall.sinks.spool.store import stores_in
from tests.crash import _writer as writers
from tests.crash._collector import Collector

#: How long what is left may take to arrive in the end.
_PATIENCE_SECONDS = 120.0


@dataclass
class Report:
    """What a run has shown."""

    seed: int
    kills: int = 0
    collector_kills: int = 0
    stored: int = 0
    arrived: int = 0
    requests: int = 0
    repeats: int = 0
    problems: tuple[str, ...] = ()

    def __str__(self):
        """Return it as some lines for a person."""
        told = (
            f"seed {self.seed}: {self.kills} kills of writers and {self.collector_kills} of the collector; "
            f"{self.stored} events stored, {self.arrived} arrived, in {self.requests} requests; "
            f"{self.repeats} batches repeated after their answer"
        )
        return "\n".join([told, *(f"PROBLEM: {problem}" for problem in self.problems)])


def run(kills, seed, directory):
    """Kill so many writers, up to three of which share a spool at a time; return a `Report`."""
    chance = random.Random(seed)
    directory = Path(directory)
    spool = directory / "spool"
    collector = Collector(directory)
    collector.start(chance.random())
    report = Report(seed)
    alive = {}
    process = 0
    try:
        while report.kills < kills:
            while len(alive) < chance.choice([1, 2, 3]):
                journal = directory / f"writer-{process:06}.journal"
                alive[writers.start(process, collector.url, spool, journal, chance.random())] = process
                process += 1
            if chance.random() < 0.1:
                time.sleep(chance.random() * 0.01)
            else:
                collector.await_requests(chance.randrange(1, 4), 0.15)
                time.sleep(chance.random() * 0.003)
            if chance.random() < 0.7:
                os.kill(chance.choice(list(alive)), signal.SIGKILL)
            report.kills += _reap(alive)
            if chance.random() < 0.05:
                collector.kill()
                time.sleep(chance.random() * 0.05)
                collector.start(chance.random())
                report.collector_kills += 1
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        while alive:
            report.kills += _reap(alive)
        collector.kill()
        report.collector_kills += 1
        collector.start(0, well_behaved=True)
        problem = _drain(collector.url, spool)
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        collector.kill()
    _judge(report, collector.notes(), _stored(directory), problem)
    return report


def _reap(alive):
    """Forget the writers that are dead; return how many of them were killed."""
    killed = 0
    for pid in list(alive):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            del alive[pid]
            killed += os.WIFSIGNALED(status)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise AssertionError("a writer has failed")
    return killed


def _drain(url, spool):
    """Have a last process deliver what is left; return what was wrong with that."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sink = writers.make_spool(url, spool, random.Random(0))
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while stores_in(str(spool)) and time.monotonic() < deadline:
                sink._worker.adopt_due = 0
                sink.start()
                sink.flush(1)
            sink.close()
            status = 0 if not stores_in(str(spool)) else 2
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: None, 2: "some of it was not delivered in the end"}.get(status, f"the last process ended with {status}")


def _stored(directory):
    """Return process, thread and number of each event that `handle` has returned for."""
    found = []
    for path in sorted(directory.glob("writer-*.journal")):
        process = int(path.stem[7:])
        for line in path.read_bytes().split(b"\n")[:-1]:
            thread, number = map(int, line.split())
            found.append((process, thread, number))
    return found


def _judge(report, notes, stored, problem):
    """Fill in what *notes* of the collector say about what was *stored*."""
    requests = [note for note in notes if "key" in note]
    events = [tuple(event) if event is not None else None for note in requests for event in note["events"]]
    arrived = dict.fromkeys(event for event in events if event is not None)
    answered = set()
    for note in notes:
        if "answered" in note:
            answered.add(note["answered"])
        else:
            report.repeats += note["key"] in answered
    problems = [problem, *_problems_of_events(stored, arrived), *_problems_of_keys(requests)]
    if None in events or not all(note["whole"] for note in requests):
        problems.append("a torn or glued line reached the collector")
    if report.repeats > report.kills:
        problems.append("more than one batch was repeated for a kill")
    report.stored, report.arrived, report.requests = len(stored), len(arrived), len(requests)
    report.problems = tuple(problem for problem in problems if problem is not None)


def _problems_of_events(stored, arrived):
    lost = [event for event in stored if event not in arrived]
    if lost:
        yield f"{len(lost)} events were lost, the first of them {lost[:3]}"
    # First arrivals, for each thread of each process: in the order in which they were logged.
    last = {}
    for process, thread, number in arrived:
        if number <= last.get((process, thread), -1):
            yield f"event {number} of process {process}, thread {thread} came out of order"
            return
        last[process, thread] = number


def _problems_of_keys(requests):
    by_key = {}
    for note in requests:
        if by_key.setdefault(note["key"], note["events"]) != note["events"]:
            yield f"two batches had the key {note['key']}"
            return
    # A part of a batch, which is sent after a time-out, has a key that begins with that of the batch.
    batches = {}
    for key, events in by_key.items():
        for event in events:
            if event is not None:
                batches.setdefault(tuple(event), set()).add(key.partition(".")[0])
    twice = [event for event, keys in batches.items() if len(keys) > 1]
    if twice:
        yield f"{len(twice)} events came under the keys of two batches, the first of them {twice[:3]}"
