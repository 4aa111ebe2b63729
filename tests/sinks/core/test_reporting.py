"""What is told of failures: to whom, how often, and never what was in the event."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from decimal import Decimal
from pathlib import Path

import pytest

from outfall import BackgroundSink, FanoutSink, FileSink, HTTPSink, RotatingFileSink, Sink
from outfall.sinks.core import reporting as failures
from outfall.sinks.core.reporting import REPORT_INTERVAL_SECONDS, SinkFailure, cleaned, describe, report
from outfall.sinks.errors import PermanentDeliveryError, SinkError, TemporaryDeliveryError
from tests.sinks._wire import free_port

SECRET = "hunter2-s3cret"
EVENT = {"event": "login failed", "password": SECRET, "level": "error", "logger": "app.login", "ok": True, "none": None}


class Clock:
    """Stands for the module `time` in the reports."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Begin with nothing reported, at a time that only tests move."""
    clock = Clock()
    monkeypatch.setattr(failures, "time", clock)
    monkeypatch.setattr(failures, "_reports", failures._Reports())
    return clock


@pytest.fixture
def told(capfd):
    """Return what was written to the descriptor of stderr since the last call, as lines."""

    def read():
        return capfd.readouterr().err.splitlines()

    return read


def failure(error=None, *, sink="S", events=1, suppressed=0):
    """Return a failure of the sink S."""
    return SinkFailure(sink, ValueError("bad") if error is None else error, events, 1.0, suppressed)


class Unprintable(Exception):
    """An exception whose texts raise."""

    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


class UnprintableByAbort(Unprintable):
    """An exception whose texts raise what is no Exception."""

    def __str__(self):
        raise GeneratorExit

    __repr__ = __str__


# -- SinkFailure


def test_a_failure_cannot_be_changed():
    """What one on_error is told is what the next is told."""
    told = failure()
    for name in ("sink", "error", "events", "time", "suppressed"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(told, name, None)
    assert not hasattr(told, "__dict__")


def test_a_failure_has_no_field_for_the_event_and_suppressed_nothing_by_default():
    """It tells which sink, which error, how many events, when."""
    assert [field.name for field in dataclasses.fields(SinkFailure)] == [
        "sink",
        "error",
        "events",
        "time",
        "suppressed",
        "where",
        "number",
    ]
    assert SinkFailure("S", ValueError(), 1, 2.0).suppressed == 0


# -- describe


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (ValueError(), "ValueError"),
        (ValueError("a\nb\r\x1b[31m\u2028\x00"), "ValueError: a\\nb\\r\\x1b[31m\\u2028\\x00"),
        (ValueError("caf\xe9 \U0001f600 \ud800"), "ValueError: caf\xe9 \U0001f600 \\ud800"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "OSError: [Errno 28] No space left on device: '/x'"),
        (Unprintable(), "Unprintable: (no message: its __str__ raised)"),
        (UnprintableByAbort(), "UnprintableByAbort: (no message: its __str__ raised)"),
    ],
)
def test_an_error_is_described_in_one_printable_line(error, text):
    """Type and message, with whatever could forge a line or drive a terminal escaped."""
    assert describe(error) == text


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_swallowed_by_a_description(interrupt):
    """Ctrl-C during an exception's __str__ is still Ctrl-C."""

    class Interrupted(Exception):
        def __str__(self):
            raise interrupt

    with pytest.raises(interrupt):
        describe(Interrupted())


# -- report


def test_a_report_is_one_line_that_names_sink_count_and_error(told):
    """The line has all one needs to look further."""
    report(failure(OSError(errno.ENOSPC, "No space left on device"), sink="app.jsonl", events=3))
    assert told() == ["outfall: app.jsonl lost 3 events: OSError: [Errno 28] No space left on device"]


