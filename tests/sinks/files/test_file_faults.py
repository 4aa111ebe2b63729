"""FileSink when the disk, the path, the reader or the process fails it, for real."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from outfall import RotatingFileSink, TimedRotatingFileSink, WatchedFileSink
from outfall.sinks.core.item import BatchResult, Encoded
from outfall.sinks.files import by_time, output
from outfall.sinks.files import file as file_module
from outfall.sinks.files.file import FileSink
from tests.sinks._processes import PATIENCE_SECONDS, check, events_of, in_fork, start, until


@pytest.fixture
def path(tmp_path):
    """Give the path of a log file that is not there yet."""
    return tmp_path / "app.jsonl"


def _fill(directory) -> Path:
    """Leave no room; return what has to be deleted to make some."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)
    return ballast


def _numbers(path) -> list[int]:
    return [event["n"] for event in events_of(path)]


def _account(sink) -> tuple[int, int, dict[str, int], int]:
    stats = sink.stats()
    assert stats.accepted == stats.delivered + sum(stats.dropped.values()) + stats.pending
    return stats.accepted, stats.delivered, dict(stats.dropped), stats.pending


@contextlib.contextmanager
def _size_limit(size):
    """Let no file of this process grow beyond *size*: a write over it is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- no room


@pytest.mark.parametrize("buffer_bytes", [0, 2_000])
def test_a_full_disk_costs_events_and_no_line(small_disk, buffer_bytes):
    """Until there is room events are lost, counted and reported; then writing goes on by itself."""
    path = small_disk / "log"
    failures = []
    sink = FileSink(path, buffer_bytes=buffer_bytes, flush_interval=1000, on_error=failures.append)
    ballast = _fill(small_disk)
    for n in range(300):
        sink.handle({"event": "x" * 100, "level": "info", "n": n})
    sink.flush()
    accepted, delivered, dropped, pending = _account(sink)
    assert (accepted, pending) == (300, 0)
    assert delivered == len(events_of(path)) < 300
    assert dropped == {"error": 300 - delivered}
    assert sum(failure.events for failure in failures) == 300 - delivered
    assert {failure.error.errno for failure in failures} == {errno.ENOSPC}

    ballast.unlink()
    for n in range(300, 310):
        sink.handle({"event": "x" * 100, "level": "info", "n": n})
    assert sink.close()
    numbers = _numbers(path)
    assert numbers[-10:] == list(range(300, 310))
    assert numbers == sorted(set(numbers))
    assert _account(sink)[1] == len(numbers)


def test_a_full_disk_is_no_reason_to_leave_the_open_file(small_disk):
    """Moved but not told to reopen, the sink waits for room where it is, and makes no new file."""
    path = small_disk / "log"
    sink = FileSink(path, on_error=lambda failure: None)
    path.rename(small_disk / "moved")
    ballast = _fill(small_disk)
    for n in range(100):
        sink.handle({"event": "x" * 100, "n": n})
    assert sink.stats().dropped["error"] > 0
    assert not path.exists()
    ballast.unlink()
    sink.handle({"n": 100})
    assert _numbers(small_disk / "moved")[-1] == 100


@pytest.mark.parametrize("buffer_bytes", [0, 500])
def test_a_disk_that_is_full_now_and_then_under_threads(small_disk, buffer_bytes):
    """With 8 threads, and room coming and going, no line is torn and the account is exact."""
    path = small_disk / "log"
    sink = FileSink(path, buffer_bytes=buffer_bytes, on_error=lambda failure: None)
    stop = threading.Event()

    def work(thread):
        for n in range(300):
            sink.handle({"event": "x" * (n % 150), "level": "info", "n": n, "t": thread})

    def come_and_go():
        while not stop.is_set():
            _fill(small_disk).unlink()
            time.sleep(0.0005)

    filler = threading.Thread(target=come_and_go)
    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    filler.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    stop.set()
    filler.join(PATIENCE_SECONDS)
    assert sink.close() or buffer_bytes
    events = events_of(path)
    accepted, delivered, _, pending = _account(sink)
    assert (accepted, pending) == (2400, 0)
    assert delivered == len(events)
    assert len({(event["t"], event["n"]) for event in events}) == len(events)


@pytest.mark.parametrize("options", [{}, {"level": "info"}, {"processors": [lambda _l, _n, event: event]}])
def test_a_short_write_is_taken_back(path, options):
    """What fits of an event that does not fit is removed, so that the next line begins on its own."""
    failures = []
    sink = FileSink(path, on_error=failures.append, **options)
    sink.handle({"event": "e", "level": "info", "n": 1})
    size = path.stat().st_size
    with _size_limit(size + 10):
        sink.handle({"event": "e", "level": "info", "n": 2})
        assert path.stat().st_size == size
        sink.handle({"event": "e", "level": "info", "n": 3})
    sink.handle({"event": "e", "level": "info", "n": 4})
    assert _numbers(path) == [1, 4]
    assert _account(sink) == (4, 2, {"error": 2}, 0)
    assert [failure.error.errno for failure in failures] == [errno.EFBIG] * 2


def test_a_short_write_of_a_buffer_keeps_whole_events(path):
    """Of what waited, the events that fit are delivered and the others lost, exactly."""
    failures = []
    sink = FileSink(path, buffer_bytes=10_000, on_error=failures.append)
    line = len(b'{"level":"info","n":1}\n')
    for n in range(1, 6):
        sink.handle({"level": "info", "n": n})
    with _size_limit(2 * line + 7):
        assert not sink.flush()
    assert _numbers(path) == [1, 2]
    assert _account(sink) == (5, 2, {"error": 3}, 0)
    assert [failure.events for failure in failures] == [3]
    sink.handle({"level": "info", "n": 6})
    assert sink.close()
    assert _numbers(path) == [1, 2, 6]


def test_the_event_that_makes_a_full_buffer_fail_is_counted_once(path):
    """The event that came and those that waited are lost together, and reported together."""
    failures = []
    sink = FileSink(path, buffer_bytes=10_000, on_error=failures.append)
    sink.handle({"level": "info", "n": 1})
    sink.handle({"level": "info", "n": 2})
    with _size_limit(0):
        sink.handle({"level": "error", "n": 3})
    assert _account(sink) == (3, 0, {"error": 3}, 0)
    assert [failure.events for failure in failures] == [3]


def test_a_short_batch_says_what_is_left(path):
    """What a full disk keeps out of a batch is to be tried again, and nothing else."""
    sink = FileSink(path)
    batch = [Encoded(b'{"n":%d}' % n, 20, 0.0) for n in range(4)]
    with _size_limit(2 * 8 + 3):
        result = sink.emit_batch(batch)
    assert list(result.retry) == [2, 3]
    assert _numbers(path) == [0, 1]
    with _size_limit(16), pytest.raises(OSError, match="too large"):
        sink.emit_batch(batch)
    assert sink.emit_batch([batch[index] for index in result.retry]) is None
    assert _numbers(path) == [0, 1, 2, 3]


def test_half_an_event_that_cannot_be_taken_back_is_ended(path, monkeypatch):
    """Where another's line stands behind it already, the next event still begins on a line of its own."""
    sink = FileSink(path, on_error=lambda failure: None)
    sink.handle({"n": 1})
    real = output.ends_with

    def overtaken(*arguments):
        with _size_limit(resource.RLIM_INFINITY), path.open("ab") as other:
            other.write(b"-another's\n")
        return real(*arguments)

    monkeypatch.setattr(output, "ends_with", overtaken)
    with _size_limit(path.stat().st_size + 4):
        sink.handle({"n": 2})
    monkeypatch.setattr(output, "ends_with", real)
    sink.handle({"n": 3})
    sink.handle({"n": 4})
    lines = path.read_bytes().splitlines()
    assert lines[0] == b'{"n":1}'
    assert lines[-2:] == [b'{"n":3}', b'{"n":4}']
    assert any(line.endswith(b"-another's") for line in lines)


