"""Several sinks of one process on one file: by one path, by links, of one class or of several."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from outfall import FileSink, RotatingFileSink, TimedRotatingFileSink, WatchedFileSink
from outfall.sinks.testing import assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, in_fork

if TYPE_CHECKING:
    from pathlib import Path

BY_SIZE = {"max_bytes": 3000, "backup_count": 1000}


def _line(sink: int, number: int) -> dict[str, Any]:
    return {"event": "r", "level": "info", "sink": sink, "n": number}


def _lines(directory: Path) -> list[tuple[int, int]]:
    """Return sink and number of each line in the directory's files, each file once, sorted."""
    files = {file.stat().st_ino: file for file in directory.iterdir() if file.exists()}
    found = [json.loads(line) for file in files.values() for line in file.read_bytes().splitlines()]
    return sorted((line["sink"], line["n"]) for line in found)


def _sizes(directory: Path) -> list[int]:
    return [file.stat().st_size for file in directory.iterdir()]


def _by_size(path: Path, **options: Any) -> RotatingFileSink:
    return RotatingFileSink(path, **{**BY_SIZE, **options})


def _by_time(path: Path, **options: Any) -> TimedRotatingFileSink:
    return TimedRotatingFileSink(path, when="midnight", max_bytes=3000, **options)


MAKERS = {
    "size": _by_size,
    "time": _by_time,
    "buffered": lambda path, **options: _by_size(path, buffer_bytes=1000, **options),
    "processes": lambda path, **options: _by_size(path, multiprocess=True, **options),
    "pipeline": lambda path, **options: _by_size(path, processors=[lambda logger, name, event: event], **options),
    "plain": FileSink,
    "watched": WatchedFileSink,
}


@pytest.mark.parametrize("second", MAKERS)
@pytest.mark.parametrize("first", ["size", "time", "buffered", "processes"])
def test_no_event_is_lost_whatever_sinks_share_the_file(tmp_path, first, second):
    """From several threads, through many rollovers by each: all lines are there, and nobody is blamed."""
    path = tmp_path / "app.log"
    told: list[Any] = []
    sinks = [MAKERS[kind](path, on_error=told.append) for kind in (first, second, first, second)]

    def work(index: int) -> None:
        for number in range(150):
            sinks[index].handle(_line(index, number))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sinks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert all(sink.close() for sink in sinks)
    assert told == []
    assert _lines(tmp_path) == [(index, number) for index in range(4) for number in range(150)]
    assert sum(sink.stats().delivered for sink in sinks) == 600
    for sink in sinks:
        assert_balanced(sink.stats())
    assert len(_sizes(tmp_path)) > 2
    if {first, second} <= {"size", "time", "pipeline"}:
        assert max(_sizes(tmp_path)) <= 3000


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("other", ["size", "time", "plain", "watched", "processes"])
@pytest.mark.parametrize("exists", [True, False])
def test_links_to_one_file_lose_nothing(tmp_path, link, other, exists):
    """A path and a link to it are one file until somebody rotates one of them; each sink then has its own."""
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "app.log"
    linked = tmp_path / "logs" / "link.log"
    if exists or link is os.link:
        path.touch()
    link(path, linked)
    told: list[Any] = []
    sinks = [_by_size(path, on_error=told.append), MAKERS[other](linked, on_error=told.append)]
    for number in range(200):
        for index, sink in enumerate(sinks):
            sink.handle(_line(index, number))
    for sink in sinks:
        assert sink.close()
    assert told == []
    assert _lines(tmp_path / "logs") == [(index, number) for index in range(2) for number in range(200)]


def test_sinks_on_one_path_count_its_size_together(tmp_path, tmp_path_factory):
    """The file never grows beyond its bound, whoever writes to it, and is as full as one sink would have it."""
    path = tmp_path / "app.log"
    sinks = [_by_size(path), FileSink(path), _by_size(path), _by_time(path)]
    for number in range(400):
        sinks[number % 4].handle(_line(number % 4, number))
    one = tmp_path_factory.mktemp("one") / "app.log"
    with _by_size(one) as sink:
        for number in range(400):
            sink.handle(_line(number % 4, number))
    # A sink without a bound is the only one that may write to a full file.
    longest = max(map(len, path.read_bytes().splitlines())) + 1
    assert max(_sizes(tmp_path)) <= 3000 + longest
    sinks[1].close()
    assert abs(len(_sizes(tmp_path)) - 1 - len(_sizes(one.parent))) <= 1


