"""What every sink does under the same fault; `docs/explanation/guarantees.md` is the table of it.

Faults that sinks meet in ways of their own are tested with each sink.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

import pytest

from outfall import (
    BufferingSink,
    CaptureSink,
    FileSink,
    NullSink,
    RotatingFileSink,
    SpoolSink,
    TimedRotatingFileSink,
    WatchedFileSink,
)
from outfall.sinks.testing import assert_balanced
from tests._lab import CHILDREN, EVENTS, MAKERS, Lab, log, make
from tests.sinks._processes import check

THREADS = 10
#: Sinks that keep events in the process's memory.
IN_MEMORY = {"MemorySink", "BackgroundSink"}

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")


def written_by(writers):
    """Return what a peer should have, once each: the events of so many writers."""
    return [(writer, number) for writer in range(writers) for number in range(EVENTS)]


def lab_after(tmp_path_factory, scenario, status):
    """Give a lab in which *scenario* has been done with all sinks."""
    lab = Lab(tmp_path_factory.mktemp(scenario))
    try:
        assert lab.run(scenario) == status
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def after_exit(tmp_path_factory):
    """Give the lab after a program that closed nothing."""
    yield from lab_after(tmp_path_factory, "exit", 0)


@pytest.fixture(scope="module")
def after_kill(tmp_path_factory):
    """Give the lab after a program that was killed."""
    yield from lab_after(tmp_path_factory, "kill", -signal.SIGKILL)


@pytest.fixture(scope="module")
def after_fork(tmp_path_factory):
    """Give the lab after a program and its children."""
    yield from lab_after(tmp_path_factory, "fork", 0)


@pytest.fixture(scope="module")
def after_full_disk(tmp_path_factory):
    """Give the lab after a program that could not write to any file for a while."""
    yield from lab_after(tmp_path_factory, "full", 0)


@pytest.fixture(scope="module")
def forced():
    """Give the list of descriptors that were forced to the medium, while the sinks of `after_threads` were at work."""
    descriptors: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", descriptors.append)
        if hasattr(os, "fdatasync"):
            patch.setattr(os, "fdatasync", descriptors.append)
        yield descriptors


@pytest.fixture(scope="module")
def after_threads(tmp_path_factory, forced):
    """Give the lab, and the ledgers of all sinks, after ten threads have used them together and they were closed."""
    lab = Lab(tmp_path_factory.mktemp("threads"))
    sinks = {name: make(name, lab.plan) for name in MAKERS}
    sinks |= {"CaptureSink": CaptureSink(), "NullSink": NullSink(), "BufferingSink": BufferingSink(7)}
    start = threading.Barrier(THREADS)

    def work(writer):
        start.wait()
        for sink in sinks.values():
            log(sink, writer)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        for sink in sinks.values():
            assert sink.close(60)
        # Their owner's, and that is this test.
        sinks["StreamSink"].stream.close()
        sinks["HandlerSink"].handler.close()
        yield lab, sinks
    finally:
        lab.close()


@pytest.mark.parametrize("name", MAKERS)
def test_ten_threads_lose_and_tear_nothing(after_threads, name):
    """Each event of each thread is there, whole and once."""
    lab, _ = after_threads
    assert lab.received(name, THREADS * EVENTS) == written_by(THREADS)


@pytest.mark.parametrize("name", [*MAKERS, "CaptureSink", "NullSink", "BufferingSink"])
def test_ten_threads_are_all_accounted_for(after_threads, name):
    """The ledger has each event, once."""
    _, sinks = after_threads
    stats = sinks[name].stats()
    assert stats.accepted == THREADS * EVENTS
    assert_balanced(stats)


def test_only_a_spool_that_is_told_to_forces_events_to_the_medium(after_threads, forced, tmp_path):
    """What a loss of power costs is the system's to say, except where a spool was asked for more."""
    assert forced == []
    with SpoolSink(CaptureSink(), tmp_path, fsync="always") as sink:
        log(sink, 0, 1)
        assert forced
    forced.clear()


