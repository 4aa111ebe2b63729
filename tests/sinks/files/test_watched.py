"""A file that others move, delete and truncate."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from outfall import FileSink, Sink, SinkFailure, WatchedFileSink
from outfall.sinks.files import copytruncate as truncation
from outfall.sinks.files import watched
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._processes import in_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TestWatchedFileSink(SinkContract):
    """A file that is watched."""

    options: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole by subclasses

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "events.jsonl"

    def make_sink(self, **options: Any) -> Sink:
        return WatchedFileSink(self.path, **self.options, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class TestBufferedWatchedFileSink(TestWatchedFileSink):
    """A file that is watched, with a buffer."""

    options = {"buffer_bytes": 4096}  # noqa: RUF012


class Watching:
    """A sink on ``app.log``, what it reported, and what it is made for."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.path = directory / "app.log"
        self.failures: list[SinkFailure] = []
        self.sink = WatchedFileSink(self.path, **{"on_error": self.failures.append, **options})

    def log(self, *numbers: int) -> None:
        for number in numbers:
            self.sink.handle({"event": "counted", "level": "info", "number": number})

    def rotate(
        self,
        *between: int,
        copy: str = "app.log.1",
        opener: Callable[..., Any] = open,
        cut: int = 0,
        log: Callable[..., None] | None = None,
    ) -> Path:
        """Copy, all but *cut* bytes, and truncate, as ``copytruncate`` does, while the numbers *between* are logged."""
        target = self.path.with_name(copy)
        content = self.path.read_bytes()
        with opener(target, "wb") as file:
            file.write(content[: len(content) - cut])
        (log or self.log)(*between)
        os.truncate(self.path, 0)
        return target


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    """Give a sink on ``app.log`` in a directory of its own."""
    made = Watching(tmp_path)
    yield made
    made.sink.close()
    assert_balanced(made.sink.stats())


def numbers(path: Path, opener: Callable[..., Any] = open) -> list[int]:
    """Return the numbers of the events in a file, each of which is whole."""
    with opener(path, "rb") as file:
        content = file.read()
    assert not content or content.endswith(b"\n")
    return [json.loads(line)["number"] for line in content.splitlines()]


# -- the real rotator

_SECONDS_OF_ROTATION = 0.3


def _rotate_for_a_while(
    sink: Sink, logrotate: str, directory: Path, directives: str, seconds: float = _SECONDS_OF_ROTATION
) -> tuple[int, int]:
    """Have four threads write while logrotate is forced again and again; return how many events, how many rotations."""
    configuration, state = directory / "logrotate.conf", directory / "state"
    own = "" if os.geteuid() else "su root root\n"
    configuration.write_text(f'"{directory}/logs/app.log" {{\n{own}rotate 1000\nmissingok\n{directives}\n}}\n')
    configuration.chmod(0o644)
    stop = threading.Event()
    counts = [0] * 4

    def write(thread: int) -> None:
        while not stop.is_set():
            sink.handle({"event": "x" * (counts[thread] % 200), "thread": thread, "number": counts[thread]})
            counts[thread] += 1

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    rotations = 0
    deadline = time.monotonic() + seconds
    try:
        while rotations < 5 or time.monotonic() < deadline:
            subprocess.run([logrotate, "-f", "-s", state, configuration], check=True, timeout=30)
            rotations += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return sum(counts), rotations


def _events_in(directory: Path) -> tuple[Counter[tuple[int, int]], int]:
    """Return the events in the files of *directory* by how often, and how many lines are torn."""
    found: Counter[tuple[int, int]] = Counter()
    torn = 0
    for path in directory.iterdir():
        content = path.read_bytes()
        for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines(keepends=True):
            try:
                event = json.loads(line)
                found[event["thread"], event["number"]] += 1
                torn += not line.endswith(b"\n")
            except ValueError:
                torn += 1
    return found, torn


@pytest.mark.service
@pytest.mark.parametrize("directives", ["create", "nocreate", "copytruncate", "copytruncate\ncompress"])
def test_logrotate_costs_no_event(directives, tmp_path, require_service):
    """While logrotate is forced again and again each event of four threads comes to stand in exactly one file."""
    logrotate = require_service("logrotate")
    (tmp_path / "logs").mkdir(mode=0o755)
    failures: list[SinkFailure] = []
    with WatchedFileSink(tmp_path / "logs" / "app.log", on_error=failures.append) as sink:
        events, rotations = _rotate_for_a_while(sink, logrotate, tmp_path, directives)
    found, torn = _events_in(tmp_path / "logs")
    assert rotations >= 5
    assert failures == []
    assert len(found) == events == sink.stats().delivered
    assert set(found.values()) == {1}
    # The half line at the end of a copy that logrotate has compressed already cannot be cut off; its event is whole in
    # the next file. See the how-to.
    assert torn == 0 or "compress" in directives


