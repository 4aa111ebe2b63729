"""RotatingFileSink and the hooks of all rotating files: size, and what becomes of events when a rotation fails."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from outfall import BaseRotatingFileSink, RotatingFileSink, TimedRotatingFileSink
from outfall.sinks.errors import SinkError
from outfall.sinks.files import rotating as rotation
from outfall.sinks.testing import assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, check, in_fork, start, until
from tests.sinks._rotated import by_name, in_order, line, numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from outfall.sinks.core.reporting import SinkFailure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a directory of its own."""
    return tmp_path / "app.log"


@pytest.fixture
def failures() -> list[SinkFailure]:
    """What on_error is told."""
    return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the backing off, that goes on only when told to."""
    clock = Clock()
    monkeypatch.setattr(rotation, "monotonic", clock)
    return clock


class Clock:
    """Time that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _text(logger, name, event):
    return event["event"]


def _write(sink: RotatingFileSink, *numbers: int, size: int = 20) -> None:
    for number in numbers:
        sink.handle(line(number, size))


def _texts(failures: list[SinkFailure]) -> list[str]:
    return [str(failure.error) for failure in failures]


def _open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


#: The three ways through the code: inlined, for many processes, and through the whole pipeline.
WAYS = pytest.mark.parametrize(
    "way",
    [{}, {"multiprocess": True}, {"processors": [lambda logger, name, event: event]}],
    ids=["hot", "many", "slow"],
)


# -- the shift chain


@WAYS
def test_the_numbers_shift_and_the_oldest_goes(path, way):
    """``.1`` is the newest, each rollover moves all up by one, and beyond backup_count they are deleted."""
    with RotatingFileSink(path, max_bytes=40, backup_count=3, **way) as sink:
        _write(sink, *range(11))
    assert by_name(path.parent) == {"app.log": [10], "app.log.1": [8, 9], "app.log.2": [6, 7], "app.log.3": [4, 5]}


@WAYS
def test_a_file_may_be_full_to_the_last_byte(path, way):
    """Sizes count the terminator: what fits exactly is written, one byte more rolls over."""
    with RotatingFileSink(path, max_bytes=60, backup_count=9, **way) as sink:
        _write(sink, 1, 2, 3)
        assert by_name(path.parent) == {"app.log": [1, 2, 3]}
        _write(sink, 4)
        _write(sink, 5, size=41)
    assert by_name(path.parent) == {"app.log": [5], "app.log.1": [4], "app.log.2": [1, 2, 3]}


@WAYS
def test_an_event_larger_than_the_bound_gets_a_file_of_its_own(path, way):
    """Only an event that is too large alone makes a file exceed max_bytes, and no empty file is rolled for it."""
    with RotatingFileSink(path, max_bytes=50, backup_count=9, **way) as sink:
        _write(sink, 1, size=100)
        assert by_name(path.parent) == {"app.log": [1]}
        _write(sink, 2, size=100)
        _write(sink, 3)
    assert by_name(path.parent) == {"app.log": [3], "app.log.1": [2], "app.log.2": [1]}


def test_sizes_are_those_of_the_encoded_text(path):
    """Text counts as its bytes in the encoding, terminator too, not as its characters."""
    with RotatingFileSink(path, max_bytes=20, backup_count=9, renderer=_text, encoding="utf-16-le") as sink:
        sink.handle({"event": "äöüß"})
        sink.handle({"event": "€uro"})
        sink.handle({"event": "z"})
    texts = [Path(f"{path}{ending}").read_bytes().decode("utf-16-le") for ending in (".1", "")]
    assert texts == ["äöüß\n€uro\n", "z\n"]


def test_a_byte_order_mark_alone_is_no_content(path):
    """An event that does not fit beside the mark does not roll an empty file."""
    with RotatingFileSink(path, max_bytes=8, backup_count=9, renderer=_text, encoding="utf-8-sig") as sink:
        sink.handle({"event": "1234567"})
        sink.handle({"event": "abcdefg"})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
        "app.log": b"\xef\xbb\xbfabcdefg\n",
        "app.log.1": b"\xef\xbb\xbf1234567\n",
    }


def test_characters_the_encoding_lacks_are_handled_as_errors_says(path):
    """encoding and errors reach the file as with FileSink."""
    with RotatingFileSink(path, "a", 6, 2, "ascii", errors="replace", renderer=_text) as sink:
        sink.handle({"event": "ä"})
        sink.handle({"event": "bcde"})
    assert Path(f"{path}.1").read_bytes() == b"?\n"


def test_the_documented_parameters_keep_their_order(path):
    """filename, mode, max_bytes, backup_count, encoding, delay, errors."""
    with RotatingFileSink(str(path), "a", 1000, 5, "latin-1", True, "ignore") as sink:
        assert (sink.max_bytes, sink.backup_count, sink.encoding, sink.errors) == (1000, 5, "latin-1", "ignore")
        assert not path.exists()


def test_with_delay_nothing_happens_before_the_first_event(path):
    """delay=True opens at the first event, which rolls a full file over as ever."""
    path.write_bytes(b"x" * 39 + b"\n")
    with RotatingFileSink(path, max_bytes=40, backup_count=1, delay=True) as sink:
        assert sink._fd == -1
        _write(sink, 1)
    assert (numbers(path), Path(f"{path}.1").stat().st_size) == ([1], 40)


@WAYS
def test_a_file_that_is_too_large_already_rolls_over_first(path, way):
    """What an earlier process has left counts from the opening on."""
    path.write_text("".join(json.dumps(line(number), separators=(",", ":")) + "\n" for number in range(10)))
    with RotatingFileSink(path, max_bytes=100, backup_count=2, **way) as sink:
        _write(sink, 10)
    assert by_name(path.parent) == {"app.log": [10], "app.log.1": list(range(10))}


def test_a_file_is_continued_up_to_its_bound(path):
    """A restart goes on where the size was."""
    for number in range(5):
        with RotatingFileSink(path, max_bytes=40, backup_count=9) as sink:
            _write(sink, number)
    assert by_name(path.parent) == {"app.log": [4], "app.log.1": [2, 3], "app.log.2": [0, 1]}


def test_mode_w_means_a_where_a_bound_is_set(path):
    """A restart must not lose what was not rotated; without max_bytes it truncates."""
    path.write_text('{"event":"1"}\n')
    with RotatingFileSink(path, mode="w", max_bytes=1000, backup_count=1) as sink:
        assert sink.mode == "a"
    assert numbers(path) == [1]
    with RotatingFileSink(path, mode="w", backup_count=1):
        pass
    assert numbers(path) == []


@pytest.mark.parametrize(
    "options", [{"backup_count": 3}, {"max_bytes": 40, "backup_count": 0}], ids=["max_bytes=0", "backup_count=0"]
)
def test_without_both_bounds_it_never_rolls(path, options):
    """max_bytes=0 or backup_count=0: one file, as documented."""
    with RotatingFileSink(path, **options) as sink:
        _write(sink, *range(10))
    assert by_name(path.parent) == {"app.log": list(range(10))}


@WAYS
def test_with_max_bytes_alone_five_rotated_files_are_kept(path, way):
    """A bound of the file is one of the files: without it the first would grow for ever."""
    with RotatingFileSink(path, max_bytes=20, **way) as sink:
        assert sink.backup_count == 5
        _write(sink, *range(10))
    assert in_order(path) == [4, 5, 6, 7, 8, 9]
    with RotatingFileSink(path) as sink:
        assert sink.backup_count == 0


