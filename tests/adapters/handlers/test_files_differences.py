"""Where the twins of the handlers for streams and files differ from their originals on purpose.

One test for each row of docs/explanation/handlers.md.
"""

from __future__ import annotations

import datetime as dt
import gzip
import io
import logging
import os
import resource
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import time_machine

from outfall.adapters.handlers import (
    FileHandler,
    RotatingFileHandler,
    StreamHandler,
    TimedRotatingFileHandler,
    WatchedFileHandler,
    rotating,
    watched,
)

NOW = 1_700_000_000  # 2023-11-14 22:13:20 UTC


def record(message="message"):
    """Return a log record."""
    return logging.LogRecord("app", logging.INFO, "/app/main.py", 7, message, (), None)


@pytest.fixture
def path(tmp_path):
    """Give the path of a log file that is not there yet."""
    return tmp_path / "app.log"


@pytest.fixture
def errors(monkeypatch):
    """Give what comes to `handleError`, of any handler: the exception and the message."""
    seen = []
    monkeypatch.setattr(
        logging.Handler, "handleError", lambda self, given: seen.append((sys.exc_info()[1], given.getMessage()))
    )
    return seen


@pytest.fixture
def clock(monkeypatch):
    """Let time stand still, in UTC; shift it to let time pass."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller
    monkeypatch.undo()
    time.tzset()


def files(directory):
    """Return names and contents of what is in *directory*."""
    return {entry.name: entry.read_text() for entry in sorted(directory.iterdir())}


def types(errors):
    """Return the types of the exceptions and the messages."""
    return [(type(error), message) for error, message in errors]


@contextmanager
def _size_limit(size):
    """Let no file grow beyond *size*: a full disk, as far as a process can make one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


# -- streams and text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_encoding_lacks_cost_no_record(path, encoding, errors):
    """They are written as backslash escapes, to files for which no error handler is given and to any text stream."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    for handler in (FileHandler(path, encoding=encoding), StreamHandler(stream)):
        handler.handle(record("5 €"))
        handler.flush()
        handler.close()
    assert path.read_bytes() == stream.buffer.getvalue() == b"5 \\u20ac\n"
    assert not errors
    strict = FileHandler(path, encoding=encoding, errors="strict")
    strict.handle(record("5 €"))
    strict.close()
    assert types(errors) == [(UnicodeEncodeError, "5 €")]


def test_text_goes_to_binary_streams_and_files_too(path, errors):
    """It is encoded as UTF-8."""
    stream = io.BytesIO()
    StreamHandler(stream).handle(record("é"))
    handler = FileHandler(path, mode="ab")
    handler.handle(record("é"))
    handler.close()
    assert stream.getvalue() == path.read_bytes() == "é\n".encode()
    assert not errors


def test_formatters_may_return_bytes(path, errors):
    """As a renderer of structlog's that uses orjson does: they are written as they are, with the terminator."""

    class Bytes(logging.Formatter):
        def format(self, given):
            return super().format(given).encode()

    text = io.StringIO()
    for handler in (FileHandler(path), StreamHandler(text)):
        handler.setFormatter(Bytes())
        handler.handle(record("é"))
        handler.close()
    assert path.read_bytes() == "é\n".encode()
    assert text.getvalue() == "é\n"
    both = FileHandler(path)
    both.setFormatter(Bytes())
    both.terminator = b";\n"
    both.handle(record())
    both.close()
    assert path.read_bytes() == "é\nmessage;\n".encode()
    assert not errors


def test_a_stream_that_cannot_be_flushed_is_replaced_all_the_same():
    """`setStream` raises what the old stream's flush raised, and the new one is set."""
    old, new = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    handler = StreamHandler(old)
    old.close()
    with pytest.raises(ValueError, match="closed"):
        handler.setStream(new)
    handler.handle(record())
    assert new.getvalue() == "message\n"


# -- opening and closing


@pytest.mark.parametrize("mode", ["w", "w+", "x"])
def test_a_record_after_close_is_appended(path, mode, errors):
    """In mode "w" the record would be dropped, in "w+" the file be truncated, in "x" an exception be raised."""
    handler = FileHandler(path, mode=mode)
    handler.handle(record("one"))
    handler.close()
    handler.handle(record("two"))
    handler.close()
    assert path.read_text() == "one\ntwo\n"
    assert not errors