def test_a_report_counts_one_event_in_the_singular_and_none_not_at_all(told):
    """A failure that cost no event says so."""
    report(failure(sink="A"))
    report(failure(sink="B", events=0))
    assert told() == ["outfall: A lost 1 event: ValueError: bad", "outfall: B had a failure: ValueError: bad"]


def test_neither_message_nor_name_can_break_the_line(told):
    """A report is one line whatever is in it."""
    report(failure(ValueError("a\nb\u2028c\x85d"), sink="two\nlines\r"))
    assert told() == ["outfall: two\\nlines\\r lost 1 event: ValueError: a\\nb\\u2028c\\x85d"]


def test_the_same_cause_is_reported_once_in_thirty_seconds_with_a_count(told, clock):
    """What was left out is told with the next line."""
    assert REPORT_INTERVAL_SECONDS == 30
    for now in (0, 1, 29.9):
        clock.now = now
        report(failure(events=2))
    assert told() == ["outfall: S lost 2 events: ValueError: bad"]
    clock.now = 30
    report(failure())
    assert told() == ["outfall: S lost 1 event: ValueError: bad (and 2 more failures before, 4 events)"]
    clock.now = 59
    report(failure())
    assert told() == []
    clock.now = 60
    report(failure())
    assert told() == ["outfall: S lost 1 event: ValueError: bad (and 1 more failure before, 1 event)"]
    clock.now = 90
    report(failure())
    assert told() == ["outfall: S lost 1 event: ValueError: bad"]


@pytest.mark.parametrize("start", [0.0, 0.001, 1e9, -5.0])
def test_the_first_report_is_written_whatever_the_clock_says(told, clock, start):
    """A monotonic clock may start anywhere."""
    clock.now = start
    report(failure())
    assert len(told()) == 1


def test_other_causes_are_reported_at_once(told):
    """Sink, type of error and errno make a cause; the message does not."""
    report(failure(OSError(errno.ENOSPC, "x")))
    report(failure(OSError(errno.EIO, "x")))
    report(failure(OSError(errno.ENOSPC, "x"), sink="T"))
    report(failure(ValueError("x")))
    report(failure(ValueError("another message")))
    assert len(told()) == 4


def test_what_was_suppressed_before_it_came_here_is_counted_too(told, clock):
    """A sink that keeps failures back itself says how many, and they are told, at once or later."""
    report(failure(suppressed=3))
    assert told() == ["outfall: S lost 1 event: ValueError: bad (and 3 more failures before, 0 events)"]
    report(failure(suppressed=5))
    clock.now = 30
    report(failure(suppressed=1))
    assert told() == ["outfall: S lost 1 event: ValueError: bad (and 7 more failures before, 1 event)"]


@pytest.mark.usefixtures("own_logging")
def test_raise_exceptions_false_silences(told, clock):
    """Who has silenced the handlers of logging has silenced the sinks, the summary at exit included."""
    logging.raiseExceptions = False
    report(failure())
    assert told() == []
    logging.raiseExceptions = True
    report(failure())
    report(failure())
    assert len(told()) == 1
    logging.raiseExceptions = False
    failures._report_suppressed()
    assert told() == []