def test_a_full_device_is_an_error_each_time():
    """/dev/full takes nothing and costs nothing but the event."""
    failures = []
    sink = FileSink("/dev/full", on_error=failures.append)
    sink.handle({"n": 1})
    sink.handle({"n": 2})
    assert _account(sink) == (2, 0, {"error": 2}, 0)
    assert [failure.error.errno for failure in failures] == [errno.ENOSPC] * 2
    assert sink.close()


def test_an_audit_sink_raises_what_it_could_not_write(path):
    """With on_error="raise" the application learns of a full disk."""
    sink = FileSink(path, on_error="raise")
    with _size_limit(0), pytest.raises(OSError, match="too large"):
        sink.handle({"n": 1})
    sink.handle({"n": 2})
    assert _account(sink) == (2, 1, {"error": 1}, 0)


# -- paths that cannot be opened


def _as_nobody(function) -> None:
    """Call *function* in a child that is not root, to whom permissions mean something."""

    def child():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        function()

    in_fork(child)


@pytest.fixture
def open_path(tmp_path):
    """Let users other than root get to the test's directory."""
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.stat().st_uid == os.geteuid() and directory != Path("/") and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


def test_a_file_that_may_not_be_written_is_reported_and_tried_again(open_path):
    """Construction does not raise; the events are counted; once the file is writable they are written."""
    path = open_path / "log"
    path.touch(0o444)
    os.chown(path, 65534, 65534) if os.geteuid() == 0 else None

    def child():
        path.chmod(0o444)
        failures = []
        sink = FileSink(path, on_error=failures.append)
        assert [(type(f.error), f.events) for f in failures] == [(PermissionError, 0)]
        sink.handle({"n": 1})
        assert _account(sink) == (1, 0, {"error": 1}, 0)
        path.chmod(0o644)
        sink.handle({"n": 2})
        assert _account(sink) == (2, 1, {"error": 1}, 0)

    _as_nobody(child)
    assert _numbers(path) == [2]


def test_a_directory_that_may_not_be_written_is_reported(open_path):
    """The same where the file cannot be made."""
    directory = open_path / "d"
    directory.mkdir(mode=0o555)

    def child():
        failures = []
        sink = FileSink(directory / "log", on_error=failures.append)
        sink.handle({"n": 1})
        assert [(type(f.error), f.events) for f in failures] == [(PermissionError, 0), (PermissionError, 1)]
        assert _account(sink) == (1, 0, {"error": 1}, 0)
        assert sink.close()

    _as_nobody(child)