@pytest.mark.parametrize("kind", MAKERS)
def test_a_configuration_that_is_loaded_again_goes_on(tmp_path, kind):
    """The new sink is made before the old one is closed, and both are written to meanwhile."""
    path = tmp_path / "app.log"
    told: list[Any] = []
    old = MAKERS[kind](path, on_error=told.append)
    for generation in range(1, 6):
        new = MAKERS[kind](path, on_error=told.append)
        for number in range(60):
            old.handle(_line(generation, 2 * number))
            new.handle(_line(generation, 2 * number + 1))
        assert old.close()
        old = new
    assert old.close()
    assert told == []
    assert _lines(tmp_path) == [(generation, number) for generation in range(1, 6) for number in range(120)]


def test_a_cell_that_is_run_again_leaves_no_sink_behind(tmp_path):
    """Sinks that are forgotten are no members any more, and those that remain are as fast as before."""
    path = tmp_path / "app.log"
    last = _by_size(path)
    plain = FileSink(path)
    place = last._place
    assert plain._append is None
    for number in range(20):
        last = _by_size(path)
        last.handle(_line(0, number))
    gc.collect()
    assert [*place.others(last)] == [plain]
    assert last._place is plain._place is place
    del last
    gc.collect()
    assert plain._append is not None
    plain.close()
    assert _lines(tmp_path) == [(0, number) for number in range(20)]


def test_a_reopening_takes_all_sinks_on_the_path_along(tmp_path):
    """After logrotate has moved the file one SIGHUP handler is enough."""
    path = tmp_path / "app.log"
    sinks = [FileSink(path), FileSink(path), FileSink(tmp_path / "other.log")]
    path.rename(tmp_path / "app.log.1")
    for sink in sinks:
        sink.handle({"n": 1})
    sinks[0].reopen()
    for sink in sinks:
        sink.handle({"n": 2})
    assert (tmp_path / "app.log.1").read_text() == '{"n":1}\n' * 2
    assert path.read_text() == '{"n":2}\n' * 2
    assert (tmp_path / "other.log").read_text() == '{"n":1}\n{"n":2}\n'


def test_a_file_of_the_same_number_as_one_that_is_gone_is_another_file(tmp_path):
    """Sinks on files that never were one have nothing in common, though the system gives an inode again."""
    first = FileSink(tmp_path / "a")
    os.unlink(tmp_path / "a")
    first.reopen()
    inode = os.stat(tmp_path / "a").st_ino
    os.unlink(tmp_path / "a")
    first.close()
    second = FileSink(tmp_path / "b")
    assert second._place is not first._place
    third = FileSink(tmp_path / "c")
    assert third._place is not second._place
    assert inode


def test_a_truncating_sink_truncates_and_the_others_go_on(tmp_path):
    """mode="w" is what it says, once; the size is counted anew."""
    path = tmp_path / "app.log"
    told: list[Any] = []
    first = _by_size(path, on_error=told.append)
    for number in range(60):
        first.handle(_line(0, number))
    FileSink(path, "w").close()
    assert path.stat().st_size == 0
    for number in range(60):
        first.handle(_line(1, number))
    assert told == []
    assert [number for sink, number in _lines(tmp_path) if sink == 1] == list(range(60))
    assert max(_sizes(tmp_path)) <= 3000


def test_a_child_has_the_sinks_of_one_path_with_a_lock_of_its_own(tmp_path):
    """Forked while a thread holds the lock that they share, the child writes by each of them."""
    path = tmp_path / "app.log"
    sinks = [_by_size(path), _by_size(path), FileSink(path)]

    def child() -> None:
        assert len({id(sink._lock) for sink in sinks}) == 1
        for index, sink in enumerate(sinks):
            for number in range(30):
                sink.handle(_line(index, number))

    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with sinks[0]._lock:
            held.set()
            release.wait(PATIENCE_SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE_SECONDS)
    try:
        in_fork(child)
    finally:
        release.set()
        thread.join(PATIENCE_SECONDS)
    assert _lines(tmp_path) == [(index, number) for index in range(3) for number in range(30)]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_signal_handler_may_write_by_another_sink_on_the_same_file(tmp_path, kind):
    """It goes on within the other's write and within its rollover, without waiting for its own thread."""
    path = tmp_path / "app.log"
    told: list[Any] = []
    outer, inner = _by_size(path, on_error=told.append), MAKERS[kind](path, on_error=told.append)
    count = depth = 0

    def interrupt(*_: object) -> None:
        nonlocal count, depth
        if depth < 3:  # where a handler takes longer than the timer's interval they pile up without end
            depth += 1
            count += 1
            inner.handle(_line(1, count - 1))
            depth -= 1

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(1500):
            outer.handle(_line(0, number))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert outer.close()
    assert inner.close()
    assert told == []
    assert _lines(tmp_path) == [(0, number) for number in range(1500)] + [(1, number) for number in range(count)]
    assert count
