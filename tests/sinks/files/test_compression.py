"""Rotated files compressed in the background."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from outfall import RotatingFileSink, TimedRotatingFileSink
from outfall.sinks.core import flock
from outfall.sinks.errors import MissingDependencyError
from tests.sinks._processes import PATIENCE_SECONDS, check, in_fork, start
from tests.sinks._rotated import by_name, in_order, line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outfall.sinks.core.reporting import SinkFailure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a directory of its own."""
    return tmp_path / "app.log"


@pytest.fixture
def failures() -> list[SinkFailure]:
    """What on_error is told."""
    return []


def _write(sink: RotatingFileSink, *numbers: int) -> None:
    for number in numbers:
        sink.handle(line(number))


def _settle(sink: RotatingFileSink) -> None:
    assert sink._compressor is not None
    assert sink._compressor.wait(PATIENCE_SECONDS)


class Slow:
    """A compressor that hangs until it is let go, and then copies."""

    ending = ".copy"

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.calls: list[tuple[str, str]] = []

    def __call__(self, source: str, destination: str) -> None:
        self.calls.append((source, destination))
        self.begun.set()
        assert self.go.wait(PATIENCE_SECONDS)
        shutil.copyfile(source, destination)


@pytest.fixture
def slow() -> Iterator[Slow]:
    """A slow compressor, let go at the end at the latest."""
    slow = Slow()
    yield slow
    slow.go.set()