@pytest.mark.parametrize("bound", [{"max_age": 3600}, {"max_total_bytes": 10_000}])
def test_another_bound_makes_up_for_backup_count_0(path, bound):
    """With max_age or max_total_bytes the numbers go as high as they must."""
    with RotatingFileSink(path, max_bytes=20, **bound) as sink:
        _write(sink, *range(13))
    assert in_order(path) == list(range(13))
    assert Path(f"{path}.12").exists()


@WAYS
def test_the_bounds_can_be_set_at_any_time(path, way):
    """max_bytes and backup_count act from the next event on."""
    with RotatingFileSink(path, max_bytes=40, backup_count=5, **way) as sink:
        _write(sink, *range(9))
        sink.max_bytes = 20
        sink.backup_count = 2
        _write(sink, 9)
        assert by_name(path.parent) == {"app.log": [9], "app.log.1": [8], "app.log.2": [6, 7]}
        sink.max_bytes = 1000
        _write(sink, 10, 11, 12)
        assert numbers(path) == [9, 10, 11, 12]
        sink.max_bytes = 0
        _write(sink, *range(13, 100))
        assert numbers(path) == list(range(9, 100))
        sink.max_bytes = 40
        _write(sink, 100)
        assert numbers(path) == [100]


def test_new_files_get_the_permissions(path):
    """permissions hold for each file that is begun; the rotated one keeps its own."""
    with RotatingFileSink(path, max_bytes=20, backup_count=2, permissions=0o640) as sink:
        path.chmod(0o600)
        _write(sink, 1, 2)
    assert [stat.S_IMODE(Path(f"{path}{ending}").stat().st_mode) for ending in ("", ".1")] == [0o640, 0o600]


def test_filtered_events_do_not_count(path):
    """What the level or a processor keeps out makes nothing roll over."""

    def drop_odd(logger, name, event):
        if int(event["event"]) % 2:
            raise structlog.DropEvent
        return event

    with RotatingFileSink(path, max_bytes=40, backup_count=9, processors=[drop_odd], level="info") as sink:
        _write(sink, *range(10))
        for number in range(100):
            sink.handle({**line(number), "level": "debug"})
        assert sink.stats().filtered == 105
    assert by_name(path.parent) == {"app.log": [8], "app.log.1": [4, 6], "app.log.2": [0, 2]}


def test_a_level_leaves_the_size_counted(path):
    """With a level set, the way is another and the bound the same."""
    size = len(json.dumps({**line(1), "level": "info"}, separators=(",", ":"))) + 1
    with RotatingFileSink(path, max_bytes=2 * size, backup_count=9, level="info") as sink:
        for number in range(5):
            sink.handle({**line(number), "level": "info"})
            sink.handle({**line(number), "level": "debug"})
    assert by_name(path.parent) == {"app.log": [4], "app.log.1": [2, 3], "app.log.2": [0, 1]}


# -- batches and buffers


def _bounded(directory: Path, max_bytes: int) -> bool:
    return all(file.stat().st_size <= max_bytes for file in directory.iterdir())


@WAYS
def test_a_batch_is_divided_between_events(path, way):
    """emit_batch rolls over between its items, and no file exceeds the bound."""
    with RotatingFileSink(path, max_bytes=50, backup_count=99, **way) as sink:
        _write(sink, 0)
        assert sink.emit_batch([sink.encode(line(number)) for number in range(1, 30)]) is None
    assert in_order(path) == list(range(30))
    assert len(list(path.parent.iterdir())) == 15
    assert _bounded(path.parent, 50)


@pytest.mark.parametrize("way", [{}, {"multiprocess": True}], ids=["hot", "many"])
def test_a_buffer_is_divided_between_events(path, way):
    """A chunk that is flushed goes into as many files as the bound needs, split between events."""
    with RotatingFileSink(path, max_bytes=100, backup_count=99, buffer_bytes=1000, **way) as sink:
        for number in range(100):
            sink.handle({**line(number), "level": "info"})
        assert sink.flush()
        assert sink.stats().delivered == 100
    assert in_order(path) == list(range(100))
    assert _bounded(path.parent, 100)


@pytest.mark.parametrize("delay", [False, True])
def test_what_close_flushes_is_divided_too(path, delay):
    """The last chunk rolls over as well, although the sink is closing."""
    sink = RotatingFileSink(path, max_bytes=50, backup_count=99, buffer_bytes=1 << 20, delay=delay, flush_interval=3600)
    _write(sink, *range(20))
    assert sink.stats().pending
    assert sink.close()
    assert in_order(path) == list(range(20))
    assert _bounded(path.parent, 50)
    assert_balanced(sink.stats())


def test_a_batch_that_fails_in_its_second_file_tells_what_was_kept(path, monkeypatch):
    """A full disk in the midst of a batch leaves the rest for a retry, which makes it complete."""
    with RotatingFileSink(path, max_bytes=40, backup_count=9) as sink:
        batch = [sink.encode(line(number)) for number in range(6)]
        real = os.write
        left = [1]

        def write(descriptor, data):
            if not left:
                raise OSError(errno.ENOSPC, "full")
            left.pop()
            return real(descriptor, data)

        monkeypatch.setattr("outfall.sinks.files.output._os_write", write)
        result = sink.emit_batch(batch)
        monkeypatch.undo()
        assert result is not None
        assert list(result.retry) == [2, 3, 4, 5]

        def refuse(descriptor, data):
            raise OSError(errno.EIO, "no")

        sink.on_error = lambda failure: None
        with monkeypatch.context() as patch:
            patch.setattr("outfall.sinks.files.output._os_write", refuse)
            with pytest.raises(OSError, match="no"):
                sink.emit_batch(batch[2:])
        assert sink.emit_batch(batch[2:]) is None
    assert in_order(path) == list(range(6))


# -- what others do to the file


def test_the_size_is_counted_and_not_asked_for(path, monkeypatch):
    """Thousands of events cost no stat and no fstat until the file seems full."""
    monkeypatch.setattr("outfall.sinks.files.output.VERIFY_SECONDS", 3600)
    calls = []
    sink = RotatingFileSink(path, max_bytes=100_000, backup_count=2)
    _write(sink, 0)
    for name in ("stat", "fstat", "lstat"):
        real = getattr(os, name)

        def counted(*args, _real=real, _name=name, **options):
            calls.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(os, name, counted)
    _write(sink, *range(1, 5000))
    assert calls == []
    _write(sink, 5000)
    assert calls
    monkeypatch.undo()
    sink.close()
    assert in_order(path) == list(range(5001))


def test_the_size_is_counted_on_the_long_way_too(path, monkeypatch):
    """A renderer of one's own does not make the sink ask either."""
    monkeypatch.setattr("outfall.sinks.files.output.VERIFY_SECONDS", 3600)
    sink = RotatingFileSink(path, max_bytes=100_000, backup_count=2, renderer=_text)
    sink.handle({"event": "first"})
    calls = []
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda *args: calls.append(args) or real(*args))
    for _ in range(100):
        sink.handle({"event": "more"})
    monkeypatch.undo()
    sink.close()
    assert calls == []


def test_a_truncation_by_somebody_else_is_noticed(path, failures):
    """A file that seems full and was emptied meanwhile is filled again instead of rolled over; that is no fault."""
    with RotatingFileSink(path, max_bytes=100, backup_count=9, on_error=failures.append) as sink:
        _write(sink, *range(4))
        os.truncate(path, 0)
        _write(sink, *range(4, 9))
        assert by_name(path.parent) == {"app.log": [4, 5, 6, 7, 8]}
        _write(sink, 9)
        assert by_name(path.parent) == {"app.log": [9], "app.log.1": [4, 5, 6, 7, 8]}
    assert failures == []