def test_a_file_one_may_write_but_not_read_is_appended_to(open_path):
    """Taking a look at its end is a service, no condition; half an event is ended, if it cannot be taken back."""
    path = open_path / "log"
    path.write_text('{"n":0}\n')
    os.chown(path, 65534, 65534) if os.geteuid() == 0 else None

    def child():
        path.chmod(0o200)
        sink = FileSink(path, on_error=lambda failure: None)
        sink.handle({"n": 1})
        with _size_limit(path.stat().st_size + 4):
            sink.handle({"n": 2})
        sink.handle({"n": 3})
        assert _account(sink) == (3, 2, {"error": 1}, 0)

    _as_nobody(child)
    path.chmod(0o600)
    assert path.read_text() == '{"n":0}\n{"n":1}\n{"n"\n{"n":3}\n'


def test_a_read_only_file_system_is_reported(small_disk):
    """Remounted read-only under an open file the events are lost loudly; remounted back they are written."""
    path = small_disk / "log"
    failures = []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    sink = FileSink(path, on_error=failures.append)
    sink.handle({"n": 1})
    assert [failure.error.errno for failure in failures] == [errno.EROFS] * 2
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    sink.handle({"n": 2})
    assert _numbers(path) == [2]
    assert _account(sink) == (2, 1, {"error": 1}, 0)


def test_a_removed_directory_is_survived(tmp_path):
    """An open file is written on; a reopening that fails is reported and keeps it; a new directory is found."""
    directory = tmp_path / "d"
    directory.mkdir()
    failures = []
    sink = FileSink(directory / "log", on_error=failures.append)
    sink.handle({"n": 1})
    shutil.rmtree(directory)
    sink.handle({"n": 2})
    assert failures == []
    sink.reopen()
    assert [(type(failure.error), failure.events) for failure in failures] == [(FileNotFoundError, 0)]
    sink.handle({"n": 3})
    directory.mkdir()
    sink.reopen()
    sink.handle({"n": 4})
    assert _numbers(directory / "log") == [4]
    assert _account(sink) == (4, 4, {}, 0)


@pytest.mark.parametrize("delay", [False, True])
def test_a_missing_directory_is_found_when_it_comes(tmp_path, delay):
    """Each event tries again."""
    failures = []
    sink = FileSink(tmp_path / "d" / "log", delay=delay, on_error=failures.append)
    sink.handle({"n": 1})
    assert len(failures) == 2 - delay
    (tmp_path / "d").mkdir()
    sink.handle({"n": 2})
    assert _numbers(tmp_path / "d" / "log") == [2]
    assert _account(sink) == (2, 1, {"error": 1}, 0)


def test_a_directory_in_the_place_of_the_file_is_reported(tmp_path):
    """What can never be opened does not raise into the application either."""
    failures = []
    sink = FileSink(tmp_path, on_error=failures.append)
    sink.handle({"n": 1})
    assert [type(failure.error) for failure in failures] == [IsADirectoryError] * 2


def test_reopen_moves_on_although_the_old_file_is_full(path):
    """What waited for the full file is lost and counted; the new one is written to."""
    failures = []
    sink = FileSink(path, buffer_bytes=1000, on_error=failures.append)
    sink.handle({"level": "info", "n": 1})
    path.rename(path.with_suffix(".1"))
    with _size_limit(0):
        sink.reopen()
    sink.handle({"level": "info", "n": 2})
    assert sink.close()
    assert _numbers(path) == [2]
    assert [failure.events for failure in failures] == [1]
    assert _account(sink) == (2, 1, {"error": 1}, 0)


def test_a_descriptor_closed_behind_its_back_is_replaced(path):
    """The event is written to the path opened anew."""
    sink = FileSink(path)
    sink.handle({"n": 1})
    os.close(sink._fd)
    sink.handle({"n": 2})
    sink.handle({"n": 3})
    assert _numbers(path) == [1, 2, 3]
    assert _account(sink) == (3, 3, {}, 0)


def test_a_failing_chmod_leaks_no_descriptor(path, monkeypatch):
    """A file system without permissions is reported, event by event, for as long as it lasts."""

    def refuse(descriptor, mode):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchmod", refuse)
    FileSink(path, permissions=0o600, on_error=lambda failure: None)
    # Not counted: what others have left may be closed meanwhile.
    assert str(path) not in [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]


# -- half lines of the dead