def test_a_late_record_makes_a_deleted_file_again(path):
    """In mode "w" as in "a": as by an exit hook that logs after a temporary directory was emptied."""
    for mode in ("w", "a"):
        handler = FileHandler(path, mode=mode)
        handler.close()
        path.unlink()
        handler.handle(record())
        assert path.read_text() == "message\n"
        handler.close()


@pytest.mark.parametrize("kind", [FileHandler, WatchedFileHandler])
def test_a_subclass_that_overrides_emit_may_catch_what_opening_raises(kind, tmp_path, errors):
    """As with the original: it makes the directory, for example."""

    class Mine(kind):
        def emit(self, given):
            try:
                super().emit(given)
            except FileNotFoundError:
                (tmp_path / "no").mkdir()
                super().emit(given)

    handler = Mine(tmp_path / "no" / "app.log", delay=True)
    handler.handle(record())
    assert files(tmp_path / "no") == {"app.log": "message\n"}
    assert not errors
    handler.close()


def test_a_watched_file_that_is_opened_with_delay_is_not_truncated_by_the_second_record(path):
    """It is opened once."""
    handler = WatchedFileHandler(path, mode="w", delay=True)
    handler.handle(record("one"))
    stream = handler.stream
    handler.handle(record("two"))
    assert handler.stream is stream
    assert path.read_text() == "one\ntwo\n"
    handler.close()


def test_a_forked_child_does_not_truncate_what_the_parent_has_written(path):
    """Though it is the first to open the file in its process."""
    handler = FileHandler(path, mode="w", delay=True)
    come, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(come, 1)
            handler.handle(record("child"))
        finally:
            os._exit(0)
    handler.handle(record("parent"))
    os.write(go, b".")
    os.waitpid(child, 0)
    for descriptor in (come, go):
        os.close(descriptor)
    assert path.read_text() == "parent\nchild\n"
    handler.close()


def test_in_mode_w_each_record_goes_to_the_end(path):
    """What others append is not written over."""
    handler = FileHandler(path, mode="w")
    handler.handle(record("one"))
    with path.open("a") as other:
        other.write("from elsewhere\n")
    handler.handle(record("two"))
    assert path.read_text() == "one\nfrom elsewhere\ntwo\n"
    handler.close()


@pytest.mark.parametrize("kind", [FileHandler, WatchedFileHandler, RotatingFileHandler])
def test_a_file_that_cannot_be_opened_later_goes_to_handle_error(kind, tmp_path, errors):
    """Not into the application; each record tries again."""
    handler = kind(tmp_path / "no" / "app.log", delay=True)
    handler.handle(record("one"))
    assert types(errors) == [(FileNotFoundError, "one")]
    (tmp_path / "no").mkdir()
    handler.handle(record("two"))
    assert files(tmp_path / "no") == {"app.log": "two\n"}
    assert len(errors) == 1
    handler.close()


def test_half_a_line_is_ended_before_the_first_record(path):
    """What a killed process left does not swallow the next record."""
    path.write_text("whole\nha")
    handler = FileHandler(path)
    handler.handle(record())
    assert path.read_text() == "whole\nha\nmessage\n"
    handler.terminator = ""
    handler.handle(record("|"))
    handler.close()
    handler.handle(record("|"))
    assert path.read_text() == "whole\nha\nmessage\n||"
    handler.close()


def test_a_full_disk_leaves_no_half_line(path, errors):
    """What did not fit is not kept for the next write, and writing goes on when there is room."""
    handler = FileHandler(path)
    handler.handle(record("one"))
    with _size_limit(8):
        handler.handle(record("too long"))
        assert path.read_text() == "one\n"
    handler.handle(record("two"))
    assert path.read_text() == "one\ntwo\n"
    assert [message for _, message in errors] == ["too long"]
    handler.close()


def test_a_descriptor_that_somebody_closed_is_replaced(path, errors):
    """As by a program that becomes a daemon."""
    handler = FileHandler(path)
    handler.handle(record("one"))
    os.close(handler.stream.fileno())
    handler.handle(record("two"))
    handler.close()
    assert path.read_text() == "one\ntwo\n"
    assert not errors