METHODS = pytest.mark.parametrize(("method", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
SHARING = pytest.mark.parametrize("sharing", [False, True], ids=["alone", "multiprocess"])


@METHODS
@SHARING
def test_rotated_files_are_compressed_and_shift_as_they_are(path, method, ending, sharing):
    """Each rotated file gets the ending, keeps it up the chain, and close waits for the last."""
    with RotatingFileSink(path, max_bytes=40, backup_count=3, compression=method, multiprocess=sharing) as sink:
        for number in range(11):
            _write(sink, number)
            _settle(sink)
    assert by_name(path.parent) == {
        "app.log": [10],
        f"app.log.1{ending}": [8, 9],
        f"app.log.2{ending}": [6, 7],
        f"app.log.3{ending}": [4, 5],
    }


def test_dated_files_are_compressed_too(path):
    """A name that is taken by a compressed file is not taken again."""
    with TimedRotatingFileSink(path, "midnight", max_bytes=40, compression="gzip") as sink:
        for number in range(7):
            _write(sink, number)
            _settle(sink)
    found = by_name(path.parent)
    assert sorted(found.values()) == [[0, 1], [2, 3], [4, 5], [6]]
    assert sum(name.endswith(".gz") for name in found) == 3


def test_a_callable_compresses_under_its_own_ending(path):
    """The callable gets source and destination, and its attribute says how the name ends."""

    def bzip2(source, destination):
        with Path(source).open("rb") as plain, bz2.open(destination, "wb") as compressed:
            shutil.copyfileobj(plain, compressed)

    bzip2.ending = ".bz2"
    with RotatingFileSink(path, max_bytes=40, backup_count=3, compression=bzip2) as sink:
        for number in range(7):
            _write(sink, number)
            _settle(sink)
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["app.log", "app.log.1.bz2", "app.log.2.bz2", "app.log.3.bz2"]
    assert bz2.decompress(Path(f"{path}.3.bz2").read_bytes()) == b'{"event":"0000000"}\n{"event":"0000001"}\n'


def test_a_callable_without_an_ending_gets_one(path):
    """The default ending is .compressed."""
    with RotatingFileSink(path, max_bytes=20, backup_count=3, compression=shutil.copyfile) as sink:
        _write(sink, 1, 2)
    assert sorted(file.name for file in path.parent.iterdir()) == ["app.log", "app.log.1.compressed"]


@pytest.mark.parametrize("ending", ["", "/", "a/b", None, 7])
def test_an_ending_that_would_cost_the_file_is_refused(path, ending):
    """An empty ending would have the compressed file deleted as the plain one."""

    def compressor(source, destination):
        pass

    compressor.ending = ending
    with pytest.raises(ValueError, match=r"compression=.*ending=" + repr(ending)):
        RotatingFileSink(path, compression=compressor)


def test_zstd_without_zstandard_names_the_extra(path, monkeypatch):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"outfall\[zstd\]"):
        RotatingFileSink(path, compression="zstd")
    assert not path.exists()


@SHARING
def test_no_write_waits_for_it(path, slow, sharing):
    """While a compressor hangs, events are written and files roll over; afterwards the right file is replaced."""
    options = {"compression": slow, "multiprocess": sharing}
    with RotatingFileSink(path, max_bytes=40, backup_count=9, **options) as sink:
        _write(sink, 0, 1, 2)
        assert slow.begun.wait(PATIENCE_SECONDS)
        before = time.monotonic()
        _write(sink, *range(3, 10))
        assert sink.flush(60)
        assert time.monotonic() - before < PATIENCE_SECONDS / 2
        assert by_name(path.parent)["app.log.4"] == [0, 1]
        slow.go.set()
        _settle(sink)
        assert sink.stats().delivered == 10
    assert {name: found for name, found in by_name(path.parent).items() if name != "app.log"} == {
        "app.log.1.copy": [6, 7],
        "app.log.2.copy": [4, 5],
        "app.log.3.copy": [2, 3],
        "app.log.4.copy": [0, 1],
    }


def test_a_callable_that_opens_late_gets_the_right_file(path, slow):
    """Its source stays the same file, while rotation puts another under the name it had."""
    with RotatingFileSink(path, max_bytes=20, backup_count=9, compression=slow) as sink:
        _write(sink, 0, 1)
        assert slow.begun.wait(PATIENCE_SECONDS)
        _write(sink, 2, 3)
        slow.go.set()
        _settle(sink)
    assert {name: found for name, found in by_name(path.parent).items() if name.endswith(".copy")} == {
        "app.log.1.copy": [2],
        "app.log.2.copy": [1],
        "app.log.3.copy": [0],
    }


def test_where_a_file_can_have_no_second_name(path, slow, monkeypatch):
    """The callable gets the name itself; if another file came under it meanwhile the work is done anew."""

    def refuse(*args, **options):
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(os, "link", refuse)
    with RotatingFileSink(path, max_bytes=20, backup_count=9, compression=slow) as sink:
        _write(sink, 0, 1)
        assert slow.begun.wait(PATIENCE_SECONDS)
        _write(sink, 2)
        slow.go.set()
        _settle(sink)
        assert sink.stats().last_error is None
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.copy": [1], "app.log.2.copy": [0]}


def test_a_file_deleted_while_it_is_compressed_stays_deleted(path, slow):
    """Retention wins: the compressed file is thrown away, and nothing is told."""
    with RotatingFileSink(path, max_bytes=20, backup_count=1, compression=slow) as sink:
        _write(sink, 0, 1)
        assert slow.begun.wait(PATIENCE_SECONDS)
        _write(sink, 2)
        slow.go.set()
        _settle(sink)
        assert sink.stats().last_error is None
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.copy": [1]}


def test_time_and_permissions_are_kept(path):
    """The compressed file has the plain one's, which retention goes by and readers rely on."""
    with RotatingFileSink(path, max_bytes=20, backup_count=3, permissions=0o640, compression="gzip") as sink:
        _write(sink, 1)
        os.utime(path, ns=(5, 1_234_567_890_123_456_789))
        _write(sink, 2)
        _settle(sink)
        state = Path(f"{path}.1.gz").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)


def test_equal_events_make_equal_files(path):
    """The gzip header has neither name nor time in it."""
    Path(f"{path}.1").write_bytes(b"x\n")
    RotatingFileSink(path, max_bytes=20, backup_count=3, compression="gzip").close()
    assert Path(f"{path}.1.gz").read_bytes()[3:8] == b"\0" * 5