def test_reports_go_to_the_descriptor_of_stderr_whoever_replaced_the_stream(told, monkeypatch):
    """A sys.stderr that leads into a sink would feed the failing sink with its own reports."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    report(failure())
    assert sys.stderr.getvalue() == ""
    assert len(told()) == 1


class NoDescriptor:
    """A stream without a descriptor."""


@pytest.mark.parametrize(
    "make",
    [lambda: None, io.StringIO, NoDescriptor, Path(os.devnull).open],
    ids=["none", "text", "no descriptor", "file"],
)
def test_without_a_stderr_nothing_is_told_and_nothing_is_raised(monkeypatch, make):
    """There is nobody to tell in a process without a console."""
    stream = make()
    monkeypatch.setattr(sys, "__stderr__", stream)
    report(failure())
    if hasattr(stream, "close"):
        stream.close()
        report(failure(sink="T"))


def test_no_error_makes_a_report_raise(told):
    """An error may be as hostile as it likes."""

    class HostileErrno(OSError):
        @property
        def errno(self):
            raise ZeroDivisionError

    class UnhashableErrno(Exception):
        errno = []  # noqa: RUF012 - what nobody can hash

    for error in (HostileErrno(1, "x"), UnhashableErrno("x"), Unprintable(), OSError([], "x")):
        report(failure(error))
    assert len(told()) == 4


def test_what_was_left_out_is_told_at_the_end_once(told):
    """A burst within thirty seconds of the exit is not lost sight of."""
    for _ in range(3):
        report(failure(events=2))
    report(failure(sink="T"))
    told()
    failures._report_suppressed()
    assert told() == ["outfall: S had 2 more failures, 4 events lost: ValueError"]
    failures._report_suppressed()
    assert told() == []


EXIT = """
from outfall.sinks.core.reporting import SinkFailure, report
for _ in range(3):
    report(SinkFailure("S", ValueError("bad"), 1, 0.0))
"""


def test_the_summary_is_written_when_the_process_exits():
    """The exit hook tells what was left out."""
    child = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, check=True)
    assert child.stderr.splitlines() == [
        "outfall: S lost 1 event: ValueError: bad",
        "outfall: S had 2 more failures, 2 events lost: ValueError",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reports_for_itself_even_if_the_lock_was_held(told):
    """The child neither waits for a thread that it does not have nor repeats the parent's summary."""
    report(failure())
    report(failure())
    held, done = threading.Event(), threading.Event()

    def hold():
        with failures._reports.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that waits for the lock must not wait for ever
        try:
            failures._report_suppressed()
            report(failure(sink="child"))
        finally:
            os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert told() == ["outfall: S lost 1 event: ValueError: bad", "outfall: child lost 1 event: ValueError: bad"]


# -- cleaned


def everything(error):
    """Return all that an error tells without its traceback, and its chain."""
    texts, links, seen = [], [error], set()
    while links:
        link = links.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        texts += [describe(link), repr(link), repr(link.args), repr(vars(link))]
        links += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
    return "\n".join(texts)


def raised(function, *args):
    """Return what *function* raises."""
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError


def test_an_innocent_error_is_left_as_it_is():
    """Type, message and traceback are what one needs to find the fault."""
    error = raised(int, "not a number")
    assert cleaned(error, EVENT) is error
    assert error.__traceback__ is not None


def with_cause(text):
    """Return an error whose cause says *text*."""
    error = ValueError("innocent")
    error.__cause__ = KeyError(text)
    return error


def with_context(text):
    """Return an error whose context's context says *text*."""
    error = ValueError("innocent")
    error.__context__ = ValueError("link")
    error.__context__.__context__ = KeyError(text)
    return error


def with_attribute(text):
    """Return an error with *text* in an attribute alone."""
    error = ValueError("innocent")
    error.request = {"headers": [text]}
    return error


def json_error(text):
    """Return the error of a document with *text* in it."""
    return raised(json.loads, f'["{text}", ')


def sink_error_with_cause(text):
    """Return an innocent error of Outfall whose cause says *text*."""
    error = SinkError("innocent")
    error.__cause__ = ValueError(text)
    return error


REPEATING = {
    "message": lambda text: ValueError(f"cannot use {text!r} here"),
    "second argument": lambda text: ValueError("innocent", {"k": text}),
    "key": KeyError,
    "cause": with_cause,
    "context": with_context,
    "attribute": with_attribute,
    "document": json_error,
    "sink error's cause": sink_error_with_cause,
    "system error's words": lambda text: OSError(errno.EIO, f"cannot send {text}"),
    "file name": lambda text: FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text),
}