def test_a_named_pipe_that_nobody_reads_is_an_error(tmp_path):
    """It does not make the application wait."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        FileHandler(tmp_path / "pipe")


# -- files that others move or truncate


def test_records_between_copy_and_truncation_are_written_again(path, errors):
    """With ``copytruncate``, what stands in neither file is written again."""
    handler = WatchedFileHandler(path)
    handler.handle(record("one"))
    path.with_name("app.log.1").write_text(path.read_text())
    handler.handle(record("two"))
    os.truncate(path, 0)
    handler.handle(record("three"))
    assert files(path.parent) == {"app.log": "two\nthree\n", "app.log.1": "one\n"}
    assert not errors
    handler.close()


def test_a_truncation_without_a_copy_is_told(path, errors):
    """`handleError` is told, with the record that was written when it was found out."""
    handler = WatchedFileHandler(path)
    handler.handle(record("one"))
    os.truncate(path, 0)
    handler.handle(record("two"))
    handler.handle(record("three"))
    assert path.read_text() == "two\nthree\n"
    ((error, message),) = errors
    assert "was truncated, and no copy of it was found" in str(error)
    assert message == "two"
    handler.close()


def test_a_path_that_cannot_be_opened_anew_costs_no_record(path, errors):
    """The old file takes them until it can, and `handleError` is told once."""
    handler = WatchedFileHandler(path)
    handler.handle(record("one"))
    path.rename(path.with_suffix(".old"))
    path.mkdir()
    handler.handle(record("two"))
    handler.handle(record("three"))
    assert path.with_suffix(".old").read_text() == "one\ntwo\nthree\n"
    assert types(errors) == [(IsADirectoryError, "two")]
    path.rmdir()
    handler.handle(record("four"))
    assert path.read_text() == "four\n"
    handler.close()


# -- rollover


def test_a_rollover_that_fails_costs_no_record(path, errors, monkeypatch):
    """It is told once, and tried again after a second."""
    now = [1000.0]
    monkeypatch.setattr(rotating, "monotonic", lambda: now[0])
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=1)
    attempts = []

    def refuse(source, dest):
        attempts.append(dest)
        raise PermissionError("no")

    handler.rotator = refuse
    for message in ("one", "two two", "three", "four"):
        handler.handle(record(message))
    assert files(path.parent) == {"app.log": "one\ntwo two\nthree\nfour\n"}
    assert types(errors) == [(PermissionError, "two two")]
    assert len(attempts) == 1
    handler.rotator = None
    now[0] += 1
    handler.handle(record("five"))
    assert files(path.parent) == {"app.log": "five\n", "app.log.1": "one\ntwo two\nthree\nfour\n"}
    handler.close()


def test_a_rotator_that_leaves_the_file_where_it_is_has_failed(path, errors):
    """The copy it made is removed, or each attempt would make another."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=3)
    handler.rotator = lambda source, dest: Path(dest).write_bytes(Path(source).read_bytes())
    for message in ("one", "two two", "three"):
        handler.handle(record(message))
    assert files(path.parent) == {"app.log": "one\ntwo two\nthree\n"}
    assert "the rotator left" in str(errors[0][0])
    handler.close()


def test_a_rotator_that_copies_is_no_failure_by_time(path, errors, clock):
    """It makes a copy for each interval, and the file goes on."""
    handler = TimedRotatingFileHandler(path, when="D")
    handler.rolloverAt = NOW + 86_400
    handler.rotator = lambda source, dest: Path(dest).write_bytes(Path(source).read_bytes())
    for message in ("one", "two"):
        handler.handle(record(message))
        clock.shift(86_400)
        handler.handle(record(message))
    assert not errors
    assert path.read_text() == "one\none\ntwo\ntwo\n"
    assert len(list(path.parent.iterdir())) == 3
    handler.close()


def test_a_record_is_formatted_once(path):
    """And not to learn its length; the original does both."""
    seen = []

    class Counting(logging.Formatter):
        def format(self, given):
            seen.append(given.getMessage())
            return super().format(given)

    handler = RotatingFileHandler(path, maxBytes=1000, backupCount=1)
    handler.setFormatter(Counting())
    handler.handle(record("one"))
    assert seen == ["one"]
    handler.close()