@pytest.mark.parametrize("half", [b'{"n":', b"x", b'{"n":1}'])
@pytest.mark.parametrize("options", [{}, {"delay": True}, {"buffer_bytes": 1000}])
def test_half_a_line_is_ended_before_the_first_event(path, half, options):
    """What a killed process left does not swallow the next event."""
    path.write_bytes(b'{"n":0}\n' + half)
    with FileSink(path, **options) as sink:
        sink.handle({"level": "info", "n": 2})
        sink.handle({"level": "info", "n": 3})
    assert path.read_bytes() == b'{"n":0}\n' + half + b'\n{"level":"info","n":2}\n{"level":"info","n":3}\n'
    assert sink.stats().delivered == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_that_a_line_break_ends_is_no_half_line_whatever_the_terminator(path, encoding):
    """A whole line is not ended again by a sink whose own lines end in another way."""
    for terminator in ("\n", ";\r\n"):
        with FileSink(path, encoding=encoding, terminator=terminator, renderer=lambda *_: "line") as sink:
            sink.handle({"event": "any"})
    assert path.read_bytes().decode(encoding) == "line\nline;\r\n"


def test_half_a_line_is_ended_although_there_is_no_room_at_first(path):
    """The end that is owed is written with the first event that can be."""
    path.write_bytes(b'{"n":')
    sink = FileSink(path, on_error=lambda failure: None)
    for room in (0, 1, 4):
        with _size_limit(5 + room):
            sink.handle({"n": 1})
        assert path.read_bytes() == b'{"n":'
    sink.handle({"n": 2})
    assert path.read_bytes() == b'{"n":\n{"n":2}\n'


def test_half_a_line_in_the_new_file_is_ended_after_reopen(path):
    """The same holds for a file that comes later."""
    sink = FileSink(path)
    sink.handle({"n": 1})
    path.unlink()
    path.write_bytes(b"half")
    sink.reopen()
    sink.handle({"n": 2})
    sink.handle({"n": 3})
    assert path.read_bytes() == b'half\n{"n":2}\n{"n":3}\n'


def test_a_whole_file_gets_no_empty_line(path):
    """Neither does one that ends in another terminator's newline."""
    path.write_bytes(b"whole\n")
    with FileSink(path, terminator="\r\n") as sink:
        sink.handle({"n": 1})
    assert path.read_bytes() == b'whole\n{"n":1}\r\n'


def test_killed_at_any_instant_it_keeps_what_handle_returned_for(path):
    """SIGKILL loses no acknowledged event and tears at most the last line, which the next start ends."""
    script = """
        import os, sys
        from outfall.sinks.files.file import FileSink
        sink = FileSink(sys.argv[1])
        for n in range(10_000_000):
            sink.handle({"event": "x" * (n % 300), "n": n})
            os.write(1, b"%d\\n" % n)
    """
    rng = random.Random(7)
    files = [path.with_suffix(f".{number}") for number in range(4)]
    children = [start(script, file, stdout=subprocess.PIPE) for file in files]
    told = []
    for child in children:
        # They wait for us, with a full pipe, if they were faster.
        data = child.stdout.read(rng.randrange(1, 5_000))
        child.kill()
        told.append(data + child.stdout.read())
        child.stdout.close()
        child.wait(PATIENCE_SECONDS)
    for file, data in zip(files, told, strict=True):
        assert data.endswith(b"\n")
        acknowledged = int(data.split()[-1])
        with FileSink(file) as sink:
            sink.handle({"n": "next"})
        *lines, last = file.read_bytes().splitlines()
        assert last == b'{"n":"next"}'
        whole = acknowledged + 1
        assert [json.loads(line)["n"] for line in lines[:whole]] == list(range(whole))
        # The one that was on its way may be there, whole or not.
        assert len(lines) - whole in (0, 1)


# -- pipes


@pytest.fixture
def fifo(tmp_path):
    """Give the path of a named pipe."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


class _Reader:
    """Somebody at the other end of a named pipe."""

    def __init__(self, path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = b""

    def read(self, lines: int) -> list[bytes]:
        """Return the next *lines* lines, and keep what comes after them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.data.count(b"\n") < lines:
            assert time.monotonic() < deadline, self.data[-200:]
            if select.select([self.descriptor], [], [], 0.05)[0]:
                self.data += os.read(self.descriptor, 65_536)
        *whole, self.data = self.data.split(b"\n", lines)
        return whole

    def close(self) -> None:
        os.close(self.descriptor)


def test_a_pipe_without_a_reader_blocks_neither_construction_nor_events(fifo):
    """It counts as a file that cannot be opened, until somebody reads; and again when the reader has gone."""
    failures = []
    sink = FileSink(fifo, on_error=failures.append)
    sink.handle({"n": 1})
    assert [(failure.error.errno, failure.events) for failure in failures] == [(errno.ENXIO, 0), (errno.ENXIO, 1)]
    reader = _Reader(fifo)
    sink.handle({"n": 2})
    sink.handle({"n": 3})
    assert reader.read(2) == [b'{"n":2}', b'{"n":3}']
    reader.close()
    sink.handle({"n": 4})
    assert failures[-1].events == 1
    reader = _Reader(fifo)
    sink.handle({"n": 5})
    assert reader.read(1) == [b'{"n":5}']
    assert _account(sink) == (5, 3, {"error": 2}, 0)
    assert sink.close()
    reader.close()