@pytest.mark.parametrize("make", REPEATING.values(), ids=REPEATING)
def test_an_error_that_repeats_a_value_is_replaced(make):
    """Wherever the value is, in args, repr, attributes, cause or context, it is gone from what is told."""
    error = make(SECRET)
    told = cleaned(error, EVENT)
    assert type(told) is SinkError
    assert SECRET not in everything(told)
    assert type(error).__name__ in str(told)
    assert (told.__cause__, told.__context__, told.__traceback__) == (None, None, None)


def test_the_stand_in_names_the_place():
    """Function, file and line are told in place of the message."""

    def failing():
        raise ValueError(SECRET)

    told = cleaned(raised(failing), EVENT)
    assert f"failing ({__file__}:" in str(told)


class Account:
    """An object with a telling repr."""

    def __repr__(self):
        return "Account(4929-1234)"


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        "line\nbreak",
        "quote'\"s",
        b"bytes \xff",
        12345,
        -1234.5,
        Decimal("1234.50"),
        uuid.UUID(int=7),
        Account(),
        "x" * 5_000,
        "ümläut",
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "nest",
    [
        lambda v: v,
        lambda v: [v],
        lambda v: (1, {"k": [v]}),
        lambda v: {1: {"level": "x", "deep": (v,)}},
    ],
)
def test_every_kind_of_value_is_looked_for_however_nested(value, nest):
    """A number, an object or a text in a nested container is the event's as well."""
    error = ValueError(f"cannot take {value!r}")
    assert type(cleaned(error, {"event": "x", "k": nest(value)})) is SinkError


def test_values_in_sets_and_as_text_are_looked_for():
    """Sets are searched, and an event that is text is one value."""
    assert type(cleaned(ValueError(SECRET), {"k": {SECRET}})) is SinkError
    assert type(cleaned(ValueError(f"bad {SECRET}"), SECRET)) is SinkError
    assert type(cleaned(ValueError(f"bad {SECRET}"), SECRET.encode())) is SinkError


@pytest.mark.parametrize("cut", [lambda t: t[:30] + "...", lambda t: "..." + t[-25:]])
def test_a_message_that_quotes_a_part_of_a_long_value_is_replaced(cut):
    """Libraries shorten what they quote: the beginning or the end gives it away too."""
    secret = "".join(f"{number:04}" for number in range(100))
    assert type(cleaned(ValueError(f"input_value='{cut(secret)}'"), {"k": secret})) is SinkError


def test_short_values_and_the_words_of_logging_do_not_hide_a_message():
    """A message that has a "42", a level's name or the logger's in it tells nothing."""
    event = {
        "event": "x",
        "id": 42,
        "level": "warning",
        "logger": "app.db",
        "timestamp": "2024",
        "ok": True,
        "no": None,
    }
    for text in ("no x for 42", "warning from app.db", "in 2024", "True is not None", "False"):
        error = ValueError(text)
        assert cleaned(error, event) is error


def test_hostile_values_do_not_hide_the_others():
    """A value or key that raises when it is looked at costs nothing else in the search."""

    class HostileKey:
        armed = False

        def __hash__(self):
            if self.armed:
                raise ZeroDivisionError
            return 1

    class HostileValue:
        def __repr__(self):
            raise GeneratorExit

        @property
        def __class__(self):
            raise ZeroDivisionError

    event = {HostileKey(): HostileValue(), "k": [HostileValue(), SECRET]}
    HostileKey.armed = True
    assert type(cleaned(ValueError(SECRET), event)) is SinkError


@pytest.mark.parametrize("kind", [Unprintable, UnprintableByAbort])
def test_an_error_that_cannot_be_looked_at_is_replaced(kind):
    """Its methods raise now and may tell everything later."""
    told = cleaned(kind(SECRET), EVENT)
    assert type(told) is SinkError
    assert SECRET not in everything(told)