# -- the path


def test_a_moved_file_is_left_and_the_path_opened_anew(watching):
    """What comes after a move is in a new file under the old name, from the first event on."""
    watching.log(1)
    moved = watching.path.rename(watching.path.with_name("moved"))
    watching.log(2, 3)
    assert (numbers(moved), numbers(watching.path)) == ([1], [2, 3])
    assert watching.failures == []


def test_a_deleted_file_is_made_anew(watching, monkeypatch):
    """What comes after a deletion is in a new file, at once, and nothing from before is."""
    monkeypatch.setattr(watched.time, "sleep", lambda _: pytest.fail("waits for nobody"))
    watching.log(1)
    watching.path.unlink()
    watching.log(2, 3)
    assert numbers(watching.path) == [2, 3]
    assert watching.failures == []


@pytest.mark.parametrize("field", ["st_dev", "st_ino"])
def test_device_and_inode_both_tell_files_apart(field, watching, monkeypatch):
    """Another file is noticed if only its device differs, and if only its inode does."""
    watching.log(1)
    mine = watching.path.stat()
    moved = watching.path.rename(watching.path.with_name("moved"))
    watching.path.touch()
    index = {"st_ino": 1, "st_dev": 2}[field]
    lookalike = list(mine)
    lookalike[index] += 1
    looks = iter([os.stat_result(lookalike)] * 2)
    monkeypatch.setattr(watched, "_stat", lambda path: next(looks, None) or Path(path).stat())
    watching.log(2)
    assert (numbers(moved), numbers(watching.path)) == ([1], [2])


def _make_directory(path: Path) -> None:
    path.mkdir()


def _make_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("no-such-directory") / "app.log")