def test_sizes_are_in_bytes(path):
    """Not in characters, and with the terminator there is."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=1, encoding="utf-8")
    handler.terminator = "\r\n"
    handler.handle(record("ééé"))
    handler.handle(record("x"))
    assert path.with_name("app.log.1").read_bytes() == "ééé\r\n".encode()
    handler.close()


def test_a_record_may_fill_the_file_exactly(path):
    """The limit is the size that is not exceeded."""
    handler = RotatingFileHandler(path, maxBytes=8, backupCount=1)
    for message in ("one", "two", "six"):
        handler.handle(record(message))
    assert files(path.parent) == {"app.log": "six\n", "app.log.1": "one\ntwo\n"}
    handler.close()


@pytest.mark.parametrize("overridden", [False, True])
def test_what_others_append_counts(path, overridden):
    """The size is that of the file when the record is written."""

    class Mine(RotatingFileHandler):
        def shouldRollover(self, given):
            return super().shouldRollover(given)

    handler = (Mine if overridden else RotatingFileHandler)(path, maxBytes=20, backupCount=1)
    handler.handle(record("one"))
    with path.open("a") as other:
        other.write("from elsewhere\n")
    handler.handle(record("two"))
    assert files(path.parent) == {"app.log": "two\n", "app.log.1": "one\nfrom elsewhere\n"}
    handler.close()


def test_without_backups_the_file_is_not_closed_and_opened_for_each_record(path):
    """As documented: if either bound is zero, rollover never occurs."""
    handler = RotatingFileHandler(path, maxBytes=4)
    handler.handle(record("one"))
    stream = handler.stream
    handler.handle(record("two"))
    assert handler.stream is stream
    handler.close()


@pytest.mark.parametrize("kind", [RotatingFileHandler, TimedRotatingFileHandler])
def test_an_empty_file_is_not_rolled_over(kind, path, clock):
    """Neither by hand nor by time: empty files would push out full ones."""
    handler = kind(path, backupCount=1)
    handler.doRollover()
    clock.shift(10 * 86_400)
    handler.handle(record())
    assert files(path.parent) == {"app.log": "message\n"}
    handler.close()


def test_numbers_move_up_to_the_first_gap(path):
    """So a rotation that was cut short pushes no file out when it is done again."""
    handler = RotatingFileHandler(path, backupCount=3)
    path.with_name("app.log.2").write_text("two\n")
    path.with_name("app.log.3").write_text("three\n")
    handler.handle(record("one"))
    handler.doRollover()
    assert files(path.parent) == {"app.log": "", "app.log.1": "one\n", "app.log.2": "two\n", "app.log.3": "three\n"}
    handler.close()


def test_a_lower_backup_count_costs_the_next_file_too(path):
    """The number just beyond `backupCount` is freed, not only those up to it."""
    for number in (1, 2, 3):
        path.with_name(f"app.log.{number}").write_text(f"{number}\n")
    handler = RotatingFileHandler(path, backupCount=1)
    handler.handle(record("one"))
    handler.doRollover()
    assert files(path.parent) == {"app.log": "", "app.log.1": "one\n", "app.log.3": "3\n"}
    handler.close()


def test_a_file_that_others_have_put_in_place_is_not_rolled_over(path, errors):
    """Another process has rotated: the handler goes on with the file it made."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=3)
    handler.handle(record("one"))
    path.rename(path.with_name("app.log.1"))
    path.write_text("theirs\n")
    handler.handle(record("two two"))
    handler.handle(record("six"))
    assert files(path.parent) == {
        "app.log": "six\n",
        "app.log.1": "two two\n",
        "app.log.2": "theirs\n",
        "app.log.3": "one\n",
    }
    assert not errors
    handler.close()


# -- rollover by time