@SHARING
def test_a_compressor_that_raises_is_told_and_the_plain_file_stays(path, failures, sharing):
    """It costs neither events nor the next files, leaves nothing behind, and is tried again."""

    def compressor(source, destination):
        Path(destination).write_bytes(b"half")
        if broken:
            raise RuntimeError("cannot")
        shutil.copyfile(source, destination)

    compressor.ending = ".copy"
    broken = True
    options = {"compression": compressor, "on_error": failures.append, "multiprocess": sharing}
    with RotatingFileSink(path, max_bytes=20, backup_count=9, **options) as sink:
        _settle(sink)  # with the look of the start, which is none of this
        _write(sink, 0, 1)
        _settle(sink)
        assert by_name(path.parent) == {"app.log": [1], "app.log.1": [0]}
        assert [(str(failure.error), failure.events) for failure in failures] == [("cannot", 0)]
        broken = False
        _write(sink, 2)
        _settle(sink)
        assert sink.stats().delivered == 3
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.copy": [1], "app.log.2.copy": [0]}
    assert len(failures) == 1


@pytest.mark.parametrize("error", [RuntimeError("cannot"), FileNotFoundError(2, "no such program", "xz")])
def test_with_on_error_raise_it_is_reported_and_goes_on(path, capfd, error):
    """Nobody is there to raise to: the failure goes to stderr, and the thread and close are none the worse."""
    calls = []

    def compressor(source, destination):
        calls.append(source)
        raise error

    name = f"audit-{type(error).__name__}"
    with RotatingFileSink(
        path, max_bytes=20, backup_count=9, on_error="raise", compression=compressor, name=name
    ) as sink:
        _settle(sink)  # with the look of the start, which is none of this
        _write(sink, 0, 1)
        _settle(sink)
        _write(sink, 2)
        _settle(sink)
        assert len(calls) == 3
        assert str(error) in str(sink.stats().last_error)
    assert str(error) in capfd.readouterr().err
    assert in_order(path) == [0, 1, 2]


def test_an_on_error_that_exits_does_not_end_compression(path, monkeypatch):
    """Even if the thread dies of it, the next rotation finds it able to begin anew."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    calls = []

    def compressor(source, destination):
        calls.append(source)
        raise RuntimeError

    def leave(failure):
        raise SystemExit

    with RotatingFileSink(path, max_bytes=20, backup_count=9, on_error=leave, compression=compressor) as sink:
        _write(sink, 0, 1)
        _settle(sink)
        first = len(calls)
        assert first
        _write(sink, 2)
        _settle(sink)
    assert len(calls) > first


def test_a_namer_that_raises_in_the_background_is_told(path, failures):
    """What the thread finds out is told like everything else."""
    with RotatingFileSink(path, max_bytes=20, backup_count=9, compression="gzip", on_error=failures.append) as sink:

        def namer(name):
            if threading.current_thread().name == "outfall-compressor":
                raise RuntimeError("no name")
            return name

        _settle(sink)  # with the look of the start, which is none of this
        sink.namer = namer
        _write(sink, 0, 1)
        _settle(sink)
        assert [(str(failure.error), failure.events) for failure in failures] == [("no name", 0)]
        sink.namer = None
        _write(sink, 2)
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.gz": [1], "app.log.2.gz": [0]}


def test_a_file_system_without_locks_is_fine_for_one_process(path, failures, monkeypatch):
    """Only multiprocess needs flock(); compression alone does without."""

    def refuse(descriptor, **options):
        raise OSError(37, "no locks")

    monkeypatch.setattr(flock, "try_lock", refuse)
    with RotatingFileSink(path, max_bytes=20, backup_count=9, compression="gzip", on_error=failures.append) as sink:
        _write(sink, 0, 1)
    assert by_name(path.parent) == {"app.log": [1], "app.log.1.gz": [0]}
    assert failures == []


# -- ending


def test_close_keeps_its_time(path, slow):
    """A compressor that hangs holds close up no longer than its timeout, and no event is given up."""
    sink = RotatingFileSink(path, max_bytes=20, backup_count=9, compression=slow)
    _write(sink, 0, 1)
    assert slow.begun.wait(PATIENCE_SECONDS)
    before = time.monotonic()
    assert sink.close(0.1)
    assert 0.1 <= time.monotonic() - before < PATIENCE_SECONDS / 2
    slow.go.set()
    _settle(sink)
    assert by_name(path.parent) == {"app.log": [1], "app.log.1.copy": [0]}


def test_the_exit_of_the_process_waits_for_it(path):
    """Files that are still being compressed as the program ends are finished, within the exit's deadline."""
    script = """
        import shutil, sys, threading, time
        from outfall import RotatingFileSink
        def compressor(source, destination):
            time.sleep(0.1)
            shutil.copyfile(source, destination)
        compressor.ending = ".copy"
        sink = RotatingFileSink(sys.argv[1], max_bytes=20, backup_count=9, compression=compressor)
        for number in range(3):
            sink.handle({"event": f"{number:07}"})
    """
    check(script, path)
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.copy": [1], "app.log.2.copy": [0]}