def test_an_event_larger_than_the_pipe_arrives_whole(fifo):
    """handle waits for a slow reader, through any number of short writes."""
    reader = _Reader(fifo)
    sink = FileSink(fifo)
    thread = threading.Thread(target=lambda: [sink.handle({"n": n, "event": "x" * 300_000}) for n in range(3)])
    thread.start()
    lines = [reader.read(1)[0] for _ in range(3)]
    thread.join(PATIENCE_SECONDS)
    assert [line[:6] for line in lines] == [b'{"n":%d' % n for n in range(3)]
    assert {len(line) for line in lines} == {300_000 + len('{"n":0,"event":""}')}
    assert _account(sink) == (3, 3, {}, 0)
    reader.close()


def _capacity(reader: _Reader) -> int:
    return fcntl.fcntl(reader.descriptor, fcntl.F_GETPIPE_SZ)


@pytest.mark.parametrize("buffer_bytes", [0, 1_000_000])
def test_signal_handlers_that_log_tear_no_line_in_a_pipe(fifo, buffer_bytes):
    """While a large event is half written, what a handler logs to the same sink waits for its end."""
    reader = _Reader(fifo)
    sink = FileSink(fifo, buffer_bytes=buffer_bytes, flush_interval=1000)
    count = 0

    def interrupt(*_):
        nonlocal count
        count += 1
        sink.handle({"n": count, "level": "error", "event": "nested"})

    main = threading.get_ident()
    lines = []

    def read():
        until(lambda: sink._mid_line)
        for _ in range(5):
            signal.pthread_kill(main, signal.SIGUSR1)
        until(lambda: count >= 1)
        lines.extend(reader.read(1))

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        sink.handle({"event": "x" * (3 * _capacity(reader)), "level": "error"})
        thread.join(PATIENCE_SECONDS)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(lines[0]) > 3 * _capacity(reader)
    assert b"nested" not in lines[0]
    assert [b"nested" in line for line in reader.read(count)] == [True] * count
    assert _account(sink) == (count + 1, count + 1, {}, 0)
    reader.close()


def test_flush_and_close_keep_their_time_before_a_stuck_pipe(fifo):
    """With events in the buffer and nobody reading, flush keeps them and says so; close gives them up."""
    reader = _Reader(fifo)
    failures = []
    options = {"buffer_bytes": 10_000_000, "flush_interval": 1000, "timeout": PATIENCE_SECONDS}
    sink = FileSink(fifo, **options, on_error=failures.append)
    for n in range(20):
        sink.handle({"event": "x" * 10_000, "level": "info", "n": n})
    begin = time.monotonic()
    assert not sink.flush(0.05)
    assert not sink.flush(0)
    assert time.monotonic() - begin < PATIENCE_SECONDS / 2
    accepted, delivered, dropped, pending = _account(sink)
    assert (accepted, dropped) == (20, {})
    assert delivered + pending == 20
    assert pending > 0
    begin = time.monotonic()
    assert not sink.close(0.05)
    assert time.monotonic() - begin < PATIENCE_SECONDS / 2
    assert _account(sink) == (20, delivered, {"closed": pending}, 0)
    assert sum(failure.events for failure in failures) == pending
    reader.close()


def test_what_a_flush_could_not_write_in_time_goes_on_where_it_stopped(fifo):
    """A pipe that is read again gets each event once, and no torn line."""
    reader = _Reader(fifo)
    sink = FileSink(fifo, buffer_bytes=10_000_000, flush_interval=1000, on_error=lambda failure: None)
    for n in range(20):
        sink.handle({"n": n, "level": "info", "event": "x" * 10_000})
    assert not sink.flush(0.02)
    lines = reader.read(1)
    for _ in range(3):
        sink.flush(0.02)
    thread = threading.Thread(target=lambda: lines.extend(reader.read(19)))
    thread.start()
    assert sink.flush(PATIENCE_SECONDS)
    thread.join(PATIENCE_SECONDS)
    assert [line.startswith(b'{"n":%d,' % n) for n, line in enumerate(lines)] == [True] * 20
    assert {len(line) for line in lines} <= {len(lines[0]), len(lines[-1])}
    assert _account(sink) == (20, 20, {}, 0)
    assert sink.close()
    reader.close()


def test_flush_and_close_keep_their_time_while_another_thread_is_stuck(fifo):
    """The lock counts as well; what close leaves behind in the buffer is counted and reported."""
    reader = _Reader(fifo)
    descriptor = _close_a_stuck_sink(fifo, reader)
    # Nobody could let go of it then, but it goes with the sink.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    reader.close()


def _close_a_stuck_sink(fifo, reader) -> int:
    failures = []
    options = {"buffer_bytes": 1_000_000, "flush_interval": 1000, "timeout": PATIENCE_SECONDS}
    sink = FileSink(fifo, **options, on_error=failures.append)
    stuck = {"event": "x" * (3 * _capacity(reader)), "level": "error"}
    thread = threading.Thread(target=sink.handle, args=(stuck,))
    thread.start()
    until(lambda: sink._mid_line)
    sink._buffer.lines += (b"waits\n",)  # as a signal handler of that thread leaves it
    begin = time.monotonic()
    assert not sink.flush(0.05)
    assert not sink.close(0.05)
    assert time.monotonic() - begin < PATIENCE_SECONDS / 2
    assert sink.stats().dropped == {"closed": 1}
    assert [failure.events for failure in failures] == [1]
    reader.read(1)
    thread.join(PATIENCE_SECONDS)
    assert _account(sink) == (2, 1, {"closed": 1}, 0)
    assert os.fstat(sink._fd)
    return sink._fd