def test_a_system_error_keeps_its_words_though_the_path_has_a_word_of_the_event():
    """That the disk is full must be told, also where the file is called after a field."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/log/billing.jsonl")
    assert cleaned(error, {"service": "billing"}) is error


@pytest.mark.parametrize(
    ("error", "keeps"),
    [
        (raised(f"{SECRET}\ud800".encode), "surrogates not allowed"),
        (raised(f"{SECRET}\xe9\xe9".encode, "ascii"), "'ascii' codec can't encode"),
        (raised((SECRET.encode() + b"\xff").decode), "invalid start byte"),
    ],
)
def test_a_unicode_error_keeps_its_type_and_reason_without_the_text(error, keeps):
    """What to mend is told, what it happened to is not, though part of it never was in the event."""
    told = cleaned(error, {})
    assert type(told) is type(error)
    assert keeps in str(told)
    assert SECRET not in everything(told)
    assert not told.object


def test_a_unicode_error_of_another_make_is_replaced():
    """A subclass that cannot be made anew does not slip through."""

    class Own(UnicodeEncodeError):
        def __init__(self, *args):
            if len(args[1]) == 0:
                raise ZeroDivisionError
            super().__init__(*args)

    told = cleaned(Own("ascii", SECRET, 0, 1, "reason"), {})
    assert type(told) is SinkError
    assert SECRET not in everything(told)


@pytest.mark.parametrize("kind", [SinkError, TemporaryDeliveryError, PermanentDeliveryError])
def test_an_error_of_outfall_is_told_as_it_is(kind):
    """Its words were chosen for it."""
    error = kind("the target is busy")
    assert cleaned(error, {"event": "the target is busy"}) is error


@pytest.mark.parametrize("kind", [TemporaryDeliveryError, ValueError])
def test_what_an_error_was_raised_in_place_of_is_forgotten(kind):
    """``from None`` hides a library's exception from a traceback; here it is gone, with the URL and token in it."""
    token = "Bearer abcdef"  # in no event

    def send():
        try:
            raise OSError(f"https://collector/ {token}")
        except OSError:
            raise kind("unreachable") from None

    error = raised(send)
    assert token in everything(error)
    told = cleaned(error, EVENT)
    assert told is error
    assert token not in everything(told)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups and notes came with Python 3.11")
def test_groups_and_notes_are_searched():
    """What a group holds and what was noted on an error is told with it."""
    group = builtins.ExceptionGroup("x", [ValueError("x"), builtins.ExceptionGroup("y", [with_cause(SECRET)])])
    noted = ValueError("innocent")
    noted.add_note(f"while doing {SECRET}")
    for error in (group, noted):
        told = cleaned(error, EVENT)
        assert type(told) is SinkError
        assert SECRET not in everything(told)