def test_no_thread_lives_longer_than_the_work(path):
    """The thread is there while there is something to do, and at a start with nothing to do no longer than a look."""
    with RotatingFileSink(path, max_bytes=20, backup_count=9, compression="gzip") as sink:
        _settle(sink)
        _write(sink, 0, 1)
        _settle(sink)
        assert sink._compressor._thread is None


def test_where_no_thread_can_be_started_the_next_start_finishes(path, failures, monkeypatch):
    """At the interpreter's end nothing is told, lost or waited for."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with RotatingFileSink(path, max_bytes=20, backup_count=9, compression="gzip", on_error=failures.append) as sink:
        _write(sink, 0, 1)
    assert by_name(path.parent) == {"app.log": [1], "app.log.1": [0]}
    monkeypatch.undo()
    RotatingFileSink(path, max_bytes=20, backup_count=9, compression="gzip").close()
    assert by_name(path.parent) == {"app.log": [1], "app.log.1.gz": [0]}
    assert failures == []


def test_a_process_that_can_import_nothing_any_more_compresses(tmp_path):
    """It has changed its root directory or given up its rights after the sink was made."""
    check(
        """
        import sys
        from outfall import RotatingFileSink
        sink = RotatingFileSink(sys.argv[1], max_bytes=20, backup_count=9, compression="gzip", on_error="raise")
        sys.path[:] = []
        sink.handle({"event": "1", "level": "info"})
        sink.handle({"event": "2", "level": "info"})
        assert sink.close()
        """,
        tmp_path / "app.log",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.log", "app.log.1.gz"]


# -- starting again


@METHODS
def test_a_start_compresses_what_was_left(path, method, ending):
    """Plain files of an earlier process are compressed, those with any known ending are left as they are."""
    for number in (1, 2, 4):
        Path(f"{path}.{number}").write_text(f'{{"event":"{number}"}}\n')
    Path(f"{path}.3.gz").write_bytes(gzip.compress(b'{"event":"3"}\n'))
    RotatingFileSink(path, max_bytes=1000, backup_count=9, compression=method).close()
    assert by_name(path.parent) == {
        "app.log": [],
        f"app.log.1{ending}": [1],
        f"app.log.2{ending}": [2],
        "app.log.3.gz": [3],
        f"app.log.4{ending}": [4],
    }


@SHARING
@pytest.mark.parametrize("rolls_first", [False, True])
def test_a_kill_between_the_steps_of_placing_is_finished(path, sharing, rolls_first):
    """If both files stand there the plain one goes, even if a rollover moves them first: each event is there once."""
    options = {"max_bytes": 20, "backup_count": 9, "multiprocess": sharing}
    plain = Path(f"{path}.1")
    plain.write_text('{"event":"1"}\n')
    compressed = Path(f"{path}.1.gz")
    compressed.write_bytes(gzip.compress(plain.read_bytes()))
    state = plain.stat()
    os.utime(compressed, ns=(state.st_atime_ns, state.st_mtime_ns))
    if rolls_first:
        with RotatingFileSink(path, **options, delay=True) as sink:
            sink._told_failure = ""
    with RotatingFileSink(path, **options, compression="gzip") as sink:
        _write(sink, 2, 3)
    assert by_name(path.parent) == {"app.log": [3], "app.log.1.gz": [2], "app.log.2.gz": [1]}


def test_two_files_that_differ_are_both_kept(path):
    """A compressed file that was not made of the plain one beside it is no reason to delete anything."""
    Path(f"{path}.1").write_text('{"event":"1"}\n')
    Path(f"{path}.1.gz").write_bytes(gzip.compress(b'{"event":"2"}\n'))
    os.utime(f"{path}.1.gz", ns=(1, 1))
    RotatingFileSink(path, max_bytes=1000, backup_count=9, compression="gzip").close()
    assert by_name(path.parent) == {"app.log": [], "app.log.1": [1], "app.log.1.gz": [2]}


def test_a_start_takes_away_what_a_kill_has_left(path):
    """Unfinished files go, with a namer too, except those of a process that is still at it, and other sinks'."""
    left = [path.with_name(name) for name in (".app.log.17.outfall-tmp", ".app.log.18.source.outfall-tmp")]
    kept = [path.with_name(name) for name in (".other.log.17.outfall-tmp", ".app.log.17.tmp", "app.log.17.outfall-tmp")]
    busy = path.with_name(".app.log.19.outfall-tmp")
    for file in (*left, *kept, busy):
        file.touch()
    descriptor = os.open(busy, os.O_WRONLY)
    try:
        assert flock.try_lock(descriptor)
        RotatingFileSink(
            path, max_bytes=20, backup_count=2, compression="gzip", namer=lambda name: f"{name}.old"
        ).close()
    finally:
        os.close(descriptor)
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(file.name for file in (*kept, busy, path))