def test_an_interrupt_before_a_stuck_pipe_passes_through(fifo):
    """KeyboardInterrupt ends the waiting; the next event begins on a line of its own."""
    reader = _Reader(fifo)
    sink = FileSink(fifo)
    main = threading.get_ident()

    def interrupt(*_):
        raise KeyboardInterrupt

    def soon():
        until(lambda: sink._mid_line)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=soon)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            sink.handle({"event": "x" * (3 * _capacity(reader))})
    finally:
        thread.join(PATIENCE_SECONDS)
        signal.signal(signal.SIGUSR1, before)
    thread = threading.Thread(target=sink.handle, args=({"n": 2},))
    thread.start()
    half, whole = reader.read(2)
    thread.join(PATIENCE_SECONDS)
    assert half.startswith(b'{"event":"x')
    assert whole == b'{"n":2}'
    assert _account(sink) == (2, 1, {"interrupted": 1}, 0)
    reader.close()


def test_an_interrupt_as_the_first_write_into_a_pipe_returns(fifo, monkeypatch):
    """It comes before the count of the bytes that are written, and the next event begins on a line of its own."""
    reader = _Reader(fifo)
    sink = FileSink(fifo)
    real = output._os_write

    def write(descriptor, data):
        real(descriptor, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output, "_os_write", write)
        with pytest.raises(KeyboardInterrupt):
            sink.handle({"event": "x" * (3 * _capacity(reader))})
    thread = threading.Thread(target=sink.handle, args=({"n": 2},))
    thread.start()
    half, whole = reader.read(2)
    thread.join(PATIENCE_SECONDS)
    assert half.startswith(b'{"event":"x')
    assert whole == b'{"n":2}'
    assert _account(sink) == (2, 1, {"interrupted": 1}, 0)
    reader.close()


# -- signals


def test_interrupted_system_calls_cost_nothing(path):
    """A timer's signals by the thousand leave no trace in file and account."""
    signals = 0

    def count(*_):
        nonlocal signals
        signals += 1

    sink = FileSink(path)
    before = signal.signal(signal.SIGVTALRM, count)
    stop = threading.Event()
    main = threading.get_ident()

    def disturb():
        while not stop.is_set():
            signal.pthread_kill(main, signal.SIGVTALRM)
            time.sleep(0.0001)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        n = 0
        deadline = time.monotonic() + PATIENCE_SECONDS
        while signals < 300 and time.monotonic() < deadline:
            sink.handle({"event": "x" * 100, "n": n})
            n += 1
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
        signal.signal(signal.SIGVTALRM, before)
    assert signals >= 300
    assert _numbers(path) == list(range(n))
    assert _account(sink) == (n, n, {}, 0)


@pytest.mark.parametrize("buffer_bytes", [0, 5_000])
def test_signal_handlers_that_log_to_the_sink_they_interrupt(path, buffer_bytes):
    """At whatever instant the signal comes, both events are written, whole and once."""
    check(
        """
        import random, signal, sys, time
        from outfall.sinks.files.file import FileSink

        sink = FileSink(sys.argv[1], buffer_bytes=int(sys.argv[2]))
        nested = 0

        def log(*_):
            global nested
            nested += 1
            sink.handle({"event": "nested", "level": "error" if nested % 5 == 0 else "info", "n": nested})
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.0005))

        signal.signal(signal.SIGALRM, log)
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        outer, end = 0, time.monotonic() + 20
        while nested < 250 and time.monotonic() < end:
            outer += 1
            sink.handle({"event": "outer", "level": "info", "n": outer})
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert sink.close()
        stats = sink.stats()
        assert (stats.accepted, stats.delivered, stats.pending) == (outer + nested,) * 2 + (0,), (outer, nested, stats)
        """,
        path,
        buffer_bytes,
    )
    events = events_of(path)
    for kind in ("outer", "nested"):
        numbers = [event["n"] for event in events if event["event"] == kind]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_finalizers_that_log_to_the_sink_they_interrupt(path):
    """A collection in the midst of a write runs __del__, whose event is written too."""
    check(
        """
        import gc, sys
        from outfall.sinks.files.file import FileSink

        sink = FileSink(sys.argv[1], processors=[lambda logger, name, event: {**event, "more": [[], {}]}])
        nested = 0

        class Logs:
            def __init__(self):
                self.me = self

            def __del__(self):
                global nested
                nested += 1
                sink.handle({"event": "nested", "n": nested})

        gc.set_threshold(3)
        for n in range(1, 501):
            Logs()
            sink.handle({"event": "outer", "n": n})
        gc.set_threshold(700)
        gc.collect()
        assert nested == 500
        assert sink.stats().delivered == 1000, sink.stats()
        """,
        path,
    )
    assert len(events_of(path)) == 1000


