"""Several processes on one rotating file: killed, stopped, forked, idle."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gzip
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from outfall.sinks.core import flock
from outfall.sinks.core.flock import DirectoryLock
from outfall.sinks.errors import TemporaryDeliveryError
from outfall.sinks.files import compression, opening
from outfall.sinks.files import current as shared
from outfall.sinks.files import rotating as rotation
from outfall.sinks.files.by_size import RotatingFileSink
from outfall.sinks.files.by_time import TimedRotatingFileSink
from outfall.sinks.files.compression import Compressor
from tests.sinks._processes import PATIENCE_SECONDS, events_of, in_fork, run, until
from tests.sinks._writers import Crew, die_at, storm

pytestmark = pytest.mark.skipif(not flock.AVAILABLE, reason="no flock() here")

#: Half of a line, as a killed writer leaves it.
HALF = b'{"w":99,"n":'


@pytest.fixture
def path(tmp_path):
    """Give the path of a log file, alone in its directory."""
    return tmp_path / "logs" / "app.log" if (tmp_path / "logs").mkdir() is None else None


@pytest.fixture
def told():
    """Give a list for what a sink reports."""
    return []


@pytest.fixture
def sink(path, told):
    """Give a function that makes a sink on the path; what was made is closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(**options):
            options = {"max_bytes": 1000, "backup_count": 1000, "on_error": told.append, **options}
            return stack.enter_context(RotatingFileSink(path, multiprocess=True, **options))

        yield made


@pytest.fixture
def children():
    """Give a function that forks a child for a function; none of them outlives the test."""
    pids = []

    def forked(function):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                # What runs in a child after fork has run by now: it has let go of what it inherited.
                os.close(writer)
                function()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
        os.close(writer)
        assert os.read(reader, 1) == b""
        os.close(reader)
        return pid

    yield forked
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _crew(path, **options):
    def make(path, **more):
        return RotatingFileSink(path, **{"max_bytes": 2000, "backup_count": 100_000, **options, **more})

    return Crew(path, make)


def _numbers(directory):
    """Return the numbers of all events in the directory, plain and compressed, sorted."""
    found = []
    for file in directory.iterdir():
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        plain = directory.parent / "looked-at"
        plain.write_bytes(data)
        found += [event["n"] for event in events_of(plain)]
    return sorted(found)


def _fill(sink, first, count):
    for number in range(first, first + count):
        sink.handle({"n": number, "pad": "x" * 80})


# -- kills


_CHANGES = ("open", "replace", "unlink", "dup2", "utime", "chmod")


def _rotations(crew):
    """Return the work of a writer that rotates and compresses one after the other."""

    def work(sink, writer, events):
        for number in range(events):
            sink.handle({"w": writer, "n": number, "pad": "x" * 500})
            crew.progress[writer] = number + 1
            if sink._compressor is not None:
                sink._compressor.wait(PATIENCE_SECONDS)

    return work


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_a_kill_at_any_step_of_rotation_or_compression_costs_nothing(tmp_path, compress):
    """Killed before each call of the system in turn: the others go on, and each event is there once."""
    # Every step of both takes half a minute: a run takes some of them, together the runs take all.
    stride = 1 if os.environ.get("OUTFALL_EVERY_STEP") == "1" else 4
    steps, step = 10**9, 0
    report = tmp_path / "steps"
    while step <= steps:
        directory = tmp_path / f"{step}"
        directory.mkdir()
        with _crew(directory / "app.log", max_bytes=1000, compression=compress) as crew:
            work = _rotations(crew)
            with crew.sink() as survivor:
                living = crew.writers
                crew.writers += 1
                crew.work(survivor, living, 15)
                # Step 0 is nobody's: that run counts them.
                if step == 0:

                    def counted(sink, writer, events, crew=crew, work=work):
                        count = die_at(0, after=False, names=_CHANGES)
                        work(sink, writer, events)
                        report.write_text(str(count()))

                    crew.wait(crew.start(5, work=counted))
                    steps = int(report.read_text())
                else:

                    def doomed(sink, writer, events, step=step, work=work):
                        die_at(step, after=False, names=_CHANGES)
                        work(sink, writer, events)

                    crew.wait(crew.start(5, work=doomed), killed=True)
                    crew.kills += 1
                crew.work(survivor, living, 15, first=15)
            crew.check(max_bytes=1000, torn=0)
        shutil.rmtree(directory)
        step += stride if step else random.randint(1, stride)
    assert steps >= (60 if compress else 20), steps