def test_what_is_unfinished_goes_by_the_name_of_the_sinks_own_file(path, slow):
    """A namer's names do not hide it from the next start."""
    archive = path.parent / "archive"
    archive.mkdir()
    options = {"max_bytes": 20, "backup_count": 9, "namer": lambda name: archive / f"old-{Path(name).name}"}
    with RotatingFileSink(path, compression=slow, **options) as sink:
        _write(sink, 0, 1)
        assert slow.begun.wait(PATIENCE_SECONDS)
        [(source, destination)] = slow.calls
        assert Path(destination).name.startswith(".app.log.")
        assert Path(source).name.startswith(".app.log.")
        assert {Path(source).parent, Path(destination).parent} == {archive}
        slow.go.set()
    assert sorted(file.name for file in archive.iterdir()) == ["old-app.log.1.copy"]


KILLED = """
    import os, sys
    from outfall import RotatingFileSink
    path, first, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    sink = RotatingFileSink(path, max_bytes=400, backup_count=100_000, on_error="raise", **options)
    for number in range(first, first + 100_000):
        sink.handle({"event": f"{number:07}"})
        os.write(1, b"%d\\n" % number)
"""


@SHARING
def test_a_kill_at_any_instant_is_mended_by_the_next_start(path, sharing):
    """Killed while it rotates and compresses all the time: each event is there once, compressed, and nothing else."""
    chance = random.Random(11)
    options: dict[str, Any] = {"multiprocess": sharing, "compression": "gzip"}
    for round_ in range(5):
        first = round_ * 1_000_000
        child = start(KILLED, path, first, repr(options), stdout=subprocess.PIPE)
        try:
            enough = chance.randrange(1000, 4000)
            read = b""
            while len(read) < enough:
                read += os.read(child.stdout.fileno(), 64)
            child.kill()
            rest, _ = child.communicate(timeout=PATIENCE_SECONDS)
        finally:
            child.kill()
            child.wait(PATIENCE_SECONDS)
        acknowledged = [int(number) for number in (read + rest).split(b"\n")[:-1]]
        with RotatingFileSink(path, max_bytes=400, backup_count=100_000, on_error="raise", **options) as sink:
            _settle(sink)
        found = in_order(path)
        assert found in (acknowledged, [*acknowledged, acknowledged[-1] + 1])
        for file in path.parent.iterdir():
            assert file == path or file.suffix == ".gz"
            file.unlink()