def test_a_cyclic_chain_comes_to_an_end():
    """Two errors that are each other's cause are looked at once."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert cleaned(first, EVENT) is first
    second.args = (SECRET,)
    assert type(cleaned(first, EVENT)) is SinkError


def test_a_huge_or_cyclic_event_is_searched_in_bounded_time():
    """The search gives up in time on an event that is a world of its own."""
    event = {"k": SECRET, "many": [[number] for number in range(100_000)]}
    event["self"] = event
    deep = []
    for _ in range(10_000):
        deep = [deep]
    event["deep"] = deep
    error = ValueError("innocent")
    assert cleaned(error, event) is error


def test_without_an_event_the_error_is_told_as_it_is():
    """A flush has no event whose values could be repeated."""
    error = ValueError(SECRET)
    assert cleaned(error, None) is error


# -- which sink, and which function


def unreachable(port):
    """Return an HTTPSink for a port of this machine."""
    return HTTPSink(f"http://127.0.0.1:{port}/secret-path?key=secret-key")


def test_each_sink_is_reported_by_what_tells_it_from_its_like(tmp_path, told):
    """Two files and two servers that fail of one cause are four reports, each with a path or a host and port."""
    ports = [free_port(), free_port()]
    for port in ports:
        unreachable(port).handle({"event": "x"})
    for name in ("orders", "audit"):
        FileSink(tmp_path / "missing" / f"{name}.jsonl").handle({"event": "x"})
    lines = told()
    assert len(lines) == 4
    named = [*(f"127.0.0.1:{port}" for port in ports), "orders.jsonl", "audit.jsonl"]
    for wanted, line in zip(named, lines, strict=True):
        assert wanted in re.split(" lost | had ", line)[0]
    assert "secret" not in "".join(lines)


def test_sinks_that_nothing_tells_apart_are_reported_each(told):
    """What one of them has failed of says nothing of the other, whatever they are called."""

    class Failing(Sink):
        def emit(self, event):
            raise ConnectionError("gone")

    sinks = [Failing(), Failing(), Failing(name="mine")]
    for sink in sinks * 2:
        sink.handle({"event": "x"})
    assert told() == [
        "outfall: Failing lost 1 event: ConnectionError: gone",
        "outfall: Failing lost 1 event: ConnectionError: gone",
        "outfall: mine lost 1 event: ConnectionError: gone",
    ]


def test_what_was_left_out_is_told_by_the_same_name(tmp_path, told):
    """At exit too."""
    sink = FileSink(tmp_path / "missing" / "a.jsonl")
    for _ in range(2):
        sink.handle({"event": "x"})
    told()
    failures._report_suppressed()
    assert all("a.jsonl' had" in line for line in told())


def test_what_is_remembered_of_sinks_that_are_no_more_has_a_bound(clock):
    """A thousand sinks that failed once are forgotten when that is over."""
    reports = failures._reports
    for number in range(3_000):
        clock.now += failures.REPORT_INTERVAL_SECONDS
        reports.due(SinkFailure("S", ValueError(), 1, 0.0, number=number), clock.monotonic())
    assert len(reports.last) <= 1_001


def bad_processor(_logger, _name, event):
    """Fail in a way that tells nothing."""
    raise ValueError("bad")


def repeating_processor(_logger, _name, event):
    """Fail with a value of the event in the message."""
    raise ValueError(event["event"])


def failing_inside(_logger, _name, event):
    """Fail in what it calls."""
    return json.loads("{")


class Callable:
    """A processor that is an object."""

    def __call__(self, _logger, _name, event):
        """Fail."""
        raise KeyError("k")


@pytest.mark.parametrize("place", ["processors", "renderer"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (bad_processor, "bad_processor"),
        (repeating_processor, "repeating_processor"),
        (failing_inside, "failing_inside"),
        (Callable(), "__call__"),
        (lambda *_: 1 // 0, "<lambda>"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda sink: sink, BackgroundSink, FanoutSink])
def test_a_function_of_the_user_s_that_fails_is_named(tmp_path, told, place, function, name, wrap):
    """With its file and line, and without a value of the event."""
    given = [function] if place == "processors" else function
    sink = wrap(FileSink(tmp_path / "a", **{place: given}))
    sink.handle({"event": "a secret of the user"})
    sink.close()
    line = told()[0]
    assert re.search(rf" in (Callable\.)?{re.escape(name)} \({re.escape(__file__)}:\d+\)", line), line
    assert "secret of" not in line


@pytest.mark.parametrize("name", ["namer", "rotator"])
def test_a_namer_or_rotator_that_fails_is_named(tmp_path, told, name):
    """The event is written, and the report says what to mend."""

    def naming_nothing(*_):
        raise ValueError("no name")

    sink = RotatingFileSink(tmp_path / "a", max_bytes=20, backup_count=2)
    setattr(sink, name, naming_nothing)
    for _ in range(2):
        sink.handle({"event": "x" * 20})
    sink.close()
    assert any(f"naming_nothing ({__file__}:" in line for line in told())


def test_a_failure_of_the_sink_s_own_names_no_function(tmp_path, told):
    """There is none of the user's to mend."""
    FileSink(tmp_path / "missing" / "a").handle({"event": "x"})
    assert not any(".py:" in line for line in told())