@pytest.mark.parametrize("away", [os.unlink, lambda path: path.rename(f"{path}.elsewhere")], ids=["deleted", "moved"])
def test_a_file_that_somebody_takes_away_is_begun_anew(path, failures, away):
    """At the next rollover there is a new file, no backup was shifted for it, and nothing is told: none else writes."""
    with RotatingFileSink(path, max_bytes=40, backup_count=9, on_error=failures.append) as sink:
        _write(sink, 1, 2, 3, 4)
        away(path)
        _write(sink, 5, 6)
        path.with_name("app.log.elsewhere").unlink(missing_ok=True)
        assert by_name(path.parent) == {"app.log": [5, 6], "app.log.1": [1, 2]}
    assert failures == []


def test_reopen_goes_on_with_the_file_at_the_path(path, failures):
    """After a SIGHUP handler's reopen() the new file's size is the one that counts."""
    with RotatingFileSink(path, max_bytes=40, backup_count=9, on_error=failures.append) as sink:
        _write(sink, 1, 2)
        path.rename(path.with_name("moved"))
        sink.reopen()
        _write(sink, 3, 4)
        assert numbers(path) == [3, 4]
        _write(sink, 5)
    assert by_name(path.parent) == {"app.log": [5], "app.log.1": [3, 4], "moved": [1, 2]}
    assert failures == []


def test_a_second_process_that_writes_is_told_once(path, failures):
    """Another writer on the file is noticed when it seems full: one RuntimeWarning that names the option."""
    with RotatingFileSink(path, max_bytes=100, backup_count=99, on_error=failures.append) as sink:
        for number in range(0, 100, 2):
            _write(sink, number)
            with path.open("ab") as other:
                other.write(json.dumps(line(number + 1), separators=(",", ":")).encode() + b"\n")
        assert sink.stats().delivered == 50
    [failure] = failures
    assert isinstance(failure.error, RuntimeWarning)
    assert "multiprocess=True" in str(failure.error)
    assert str(path) in str(failure.error)
    assert failure.events == 0
    assert in_order(path) == list(range(100))


def test_a_second_process_that_rotates_is_told(path, failures):
    """A file that was replaced by somebody else's is noticed at the next rollover, and gone on with."""
    with RotatingFileSink(path, max_bytes=60, backup_count=9, on_error=failures.append) as sink:
        _write(sink, 1, 2, 3)
        path.rename(path.with_name("moved"))
        path.write_text('{"event":"4"}\n')
        _write(sink, 5)
        assert by_name(path.parent) == {"app.log": [4, 5], "moved": [1, 2, 3]}
    [failure] = failures
    assert isinstance(failure.error, RuntimeWarning)
    assert "was replaced" in str(failure.error)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_another_process_that_rotates_the_file_is_told_of_once(path, failures):
    """Who rolls the file over under another's feet is noticed by that one at its next rollover."""
    with RotatingFileSink(path, max_bytes=100, backup_count=99, on_error=failures.append) as sink:
        for first in range(0, 100, 20):
            _write(sink, *range(first, first + 10))

            def child(first=first):
                with RotatingFileSink(path, max_bytes=100, backup_count=99) as other:
                    _write(other, *range(first + 10, first + 20))

            in_fork(child)
        _write(sink, *range(100, 110))
    assert [type(failure.error) for failure in failures] == [RuntimeWarning]
    assert sorted(in_order(path)) == list(range(110))


def test_with_multiprocess_nothing_is_told(path, failures):
    """Two sinks that share a file as they should have nothing to report, and lose nothing."""
    sinks = [
        RotatingFileSink(path, max_bytes=100, backup_count=99, multiprocess=True, on_error=failures.append)
        for _ in range(2)
    ]
    for number in range(100):
        _write(sinks[number % 2], number)
    sinks[0].do_rollover()
    _write(sinks[0], 100)
    sinks[1].do_rollover()
    for sink in sinks:
        assert sink.close()
    assert failures == []
    assert in_order(path) == list(range(101))
    assert _bounded(path.parent, 100)