def _remove_obstacle(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("obstacle", [_make_directory, _make_dangling_link])
def test_while_the_path_cannot_be_opened_the_old_file_is_written(obstacle, watching):
    """A directory or a dangling link in the file's place is told once; events go on to the old file till it is gone."""
    watching.log(1)
    moved = watching.path.rename(watching.path.with_name("moved"))
    obstacle(watching.path)
    watching.log(2, 3, 4)
    assert numbers(moved) == [1, 2, 3, 4]
    [failure] = watching.failures
    assert isinstance(failure.error, OSError)
    assert failure.events == 0
    _remove_obstacle(watching.path)
    watching.log(5)
    assert numbers(watching.path) == [5]
    assert numbers(moved) == [1, 2, 3, 4]
    # Another time is told again.
    watching.path.rename(moved)
    obstacle(watching.path)
    watching.log(6, 7)
    assert numbers(moved) == [5, 6, 7]
    assert len(watching.failures) == 2
    assert watching.sink.stats().delivered == 7
    _remove_obstacle(watching.path)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions are those of POSIX")
def test_permissions_lost_and_regained():
    """Without the right to enter the directory the sink writes on, tells once, and comes back by itself."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    user = os.geteuid()
    try:
        directory.chmod(0o777)
        if user == 0:
            os.seteuid(65534)  # nobody: root may do anything
        (directory / "logs").mkdir()
        made = Watching(directory / "logs")
        made.log(1)
        made.path.parent.chmod(0)
        made.log(2, 3)
        assert [(type(failure.error), failure.events) for failure in made.failures] == [(PermissionError, 0)]
        made.path.parent.chmod(0o755)
        made.log(4)
        assert numbers(made.path) == [1, 2, 3, 4]
        made.path.rename(made.path.with_name("moved"))
        made.path.touch(0)
        made.log(5)
        assert numbers(made.path.with_name("moved")) == [1, 2, 3, 4, 5]
        made.path.chmod(0o644)
        made.log(6)
        assert numbers(made.path) == [6]
        assert len(made.failures) == 2
        assert made.sink.close()
    finally:
        os.seteuid(user)
        shutil.rmtree(directory)


def test_what_a_deleted_file_got_is_written_again(tmp_path):
    """While the whole directory is gone events are kept, and put into the new file."""
    (tmp_path / "logs").mkdir()
    made = Watching(tmp_path / "logs")
    made.log(1)
    shutil.rmtree(tmp_path / "logs")
    made.log(2, 3)
    assert len(made.failures) == 1
    (tmp_path / "logs").mkdir()
    made.log(4)
    assert numbers(made.path) == [2, 3, 4]
    assert made.sink.close()
    assert (made.sink.stats().delivered, len(made.failures)) == (4, 1)


def test_what_a_deleted_file_got_and_nobody_can_save_is_counted(tmp_path):
    """If the directory does not come back, close says how many events went down with the file."""
    (tmp_path / "logs").mkdir()
    made = Watching(tmp_path / "logs")
    made.log(1)
    shutil.rmtree(tmp_path / "logs")
    made.log(2, 3)
    made.sink.close()
    stats = made.sink.stats()
    assert (stats.delivered, stats.dropped) == (1, {"error": 2})
    assert [failure.events for failure in made.failures] == [0, 2]
    assert_balanced(stats)


def test_what_a_deleted_file_got_beyond_what_is_kept_is_counted(tmp_path):
    """Only the last keep_bytes can be written again; the rest is lost and told."""
    (tmp_path / "logs").mkdir()
    made = Watching(tmp_path / "logs", keep_bytes=120)
    made.log(1)
    shutil.rmtree(tmp_path / "logs")
    made.log(2, 3, 4)
    (tmp_path / "logs").mkdir()
    made.log(5)
    assert numbers(made.path) == [3, 4, 5]
    made.sink.close()
    assert made.sink.stats().dropped == {"error": 1}
    assert [failure.events for failure in made.failures] == [0, 1]


def test_whoever_moved_the_file_may_make_it_anew(watching, monkeypatch):
    """The sink leaves the mover a moment, so that logrotate's O_EXCL succeeds, and then writes to that file."""
    watching.log(1)
    watching.path.rename(watching.path.with_name("moved"))
    slept: list[float] = []

    def create(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            os.close(os.open(watching.path, os.O_CREAT | os.O_EXCL, 0o640))

    monkeypatch.setattr(watched.time, "sleep", create)
    watching.log(2)
    assert len(slept) == 3
    assert numbers(watching.path) == [2]
    assert watching.path.stat().st_mode & 0o777 == 0o640


def test_reopen_if_needed_can_be_called_and_overridden(tmp_path):
    """It reopens without an event, and a subclass's own is asked before each event."""
    calls: list[bool] = []

    class Mine(WatchedFileSink):
        def reopen_if_needed(self) -> None:
            calls.append(True)
            super().reopen_if_needed()

    path = tmp_path / "app.log"
    with Mine(path, on_error="raise") as sink:
        path.unlink()
        sink.reopen_if_needed()
        assert path.exists()
        sink.handle({"event": "one", "number": 1})
        sink.handle({"event": "two", "number": 2})
        assert len(calls) == 3
    sink.reopen_if_needed()
    path.unlink()
    sink.reopen_if_needed()
    assert not path.exists()


def test_an_application_that_wants_to_be_raised_at_is(tmp_path):
    """With on_error="raise" the caller learns that the path is lost, once, and the event is written all the same."""
    made = Watching(tmp_path, on_error="raise")
    made.log(1)
    made.path.rename(tmp_path / "moved")
    made.path.mkdir()
    with pytest.raises(IsADirectoryError):
        made.log(2)
    made.log(3)
    assert numbers(tmp_path / "moved") == [1, 2, 3]
    made.sink.close()
    assert made.sink.stats().dropped == {}


def test_on_error_is_called_without_the_lock(tmp_path):
    """Another thread can log while on_error is told that the path is lost."""
    done: list[bool] = []

    def tell(_failure: SinkFailure) -> None:
        thread = threading.Thread(target=made.log, args=(9,))
        thread.start()
        thread.join(60)
        done.append(not thread.is_alive())

    made = Watching(tmp_path, on_error=tell)
    made.path.rename(tmp_path / "moved")
    made.path.mkdir()
    made.log(1)
    assert done == [True]
    assert numbers(tmp_path / "moved") == [1, 9]
    made.sink.close()


def test_four_threads_lose_nothing_to_a_file_moved_again_and_again(tmp_path):
    """Each event of four threads is in exactly one of the files that were moved away meanwhile."""
    made = Watching(tmp_path)
    stop = threading.Event()
    counts = [0] * 4

    def write(thread: int) -> None:
        while not stop.is_set():
            made.sink.handle({"event": "moved", "thread": thread, "number": counts[thread]})
            counts[thread] += 1

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for number in range(30):
        time.sleep(0.005)
        if made.path.exists():
            made.path.rename(tmp_path / f"app.log.{number}")
    stop.set()
    for thread in threads:
        thread.join()
    made.sink.close()
    found, torn = _events_in(tmp_path)
    assert (len(found), set(found.values()), torn, made.failures) == (sum(counts), {1}, 0, [])


# -- copytruncate


def test_what_came_between_copy_and_truncation_is_written_again(watching):
    """Events that stand neither in the copy nor in the file are written again, before the next, once and in order."""
    watching.log(1, 2)
    copy = watching.rotate(3, 4)
    watching.log(5)
    assert (numbers(copy), numbers(watching.path)) == ([1, 2], [3, 4, 5])
    copy.rename(copy.with_name("app.log.2"))
    watching.log(6)
    copy = watching.rotate(7)
    watching.log(8)
    assert (numbers(copy), numbers(watching.path)) == ([3, 4, 5, 6], [7, 8])
    assert watching.failures == []
    assert watching.sink.stats().delivered == 8


def test_nothing_is_written_again_that_the_copy_holds(watching):
    """A truncation right after the copy repeats nothing and is not told."""
    watching.log(1, 2)
    copy = watching.rotate()
    watching.log(3)
    assert (numbers(copy), numbers(watching.path)) == ([1, 2], [3])
    assert watching.failures == []


@pytest.mark.parametrize("finish", ["flush", "close"])
def test_truncation_is_noticed_without_another_event(finish, watching):
    """flush and close write again what is missing."""
    watching.log(1)
    copy = watching.rotate(2)
    assert getattr(watching.sink, finish)()
    assert (numbers(copy), numbers(watching.path)) == ([1], [2])
    assert watching.failures == []


def test_half_an_event_in_the_copy_is_cut_off_and_the_event_written_again(watching):
    """An event of which the copy got a part comes to stand in the file, whole, and nowhere else."""
    watching.log(1, 2)
    copy = watching.rotate(3, cut=7)
    modified = copy.stat().st_mtime_ns
    watching.log(4)
    assert (numbers(copy), numbers(watching.path)) == ([1], [2, 3, 4])
    assert copy.stat().st_mtime_ns == modified


@pytest.mark.parametrize(
    ("name", "opener"),
    [
        ("app.log.1.gz", gzip.open),
        ("app.log-20300101.bz2", bz2.open),
        ("app.log.1.xz", lzma.open),
        ("app.1.log", open),
    ],
)
def test_copies_are_known_by_content_under_any_name(name, opener, watching):
    """A copy that is compressed already, or named by logrotate's dateext or extension, tells as much."""
    watching.log(1, 2)
    copy = watching.rotate(3, copy=name, opener=opener)
    watching.log(4)
    assert (numbers(copy, opener), numbers(watching.path)) == ([1, 2], [3, 4])
    assert watching.failures == []


def test_an_empty_copy_of_an_empty_file_is_a_copy(watching):
    """Where nothing had been written when the copy was made, all is written again."""
    copy = watching.rotate(1, 2)
    watching.log(3)
    assert (numbers(copy), numbers(watching.path)) == ([], [1, 2, 3])
    assert watching.failures == []


def test_without_a_copy_nothing_is_guessed(watching):
    """A truncation without a copy is told once, as costing no event that is known, and nothing is written again."""
    watching.log(1, 2)
    os.truncate(watching.path, 0)
    watching.log(3, 4)
    assert numbers(watching.path) == [3, 4]
    [failure] = watching.failures
    assert "was truncated" in str(failure.error)
    assert failure.events == 0


@pytest.mark.parametrize("content", [b"", b"{", b"1234\n", b'{"event":"another","level":"info","number":1}\n'])
def test_another_file_with_such_a_name_is_no_copy(content, watching):
    """Files that begin with the same name and hold something else, or nothing, are not taken for the copy."""
    watching.log(1, 2)
    other = watching.path.with_name("app.pid")
    other.write_bytes(content)
    # The clock of the file system may be some milliseconds behind.
    os.utime(other, (time.time() + 1, time.time() + 1))
    os.truncate(watching.path, 0)
    watching.log(3)
    assert len(watching.failures) == 1
    assert numbers(watching.path) == [3]


def test_a_copy_made_for_another_purpose_is_too_old(watching, monkeypatch):
    """What was copied long before the truncation says nothing about it."""
    watching.log(1)
    copy = watching.rotate(2)
    old = time.time() - truncation.COPY_MAX_AGE_SECONDS - 60
    os.utime(copy, (old, old))
    watching.sink._since_ns = 0
    watching.log(3)
    assert numbers(watching.path) == [3]
    assert len(watching.failures) == 1


def test_the_copy_of_the_last_rotation_is_not_taken_for_this_one(tmp_path):
    """Lines that are all alike do not make an old copy, longer than the new one, look like it."""
    path = tmp_path / "app.log"
    with WatchedFileSink(path, on_error="raise") as sink:
        line = {"event": "tick"}
        same = time.time() + 1  # the clock of a file system may stand still for some milliseconds
        for copied, between in [(3, 0), (2, 2)]:
            for _ in range(copied):
                sink.handle(line)
            copy = tmp_path / "app.log.1"
            if copy.exists():
                copy.rename(tmp_path / "app.log.2")
            copy.write_bytes(path.read_bytes())
            os.utime(copy, (same, same))
            for _ in range(between):
                sink.handle(line)
            os.truncate(path, 0)
            sink.flush()
        lines = {file.name: len(file.read_bytes().splitlines()) for file in tmp_path.iterdir()}
    assert lines == {"app.log.2": 3, "app.log.1": 2, "app.log": 2}


def test_a_copy_from_before_the_file_was_opened_is_none_of_it(tmp_path):
    """Lines that are all alike do not make an earlier process's rotated file look like the copy."""
    path, old, copy = (tmp_path / name for name in ("app.log", "app.log.2", "app.log.1"))
    line = {"event": "tick"}
    old.write_bytes(b'{"event":"tick"}\n' * 3)
    os.utime(old, (time.time() - 60, time.time() - 60))
    with WatchedFileSink(path, on_error="raise") as sink:
        sink.handle(line)
        copy.write_bytes(path.read_bytes())
        for _ in range(3):
            sink.handle(line)
        os.truncate(path, 0)
    assert path.read_bytes() == b'{"event":"tick"}\n' * 3


def test_the_longest_copy_is_the_one(watching):
    """Copies that somebody made earlier of the same file hold less, and do not make events come out twice."""
    for number, name in enumerate(["app.log.z", "app.log.a", "app.log.m"], 1):
        watching.log(number)
        shutil.copyfile(watching.path, watching.path.with_name(name))
    longer = watching.rotate(4)
    for name in ("app.log.0", "app.log.zz"):
        watching.path.with_name(name).write_bytes(longer.read_bytes()[:50])
    watching.log(5)
    assert numbers(watching.path) == [4, 5]


def test_a_copy_begun_before_the_last_truncation_was_noticed(watching, monkeypatch):
    """A rotator at work again before an event came has copied an empty file: all since then is written again."""
    watching.log(2)
    copied = shutil.copyfile(watching.path, watching.path.with_name("app.log.2"))
    second = watching.path.with_name("app.log.1")

    def rotate() -> None:
        os.truncate(watching.path, 0)
        second.touch()

    _truncate_between_look_and_write(watching, monkeypatch, rotate)
    watching.log(3)
    # Later than the second copy, by any clock, and noticed after that.
    for path, seconds in ((copied, -2), (second, -1)):
        when = time.time() + seconds
        os.utime(path, (when, when))
    watching.sink._since_ns = 0
    watching.sink.flush()
    watching.log(4)
    os.truncate(watching.path, 0)
    watching.log(5)
    assert (numbers(copied), numbers(watching.path)) == ([2], [3, 4, 5])
    assert watching.failures == []


def test_a_file_truncated_and_then_moved_is_put_right_first(watching):
    """What a truncation took is written to the file that it was taken from, though the path leads elsewhere now."""
    watching.log(1)
    copy = watching.rotate(2)
    moved = watching.path.rename(watching.path.with_name("moved"))
    watching.log(3)
    assert (numbers(copy), numbers(moved), numbers(watching.path)) == ([1], [2], [3])


def test_what_stands_in_the_file_must_be_ours(watching):
    """Another's line, as long as the last event, is not taken for that event."""
    watching.log(1)
    watching.rotate(2)
    watching.path.write_bytes(b"x" * (len(watching.path.with_name("app.log.1").read_bytes()) - 1) + b"\n")
    watching.log(3)
    assert watching.path.read_bytes().count(b"\n") == 2
    assert len(watching.failures) == 1


def test_a_truncation_while_the_file_is_looked_at(watching, monkeypatch):
    """A second truncation in the midst of putting the first right is seen."""
    watching.log(1)
    copy = watching.rotate(2)
    real = WatchedFileSink._stands
    with watching.path.open("ab") as file:
        file.write(b"y\n")

    def stands(sink: WatchedFileSink, *args: Any) -> bool:
        answer = real(sink, *args)
        os.truncate(watching.path, 0)
        return answer

    monkeypatch.setattr(WatchedFileSink, "_stands", stands)
    watching.log(3)
    assert (numbers(copy), numbers(watching.path)) == ([1], [2, 3])
    assert watching.failures == []


@pytest.mark.parametrize("by", ["flush", "close", "emit_batch", "reopen", "reopen_if_needed"])
def test_whoever_notices_tells(by, watching):
    """A truncation that cannot be put right is told by whatever call has noticed it."""
    watching.log(1)
    os.truncate(watching.path, 0)
    getattr(watching.sink, by)(*([[]] if by == "emit_batch" else []))
    assert len(watching.failures) == 1


def test_a_failed_write_does_not_keep_other_failures_back(watching, monkeypatch):
    """That the path is lost is told although the event could not be written to the old file either."""
    watching.path.rename(watching.path.with_name("moved"))
    watching.path.mkdir()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr("outfall.sinks.files.output._os_write", refuse)
        watching.log(1)
    assert sorted((failure.events, failure.error.errno) for failure in watching.failures) == [
        (0, errno.EISDIR),
        (1, errno.ENOSPC),
    ]


def test_flush_brings_back_what_a_deleted_file_got(tmp_path):
    """Events that wait for the path to come back do not wait for another event."""
    (tmp_path / "logs").mkdir()
    made = Watching(tmp_path / "logs")
    shutil.rmtree(tmp_path / "logs")
    made.log(1)
    (tmp_path / "logs").mkdir()
    assert made.sink.flush()
    assert numbers(made.path) == [1]
    made.sink.close()


def test_a_child_does_not_write_the_parents_events_again(watching):
    """What was missed before a fork is the parent's to write again, or to tell of."""
    watching.log(1)
    copy = shutil.copyfile(watching.path, watching.path.with_name("app.log.1"))
    watching.log(2)

    def child() -> None:
        os.truncate(watching.path, 0)
        watching.log(3)
        assert watching.sink.close()

    in_fork(child)
    watching.log(4)
    assert numbers(copy) == [1]
    assert numbers(watching.path) == [3, 4]
    assert len(watching.failures) == 1


@pytest.mark.parametrize("content", [b"", b'{"event": "ki'])
def test_the_first_event_after_opening_is_known_too(content, tmp_path):
    """Opened late, or with half a line to end first, a file is put right from its first event on."""
    (tmp_path / "app.log").write_bytes(content)
    made = Watching(tmp_path, delay=True)
    made.log(1)
    made.rotate(2)
    made.log(3)
    assert numbers(made.path) == [2, 3]
    assert made.failures == []
    made.sink.close()


def test_a_signal_handlers_event_within_the_pipeline(tmp_path, monkeypatch):
    """Nor is a truncation told when the event in the midst of which it came took the long way."""
    made = Watching(tmp_path)
    made.log(1)
    monkeypatch.setattr(made.sink, "_append", None)  # no short cut
    real = os.write
    nested = [3]

    def write(descriptor: int, data: bytes) -> int:
        written = real(descriptor, data)
        if nested:
            made.log(nested.pop())
        return written

    monkeypatch.setattr("outfall.sinks.files.output._os_write", write)
    made.log(2)
    made.log(4)
    made.sink.close()
    assert numbers(made.path) == [1, 2, 3, 4]
    assert made.failures == []


def _truncate_between_look_and_write(watching: Watching, monkeypatch: pytest.MonkeyPatch, *actions: Any) -> None:
    waiting = list(actions)
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if waiting:
            waiting.pop(0)()
        return real(descriptor, data)

    monkeypatch.setattr(watched, "_os_write", write)


def test_an_event_written_right_after_the_truncation_stays_where_it_is(watching, monkeypatch):
    """What already stands in the truncated file is not written twice, and what is missing comes after it."""
    watching.log(1, 2)
    target = watching.path.with_name("app.log.1")
    shutil.copy(watching.path, target)
    watching.log(3)
    _truncate_between_look_and_write(watching, monkeypatch, lambda: os.truncate(watching.path, 0))
    watching.log(4, 5)
    assert (numbers(target), numbers(watching.path)) == ([1, 2], [4, 3, 5])
    assert watching.failures == []


def test_a_second_truncation_before_the_first_is_noticed(watching, monkeypatch):
    """An event that stands in a copy of its own, between two truncations, is found there."""
    watching.log(1, 2)
    first = watching.path.with_name("app.log.2")
    shutil.copy(watching.path, first)
    watching.log(3)
    _truncate_between_look_and_write(watching, monkeypatch, lambda: os.truncate(watching.path, 0))
    watching.log(4)
    second = watching.rotate(log=lambda: None)
    watching.log(5)
    assert (numbers(first), numbers(second), numbers(watching.path)) == ([1, 2], [4], [3, 5])
    assert watching.failures == []


def test_a_rotator_that_renames_while_the_copy_is_sought_is_waited_for(watching, monkeypatch):
    """A copy that is missed because it is being renamed is found by another look."""
    watching.log(1)
    copy = watching.rotate(2)
    hidden = copy.rename(copy.with_name("hidden"))
    monkeypatch.setattr(truncation.time, "sleep", lambda _: hidden.rename(copy) if hidden.exists() else None)
    watching.log(3)
    assert (numbers(copy), numbers(watching.path)) == ([1], [2, 3])
    assert watching.failures == []


def test_with_another_writer_nothing_unproven_is_written_again(tmp_path):
    """Where two sinks append to one file no event comes out twice, and whose events are missing tells."""
    one, other = Watching(tmp_path), Watching(tmp_path)
    one.log(1)
    other.log(2)
    one.log(3)

    def log(*_: int) -> None:
        other.log(4)
        one.log(5)
        other.log(6)

    copy = one.rotate(log=log)
    one.log(7)
    other.log(8)
    assert numbers(copy) == [1, 2, 3]
    assert numbers(one.path) == [7, 8]
    for made in (one, other):
        [failure] = made.failures
        assert "may be missing" in str(failure.error)
        made.sink.close()


def test_more_between_copy_and_truncation_than_is_kept_is_told(tmp_path):
    """What keep_bytes does not reach back to is not guessed, and the memory is bounded."""
    made = Watching(tmp_path, keep_bytes=200)
    made.log(1, 2)
    made.rotate(*range(3, 20))
    assert sum(map(len, made.sink._recent.items)) <= 200
    made.log(20)
    assert numbers(made.path) == [20]
    assert len(made.failures) == 1
    made.sink.close()


def test_keeping_nothing_still_tells(tmp_path):
    """With keep_bytes=0 a truncation right after the copy is known to be harmless; any other is told."""
    made = Watching(tmp_path, keep_bytes=0)
    made.log(1)
    made.rotate()
    made.log(2)
    assert made.failures == []
    made.rotate(3, copy="app.log.2")
    made.log(4)
    assert len(made.failures) == 1
    assert numbers(made.path) == [4]
    made.sink.close()


def test_events_written_together_are_missed_one_by_one(tmp_path):
    """Of a buffer or a batch that the copy holds in part, the missing events alone are written again."""
    made = Watching(tmp_path, buffer_bytes=4096)
    made.log(1, 2, 3, 4)
    made.sink.flush()
    line = len(made.path.read_bytes()) // 4
    copy = made.rotate(cut=2 * line + 3)
    made.log(5)
    made.sink.flush()
    assert (numbers(copy), numbers(made.path)) == ([1], [2, 3, 4, 5])
    batch = [made.sink.encode({"event": "batched", "number": number}) for number in (6, 7)]
    assert made.sink.emit_batch(batch) is None
    copy = made.rotate(copy="app.log.2", cut=5)
    assert made.sink.emit_batch(batch[:0]) is None
    assert (numbers(copy), numbers(made.path)) == ([2, 3, 4, 5, 6], [7])
    made.sink.close()
    assert made.failures == []


def test_missing_events_that_find_no_room_are_counted_as_lost(watching, monkeypatch):
    """If what is missing cannot be written again, it moves in the ledger from delivered to dropped, and is told."""
    watching.log(1)
    watching.rotate(2, 3)
    real = os.write
    refusals = [OSError(errno.ENOSPC, "no room")]

    def write(descriptor: int, data: bytes) -> int:
        if refusals:
            raise refusals.pop()
        return real(descriptor, data)

    monkeypatch.setattr("outfall.sinks.files.output._os_write", write)
    watching.log(4)
    assert numbers(watching.path) == [4]
    assert [failure.events for failure in watching.failures] == [2]
    stats = watching.sink.stats()
    assert (stats.delivered, stats.dropped) == (2, {"error": 2})


# -- processes, threads, interrupts


def test_a_forked_child_watches_on_its_own(watching):
    """Child and parent both follow a move, and neither tells of the other's writing."""
    watching.log(1)

    def child() -> None:
        watching.log(2)
        watching.path.rename(watching.path.with_name("moved"))
        watching.log(3)
        assert watching.failures == []
        assert watching.sink.stats().delivered == 2

    in_fork(child)
    watching.log(4)
    assert numbers(watching.path.with_name("moved")) == [1, 2]
    assert numbers(watching.path) == [3, 4]
    assert watching.failures == []


@pytest.mark.parametrize("where", ["_stat", "_os_write"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_leaves_the_sink_usable(where, moment, watching, monkeypatch):
    """A KeyboardInterrupt at the system call passes through, and later events and truncations are treated rightly."""
    watching.log(1)
    real = getattr(watched, where)
    interrupts = [KeyboardInterrupt]

    def interrupted(*args: Any) -> Any:
        if interrupts and moment == "before":
            raise interrupts.pop()
        result = real(*args)
        if interrupts:
            raise interrupts.pop()
        return result

    monkeypatch.setattr(watched, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        watching.log(2)
    watching.log(3)
    standing = [1, 2, 3] if (where, moment) == ("_os_write", "after") else [1, 3]
    copy = watching.rotate(4)
    watching.log(5)
    assert (numbers(copy), numbers(watching.path)) == (standing, [4, 5])
    assert watching.sink.stats().dropped == {"interrupted": 1}
    assert watching.failures == []


def test_an_interrupt_while_missing_events_are_sought_loses_none(watching, monkeypatch):
    """Interrupted in the midst of putting a truncation right, the next event does it."""
    watching.log(1)
    copy = watching.rotate(2)
    real = watched.find_copies
    interrupts = [KeyboardInterrupt]

    def find(*args: Any) -> Any:
        if interrupts:
            raise interrupts.pop()
        return real(*args)

    monkeypatch.setattr(watched, "find_copies", find)
    with pytest.raises(KeyboardInterrupt):
        watching.log(3)
    watching.log(4)
    assert (numbers(copy), numbers(watching.path)) == ([1], [2, 4])


def test_an_event_from_a_signal_handler_comes_between(watching, monkeypatch):
    """What a signal handler logs while an event is being written is written, and nobody is told of a truncation."""
    watching.log(1)
    for where, number in (("_stat", 2), ("_os_write", 4)):
        real = getattr(watched, where)
        nested = [number]

        def call(*args: Any, real: Any = real, nested: list[int] = nested, number: int = number) -> Any:
            result = real(*args)
            if nested:
                watching.log(nested.pop() + 1)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(watched, where, call)
            watching.log(number)
    watching.log(6)
    assert sorted(numbers(watching.path)) == [1, 2, 3, 4, 5, 6]
    copy = watching.rotate(7)
    watching.log(8)
    assert numbers(watching.path) == [7, 8]
    assert len(numbers(copy)) == 6
    assert watching.failures == []


# -- arguments


def test_it_is_a_file_sink_with_its_arguments(tmp_path):
    """Every keyword of FileSink is taken and acts, and the file is made with the same permissions again."""
    path = tmp_path / "app.log"
    with WatchedFileSink(path, "a", "utf-8", True, "strict", permissions=0o600, level="warning") as sink:
        assert isinstance(sink, FileSink)
        assert not path.exists()
        sink.handle({"event": "low", "level": "info"})
        sink.handle({"event": "high", "level": "error"})
        path.unlink()
        sink.handle({"event": "high", "level": "error", "level_number": 40})
        sink.handle({"event": "low", "level": "error", "level_number": 10})
        assert path.stat().st_mode & 0o777 == 0o600
        assert sink.stats().filtered == 2
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["high"]


@pytest.mark.parametrize("size", [-1, 1.5, True])
def test_keep_bytes_is_a_size(size, tmp_path):
    """Anything else is refused by name."""
    with pytest.raises(ValueError, match=f"keep_bytes={size!r}"):
        WatchedFileSink(tmp_path / "app.log", keep_bytes=size)


def test_a_path_that_is_no_regular_file_is_just_written():
    """A device has neither a size that means something nor a copy."""
    with WatchedFileSink("/dev/null", on_error="raise") as sink:
        for number in range(3):
            sink.handle({"event": "gone", "number": number})
        assert sink.stats().delivered == 3


def test_a_batch_is_taken_although_it_reports_what_has_happened_to_the_file(tmp_path):
    """An exception would say that none of its events was written, and a wrapper would write them again."""
    path = tmp_path / "app.log"
    with WatchedFileSink(path, on_error="raise") as sink:
        sink.handle({"n": 0})
        os.truncate(path, 0)
        assert sink.emit_batch([sink.encode({"n": n}) for n in (1, 2)]) is None
        assert "was truncated" in sink.stats().last_error
    assert path.read_text() == '{"n":1}\n{"n":2}\n'