@pytest.mark.skipif(sys.gettrace() is not None, reason="under a tracer interrupts come faster than events get through")
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit"])
@pytest.mark.parametrize("options", ["{}", "{'buffer_bytes': 3000}", "{'processors': [lambda l, n, e: e]}"])
def test_interrupts_at_random_instants(path, error, options):
    """They pass through and are counted, the lock is never lost, other threads go on, the ledger balances."""
    check(
        """
        import json, random, signal, sys, threading, time
        from outfall.sinks.files.file import FileSink

        path, options, error = sys.argv[1], eval(sys.argv[2]), {"KeyboardInterrupt": KeyboardInterrupt}.get(
            sys.argv[3], SystemExit)
        sink = FileSink(path, **options)
        stop, theirs = False, 0

        def other():
            global theirs
            while not stop:
                sink.handle({"event": "theirs", "level": "info", "n": theirs})
                theirs += 1
                time.sleep(0)

        def interrupt(*_):
            raise error

        thread = threading.Thread(target=other)
        thread.start()
        signal.signal(signal.SIGALRM, interrupt)
        caught = calls = 0
        end = time.monotonic() + 20
        while caught < 120 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0006))
                while True:
                    calls += 1
                    sink.handle({"event": "ours", "level": "info", "n": calls})
            except error:
                caught += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        seen = theirs
        while theirs == seen:
            assert time.monotonic() < end + 20, "the other thread is stuck"
            time.sleep(0.001)
        stop = True
        thread.join(60)
        assert sink.close(60)
        stats = sink.stats()
        assert set(stats.dropped) <= {"interrupted"}, stats
        assert stats.dropped["interrupted"] > 0
        assert stats.pending == 0
        total = calls + theirs
        # One that comes before the first line of handle() finds nothing to count yet.
        assert total - caught <= stats.accepted <= total, (total, caught, stats)
        written = len(open(path).read().splitlines())
        assert stats.delivered <= written <= stats.accepted, (written, stats)
        """,
        path,
        options,
        error,
    )
    theirs = [event["n"] for event in events_of(path) if event["event"] == "theirs"]
    if options != "{'buffer_bytes': 3000}":
        assert theirs == list(range(len(theirs)))


# -- several processes


def test_several_processes_append_to_one_file(path):
    """Lines of processes that know nothing of each other are whole and all there."""
    script = """
        import sys
        from outfall.sinks.files.file import FileSink
        with FileSink(sys.argv[1], buffer_bytes=int(sys.argv[3])) as sink:
            for n in range(3000):
                sink.handle({"event": "x" * (n % 200), "level": "info", "p": int(sys.argv[2]), "n": n})
    """
    children = [start(script, path, p, 4000 * (p % 2)) for p in range(4)]
    for child in children:
        assert child.wait(PATIENCE_SECONDS) == 0
    seen: dict[int, list[int]] = {p: [] for p in range(4)}
    for event in events_of(path):
        seen[event["p"]].append(event["n"])
    assert all(numbers == list(range(3000)) for numbers in seen.values())