@forks
@pytest.mark.parametrize("name", MAKERS)
def test_a_parent_and_eight_children_lose_and_repeat_nothing(after_fork, name):
    """With one sink that all have inherited, each event of each process is there, whole and once."""
    assert after_fork.received(name, (CHILDREN + 1) * EVENTS) == written_by(CHILDREN + 1)


@pytest.mark.parametrize("name", MAKERS)
def test_an_exit_without_close_loses_nothing(after_exit, name):
    """What waits when a program ends by itself is put out, once."""
    assert after_exit.received(name, EVENTS) == written_by(1)


@forks
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in IN_MEMORY])
def test_a_kill_loses_nothing_that_handle_returned_for(after_kill, name):
    """What has left the process is there after SIGKILL; a spool's, when the next process has adopted it."""
    if name == "SpoolSink":
        with SpoolSink(FileSink(f"{after_kill.directory}/SpoolSink.jsonl"), after_kill.plan["spool"]) as sink:
            sink.start()
            assert sink.flush(60)
    assert after_kill.received(name, EVENTS) == written_by(1)


@forks
@pytest.mark.parametrize("name", sorted(IN_MEMORY))
def test_a_kill_loses_what_was_in_memory_and_tears_nothing(after_kill, name):
    """What had not left the process is gone with it, whole events at a time."""
    assert after_kill.received(name, 0) == []


NETWORK = [
    "SocketSink",
    "DatagramSink",
    "SysLogSink",
    "JournaldSink",
    "GELFDatagramSink",
    "FluentSink",
    "SMTPSink",
    "HTTPSink",
]
FILES = ["FileSink", "WatchedFileSink", "RotatingFileSink", "TimedRotatingFileSink", "StreamSink"]


@forks
@pytest.mark.parametrize("name", NETWORK)
def test_a_full_disk_is_no_matter_to_the_network(after_full_disk, name):
    """A sink that leads to another machine needs no room on this one."""
    assert after_full_disk.received(name, 2 * EVENTS) == written_by(2)


@forks
@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_costs_each_file_sink_its_events_and_no_more(after_full_disk, name):
    """What comes while there is no room is lost; what comes afterwards is there, each on a line of its own."""
    assert after_full_disk.received(name, EVENTS) == written_by(2)[EVENTS:]


def test_a_sink_is_made_with_all_that_its_thread_will_need():
    """Delivering imports nothing: a child forked in the midst of an import has half a module, and cannot deliver."""
    check("""
        import sys
        from tests.sinks._http import Server
        from outfall import NDJSON, BackgroundSink, HTTPSink, SMTPSink

        with Server() as server:
            url = server.url.replace("127.0.0.1", "localhost")
            sink = BackgroundSink(HTTPSink(url, body=NDJSON(), compression="gzip", token="secret"))
            SMTPSink("localhost", "shop@example.org", "ops@example.org", "an event")
            before = set(sys.modules)
            sink.handle({"event": "hello"})
            assert sink.close(60)
            assert len(server.requests) == 1
            late = sorted(set(sys.modules) - before)
            assert late == [], late
            assert "outfall.sinks.mail.client" in before
    """)


@pytest.mark.parametrize("kind", [FileSink, WatchedFileSink, RotatingFileSink, TimedRotatingFileSink])
def test_a_path_that_cannot_be_opened_costs_events_until_it_can(tmp_path, kind):
    """Each event tries again: what came before is counted and told, what comes after is written."""
    told = []
    path = tmp_path / "later" / "app.jsonl"
    with kind(path, on_error=told.append) as sink:
        log(sink, 0, 3)
        path.parent.mkdir()
        log(sink, 1, 3)
    assert Counter(line.split('"writer":')[1][0] for line in path.read_text().splitlines()) == {"1": 3}
    assert (sink.stats().delivered, dict(sink.stats().dropped)) == (3, {"error": 3})
    # At construction the file could not be opened either, which costs no event.
    assert sum(failure.events for failure in told) == 3