_STORMS = {
    "small files, gzip, half lines": {"max_bytes": 2048, "half_lines": True},
    "large files": {"max_bytes": 100_000},
    "few backups": {"max_bytes": 4096, "backup_count": 8, "complete": False},
    "by time": {"make": TimedRotatingFileSink, "when": "S", "backup_count": 0, "max_bytes": 0, "half_lines": True},
    "by time and size": {"make": TimedRotatingFileSink, "when": "S", "backup_count": 0, "max_bytes": 8192},
    "through the pipeline": {"max_bytes": 4096, "processors": [lambda logger, name, event: event], "half_lines": True},
}


@pytest.mark.parametrize("seconds", [0.25, pytest.param(1.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", _STORMS.values(), ids=_STORMS.keys())
def test_processes_killed_at_any_instant_cost_no_event(path, options, seconds):
    """Writers are killed and replaced all the time, at random and in the midst of things; nothing is lost or torn."""
    storm(path, time.time_ns(), seconds=seconds, processes=4, **options)


@pytest.mark.slow
def test_eight_processes_write_twenty_thousand_events_each(path):
    """Eight times 20 000 events with rotation, gzip and kills: every event is there exactly once."""
    with _crew(path, max_bytes=300_000, compression="gzip") as crew:
        pids = [crew.start(20_000) for _ in range(8)]
        for victim in pids[:4]:
            half = crew.random.randrange(2_000, 15_000)
            until(lambda victim=victim, half=half: crew.progress[pids.index(victim)] >= half)
            crew.kill(victim)
            # The next takes over where it was killed.
            crew.start(20_000 - crew.progress[pids.index(victim)])
        crew.join()
        files = crew.check(max_bytes=300_000)
        assert len(files) > 20
        assert sum(crew.progress[writer] for writer in range(crew.writers)) == 8 * 20_000


def test_buffers_of_several_processes_are_written_whole(path):
    """With buffer_bytes each process writes many lines at once, and no rotation divides one or puts one in twice."""
    with _crew(path, max_bytes=20_000, buffer_bytes=2_000, compression="gzip") as crew:
        for _ in range(4):
            crew.start(2_000)
        crew.join()
        crew.check(max_bytes=0)
        assert [crew.progress[writer] for writer in range(4)] == [2_000] * 4


# -- half lines


def test_a_half_line_is_ended_once_however_many_find_it(path, sink):
    """All who see what a killed writer left end it together by one line break."""
    sinks = [sink(max_bytes=10_000) for _ in range(4)]
    _fill(sinks[0], 0, 1)
    with path.open("ab") as file:
        file.write(HALF)
    for number, each in enumerate(sinks, 1):
        _fill(each, number, 1)
    lines = path.read_bytes().splitlines()
    assert lines[1] == HALF
    assert b"" not in lines
    assert len(lines) == 6


def test_who_finds_a_half_line_looks_again_when_its_turn_has_come(path, sink, monkeypatch):
    """A line break is not written twice by two that found the same half line at the same time."""
    first = sink(max_bytes=10_000)
    _fill(first, 0, 1)
    with path.open("ab") as file:
        file.write(HALF)
    enter = DirectoryLock.__enter__

    def overtaken(lock):
        with path.open("ab") as file:
            file.write(b'\n{"n":1}\n')
        return enter(lock)

    monkeypatch.setattr(DirectoryLock, "__enter__", overtaken)
    _fill(first, 2, 1)
    lines = path.read_bytes().splitlines()
    assert (lines[1], len(lines), b"" in lines) == (HALF, 4, False)


@pytest.mark.parametrize("processors", [(), (lambda logger, name, event: event,)], ids=["express", "pipeline"])
def test_an_event_that_met_a_half_line_on_its_way_is_written_again(path, sink, monkeypatch, processors):
    """Another writer dies between the look and the write: the event is nevertheless there, in a line of its own."""
    writer = sink(max_bytes=10_000, processors=processors)
    _fill(writer, 0, 1)
    write = os.write
    halves = [HALF]

    def raced(descriptor, data):
        if halves:
            with path.open("ab") as file:
                file.write(halves.pop())
        return write(descriptor, data)

    for module in (shared, sys.modules["outfall.sinks.files.output"]):
        monkeypatch.setattr(module, "_os_write", raced)
    _fill(writer, 1, 2)
    lines = path.read_bytes().splitlines()
    assert lines[1].startswith(HALF)
    assert [line[:6] for line in lines] == [b'{"n":0', HALF[:6], b'{"n":1', b'{"n":2']
    assert writer.stats().delivered == 3


def test_a_line_that_another_process_is_writing_is_not_taken_for_half(path, children, sink):
    """While one writes lines of many megabytes, another finds no half line to end, and none is blank or torn."""
    huge = "x" * 10_000_000

    def write_huge():
        with RotatingFileSink(path, multiprocess=True) as mine:
            for number in range(3):
                mine.handle({"n": number, "pad": huge})

    pid = children(write_huge)
    writer = sink(max_bytes=0)
    number = 100
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        writer.handle({"n": number})
        number += 1
    numbers = [event["n"] for event in events_of(path)]
    assert sorted(numbers) == [*range(3), *range(100, number)]
    assert b"\n\n" not in path.read_bytes()


def test_a_write_cut_short_is_not_continued_behind_others(path, sink, told, monkeypatch):
    """What a full disk cuts off is written anew, or reported; what others wrote in between stays whole."""
    writer, other = sink(max_bytes=10_000), sink(max_bytes=10_000)
    write = os.write
    cut = [True]

    def short(descriptor, data):
        if cut and len(data) > 50:
            cut.pop()
            written = write(descriptor, data[: len(data) // 2])
            _fill(other, 7, 1)
            return written
        return write(descriptor, data)

    _fill(writer, 0, 1)
    monkeypatch.setattr(shared, "_os_write", short)
    _fill(writer, 1, 1)
    lines = path.read_bytes().splitlines()
    assert [line[:6] for line in lines] == [b'{"n":0', b'{"n":1', b'{"n":7', b'{"n":1']
    assert not lines[1].endswith(b"}")
    assert told == []


def test_a_disk_that_stays_full_is_reported_and_costs_one_event(path, sink, told, monkeypatch):
    """No room for the whole line: the event is dropped and told, and the next one stands in a line of its own."""
    writer = sink(max_bytes=10_000)
    _fill(writer, 0, 1)
    write = os.write
    full = [True]

    def short(descriptor, data):
        return write(descriptor, data[:20]) if full and len(data) > 50 else write(descriptor, data)

    for module in (shared, sys.modules["outfall.sinks.files.output"]):
        monkeypatch.setattr(module, "_os_write", short)
    _fill(writer, 1, 1)
    full.clear()
    _fill(writer, 2, 1)
    assert [failure.error.errno for failure in told] == [errno.ENOSPC]
    assert writer.stats().dropped == {"error": 1}
    lines = path.read_bytes().splitlines()
    assert lines[-1].startswith(b'{"n":2')
    assert b"" not in lines


def test_a_byte_order_mark_is_written_once(path, sink):
    """Of several that open the empty file one writes the mark."""
    sinks = [sink(encoding="utf-8-sig", renderer=lambda logger, name, event: event["event"]) for _ in range(3)]
    for each in sinks:
        each.handle({"event": "ä"})
    assert path.read_bytes() == b"\xef\xbb\xbf" + "ä\n".encode() * 3


# -- the lock


def _holding(directory, ready, then):
    with DirectoryLock(str(directory)):
        os.write(ready, b".")
        then()


def test_a_stopped_holder_of_the_lock_stops_nobody(path, sink, told, children, monkeypatch):
    """Rotation is put off and told once, events are written; when the holder is dead rotation goes on."""
    monkeypatch.setattr(flock, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(rotation, "_BACKOFF_SECONDS", (0.01, 0.01))
    writer = sink()
    reader, ready = os.pipe()
    holder = children(functools.partial(_holding, path.parent, ready, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    assert os.read(reader, 1) == b"."
    os.waitpid(holder, os.WUNTRACED)
    slow = 0
    for number in range(40):
        begun = time.monotonic()
        _fill(writer, number, 1)
        slow += time.monotonic() - begun > 0.15
        time.sleep(0.002)
    assert [type(failure.error) for failure in told] == [TemporaryDeliveryError]
    assert slow <= 5  # only the first waited long; the others may have been unlucky
    assert [file.name for file in path.parent.iterdir()] == ["app.log"]
    os.kill(holder, signal.SIGKILL)
    until(lambda: os.waitpid(holder, os.WNOHANG) != (0, 0))
    time.sleep(0.02)
    _fill(writer, 40, 1)
    assert (path.parent / "app.log.1").exists()
    assert _numbers(path.parent) == list(range(41))
    for end in (reader, ready):
        os.close(end)


def test_a_compressor_that_waits_for_the_lock_makes_no_write_wait(path, sink, children):
    """While another process holds the lock and this one's compressor waits for it, events are written at once."""
    writer = sink(compression="gzip", max_bytes=0)
    _fill(writer, 0, 1)
    path.rename(f"{path}.1")
    _fill(writer, 1, 1)  # moves on, and wakes the compressor
    assert writer._compressor.wait(PATIENCE_SECONDS)
    Path(f"{path}.2").write_text('{"n":2}\n')
    reader, ready = os.pipe()
    children(functools.partial(_holding, path.parent, ready, lambda: time.sleep(PATIENCE_SECONDS)))
    assert os.read(reader, 1) == b"."
    writer._compressor.start()
    until(lambda: any(name.name.endswith("outfall-tmp") for name in path.parent.iterdir()))
    time.sleep(0.05)
    assert writer._compressor._thread is not None
    begun = time.monotonic()
    _fill(writer, 3, 20)
    assert time.monotonic() - begun < PATIENCE_SECONDS / 2
    for end in (reader, ready):
        os.close(end)


def test_the_lock_of_a_killed_holder_is_free(path, children):
    """Nothing is left of the lock of a process that was killed."""
    reader, ready = os.pipe()
    holder = children(functools.partial(_holding, path.parent, ready, lambda: time.sleep(PATIENCE_SECONDS)))
    assert os.read(reader, 1) == b"."
    os.kill(holder, signal.SIGKILL)
    with DirectoryLock(str(path.parent)):
        pass
    for end in (reader, ready):
        os.close(end)


def test_the_lock_is_given_back_and_not_left_to_who_shares_it(path):
    """A copy of the descriptor, as a child forked at a bad moment has it, does not keep the lock."""
    lock = DirectoryLock(str(path.parent))
    with lock:
        copy = os.dup(lock._descriptor)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        assert flock.try_lock(descriptor)
    finally:
        os.close(copy)
        os.close(descriptor)


def test_a_child_forked_under_the_lock_does_not_keep_it(path, sink, children):
    """A child forked by another thread during a rotation holds nothing, even when its parent is killed."""
    reader, ready = os.pipe()

    def parent():
        mine = RotatingFileSink(path, max_bytes=1000, backup_count=5, multiprocess=True)
        with mine.exclusively():
            if os.fork() == 0:
                os.write(ready, str(os.getpid()).encode())
                time.sleep(PATIENCE_SECONDS)
                os._exit(0)
            time.sleep(PATIENCE_SECONDS)

    pid = children(parent)
    child = int(os.read(reader, 20))
    try:
        os.kill(pid, signal.SIGKILL)
        writer = sink()
        begun = time.monotonic()
        _fill(writer, 0, 30)
        assert time.monotonic() - begun < PATIENCE_SECONDS / 2
        assert Path(f"{path}.1").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        for end in (reader, ready):
            os.close(end)


def test_a_child_forked_during_compression_does_not_keep_the_file(path, sink, children):
    """The file that a killed process was compressing is compressed by the next, though that one's child lives."""
    reader, ready = os.pipe()

    def endless(source, destination):
        os.write(ready, b".")
        time.sleep(PATIENCE_SECONDS)

    def parent():
        mine = RotatingFileSink(path, max_bytes=1000, backup_count=50, multiprocess=True, compression=endless)
        _fill(mine, 0, 30)
        os.read(started, 1)
        child = os.fork()
        if child == 0:
            os.write(ready, f"{os.getpid()}\n".encode())
            time.sleep(PATIENCE_SECONDS)
            os._exit(0)
        time.sleep(PATIENCE_SECONDS)

    started, begin = os.pipe()
    pid = children(parent)
    assert os.read(reader, 1) == b"."
    os.write(begin, b".")
    child = int(os.read(reader, 20))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert sink(compression="gzip").close(PATIENCE_SECONDS)
        assert {file.suffix for file in path.parent.iterdir()} == {".gz", ".log"}
        assert _numbers(path.parent) == list(range(30))
    finally:
        os.kill(child, signal.SIGKILL)
        for end in (reader, ready, started, begin):
            os.close(end)


def test_a_directory_without_the_lock_costs_a_rotation_and_no_event(path, sink, told, monkeypatch):
    """Where flock() fails the events are written to the file as it is, and that is told once."""
    writer = sink()

    def refused(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    _fill(writer, 0, 30)
    assert len(told) == 1
    monkeypatch.undo()
    assert [event["n"] for event in events_of(path)] == list(range(30))


# -- forks and other starts


def test_forked_children_write_by_the_sink_they_inherited(path, told):
    """Parent and children go on with one sink object after os.fork; all their events are there."""
    with _crew(path, compression="gzip") as crew:
        inherited = crew.sink()
        crew.writers = 4
        crew.work(inherited, 0, 50)
        for writer in (1, 2, 3):
            pid = os.fork()
            if pid == 0:
                try:
                    crew.work(inherited, writer, 300)
                finally:
                    os._exit(0 if inherited.close(PATIENCE_SECONDS) else 1)
            crew.living[pid] = writer
        crew.work(inherited, 0, 300, first=50)
        assert inherited.close(PATIENCE_SECONDS)
        crew.join()
        crew.check(max_bytes=2000)


def test_a_forked_child_opens_the_file_itself(path, sink):
    """A child shares neither the offset nor the lock of its parent's open file, and knows its own writes."""
    writer = sink()
    _fill(writer, 0, 1)

    def child():
        assert (writer._fd, writer._parked_fd) == (-1, -1)
        _fill(writer, 1, 2)
        assert writer.stats().delivered == 2

    in_fork(child)
    _fill(writer, 3, 1)
    assert _numbers(path.parent) == [0, 1, 2, 3]


def test_a_child_that_never_logs_keeps_no_file_from_being_compressed(path, sink, children):
    """Prefork servers: what an idle child has inherited does not hold back compression."""
    writer = sink(compression="gzip")
    _fill(writer, 0, 1)
    children(lambda: time.sleep(PATIENCE_SECONDS))
    _fill(writer, 1, 30)
    assert writer.close(PATIENCE_SECONDS)
    assert {file.suffix for file in path.parent.iterdir()} == {".gz", ".log"}


def _work_in_child(path, writer, events):
    with RotatingFileSink(path, max_bytes=2000, backup_count=10_000, multiprocess=True) as sink:
        for number in range(events):
            sink.handle({"n": writer * 1000 + number, "pad": "x" * 50})


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_write_together(path, method):
    """However multiprocessing starts its children, their events are there exactly once."""
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_work_in_child, args=(path, writer, 200)) for writer in range(2)]
    try:
        for worker in workers:
            worker.start()
        _work_in_child(path, 2, 200)
        for worker in workers:
            worker.join(PATIENCE_SECONDS)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert _numbers(path.parent) == sorted(writer * 1000 + number for writer in range(3) for number in range(200))
    assert len(list(path.parent.iterdir())) > 5


def test_programs_of_their_own_write_together(path):
    """Programs that know nothing of each other may share the file."""
    script = """
        import sys
        from outfall import RotatingFileSink
        with RotatingFileSink(sys.argv[1], max_bytes=1000, backup_count=99, multiprocess=True) as sink:
            for number in range(100):
                sink.handle({"n": number})
    """
    for _ in range(2):
        assert run(script, path).returncode == 0
    assert _numbers(path.parent) == sorted([*range(100)] * 2)


# -- idle, delayed, removed


def test_an_idle_process_goes_on_with_the_current_file(path, sink):
    """After many rotations by others its event is in the file that is current then, and its old one gets compressed."""
    idle, busy = sink(compression="gzip"), sink(compression="gzip")
    _fill(idle, 0, 1)
    _fill(busy, 1, 60)
    busy._compressor.wait(PATIENCE_SECONDS)
    # The one that the idle process would still write to was left alone.
    assert len([file for file in path.parent.iterdir() if file.suffix not in (".gz", ".log")]) >= 1
    _fill(idle, 61, 1)
    assert [event["n"] for event in events_of(path)][-1] == 61
    assert idle.close(PATIENCE_SECONDS)
    assert busy.close(PATIENCE_SECONDS)
    assert {file.suffix for file in path.parent.iterdir()} == {".gz", ".log"}
    assert _numbers(path.parent) == list(range(62))


def test_a_late_write_to_a_rotated_file_is_kept(path, sink):
    """A process that others overtake between its look and its write writes to a file that nobody has compressed."""
    late, busy = sink(compression="gzip"), sink(compression="gzip")
    _fill(late, 0, 1)
    old = late._fd
    _fill(busy, 1, 40)
    busy._compressor.wait(PATIENCE_SECONDS)
    os.write(old, b'{"n":41}\n')
    assert late.close(PATIENCE_SECONDS)
    assert busy.close(PATIENCE_SECONDS)
    assert sink(compression="gzip").close(PATIENCE_SECONDS)
    assert _numbers(path.parent) == list(range(42))


def test_delay_opens_at_the_first_event(path, sink):
    """Each process opens when it has something to write, and then the current file."""
    late, busy = sink(delay=True), sink()
    _fill(busy, 0, 30)
    _fill(late, 30, 1)
    assert [event["n"] for event in events_of(path)][-1] == 30
    assert _numbers(path.parent) == list(range(31))


def test_permissions_hold_for_each_new_file(path, sink):
    """A file begun by a rotation has the permissions that were asked for, whoever begins it."""
    sinks = [sink(permissions=0o640) for _ in range(2)]
    for number in range(40):
        _fill(sinks[number % 2], number, 1)
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o640}
    assert _numbers(path.parent) == list(range(40))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_be_written_and_not_read_is_enough(path, sink, told):
    """Without the right to read the file events are written and rotated all the same."""
    sinks = [sink(permissions=0o200) for _ in range(2)]
    for number in range(40):
        _fill(sinks[number % 2], number, 1)
    assert told == []
    for file in path.parent.iterdir():
        file.chmod(0o600)
    assert _numbers(path.parent) == list(range(40))


def test_a_file_removed_by_hand_is_begun_anew(path, sink, told):
    """After the removal the next event of each process is in one new file."""
    sinks = [sink() for _ in range(2)]
    _fill(sinks[0], 0, 1)
    path.unlink()
    for number, each in enumerate(sinks, 1):
        _fill(each, number, 1)
    assert _numbers(path.parent) == [1, 2]
    assert told == []


@pytest.mark.parametrize("ends", ["another event", "flush", "close"])
def test_events_that_share_a_look_are_not_lost_with_a_file_removed_meanwhile(path, sink, told, monkeypatch, ends):
    """What went to the removed file unseen is written again, once, to the next one."""
    removed, moved = sink(), RotatingFileSink(path.with_name("moved.log"), multiprocess=True, on_error=told.append)
    for each in (removed, moved):
        _fill(each, 0, 2)
    monkeypatch.setattr(shared, "monotonic", lambda: 0.0)
    for each in (removed, moved):
        _fill(each, 2, 1)
    path.unlink()
    (path.parent / "moved.log").rename(path.parent / "away")
    for each in (removed, moved):
        _fill(each, 3, 1)
    assert not path.exists()
    monkeypatch.undo()
    for each in (removed, moved):
        if ends == "another event":
            _fill(each, 4, 1)
        else:
            assert getattr(each, ends)()
    later = [4] if ends == "another event" else []
    assert [event["n"] for event in events_of(path)] == [2, 3, *later]
    assert [event["n"] for event in events_of(path.parent / "away")] == [0, 1, 2, 3]
    assert [event["n"] for event in events_of(path.parent / "moved.log")] == later
    assert told == []
    moved.close()


def test_events_that_are_written_again_make_no_file_too_large(path, sink, told, monkeypatch):
    """They are divided between files, like new ones."""
    mine, other = sink(), sink()
    _fill(mine, 0, 2)
    monkeypatch.setattr(shared, "monotonic", lambda: 0.0)
    _fill(mine, 2, 8)
    path.unlink()
    monkeypatch.undo()
    _fill(other, 10, 9)
    _fill(mine, 19, 1)
    assert _numbers(path.parent) == list(range(2, 20))
    assert max(file.stat().st_size for file in path.parent.iterdir()) <= 1000
    assert told == []


def test_events_that_cannot_be_written_again_are_counted_and_told(path, sink, told, monkeypatch):
    """The ledger takes back that they were delivered."""
    mine = sink()
    _fill(mine, 0, 2)
    monkeypatch.setattr(shared, "monotonic", lambda: 0.0)
    _fill(mine, 2, 1)
    path.unlink()
    _fill(mine, 3, 1)
    monkeypatch.undo()

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(sys.modules["outfall.sinks.files.output"], "_os_write", full)
    mine.flush()
    monkeypatch.undo()
    stats = mine.stats()
    assert (stats.delivered, stats.dropped) == (2, {"error": 2})
    assert [failure.error.errno for failure in told] == [errno.ENOSPC]
    _fill(mine, 4, 1)
    assert [event["n"] for event in events_of(path)] == [4]


def test_a_rotation_by_hand_moves_all_on(path, sink):
    """After do_rollover() of one process the others write to the new file at once."""
    sinks = [sink() for _ in range(3)]
    for number, each in enumerate(sinks):
        _fill(each, number, 1)
    sinks[0].do_rollover()
    for number, each in enumerate(sinks, 3):
        _fill(each, number, 1)
    assert [event["n"] for event in events_of(path)] == [3, 4, 5]


def test_a_directory_in_memory_will_do():
    """tmpfs has the locks and the appends that are needed."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        storm(Path(directory) / "app.log", time.time_ns(), seconds=0.6, processes=3, max_bytes=2048, half_lines=True)


def test_an_opening_that_is_overtaken_again_and_again_keeps_rotation_out(path, sink, monkeypatch):
    """Where others rotate faster than the file can be opened, it is opened under the lock, and no event is lost."""
    writer = sink(delay=True)
    is_current = opening._is_current
    looks = []

    def overtaken(path, descriptor):
        looks.append(writer._directory_lock._depth)
        return looks[-1] > 0 and is_current(path, descriptor)

    monkeypatch.setattr(opening, "_is_current", overtaken)
    _fill(writer, 0, 1)
    assert _numbers(path.parent) == [0]
    assert len(looks) > 2
    assert looks[-1] == 1


def test_a_full_file_takes_no_event_because_others_filled_it_meanwhile(path, sink, monkeypatch):
    """A process that finds each new file filled by others rotates again until there is room."""
    writer, other = sink(), sink()
    _fill(writer, 0, 1)
    roll = writer._roll
    rolls = []

    def overtaken():
        rolls.append(None)
        if len(rolls) <= 5:
            other.do_rollover()
            _fill(other, 1000 + 20 * len(rolls), 10)
        return roll()

    monkeypatch.setattr(writer, "_roll", overtaken)
    _fill(writer, 1, 12)
    assert len(rolls) > 5
    assert max(file.stat().st_size for file in path.parent.iterdir()) <= 1000


# -- compression


def test_what_a_kill_left_of_placing_is_finished_before_it_is_shifted(path, sink):
    """A plain file and the compressed one made of it do not get apart, whatever kills come next."""
    writer = sink(delay=True)
    plain, packed = Path(f"{path}.1"), Path(f"{path}.1.gz")
    plain.write_bytes(b'{"n":0}\n')
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    os.utime(packed, ns=(plain.stat().st_atime_ns, plain.stat().st_mtime_ns))
    _fill(writer, 1, 1)
    writer.do_rollover()
    assert {file.name for file in path.parent.iterdir()} == {"app.log", "app.log.1", "app.log.2.gz"}
    assert _numbers(path.parent) == [0, 1]


def test_a_compressed_file_just_begun_is_not_taken_for_one_that_was_left(path, sink, told, monkeypatch):
    """Who starts meanwhile may delete the file before it is locked; then it is begun once more."""
    writer = sink(compression="gzip")
    lock = Compressor._lock
    deleted = []

    looks = []

    def slow(self, descriptor):
        looks.append(len(self._held))
        if not deleted and len(self._held) == 2:
            deleted.extend(path.parent.glob(".*outfall-tmp"))
            compression.remove_unfinished(str(path.parent), str(path))
        return lock(self, descriptor)

    monkeypatch.setattr(Compressor, "_lock", slow)
    _fill(writer, 0, 30)
    assert writer.close(PATIENCE_SECONDS)
    assert deleted
    assert 3 in looks  # the first, which is nobody's any more, and the second
    assert told == []
    assert {file.suffix for file in path.parent.iterdir()} == {".gz", ".log"}


def test_two_processes_do_not_compress_one_file_at_once(path, sink):
    """While one compresses a file the others leave it alone."""
    begun, go_on = threading.Event(), threading.Event()
    calls = []

    def slow(source, destination):
        calls.append(source)
        begun.set()
        go_on.wait(PATIENCE_SECONDS)
        Path(destination).write_bytes(gzip.compress(Path(source).read_bytes()))

    slow.ending = ".gz"
    Path(f"{path}.1").write_bytes(b'{"n":0}\n')
    first = sink(compression=slow)
    assert begun.wait(PATIENCE_SECONDS)
    second = sink(compression=slow)
    second._compressor.wait(PATIENCE_SECONDS)
    assert len(calls) == 1
    go_on.set()
    assert first.close(PATIENCE_SECONDS)
    assert _numbers(path.parent) == [0]