@pytest.mark.parametrize("buffer_bytes", [0, 5000])
@pytest.mark.parametrize("size", [10, 900, 5000, 100_000])
def test_before_a_reader_that_pauses_no_line_is_torn_and_the_ledger_is_true(fifo, size, buffer_bytes):
    """An event waits as long as timeout says, once; what the reader gets at last is what is called delivered."""
    reader = _Reader(fifo)
    sink = FileSink(fifo, timeout=0.02, buffer_bytes=buffer_bytes, on_error=lambda failure: None)
    fcntl.fcntl(reader.descriptor, fcntl.F_SETPIPE_SZ, 4096)
    begin = time.monotonic()
    number = 0
    read = b""
    for most in (1, 100, 3000, 4096, 1 << 20, 0, 7777, 1 << 20):
        for _ in range(3 + 10_000 // (size + 100)):
            sink.handle({"i": number, "level": "info", "event": "y" * size})
            number += 1
        left = most
        while left > 0 and select.select([reader.descriptor], [], [], 0)[0]:
            part = os.read(reader.descriptor, min(left, 65_536))
            read += part
            left -= len(part)
        accepted, delivered, dropped, pending = _account(sink)
        assert accepted == number == delivered + pending + sum(dropped.values())
    assert time.monotonic() - begin < PATIENCE_SECONDS
    done = False
    while not done:
        while select.select([reader.descriptor], [], [], 0)[0]:
            read += os.read(reader.descriptor, 65_536)
        done = sink.flush(0)
    while select.select([reader.descriptor], [], [], 0)[0]:
        read += os.read(reader.descriptor, 65_536)
    lines = [json.loads(line)["i"] for line in read.splitlines()]
    assert read.endswith(b"\n")
    assert lines == sorted(set(lines))
    _, delivered, dropped, pending = _account(sink)
    assert (len(lines), pending) == (delivered, 0)
    assert dropped == {"error": number - delivered}
    assert sink.close()
    reader.close()


def test_a_batch_before_a_full_pipe_is_taken_as_far_as_it_goes(fifo):
    """The rest is left for a retry, and an event that is half written goes on by itself."""
    reader = _Reader(fifo)
    sink = FileSink(fifo, timeout=0, on_error=lambda failure: None)
    batch = [sink.encode({"i": number, "event": "y" * 900}) for number in range(300)]
    lines: list[bytes] = []
    while batch:
        try:
            result = sink.emit_batch(batch)
        except TimeoutError:
            result = BatchResult(retry=range(len(batch)))
        batch = [] if result is None else [batch[index] for index in result.retry]
        lines += reader.read(1)
    assert sink.flush()
    lines += reader.read(300 - len(lines))
    assert [json.loads(line)["i"] for line in lines] == list(range(300))
    assert sink.close()
    reader.close()


# -- a descriptor that somebody else has closed

THIEVES = {
    "file": FileSink,
    "size": lambda path, **options: RotatingFileSink(path, max_bytes=200, backup_count=99, **options),
    "time": lambda path, **options: TimedRotatingFileSink(path, max_bytes=200, **options),
    "processes": lambda path, **options: RotatingFileSink(path, max_bytes=200, multiprocess=True, **options),
    "watched": WatchedFileSink,
    "buffered": lambda path, **options: FileSink(path, buffer_bytes=50, **options),
    "pipeline": lambda path, **options: FileSink(path, terminator="\n\n", **options),
}


def _descriptor_of(path) -> int:
    inode = path.stat().st_ino
    found = [int(name) for name in os.listdir("/proc/self/fd") if _inode_of(int(name)) == inode]
    assert len(found) == 1
    return found[0]


def _inode_of(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


def _steal(descriptor: int, kind: str, other) -> None:
    """Have the number stand for something else, as after a close(2) that went wrong."""
    if kind == "pipe":
        reader, thief = os.pipe()
        os.close(reader)
    else:
        thief = os.open(other, {"append": os.O_RDWR | os.O_APPEND, "write": os.O_WRONLY, "read": os.O_RDONLY}[kind])
    os.dup2(thief, descriptor)
    os.close(thief)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["append", "write", "read", "pipe"])
@pytest.mark.parametrize("make", THIEVES)
def test_a_descriptor_whose_number_was_given_away_is_not_written_to(tmp_path, monkeypatch, make, kind):
    """The sink opens its file again and says so; what has the number now gets nothing and stays open."""
    for module in (output, by_time):
        monkeypatch.setattr(module, "VERIFY_SECONDS", 0.0)
    path, other = tmp_path / "app.log", tmp_path / "other"
    other.write_text("somebody's own\n")
    failures = []
    sink = THIEVES[make](path, on_error=failures.append)
    for number in range(7):
        sink.handle({"i": number, "level": "error"})
    descriptor = _descriptor_of(path)
    _steal(descriptor, kind, other)
    stolen = _inode_of(descriptor)
    for number in range(7, 30):
        sink.handle({"i": number, "level": "error"})
    assert sink.close()
    assert other.read_text() == "somebody's own\n"
    assert _inode_of(descriptor) == stolen
    os.close(descriptor)
    files = [file for file in tmp_path.iterdir() if file != other]
    lines = [line for file in files for line in file.read_bytes().splitlines() if line]
    assert sorted(json.loads(line)["i"] for line in lines) == list(range(30))
    assert [failure.events for failure in failures] == [0]
    assert "closed by somebody else" in str(failures[0].error)
    assert sink.stats().delivered == 30


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("step", ["reopen", "do_rollover", "close", "flush"])
@pytest.mark.parametrize("make", ["size", "time", "processes"])
def test_no_step_of_a_sink_touches_a_descriptor_that_is_not_its_own_any_more(tmp_path, make, step):
    """Neither a reopening nor a rollover puts its file under the number, and close does not close it."""
    path, other = tmp_path / "app.log", tmp_path / "other"
    other.write_text("somebody's own\n")
    sink = THIEVES[make](path, on_error=lambda failure: None)
    sink.handle({"i": 1})
    descriptor = _descriptor_of(path)
    _steal(descriptor, "append", other)
    stolen = _inode_of(descriptor)
    getattr(sink, step)()
    sink.handle({"i": 2})
    assert sink.close() or step == "close"
    assert _inode_of(descriptor) == stolen
    os.close(descriptor)


def test_the_descriptor_is_looked_at_once_a_second(tmp_path, monkeypatch):
    """Not with each event; and after a second at the latest nothing goes astray any more."""
    now = 1000.0
    for module in (file_module, output):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    path, other = tmp_path / "app.log", tmp_path / "other"
    other.touch()
    looks = 0
    sink = FileSink(path, on_error=lambda failure: None)
    is_own = sink._is_own

    def counted(descriptor: int) -> bool:
        nonlocal looks
        looks += 1
        return is_own(descriptor)

    monkeypatch.setattr(sink, "_is_own", counted)
    for tenth in range(30):
        now = 1000.0 + tenth / 10
        for _ in range(5):
            sink.handle({"i": tenth})
    assert looks == 2
    descriptor = _descriptor_of(path)
    _steal(descriptor, "append", other)
    now += 1.0
    sink.handle({"i": 30})
    assert path.read_bytes().endswith(b'{"i":30}\n')
    assert other.read_bytes() == b""
    sink.close()
    os.close(descriptor)