def test_a_rotated_file_is_never_overwritten(path, clock):
    """A name that is taken gets a number, which counts as one of the files to keep."""
    handler = TimedRotatingFileHandler(path, when="H", backupCount=2)
    path.with_name("app.log.2023-11-14_22").write_text("taken\n")
    handler.rolloverAt = NOW + 3600
    handler.handle(record("one"))
    clock.shift(3600)
    handler.handle(record("two"))
    assert files(path.parent) == {
        "app.log": "two\n",
        "app.log.2023-11-14_22": "taken\n",
        "app.log.2023-11-14_22.1": "one\n",
    }
    handler.backupCount = 1
    assert handler.getFilesToDelete() == [f"{path}.2023-11-14_22"]
    handler.close()


def test_files_are_as_old_as_their_names_say(path, clock):
    """Not as the names sort: a suffix that begins with the day would have the wrong ones deleted."""
    handler = TimedRotatingFileHandler(path, when="D", backupCount=1)
    handler.suffix, handler.extMatch = "%d-%m-%Y", r"\d\d-\d\d-\d{4}"
    for day in ("30-10-2023", "02-11-2023"):
        path.with_name(f"app.log.{day}").touch()
    assert handler.getFilesToDelete() == [f"{path}.30-10-2023"]
    handler.suffix = "%d"  # which does not make what extMatch finds
    os.utime(path.with_name("app.log.02-11-2023"), (NOW, NOW - 2))
    os.utime(path.with_name("app.log.30-10-2023"), (NOW, NOW - 1))
    assert handler.getFilesToDelete() == [f"{path}.02-11-2023"]
    handler.close()


def test_without_a_backup_count_no_file_is_to_be_deleted(path, clock):
    """`getFilesToDelete` then returns none, not all."""
    handler = TimedRotatingFileHandler(path, when="D")
    path.with_name("app.log.2023-01-01").touch()
    assert handler.getFilesToDelete() == []
    handler.close()


@pytest.mark.parametrize(("interval", "weeks"), [(1, 0), (2, 1), (3, 2)])
def test_the_interval_multiplies_weeks(path, clock, interval, weeks):
    """On every version, as since Python 3.13."""
    handler = TimedRotatingFileHandler(path, when="W1", interval=interval, delay=True)
    week = 7 * 86_400
    assert (handler.interval, handler.rolloverAt) == (interval * week, NOW + 6400 + weeks * week)


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_intervals_of_days_are_whole_days(path, clock, interval):
    """On every version, as since Python 3.13: the rollover is at midnight, *interval* days on."""
    handler = TimedRotatingFileHandler(path, when="midnight", interval=interval, delay=True)
    assert handler.rolloverAt == NOW + 6400 + (interval - 1) * 86_400