SLOW_GZIP = """
    import os, sys, threading
    from outfall import RotatingFileSink
    from outfall.sinks.files import compression
    path, instant = sys.argv[1:]
    written = threading.Event()

    def die():
        written.wait(60)
        os.write(1, b"x")
        os.kill(os.getpid(), 9)

    if instant == "compressing":
        def half(source, destination):
            with open(destination, "wb") as file:
                file.write(b"half of it")
            die()
        compression._gzip = half
    elif instant == "before":
        os.replace, replace = (lambda a, b: die() if str(b).endswith(".gz") else replace(a, b)), os.replace
    elif instant == "between":
        os.unlink, unlink = (lambda a: die() if a == path + ".1" else unlink(a)), os.unlink
    sink = RotatingFileSink(path, max_bytes=40, backup_count=9, compression="gzip", multiprocess=True)
    for number in range(3):
        sink.handle({"event": f"{number:07}"})
    written.set()
    sink._compressor.wait(60)
"""


@pytest.mark.parametrize("instant", ["compressing", "before", "between"])
def test_a_kill_at_each_instant_is_mended_by_the_next_start(path, instant):
    """In the midst of compressing, before the compressed file is placed, and before the plain one goes."""
    child = start(SLOW_GZIP, path, instant, stdout=subprocess.PIPE)
    try:
        out, _ = child.communicate(timeout=PATIENCE_SECONDS)
    finally:
        child.kill()
        child.wait(PATIENCE_SECONDS)
    assert (child.returncode, out) == (-9, b"x")
    left = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
    assert left == ["app.log", "app.log.1", *(["app.log.1.gz"] if instant == "between" else [])]
    RotatingFileSink(path, max_bytes=40, backup_count=9, compression="gzip", multiprocess=True).close()
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.gz": [0, 1]}


# -- forks, and other processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@SHARING
def test_a_fork_while_compressing(path, slow, sharing):
    """The child has no part in its parent's work and does its own; the parent's is finished by the parent."""
    options = {"compression": slow, "multiprocess": sharing, "on_error": lambda failure: None}
    with RotatingFileSink(path, max_bytes=40, backup_count=9, **options) as sink:
        _write(sink, 0, 1, 2)
        assert slow.begun.wait(PATIENCE_SECONDS)
        held = set(sink._compressor._held)
        assert held

        def child():
            for descriptor in held:
                with pytest.raises(OSError, match="descriptor"):
                    os.fstat(descriptor)
            assert sink._compressor.wait(0)
            assert sink.close(60)

        in_fork(child)
        slow.go.set()
        _settle(sink)
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.copy": [0, 1]}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_outlives_its_parents_gzip_keeps_no_lock(path, monkeypatch):
    """Forked in the midst of it, it does not keep others from compressing the file."""
    begun, go = threading.Event(), threading.Event()
    from outfall.sinks.files import compression

    real = compression._zstd

    def hanging(source, destination):
        begun.set()
        assert go.wait(PATIENCE_SECONDS)
        real(source, destination)

    monkeypatch.setattr(compression, "_zstd", hanging)
    with RotatingFileSink(path, max_bytes=40, backup_count=9, compression="zstd", multiprocess=True) as sink:
        _write(sink, 0, 1, 2)
        assert begun.wait(PATIENCE_SECONDS)
        before = {str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in _descriptors_of(path)}
        assert f"{path}.1" in before

        def child():
            assert f"{path}.1" not in {str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in _descriptors_of(path)}

        try:
            if Path("/proc/self/fd").is_dir():
                in_fork(child)
        finally:
            go.set()
    assert by_name(path.parent) == {"app.log": [2], "app.log.1.zst": [0, 1]}


def _descriptors_of(path: Path) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()).startswith(str(path)):
                found.append(link.name)
        except OSError:
            continue
    return found


def test_a_file_that_another_process_still_writes_to_waits_for_it(path):
    """With multiprocess, a rotated file is compressed when the last of its writers has moved on."""
    options = {"max_bytes": 40, "backup_count": 9, "compression": "gzip", "multiprocess": True}
    with RotatingFileSink(path, **options) as idle, RotatingFileSink(path, **options) as busy:
        _write(idle, 0)
        _write(busy, 1, 2)
        _settle(busy)
        assert by_name(path.parent) == {"app.log": [2], "app.log.1": [0, 1]}
        _write(idle, 3)
        _settle(idle)
        _settle(busy)
        assert by_name(path.parent) == {"app.log": [2, 3], "app.log.1.gz": [0, 1]}