def test_an_audit_sink_is_not_made_to_raise_by_the_warning(path, capfd):
    """With on_error="raise" the warning goes to stderr: no event has failed."""
    with RotatingFileSink(path, max_bytes=50, backup_count=9, on_error="raise", name="audit-of-sharing") as sink:
        _write(sink, 1, 2)
        with path.open("ab") as other:
            other.write(b'{"event":"3"}\n')
        _write(sink, 4)
    assert "multiprocess=True" in capfd.readouterr().err
    assert sink.stats().delivered == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_goes_on_and_the_sharing_is_told_once(path, failures):
    """Parent and child write on; whoever notices the other says so once and names the option."""
    with RotatingFileSink(path, max_bytes=200, backup_count=99, on_error=failures.append) as sink:
        _write(sink, *range(5))

        def child():
            _write(sink, *range(100, 130))
            assert sink.close()
            assert_balanced(sink.stats())
            assert sink.stats().delivered == 30
            assert len(failures) <= 1

        in_fork(child)
        _write(sink, *range(5, 60))
    assert [type(failure.error) for failure in failures] == [RuntimeWarning]
    assert "multiprocess=True" in str(failures[0].error)
    assert sorted(in_order(path)) == [*range(60), *range(100, 130)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_in_the_midst_of_a_rotation_leaves_the_child_a_working_sink(path, monkeypatch):
    """A child forked while another thread moves files has fresh locks, and writes on whoever holds the directory."""
    monkeypatch.setattr("outfall.sinks.core.flock._PATIENCE_SECONDS", 0.01)
    inside, go = threading.Event(), threading.Event()

    def rotator(source, dest):
        if threading.current_thread().name == "slow":
            inside.set()
            assert go.wait(PATIENCE_SECONDS)
        Path(source).replace(dest)

    options = {"multiprocess": True, "rotator": rotator, "on_error": lambda failure: None}
    with RotatingFileSink(path, max_bytes=40, backup_count=9, **options) as sink:
        _write(sink, 0, 1)
        thread = threading.Thread(target=_write, args=(sink, 2), name="slow")
        thread.start()
        assert inside.wait(PATIENCE_SECONDS)
        try:

            def child():
                assert not sink._place.rolling
                _write(sink, 10, 11, 12)
                assert sink.stats().delivered == 3
                assert sink.close()

            in_fork(child)
        finally:
            go.set()
            thread.join(PATIENCE_SECONDS)
    assert sorted(in_order(path)) == [0, 1, 2, 10, 11, 12]


# -- what never rolls


@pytest.fixture
def device(path):
    """Give a link to /dev/null: by root's hand a broken sink would move the machine's own away."""
    path.symlink_to("/dev/null")
    return path


@WAYS
def test_a_device_never_rolls(way, device, failures):
    """The null device stays where it is, by hand too."""
    with RotatingFileSink(device, max_bytes=40, backup_count=2, on_error=failures.append, **way) as sink:
        _write(sink, *range(20))
        sink.do_rollover()
        assert sink.stats().delivered == 20
    assert list(device.parent.iterdir()) == [device]
    assert device.is_symlink()
    assert failures == []


def test_a_device_does_not_leave_the_short_way(device, monkeypatch):
    """Once the bound is passed, a device goes on as quickly as before."""
    with RotatingFileSink(device, max_bytes=40, backup_count=2) as sink:
        _write(sink, *range(20))
        monkeypatch.setattr(sink, "render", None)  # which the long way would call
        _write(sink, *range(20))
        assert sink.stats().delivered == 40


def test_a_pipe_never_rolls(path):
    """A named pipe gets all events, whatever the bound."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with RotatingFileSink(path, max_bytes=40, backup_count=2) as sink:
            _write(sink, *range(20))
            sink.do_rollover()
        assert len(os.read(reader, 65536).splitlines()) == 20
    finally:
        os.close(reader)
    assert [file.name for file in path.parent.iterdir()] == ["app.log"]


def test_an_empty_file_is_not_rolled_by_hand_either(path):
    """do_rollover with nothing in the file leaves it and the backups where they are."""
    with RotatingFileSink(path, max_bytes=40, backup_count=2) as sink:
        _write(sink, 1)
        sink.do_rollover()
        sink.do_rollover()
        _write(sink, 2)
    assert by_name(path.parent) == {"app.log": [2], "app.log.1": [1]}


# -- by hand


def test_do_rollover_rolls_now(path):
    """By hand it moves the file away, whatever its size, from any thread; the next event begins a new one."""
    with RotatingFileSink(path, max_bytes=1000, backup_count=2) as sink:
        for number in range(4):
            _write(sink, number)
            thread = threading.Thread(target=sink.do_rollover)
            thread.start()
            thread.join(PATIENCE_SECONDS)
        _write(sink, 4)
    assert by_name(path.parent) == {"app.log": [4], "app.log.1": [3], "app.log.2": [2]}


def test_do_rollover_takes_what_is_buffered_along(path):
    """What was handled before it goes into the file that is moved away."""
    with RotatingFileSink(path, max_bytes=1000, backup_count=2, buffer_bytes=1000, flush_interval=3600) as sink:
        _write(sink, 1, 2)
        sink.do_rollover()
        _write(sink, 3)
    assert by_name(path.parent) == {"app.log": [3], "app.log.1": [1, 2]}


def test_do_rollover_raises_to_its_caller(path, failures):
    """By hand a failure is the caller's: raised, not told, and nothing is lost or held up."""
    with RotatingFileSink(path, max_bytes=1000, backup_count=2, on_error=failures.append) as sink:
        _write(sink, 1)
        sink.namer = _raise(RuntimeError("no name"))
        with pytest.raises(RuntimeError, match="no name"):
            sink.do_rollover()
        sink.namer = None
        _write(sink, 2)
        sink.do_rollover()
    assert by_name(path.parent) == {"app.log": [], "app.log.1": [1, 2]}
    assert failures == []


def test_do_rollover_after_close_does_nothing(path):
    """A closed sink neither moves files nor opens one."""
    sink = RotatingFileSink(path, max_bytes=1000, backup_count=2)
    _write(sink, 1)
    sink.close()
    sink.do_rollover()
    assert by_name(path.parent) == {"app.log": [1]}
    assert sink._fd == -1


def test_do_rollover_of_a_sink_that_has_not_opened_yet(path):
    """With delay there may be a file of before to move away, or none."""
    with RotatingFileSink(path, max_bytes=1000, backup_count=2, delay=True) as sink:
        sink.do_rollover()
        assert by_name(path.parent) == {}
        path.write_text('{"event":"1"}\n')
        sink.do_rollover()
        _write(sink, 2)
    assert by_name(path.parent) == {"app.log": [2], "app.log.1": [1]}


def test_rollovers_by_hand_while_threads_log_lose_nothing(path):
    """One thread calls do_rollover again and again while others write."""
    with RotatingFileSink(path, max_bytes=2000, backup_count=10_000) as sink:
        stop = threading.Event()

        def log(thread: int) -> None:
            _write(sink, *range(thread * 1000, thread * 1000 + 300))

        threads = [threading.Thread(target=log, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            sink.do_rollover()
            stop.wait(0.001)
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    found = in_order(path)
    for thread in range(4):
        mine = [number for number in found if number // 1000 == thread]
        assert mine == list(range(thread * 1000, thread * 1000 + 300))


# -- hooks


def _raise(error: BaseException) -> Callable[..., Any]:
    def hook(*_args: object) -> None:
        raise error

    return hook


def _named(name: str) -> str:
    return f"{name}.old"


def _gzipping(source: str, dest: str) -> None:
    with Path(source).open("rb") as plain, gzip.open(dest, "wb") as compressed:
        shutil.copyfileobj(plain, compressed)
    Path(source).unlink()


class ByMethods(RotatingFileSink):
    """A subclass that has its hooks as methods."""

    def namer(self, default_name: str) -> str:  # type: ignore[override]
        return _named(default_name)

    def rotator(self, source: str, dest: str) -> None:  # type: ignore[override]
        Path(source).replace(dest)


class ByAttributes(RotatingFileSink):
    """A subclass that has them as attributes of the class."""

    namer = staticmethod(_named)
    rotator = staticmethod(os.replace)


def _by_argument(*args: Any, **options: Any) -> RotatingFileSink:
    return RotatingFileSink(*args, namer=_named, rotator=os.replace, **options)


def _set_live(*args: Any, **options: Any) -> RotatingFileSink:
    sink = RotatingFileSink(*args, **options)
    sink.namer = _named
    sink.rotator = os.replace
    return sink


@pytest.mark.parametrize("make", [ByMethods, ByAttributes, _by_argument, _set_live])
def test_namer_and_rotator_may_be_given_in_every_way(path, make):
    """As an argument, an attribute or a method of a subclass: all rotated files get the namer's names."""
    with make(path, max_bytes=20, backup_count=2) as sink:
        _write(sink, *range(5))
    assert by_name(path.parent) == {"app.log": [4], "app.log.1.old": [3], "app.log.2.old": [2]}


def test_an_argument_wins_over_the_method_of_the_class(path):
    """What is given at construction is what is used."""
    with ByMethods(path, max_bytes=20, backup_count=2, namer=lambda name: f"{name}.mine") as sink:
        _write(sink, 1, 2)
    assert sorted(by_name(path.parent)) == ["app.log", "app.log.1.mine"]


def test_hooks_set_live_act_at_once(path):
    """A namer or rotator that is set later is used from the next rollover on; None takes it away."""
    calls = []
    with RotatingFileSink(path, max_bytes=20, backup_count=3) as sink:
        _write(sink, 1, 2)
        sink.rotator = lambda source, dest: (calls.append((source, dest)), Path(source).replace(dest))
        _write(sink, 3)
        sink.rotator = None
        _write(sink, 4)
    assert calls == [(str(path), f"{path}.1")]
    assert by_name(path.parent) == {"app.log": [4], "app.log.1": [3], "app.log.2": [2], "app.log.3": [1]}


def test_a_namer_may_return_a_path(path):
    """Names are text or path-like; another directory is fine."""
    archive = path.parent / "archive"
    archive.mkdir()
    with RotatingFileSink(path, max_bytes=20, backup_count=2, namer=lambda name: archive / Path(name).name) as sink:
        _write(sink, *range(5))
    assert by_name(archive) == {"app.log.1": [3], "app.log.2": [2]}


def test_a_namer_that_has_one_name_for_all_keeps_one_file(path, failures):
    """As with the standard library, the newest takes the place of the one before."""
    old = path.with_name("old.log")
    with RotatingFileSink(path, max_bytes=20, backup_count=3, namer=lambda name: old) as sink:
        _write(sink, *range(5))
    assert by_name(path.parent) == {"app.log": [4], "old.log": [3]}


def test_a_namer_with_one_name_for_files_without_number_is_told(path, failures):
    """Where no number of files is set, none may be overwritten: the file goes on growing."""
    old = path.with_name("old.log")
    options = {"max_age": 3600, "namer": lambda name: old, "on_error": failures.append}
    with RotatingFileSink(path, max_bytes=20, **options) as sink:
        _write(sink, *range(5))
    assert by_name(path.parent) == {"app.log": [1, 2, 3, 4], "old.log": [0]}
    [text] = _texts(failures)
    assert "old.log" in text


class Recording(RotatingFileSink):
    """A subclass that notes how its hooks are called."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        super().__init__(*args, **options)

    def should_rollover(self, data: bytes) -> bool:
        self.calls.append(("should_rollover", data))
        return super().should_rollover(data)

    def do_rollover(self) -> None:
        self.calls.append(("do_rollover",))
        super().do_rollover()

    def rotation_filename(self, default_name: str) -> str:
        self.calls.append(("rotation_filename", default_name))
        return super().rotation_filename(default_name)

    def rotate(self, source: str, dest: str) -> None:
        self.calls.append(("rotate", source, dest))
        super().rotate(source, dest)


@pytest.mark.parametrize("options", [{}, {"buffer_bytes": 1}], ids=["direct", "buffered"])
def test_the_methods_are_called_as_documented(path, options):
    """should_rollover is asked about the bytes of each event, and the others are called when it says so."""
    with Recording(path, max_bytes=20, backup_count=1, **options) as sink:
        sink.calls.clear()
        _write(sink, 1)
        assert sink.calls == [("should_rollover", b'{"event":"0000001"}\n')]
        sink.calls.clear()
        _write(sink, 2)
        others = [call for call in sink.calls if call[0] != "rotation_filename"]
        assert others == [
            ("should_rollover", b'{"event":"0000002"}\n'),
            ("do_rollover",),
            ("rotate", str(path), f"{path}.1"),
        ]
        assert ("rotation_filename", f"{path}.1") in sink.calls


def test_a_should_rollover_of_ones_own_decides_alone(path):
    """It is asked for each event in a batch too, and its yes is one rollover."""

    class AtMarks(RotatingFileSink):
        rollovers = 0

        def should_rollover(self, data: bytes) -> bool:
            return b"7" in data

        def do_rollover(self) -> None:
            self.rollovers += 1
            super().do_rollover()

    with AtMarks(path, backup_count=9) as sink:
        _write(sink, *range(10))
        sink.emit_batch([sink.encode(line(number)) for number in range(10, 20)])
        assert sink.rollovers == 2
    assert by_name(path.parent) == {
        "app.log": [17, 18, 19],
        "app.log.1": list(range(7, 17)),
        "app.log.2": list(range(7)),
    }


def test_a_rotating_sink_of_ones_own_is_asked(path):
    """A subclass of BaseRotatingFileSink needs should_rollover and do_rollover, and gets both called."""

    class Alternating(BaseRotatingFileSink):
        def should_rollover(self, data: bytes) -> bool:
            return Path(self.base_filename).stat().st_size >= 40

        def do_rollover(self) -> None:
            with self.exclusively():
                self.rotate(self.base_filename, self.rotation_filename(f"{self.base_filename}.before"))
                self.begin_new_file()

    with Alternating(path) as sink:
        _write(sink, *range(5))
    assert by_name(path.parent) == {"app.log": [4], "app.log.before": [2, 3]}


def test_a_base_without_a_policy_says_what_is_missing(path, failures):
    """BaseRotatingFileSink itself writes on and tells which method is missing."""
    with BaseRotatingFileSink(path, on_error=failures.append) as sink:
        _write(sink, 1, 2)
        with pytest.raises(TypeError, match="do_rollover"):
            sink.do_rollover()
    assert numbers(path) == [1, 2]
    [text] = _texts(failures)
    assert "should_rollover" in text


def test_a_rotator_may_compress(path):
    """The cookbook's gzip rotator and namer, with the shift chain and the bound on their number."""
    options = {"namer": lambda name: f"{name}.gz", "rotator": _gzipping}
    with RotatingFileSink(path, max_bytes=40, backup_count=2, **options) as sink:
        _write(sink, *range(9))
    assert by_name(path.parent) == {"app.log": [8], "app.log.1.gz": [6, 7], "app.log.2.gz": [4, 5]}


def test_a_rotator_may_copy_and_truncate(path):
    """A rotator that leaves an empty file at the source has done its work."""

    def copytruncate(source, dest):
        shutil.copyfile(source, dest)
        os.truncate(source, 0)

    with RotatingFileSink(path, max_bytes=40, backup_count=9, rotator=copytruncate) as sink:
        _write(sink, *range(7))
    assert by_name(path.parent) == {"app.log": [6], "app.log.1": [4, 5], "app.log.2": [2, 3], "app.log.3": [0, 1]}


def test_hooks_that_log_to_their_own_sink(path, failures):
    """What a namer or rotator logs goes into the file, and makes nothing roll over within the rollover."""

    def namer(name):
        _write(sink, 100)
        return name

    def rotator(source, dest):
        _write(sink, 200)
        Path(source).replace(dest)
        _write(sink, 300)

    sink = RotatingFileSink(path, max_bytes=40, backup_count=99, on_error=failures.append, delay=True)
    sink.namer, sink.rotator = namer, rotator
    with sink:
        _write(sink, 1, 2, 3)
    found = in_order(path)
    assert [number for number in found if number < 100] == [1, 2, 3]
    assert {100, 200, 300} <= set(found)
    assert sink.stats().delivered == len(found)
    assert failures == []


def test_a_signal_handler_that_logs_in_the_midst_of_a_rollover(path, failures):
    """It writes to the file there is, and overwrites no backup."""
    signals = iter(range(100, 10_000))
    previous = signal.signal(signal.SIGUSR1, lambda *_: _write(sink, next(signals)))

    class Interrupted(RotatingFileSink):
        def rotate(self, source: str, dest: str) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            super().rotate(source, dest)
            os.kill(os.getpid(), signal.SIGUSR1)

        def begin_new_file(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            super().begin_new_file()

    sink = Interrupted(path, max_bytes=40, backup_count=99, on_error=failures.append)
    try:
        with sink:
            _write(sink, *range(10))
    finally:
        signal.signal(signal.SIGUSR1, previous)
    found = in_order(path)
    assert [number for number in found if number < 100] == list(range(10))
    assert sorted(number for number in found if number >= 100) == list(range(100, next(signals)))
    assert failures == []
    assert sink.stats().delivered == len(found)


# -- rotations that fail


class HookError(Exception):
    """What a hook raises here."""


class Failing(RotatingFileSink):
    """Raises in the hook *broken*, as long as that is set."""

    broken = ""

    def rotation_filename(self, default_name: str) -> str:
        if self.broken == "rotation_filename":
            raise HookError(self.broken)
        return super().rotation_filename(default_name)

    def rotate(self, source: str, dest: str) -> None:
        if self.broken == "rotate":
            raise HookError(self.broken)
        super().rotate(source, dest)

    def do_rollover(self) -> None:
        if self.broken == "do_rollover":
            raise HookError(self.broken)
        super().do_rollover()

    def namer(self, default_name: str) -> str:  # type: ignore[override]
        if self.broken == "namer":
            raise HookError(self.broken)
        return default_name

    def rotator(self, source: str, dest: str) -> None:  # type: ignore[override]
        if self.broken == "rotator":
            raise HookError(self.broken)
        Path(source).replace(dest)


HOOKS = pytest.mark.parametrize("hook", ["namer", "rotator", "rotation_filename", "rotate", "do_rollover"])


@HOOKS
@WAYS
def test_a_hook_that_raises_costs_no_event(path, failures, clock, hook, way):
    """The event is written, the failure is told once as costing none, and the rotation succeeds when it can."""
    with Failing(path, max_bytes=40, backup_count=9, on_error=failures.append, **way) as sink:
        sink.broken = hook
        _write(sink, *range(6))
        [failure] = failures
        assert (type(failure.error), str(failure.error), failure.events) == (HookError, hook, 0)
        assert by_name(path.parent) == {"app.log": [0, 1, 2, 3, 4, 5]}
        sink.broken = ""
        _write(sink, 6)
        assert numbers(path) == list(range(7))
        clock.now += 1
        _write(sink, 7)
        assert by_name(path.parent) == {"app.log": [7], "app.log.1": list(range(7))}
        stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (8, 8, {})
    assert len(failures) == 1


def test_a_should_rollover_that_raises_costs_no_event(path, failures):
    """It counts as no, and is told once."""

    class Unsure(RotatingFileSink):
        def should_rollover(self, data: bytes) -> bool:
            raise HookError

    with Unsure(path, max_bytes=40, backup_count=9, on_error=failures.append) as sink:
        _write(sink, *range(6))
        assert (sink.stats().delivered, sink.stats().dropped) == (6, {})
    assert numbers(path) == list(range(6))
    assert [(type(failure.error), failure.events) for failure in failures] == [(HookError, 0)]


def test_a_failing_rotation_is_tried_again_after_1_2_4_seconds_up_to_a_minute(path, failures, clock):
    """The backing off doubles to 60 s and begins anew after a success."""
    attempts = []

    def rotator(source, dest):
        attempts.append(clock.now)
        if broken:
            raise HookError
        Path(source).replace(dest)

    broken = True
    with RotatingFileSink(path, max_bytes=40, backup_count=9, rotator=rotator, on_error=failures.append) as sink:
        for number in range(200):
            _write(sink, number)
            clock.now += 1
        waits = [after - before for before, after in itertools.pairwise(attempts)]
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
        broken = False
        clock.now += 60
        _write(sink, 200)
        assert numbers(path) == [200]
        broken = True
        attempts.clear()
        _write(sink, 201, 202)
        clock.now += 0.75
        _write(sink, 203)
        assert len(attempts) == 1
        clock.now += 0.25
        _write(sink, 204)
        assert len(attempts) == 2
        assert sink.stats().delivered == 205
    assert len(failures) == 2  # once for each time it began to fail
    assert in_order(path) == list(range(205))


def test_another_failure_is_told_as_well(path, failures, clock):
    """Once for each way of failing, not once for each event."""
    with RotatingFileSink(path, max_bytes=20, backup_count=9, on_error=failures.append) as sink:
        for text in ("one", "one", "two", "two"):
            sink.rotator = _raise(HookError(text))
            _write(sink, 1, 2, 3)
            clock.now += 60
    assert _texts(failures) == ["one", "two"]


@HOOKS
def test_on_error_raise_reaches_the_caller_and_the_event_is_written(path, clock, hook):
    """An audit sink raises the rotation's failure once, and its ledger says delivered."""
    with Failing(path, max_bytes=40, backup_count=9, on_error="raise") as sink:
        _write(sink, 0, 1)
        sink.broken = hook
        with pytest.raises(HookError, match=hook):
            _write(sink, 2)
        _write(sink, 3)
        stats = sink.stats()
        assert (stats.accepted, stats.delivered, stats.dropped) == (4, 4, {})
        assert hook in str(stats.last_error)
        sink.broken = ""
    assert numbers(path) == [0, 1, 2, 3]


def test_a_failure_in_a_batch_is_told_and_does_not_say_that_none_was_taken(path, failures, clock):
    """A wrapper's worker must not send again what has been written."""
    with RotatingFileSink(path, max_bytes=40, backup_count=9, on_error=failures.append) as sink:
        sink.rotator = _raise(HookError("no"))
        assert sink.emit_batch([sink.encode(line(number)) for number in range(5)]) is None
        assert _texts(failures) == ["no"]
        sink.on_error = "raise"
        clock.now += 1
        sink.rotator = _raise(HookError("neither"))
        assert sink.emit_batch([sink.encode(line(number)) for number in range(5, 10)]) is None
    assert numbers(path) == list(range(10))


@pytest.mark.parametrize("end", ["flush", "close"])
def test_a_failure_at_a_flush_is_told(path, failures, end):
    """What fails when the buffer is written is told, and costs no event."""
    options = {"buffer_bytes": 1000, "flush_interval": 3600, "rotator": _raise(HookError("no"))}
    sink = RotatingFileSink(path, max_bytes=40, backup_count=9, on_error=failures.append, **options)
    for number in range(4):
        sink.handle({**line(number), "level": "info"})
    assert getattr(sink, end)()
    assert [(str(failure.error), failure.events) for failure in failures] == [("no", 0)]
    assert numbers(path) == list(range(4))
    sink.close()


def test_a_rotator_that_leaves_the_file_is_told_and_makes_no_copies(path, failures, clock):
    """All events stay in the file, each once: what the rotator has copied is taken away again."""
    with RotatingFileSink(
        path, max_bytes=40, backup_count=3, rotator=shutil.copyfile, on_error=failures.append
    ) as sink:
        for number in range(20):
            _write(sink, number)
            clock.now += 60
    assert by_name(path.parent) == {"app.log": list(range(20))}
    [failure] = failures
    assert isinstance(failure.error, SinkError)
    assert str(path) in str(failure.error)


def test_attempts_that_fail_push_no_backup_out(path, failures, clock):
    """However often a rotation fails, the older files stay, and what a broken rotator left half done goes."""

    def half(source, dest):
        Path(dest).write_bytes(Path(source).read_bytes()[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), dest)

    with RotatingFileSink(path, max_bytes=40, backup_count=3, on_error=failures.append) as sink:
        _write(sink, *range(8))
        before = {number for numbers in by_name(path.parent).values() for number in numbers}
        sink.rotator = half
        for number in range(8, 20):
            _write(sink, number)
            clock.now += 60
            assert {n for found in by_name(path.parent).values() for n in found} >= before
        sink.rotator = None
        _write(sink, 20)
    assert by_name(path.parent) == {
        "app.log": [20],
        "app.log.1": list(range(6, 20)),
        "app.log.2": [4, 5],
        "app.log.3": [2, 3],
    }
    assert len(failures) == 1


def test_a_directory_in_the_way_costs_no_event(path, failures, clock):
    """A target that is a directory is left alone; the file goes on until it is gone."""
    target = path.with_name("app.log.1")
    target.mkdir()
    (target / "precious").touch()
    with RotatingFileSink(path, max_bytes=40, backup_count=3, on_error=failures.append) as sink:
        _write(sink, *range(5))
        assert numbers(path) == list(range(5))
        assert (target / "precious").exists()
        shutil.rmtree(target)
        clock.now += 1
        _write(sink, 5)
    assert by_name(path.parent) == {"app.log": [5], "app.log.1": list(range(5))}
    [failure] = failures
    assert isinstance(failure.error, IsADirectoryError)
    assert failure.error.filename == str(target)


def test_another_file_system_costs_no_event(path, failures, clock):
    """A namer that leads to another file system, where nothing can be moved to, is told; all stays in the file."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == path.parent.stat().st_dev:
        pytest.skip("no second file system")
    foreign = elsewhere / f"outfall-{os.getpid()}-{random.randrange(10**9)}"

    def namer(name):
        return str(foreign) + name[-2:]

    with RotatingFileSink(path, max_bytes=40, backup_count=3, namer=namer, on_error=failures.append) as sink:
        _write(sink, *range(5))
        sink.namer = None
        clock.now += 1
        _write(sink, 5)
    assert by_name(path.parent) == {"app.log": [5], "app.log.1": list(range(5))}
    assert [failure.error.errno for failure in failures] == [errno.EXDEV]
    assert list(elsewhere.glob(f"{foreign.name}*")) == []


def test_a_directory_without_permission_costs_no_event(path):
    """Where files cannot be moved, a user who may only write to the file writes on."""
    path.touch()
    script = """
        import os, sys
        from outfall import RotatingFileSink
        path = sys.argv[1]
        if os.getuid() == 0:
            os.chmod(path, 0o666)
            os.chmod(os.path.dirname(path), 0o755)
            os.setgid(65534)
            os.setuid(65534)
        else:
            os.chmod(os.path.dirname(path), 0o555)
        failures = []
        with RotatingFileSink(path, max_bytes=40, backup_count=3, on_error=failures.append) as sink:
            for number in range(5):
                sink.handle({"event": f"{number:07}"})
            assert sink.stats().delivered == 5
        [failure] = failures
        assert isinstance(failure.error, PermissionError), failure
        assert os.listdir(os.path.dirname(path)) == ["app.log"]
    """
    # Not in pytest's directory, which other users may not enter.
    import tempfile

    directory = Path(tempfile.mkdtemp())
    try:
        public = directory / "logs"
        public.mkdir()
        directory.chmod(0o755)
        (public / "app.log").touch()
        check(script, public / "app.log")
        assert numbers(public / "app.log") == list(range(5))
    finally:
        public.chmod(0o755)
        shutil.rmtree(directory)


def test_a_file_that_was_moved_but_not_begun_anew_takes_the_events(path, failures, clock, monkeypatch):
    """If no new file can be opened, what comes goes into the one that was moved, until one can."""
    real = os.open

    def refuse(name, *args, **options):
        if name == str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)
        return real(name, *args, **options)

    with RotatingFileSink(path, max_bytes=40, backup_count=3, compression="gzip", on_error=failures.append) as sink:
        _write(sink, 0, 1)
        monkeypatch.setattr(os, "open", refuse)
        _write(sink, 2, 3, 4)
        sink._compressor.start()
        assert sink._compressor.wait(PATIENCE_SECONDS)
        _write(sink, 5)
        assert by_name(path.parent) == {"app.log.1": [0, 1, 2, 3, 4, 5]}
        monkeypatch.undo()
        clock_later = 1001.0
        monkeypatch.setattr(rotation, "monotonic", lambda: clock_later)
        _write(sink, 6)
        monkeypatch.undo()
        assert sink.stats().dropped == {}
    assert in_order(path) == list(range(7))
    assert [failure.error.errno for failure in failures] == [errno.EMFILE]


def test_a_shift_that_failed_halfway_loses_no_backup(path, failures, clock, monkeypatch):
    """The next attempt fills the gap instead of pushing the files above it out."""
    with RotatingFileSink(path, max_bytes=20, backup_count=4, on_error=failures.append) as sink:
        _write(sink, *range(5))  # .4 to .1 are 0 to 3
        real = os.replace
        left = [1, 1]

        def replace(source, dest):
            if not left:
                raise OSError(errno.EIO, os.strerror(errno.EIO), source)
            left.pop()
            real(source, dest)

        monkeypatch.setattr(os, "replace", replace)
        _write(sink, 5)
        monkeypatch.setattr(os, "replace", real)
        assert sorted(in_order(path)) == list(range(6))
        clock.now += 1
        _write(sink, 6)
    assert by_name(path.parent) == {
        "app.log": [6],
        "app.log.1": [4, 5],
        "app.log.2": [3],
        "app.log.3": [2],
        "app.log.4": [1],
    }


def test_several_processes_on_a_directory_that_is_locked_for_too_long(path, failures, clock, monkeypatch):
    """Whoever keeps the lock costs no event: it is told, and tried again later."""
    import fcntl

    monkeypatch.setattr("outfall.sinks.core.flock._PATIENCE_SECONDS", 0.01)
    with RotatingFileSink(path, max_bytes=40, backup_count=3, multiprocess=True, on_error=failures.append) as sink:
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _write(sink, *range(5))
        finally:
            os.close(descriptor)
        assert numbers(path) == list(range(5))
        clock.now += 1
        _write(sink, 5)
        assert numbers(path) == [5]
    assert len(failures) == 1


def test_several_processes_on_a_path_that_cannot_be_opened_any_more(path, failures, monkeypatch):
    """A process that finds the file moved away, and can open none, goes on with the one it has."""
    with RotatingFileSink(path, max_bytes=1000, backup_count=3, multiprocess=True, on_error=failures.append) as sink:
        _write(sink, 1)
        moved = path.rename(path.with_name("app.log.1"))
        path.mkdir()
        _write(sink, 2, 3)
        assert numbers(moved) == [1, 2, 3]
        path.rmdir()
        _write(sink, 4)
    assert by_name(path.parent) == {"app.log": [4], "app.log.1": [1, 2, 3]}
    [failure] = failures
    assert (type(failure.error), failure.events) == (IsADirectoryError, 0)
    assert sink.stats().delivered == 4


def test_a_file_system_without_locks_leaks_no_descriptors(path, failures, monkeypatch):
    """multiprocess=True where flock() is refused: each event is told as lost, none leaves a descriptor open."""

    def refuse(descriptor, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with RotatingFileSink(path, backup_count=3, multiprocess=True, delay=True, on_error=failures.append) as sink:
        monkeypatch.setattr("outfall.sinks.core.flock.try_lock", refuse)
        before = _open_descriptors()
        _write(sink, 1, 2, 3)
        assert _open_descriptors() == before
        assert sink.stats().dropped == {"error": 3}
        monkeypatch.undo()
        _write(sink, 4)
    assert numbers(path) == [4]


def test_a_file_that_cannot_be_opened_is_told_for_each_event_it_costs(tmp_path, failures):
    """No directory: events are lost and counted as with FileSink, and it recovers."""
    path = tmp_path / "missing" / "app.log"
    sink = RotatingFileSink(path, max_bytes=40, backup_count=3, multiprocess=True, on_error=failures.append)
    _write(sink, 1)
    assert [failure.events for failure in failures] == [0, 1]
    path.parent.mkdir()
    _write(sink, 2)
    assert sink.close()
    assert (numbers(path), sink.stats().dropped) == ([2], {"error": 1})


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_full_disk(tmp_path):
    """On a disk that fills up and is emptied again, each event that was counted as delivered is there once, whole."""
    script = """
        import os, sys
        from outfall import RotatingFileSink
        directory = sys.argv[1]
        failures = []
        sink = RotatingFileSink(f"{directory}/app.log", max_bytes=20_000, backup_count=50, on_error=failures.append)
        ballast = os.open(f"{directory}/ballast", os.O_WRONLY | os.O_CREAT)
        os.write(ballast, b"x" * 40_000)
        written = []
        def log(first, last):
            for number in range(first, last):
                before = sink.stats().delivered
                sink.handle({"event": f"{number:087}"})
                if sink.stats().delivered > before:
                    written.append(number)
        log(0, 3000)
        assert sink.stats().dropped.get("error", 0) > 100, sink.stats()
        full = len(written)
        os.unlink(f"{directory}/ballast")
        os.close(ballast)
        log(3000, 3100)
        assert len(written) == full + 100, sink.stats()
        assert sink.close()
        import json, glob
        found = []
        for name in glob.glob(f"{directory}/app.log*"):
            data = open(name, "rb").read()
            assert len(data) <= 20_000
            assert not data or data.endswith(b"\\n")
            found += [int(json.loads(text)["event"]) for text in data.splitlines()]
        assert sorted(found) == written
        assert all(failure.events == 1 for failure in failures), failures
        print("done")
    """
    import sys
    import textwrap

    command = 'mount -t tmpfs -o size=160k outfall "$1" || exit 77; exec "$2" -c "$3" "$1"'
    result = subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            command,
            "sh",
            tmp_path,
            sys.executable,
            textwrap.dedent(script),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("may not mount")
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


# -- many threads, and kills


@pytest.mark.parametrize(
    "options", [{}, {"buffer_bytes": 2000}, {"renderer": lambda _, __, e: json.dumps(e)}, {"multiprocess": True}]
)
def test_eight_threads_lose_tear_and_disorder_nothing(path, options):
    """Each event is in one file, whole, and those of one thread are in their order."""
    each = 1500
    with RotatingFileSink(path, max_bytes=8000, backup_count=10_000, **options) as sink:

        def log(thread: int) -> None:
            for number in range(each):
                sink.handle(line(thread * 10_000 + number, 40))

        threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    found = in_order(path)
    assert len(found) == 8 * each
    for thread in range(8):
        mine = [number % 10_000 for number in found if number // 10_000 == thread]
        assert mine == list(range(each))
    assert _bounded(path.parent, 8000)
    assert_balanced(sink.stats())
    assert sink.stats().delivered == 8 * each


KILLED = """
    import os, sys
    from outfall import RotatingFileSink
    path, first, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    sink = RotatingFileSink(path, max_bytes=40, backup_count=100_000, on_error="raise", **options)
    for number in range(first, first + 100_000):
        sink.handle({"event": f"{number:07}"})
        os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("options", [{}, {"multiprocess": True}], ids=["alone", "multiprocess"])
def test_a_kill_at_any_instant_leaves_each_acknowledged_event_in_one_file(path, options):
    """A process that is killed while it rotates all the time, and restarted, loses and doubles nothing."""
    chance = random.Random(7)
    for round_ in range(5):
        first = round_ * 1_000_000
        child = start(KILLED, path, first, repr(options), stdout=subprocess.PIPE)
        try:
            enough = chance.randrange(40, 400)
            read = b""
            while len(read) < enough:
                read += os.read(child.stdout.fileno(), 64)
            child.kill()
            rest, _ = child.communicate(timeout=PATIENCE_SECONDS)
        finally:
            child.kill()
            child.wait(PATIENCE_SECONDS)
        acknowledged = [int(number) for number in (read + rest).split(b"\n")[:-1]]
        after = list(range(first + 500_000, first + 500_005))
        with RotatingFileSink(path, max_bytes=40, backup_count=100_000, on_error="raise", **options) as sink:
            _write(sink, *after)
        found = in_order(path)
        # One more may have been written and not been acknowledged.
        assert found in ([*acknowledged, *after], [*acknowledged, acknowledged[-1] + 1, *after])
        assert _bounded(path.parent, 40)
        for file in path.parent.iterdir():
            file.unlink()


def test_half_a_line_that_a_killed_process_left_is_ended_first(path):
    """The next event is not glued to it, and it counts."""
    path.write_bytes(b'{"event":"half')
    with RotatingFileSink(path, max_bytes=40, backup_count=2) as sink:
        _write(sink, 1)
        assert path.read_bytes() == b'{"event":"half\n{"event":"0000001"}\n'
        _write(sink, 2)
    assert numbers(path) == [2]


# -- bad arguments


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"max_bytes": -1}),
        (ValueError, {"max_bytes": 1.5}),
        (ValueError, {"max_bytes": "1 megabyte"}),
        (ValueError, {"max_bytes": True}),
        (ValueError, {"max_bytes": None}),
        (ValueError, {"backup_count": -2}),
        (ValueError, {"backup_count": "5"}),
        (ValueError, {"max_age": -1}),
        (ValueError, {"max_age": "1 month"}),
        (ValueError, {"max_age": float("nan")}),
        (ValueError, {"max_total_bytes": -1}),
        (ValueError, {"max_total_bytes": 0.5}),
        (ValueError, {"compression": "lz4"}),
        (ValueError, {"compression": 9}),
        (TypeError, {"namer": "app.log.%d"}),
        (TypeError, {"rotator": 42}),
        (ValueError, {"mode": "r"}),
        (ValueError, {"mode": None}),
        (ValueError, {"encoding": "klingon"}),
        (ValueError, {"permissions": -1}),
        (ValueError, {"buffer_bytes": -1}),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_by_name_and_value(path, error, options):
    """The message says which argument and what was given, and no file has been made."""
    [(argument, value)] = options.items()
    with pytest.raises(error) as raised:
        RotatingFileSink(path, **{"max_bytes": 100, "backup_count": 1, **options})
    assert argument in str(raised.value)
    assert repr(value) in str(raised.value)
    assert not path.exists()


def test_multiprocess_is_refused_where_there_are_no_locks(path, monkeypatch):
    """A platform without flock() is told at construction."""
    monkeypatch.setattr("outfall.sinks.core.flock.AVAILABLE", False)
    with pytest.raises(ValueError, match=r"multiprocess=True.*flock"):
        RotatingFileSink(path, multiprocess=True)


def test_no_warning_is_raised_in_the_usual_life(path):
    """A rotating sink in daily use warns of nothing, unclosed descriptors included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = _open_descriptors()
        for way in ({}, {"multiprocess": True}, {"compression": "gzip"}):
            with RotatingFileSink(path, max_bytes=40, backup_count=2, **way) as sink:
                _write(sink, *range(50))
        until(lambda: _open_descriptors() == before)


# -- a kill in the midst of a rollover


def _killed_at(step: str, rollover: int):
    """Return a mixin of a rotating sink whose process dies at *step* of its rollover number *rollover*, from 1."""

    class Doomed:
        rollovers = 0

        def _pass(self, here: str) -> None:
            if here == step and self.rollovers == rollover:
                os.kill(os.getpid(), signal.SIGKILL)

        def rotate(self, source: str, dest: str) -> None:
            self.rollovers += 1
            self._pass("way made")
            super().rotate(source, dest)  # type: ignore[misc]

        def begin_new_file(self) -> None:
            self._pass("moved")
            super().begin_new_file()  # type: ignore[misc]
            self._pass("begun")

    return Doomed


_ROLLING: dict[str, Callable[[type, Path], Any]] = {
    "size": lambda mixin, path: type("S", (mixin, RotatingFileSink), {})(path, max_bytes=40, backup_count=9),
    "processes": lambda mixin, path: type("P", (mixin, RotatingFileSink), {})(
        path, max_bytes=40, backup_count=9, multiprocess=True
    ),
    "time": lambda mixin, path: type("T", (mixin, TimedRotatingFileSink), {})(path, when="D", max_bytes=40),
    "pipeline": lambda mixin, path: type("B", (mixin, RotatingFileSink), {})(
        path, max_bytes=40, backup_count=9, processors=[lambda logger, name, event: event]
    ),
}


def _all_numbers(directory: Path) -> list[int]:
    return sorted(number for found in by_name(directory).values() for number in found)


@pytest.mark.parametrize("rollover", [1, 3])
@pytest.mark.parametrize("step", ["way made", "moved", "begun"])
@pytest.mark.parametrize("kind", _ROLLING)
def test_a_kill_in_the_midst_of_a_rollover_loses_nothing(path, kind, step, rollover):
    """Each event whose handle returned is in a file once; the sink of the next start, and one beside, go on."""
    make = _ROLLING[kind]
    path.parent.joinpath("logs").mkdir()
    path = path.parent / "logs" / path.name
    beside = make(_killed_at("", 0), path) if kind == "processes" else None
    fatal = 2 * rollover  # two events fill a file, the one after them rolls it over
    pid = os.fork()
    if pid == 0:
        try:
            with make(_killed_at(step, rollover), path) as sink:
                _write(sink, *range(fatal + 1))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert _all_numbers(path.parent) == list(range(fatal))
    if beside is not None:
        _write(beside, *range(fatal, fatal + 3))
        beside.close()
    with make(_killed_at("", 0), path) as sink:
        _write(sink, *range(fatal + (3 if beside else 0), 20))
        assert_balanced(sink.stats())
    assert _all_numbers(path.parent) == list(range(20))
    assert all(file.stat().st_size <= 40 for file in path.parent.iterdir())