@pytest.mark.parametrize("day", ["2024-03-30", "2024-03-31", "2024-10-26", "2024-10-27"])
def test_midnight_is_midnight_when_clocks_change(path, monkeypatch, day):
    """And each file is named for its own day."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        start = dt.datetime.fromisoformat(f"{day}T12:00:00").timestamp()
        with time_machine.travel(start, tick=False) as clock:
            path.write_text("before\n")
            os.utime(path, (start, start))
            handler = TimedRotatingFileHandler(path, when="midnight")
            at = dt.datetime.fromtimestamp(handler.rolloverAt)  # noqa: DTZ006 - by the local clock
            following = dt.date.fromisoformat(day) + dt.timedelta(days=1)
            assert (at.date(), at.time()) == (following, dt.time(0))
            clock.move_to(handler.rolloverAt + 3 * 86_400)
            handler.handle(record())
            assert path.with_name(f"app.log.{day}").read_text() == "before\n"
            handler.close()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_time_of_day_that_clocks_leave_out_is_the_moment_they_are_put_forward(path, monkeypatch):
    """Half past two does not come on that day; the first moment after it is three."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        handler = TimedRotatingFileHandler(path, when="midnight", atTime=dt.time(2, 30), delay=True)
        before = dt.datetime.fromisoformat("2024-03-31T01:00:00").timestamp()
        assert handler.computeRollover(before) == dt.datetime.fromisoformat("2024-03-31T03:00:00").timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_time_of_day_that_clocks_show_twice_is_the_first_of_both(path, monkeypatch):
    """The original rolls over at the second, too, if it is asked between the two."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        handler = TimedRotatingFileHandler(path, when="midnight", atTime=dt.time(1, 30), delay=True)
        before = dt.datetime.fromisoformat("2012-11-04T00:30:00").timestamp()
        first = dt.datetime.fromisoformat("2012-11-04T01:30:00").timestamp()
        assert handler.computeRollover(before) == first
        next_day = dt.datetime.fromisoformat("2012-11-05T01:30:00").timestamp()
        for minutes in (15, 40, 75):
            assert handler.computeRollover(first + minutes * 60) == next_day
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_file_of_an_hour_that_clocks_repeat_gets_a_number(path, monkeypatch):
    """Both hours have the same name."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        start = dt.datetime.fromisoformat("2012-11-04T01:00:00").timestamp()
        with time_machine.travel(start, tick=False) as clock:
            handler = TimedRotatingFileHandler(path, when="H")
            handler.rolloverAt = start + 3600
            for message in ("first", "second", "third"):
                handler.handle(record(message))
                clock.shift(3600)
            handler.close()
        assert files(path.parent) == {
            "app.log": "third\n",
            "app.log.2012-11-04_01": "first\n",
            "app.log.2012-11-04_01.1": "second\n",
        }
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_hour_is_named_for_when_it_began_though_clocks_changed_since(path, monkeypatch):
    """The name is by the clock at the beginning of the interval, whatever it shows now."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        start = dt.datetime.fromisoformat("2024-03-31T01:30:00").timestamp()
        with time_machine.travel(start, tick=False) as clock:
            path.write_text("before\n")
            os.utime(path, (start, start))
            handler = TimedRotatingFileHandler(path, when="H")
            clock.shift(3600)
            handler.handle(record())
            assert path.with_name("app.log.2024-03-31_01").exists()
            handler.close()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_compressing_namer_and_rotator_of_the_cookbook(path, clock):
    """The recipe of the logging cookbook works, retention included."""

    def rotator(source, dest):
        with Path(source).open("rb") as file:
            Path(dest).write_bytes(gzip.compress(file.read()))
        Path(source).unlink()

    handler = TimedRotatingFileHandler(path, when="D", backupCount=1)
    handler.namer, handler.rotator = lambda name: name + ".gz", rotator
    handler.rolloverAt = NOW + 86_400
    for day in range(3):
        handler.handle(record(f"day {day}"))
        clock.shift(86_400)
    names = sorted(entry.name for entry in path.parent.iterdir())
    assert names == ["app.log", "app.log.2023-11-15.gz"]
    assert gzip.decompress(path.with_name(names[1]).read_bytes()) == b"day 1\n"
    handler.close()


def test_what_a_truncation_has_cost_is_written_at_close_too(path, errors):
    """Without another record."""
    handler = WatchedFileHandler(path)
    handler.handle(record("one"))
    path.with_name("app.log.1").write_text(path.read_text())
    handler.handle(record("two"))
    os.truncate(path, 0)
    handler.close()
    assert files(path.parent) == {"app.log": "two\n", "app.log.1": "one\n"}
    assert not errors


def test_a_truncation_that_is_found_out_at_close_or_exit_is_reported(path, monkeypatch):
    """There is no record to tell `handleError` of, so the sinks' `report` is told."""
    told = []
    monkeypatch.setattr(watched, "report", lambda failure: told.append(str(failure.error)))
    for end in ("close", "exit"):
        handler = WatchedFileHandler(path)
        handler.handle(record("one"))
        os.truncate(path, 0)
        if end == "close":
            handler.close()
        else:
            handler.sink.drain(1)
            handler.close()
    assert len(told) == 2
    assert all("was truncated" in message for message in told)


@pytest.mark.parametrize("named", [False, True], ids=["plain", "namer"])
def test_of_many_rollovers_in_one_interval_the_newest_files_stay(tmp_path, named):
    """No number is given again: what retention has deleted does not make the newest file look like the oldest."""
    handler = TimedRotatingFileHandler(tmp_path / "app.log", when="midnight", backupCount=3)
    if named:
        handler.namer = lambda name: f"{name}.old"
    for number in range(30):
        handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
        handler.doRollover()
    handler.close()
    kept = "".join(path.read_text() for path in tmp_path.iterdir())
    assert sorted(kept.split("\n")) == ["", "line 27", "line 28", "line 29"]
