"""From `logging` into sinks: `SinkHandler`, and what `logging.config` makes of descriptions."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import datetime as dt
import gc
import io
import json
import logging
import logging.config
import logging.handlers
import pickle
import queue
import struct
import sys
import threading
from collections.abc import Iterator, Mapping

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.stdlib import ProcessorFormatter

from outfall import (
    BackgroundSink,
    CaptureSink,
    FallbackSink,
    FanoutSink,
    FileSink,
    HandlerSink,
    HTTPSink,
    NullSink,
    RotatingFileSink,
    SinkHandler,
    StreamSink,
)
from outfall.adapters.stdlib.sinkhandler import build
from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.levels import parse_level
from tests.sinks._processes import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("own_logging")

CALLSITE = {"pathname", "lineno", "func_name", "process", "process_name", "thread", "thread_name"}


@pytest.fixture
def sink():
    """Give a sink that keeps its events and tells of failures by raising."""
    return CaptureSink(on_error="raise")


@pytest.fixture
def logger(request):
    """Give a logger of the test's own that takes every level and hands nothing up."""
    made = logging.getLogger(f"outfall.tests.{request.node.name}")
    made.setLevel(1)
    made.propagate = False
    others = made.handlers[:]
    yield made
    for handler in made.handlers[:]:
        if handler not in others:
            made.removeHandler(handler)
            handler.close()


@pytest.fixture
def attached(logger, sink):
    """Give the logger with a SinkHandler on the sink, without call-site fields."""
    logger.addHandler(SinkHandler(sink, callsite=False))
    return logger


@pytest.fixture
def configured():
    """Give dictConfig, and undo afterwards what it did to the root logger and to logging's list of handlers."""
    handlers, listed = dict(logging._handlers), logging._handlerList[:]
    logging._handlers.clear()
    logging._handlerList.clear()
    yield lambda **parts: logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **parts})
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    logging._handlers.update(handlers)
    logging._handlerList[:0] = listed


def _record(msg="x", args=(), level=logging.INFO, **attributes):
    record = logging.LogRecord("app", level, "/a/b.py", 7, msg, args, None, "work")
    record.__dict__.update(attributes)
    return record


class _Hostile(Mapping):
    """A mapping that cannot be read."""

    def __getitem__(self, key):
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        return 1


# -- a record becomes an event


def test_a_record_becomes_an_event(logger, sink):
    """Message with its arguments, level, logger, time, extra fields and call site are fields of the event."""
    logger.addHandler(SinkHandler(sink, callsite=True))
    before = dt.datetime.now(dt.timezone.utc)
    logger.warning("hello %s", "you", extra={"user": "u", "nested": {"a": [1]}})
    [event] = sink.events
    stamp = event.pop("timestamp")
    assert stamp.endswith("Z")
    assert before <= dt.datetime.fromisoformat(stamp[:-1] + "+00:00") <= dt.datetime.now(dt.timezone.utc)
    assert event.pop("lineno") > 0
    assert event == {
        "event": "hello you",
        "level": "warning",
        "logger": logger.name,
        "user": "u",
        "nested": {"a": [1]},
        "pathname": __file__,
        "func_name": "test_a_record_becomes_an_event",
        "process": logging.LogRecord("", 0, "", 0, "", (), None).process,
        "process_name": "MainProcess",
        "thread": threading.get_ident(),
        "thread_name": "MainThread",
    }


def test_the_timestamp_is_the_record_s_own(sink):
    """An event keeps the time at which it was logged, to the microsecond, however late it is handled."""
    SinkHandler(sink).handle(_record(created=1_700_000_000.123456))
    assert sink.events[0]["timestamp"] == "2023-11-14T22:13:20.123456Z"


@pytest.mark.parametrize(
    ("callsite", "keys"),
    [
        (True, CALLSITE),
        (False, set()),
        (["module", "filename", "lineno"], {"module", "filename", "lineno"}),
        ((), set()),
    ],
)
def test_call_site_fields_are_those_asked_for(sink, callsite, keys):
    """All but the two that repeat the path by default, none, or the ones named."""
    SinkHandler(sink, callsite=callsite).handle(_record())
    assert sink.events[0].keys() - {"event", "level", "logger", "timestamp"} == keys


def test_call_site_values_are_the_record_s(sink):
    """Each call-site key has the value of the record's attribute that it stands for."""
    names = ["pathname", "filename", "module", "lineno", "func_name", "process_name", "thread_name", "task_name"]
    SinkHandler(sink, callsite=names).handle(_record(processName="p", threadName="t", taskName="k"))
    values = ["/a/b.py", "b.py", "b", 7, "work", "p", "t", "k"]
    assert {name: sink.events[0][name] for name in names} == dict(zip(names, values, strict=True))


def test_an_unknown_call_site_field_is_refused(sink):
    """The misspelt name and the choice are in the message."""
    with pytest.raises(ValueError, match=r"callsite=\['line'\]: 'line' is none of pathname, "):
        SinkHandler(sink, callsite=["line"])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="logging knows tasks since Python 3.12")
def test_the_task_s_name_is_in_the_event(logger, sink):
    """A record logged in an asyncio task says which."""
    logger.addHandler(SinkHandler(sink, callsite=True))

    async def work() -> None:
        asyncio.current_task().set_name("job")
        logger.info("x")

    asyncio.run(work())
    assert sink.events[0]["task_name"] == "job"


@pytest.mark.parametrize(
    ("level", "fields"),
    [
        (logging.DEBUG, {"level": "debug"}),
        (logging.CRITICAL, {"level": "critical"}),
        (35, {"level": "level 35", "level_number": 35}),
        (21, {"level": "outfallloud", "level_number": 21}),
    ],
)
def test_a_level_is_a_lower_case_name_and_a_number_where_the_name_is_not_enough(attached, sink, level, fields):
    """Registered and nameless levels carry their number, which is what a sink filters by."""
    logging.addLevelName(21, "OUTFALLLOUD")
    attached.log(level, "x")
    assert {key: sink.events[0].get(key) for key in fields} == fields
    assert ("level_number" in sink.events[0]) == ("level_number" in fields)


def test_a_sink_filters_records_by_their_number(attached, sink):
    """Levels between the usual ones fall on the right side of the sink's level."""
    sink.level = 33
    for level in (30, 32, 33, 35, 40):
        attached.log(level, "%s", level)
    assert [event["event"] for event in sink.events] == ["33", "35", "40"]


def test_a_renamed_level_keeps_its_number(attached, sink):
    """A level name that some formatter coloured is told with the number that it stands for."""
    sink.level = "error"
    attached.handle(_record(level=40, levelname="\x1b[31mERROR\x1b[0m"))
    assert (sink.events[0]["level"], sink.events[0]["level_number"]) == ("\x1b[31merror\x1b[0m", 40)


@pytest.mark.parametrize(
    ("message", "args", "event"),
    [
        ("plain", (), "plain"),
        ("100%", (), "100%"),
        ("%s-%d", ("a", 1), "a-1"),
        ("%(a)s", ({"a": 1},), "1"),
        ("%s", ({"a": 1},), "{'a': 1}"),
        ("", ({"a": 1},), ""),
        (ValueError("v"), (), "v"),
        (42, (), "42"),
    ],
)
def test_the_message_is_what_logging_would_write(attached, sink, message, args, event):
    """Arguments are merged in as getMessage does, and none are left over."""
    attached.info(message, *args)
    assert sink.events[0]["event"] == event
    assert "positional_args" not in sink.events[0]


@pytest.mark.parametrize(("message", "args"), [("%d", ("x",)), ("%s %s", ("one",)), ("none", ("x",))])
def test_arguments_that_do_not_fit_cost_no_event_and_logging_tells(sink, capsys, message, args):
    """The text and its arguments arrive apart, and the mistake is printed as for every other handler."""
    handler = SinkHandler(sink)
    handler.handle(_record(message, args, logging.WARNING))
    assert (sink.events[0]["event"], sink.events[0]["positional_args"]) == (message, args)
    assert sink.events[0]["level"] == "warning"
    assert "--- Logging error ---" in capsys.readouterr().err
    logging.raiseExceptions = False
    handler.handle(_record(message, args))
    assert len(sink.events) == 2
    assert capsys.readouterr().err == ""


def test_a_message_whose_text_cannot_be_had_costs_no_event(sink, capsys):
    """An object whose __str__ raises is kept as it is."""

    class Broken:
        def __str__(self):
            raise RuntimeError

    broken = Broken()
    SinkHandler(sink).handle(_record(broken))
    assert sink.events[0]["event"] is broken
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_dict_as_the_message_gives_its_items_as_fields(attached, sink):
    """The fields of a dict or any other mapping are the event's, beside those of the record."""
    message = {"event": "x", "a": {"b": 1}}
    attached.error(message, extra={"c": 2})
    attached.error(collections.UserDict(message))
    for event in sink.events:
        assert {key: event[key] for key in ("event", "a", "level", "logger")} == {
            "event": "x",
            "a": {"b": 1},
            "level": "error",
            "logger": attached.name,
        }
    assert sink.events[0]["c"] == 2
    assert message == {"event": "x", "a": {"b": 1}}


def test_a_dict_message_s_own_time_and_logger_stay(attached, sink):
    """An event dict that is logged as it came from elsewhere keeps what it says of itself."""
    attached.info({"event": "x", "logger": "far", "timestamp": 12.5})
    assert (sink.events[0]["logger"], sink.events[0]["timestamp"]) == ("far", 12.5)


@pytest.mark.parametrize(
    "own", [{"level": 3}, {"level": "debug"}, {"level_number": 5}, {"level": "debug", "level_number": 10}]
)
def test_a_dict_message_cannot_hide_a_record_from_a_sink(attached, sink, own):
    """What the dict calls a level does not decide where an error goes; it is kept under another name."""
    sink.level = "error"
    attached.error({"event": "x", **own})
    [event] = sink.events
    assert event["level"] == "error"
    assert {key: event["extra_" + key] for key in own} == own


def test_a_dict_message_and_extra_of_one_name_are_both_kept(attached, sink):
    """Of two fields of one name none replaces the other; the same value is not repeated."""
    attached.info({"event": "x", "a": 1, "b": 2}, extra={"a": "other", "b": 2})
    assert (sink.events[0]["a"], sink.events[0]["extra_a"]) == (1, "other")
    assert "extra_b" not in sink.events[0]


def test_extra_fields_that_collide_are_kept_beside_the_record_s_own(logger, sink):
    """Every key that an event has for itself can be an extra's name, and no value is lost."""
    logger.addHandler(SinkHandler(sink, callsite=True))
    extra = {
        "event": "E",
        "level": "L",
        "level_number": 99,
        "logger": "G",
        "timestamp": "T",
        "exception": "X",
        "stack": "S",
        "func_name": "F",
        "process_name": "P",
        "thread_name": "H",
        "extra_event": "EE",
        "plain": "N",
    }
    try:
        raise ValueError("v")
    except ValueError:
        logger.exception("message", extra=extra, stack_info=True)
    [event] = sink.events
    assert (event["event"], event["level"], event["logger"], event["plain"]) == ("message", "error", logger.name, "N")
    assert "level_number" not in event
    assert event["exc_info"][0] is ValueError
    assert event["stack"].startswith("Stack (most recent call last)")
    assert {key: event["extra_" + key] for key in extra if key != "plain"} == {
        key: value for key, value in extra.items() if key != "plain"
    }


def test_extra_fields_are_told_apart_however_many_sets_of_them_there_are(sink):
    """What is remembered of the names has a bound; a record that lacks a standard attribute has its extra as well."""
    handler = SinkHandler(sink, callsite=["lineno"])
    for _ in range(2):
        for number in range(300):
            handler.handle(_record(**{f"field_{number}": number, "shared": "s"}))
    assert len(handler._reader._extra) <= 256
    lacking = _record()
    del lacking.processName
    lacking.tenant, lacking.message = "t", "what a formatter has left"
    for _ in range(2):
        handler.handle(lacking)
    # Taken by the call site, here alone.
    handler.handle(_record(func_name="f", thread_name="mine"))
    made = [{key: value for key, value in event.items() if key != "timestamp"} for event in sink.events]
    usual = {"event": "x", "level": "info", "logger": "app", "lineno": 7}
    assert made[:600] == [usual | {f"field_{number}": number, "shared": "s"} for number in range(300)] * 2
    assert made[600:602] == [usual | {"tenant": "t"}] * 2
    assert made[602:] == [usual | {"func_name": "f", "thread_name": "mine"}]


def test_an_extra_that_says_what_the_event_says_is_not_repeated(attached, sink):
    """Level, number and logger of structlog's processors in an extra are the event's own already."""
    attached.info("x", extra={"level": "info", "level_number": 20, "logger": attached.name})
    assert not [key for key in sink.events[0] if key.startswith("extra_")]
    assert sink.events[0]["level_number"] == 20


def test_a_structlog_extra_keeps_its_time_and_anothers_does_not_move_the_event(attached, sink):
    """A timestamp beside structlog's level is the event's; alone it is a field like any other."""
    stamp = "2001-02-03T04:05:06Z"
    attached.info("x", extra={"level": "info", "timestamp": stamp})
    attached.info("x", extra={"timestamp": stamp})
    attached.info("x", extra={"level": "info", "timestamp": "soon"})
    ours, alone, unreadable = sink.events
    assert ours["timestamp"] == stamp
    assert alone["extra_timestamp"] == stamp
    assert alone["timestamp"] != stamp
    assert unreadable["extra_timestamp"] == "soon"
    assert timestamp_of(unreadable) is not None


def test_a_structlog_extra_keeps_its_rendered_exception(attached, sink):
    """The text that the chain rendered is the exception; the one that Logger.exception adds would be a second."""
    try:
        raise ValueError("v")
    except ValueError:
        attached.exception("x", extra={"level": "error", "exception": "rendered"})
        attached.exception("x", extra={"exception": "somebody's field"})
    ours, alone = sink.events
    assert ours["exception"] == "rendered"
    assert "exc_info" not in ours
    assert alone["extra_exception"] == "somebody's field"
    assert alone["exc_info"][0] is ValueError


def test_an_extra_with_a_hostile_comparison_costs_nothing(attached, sink):
    """Values are compared only where that runs nobody's code."""

    class Unequal:
        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None

    thing = Unequal()
    attached.info("x", extra={"event": thing, "level": thing, "timestamp": thing})
    assert sink.events[0]["event"] == "x"
    assert sink.events[0]["extra_event"] is sink.events[0]["extra_level"] is sink.events[0]["extra_timestamp"] is thing


def test_attributes_that_formatters_left_behind_are_no_fields(attached, sink):
    """message and asctime, which another handler's formatter added, are not taken for extra."""
    record = _record("hello %s", ("you",), taskName="t")
    logging.Formatter("%(asctime)s %(message)s").format(record)
    attached.handle(record)
    assert sink.events[0].keys() == {"event", "level", "logger", "timestamp"}


def test_an_exception_goes_along_unrendered(attached, sink):
    """The sink's renderer decides what a traceback looks like, so the exception itself is in the event."""
    error = ValueError("v")
    attached.error("x", exc_info=error)
    kind, value, _ = sink.events[0]["exc_info"]
    assert (kind, value) == (ValueError, error)
    assert "exception" not in sink.events[0]


def test_exc_info_without_an_exception_is_no_field(attached, sink):
    """Logging exc_info=True where nothing is being handled leaves no trace."""
    attached.error("x", exc_info=True)
    assert not sink.events[0].keys() & {"exc_info", "exception"}


def test_an_exception_that_is_only_text_any_more_is_kept(attached, sink):
    """A record that came through a queue or a socket has exc_text alone; a live exception is preferred to it."""
    attached.handle(_record(exc_text="Traceback: gone"))
    attached.handle(_record(exc_text="cached", exc_info=(ValueError, ValueError("v"), None)))
    assert sink.events[0]["exception"] == "Traceback: gone"
    assert "exception" not in sink.events[1]
    assert sink.events[1]["exc_info"][0] is ValueError


def test_the_stack_is_in_the_event(attached, sink):
    """stack_info=True becomes the key that structlog's renderers look for."""
    attached.info("x", stack_info=True)
    assert "test_the_stack_is_in_the_event" in sink.events[0]["stack"]


def test_a_structlog_event_dict_in_the_record_is_used_as_it_is(logger, sink):
    """wrap_for_formatter's dict is the event; the record adds nothing but a level where none is."""
    logger.addHandler(SinkHandler(sink))
    event = {"event": "x", "a": 1, "level": "warn", "timestamp": 1.5}
    logger.warning(dict(event), extra={"_logger": logger, "_name": "warning"})
    logger.warning({"event": "y"}, extra={"_logger": None, "_name": "warning"})
    logger.log(35, {"event": "z"}, extra={"_logger": None, "_name": "warning"})
    assert sink.events == [
        event,
        {"event": "y", "level": "warning"},
        {"event": "z", "level": "level 35", "level_number": 35},
    ]


def test_a_structlog_event_dict_is_not_changed(sink):
    """The dict in the record is other handlers' as well."""
    event = {"event": "x", "nested": []}
    SinkHandler(sink).handle(_record(event, _logger=None, _name="info"))
    assert event == {"event": "x", "nested": []}
    assert sink.events[0]["nested"] is not event["nested"]


def test_processors_find_the_record_and_the_renderer_never_does(logger, tmp_path):
    """A sink's processors see `_record` and `_from_structlog` as ProcessorFormatter's do; neither is written."""
    seen = []

    def look(method_logger, name, event):
        seen.append((method_logger, name, type(event["_record"]), event["_from_structlog"]))
        return event

    with FileSink(tmp_path / "app.jsonl", processors=[look]) as sink:
        logger.addHandler(SinkHandler(sink))
        logger.warning("foreign")
        logger.error({"event": "own"}, extra={"_logger": "bound", "_name": "exception"})
    assert seen == [
        (logger, "warning", logging.LogRecord, False),
        ("bound", "exception", logging.LogRecord, True),
    ]
    for line in (tmp_path / "app.jsonl").read_text().splitlines():
        assert not [key for key in json.loads(line) if key.startswith("_")]


def test_structlog_s_record_processors_work_in_a_sink(logger):
    """ExtraAdder, CallsiteParameterAdder and remove_processors_meta find in a sink what they look for."""
    sink = CaptureSink(
        on_error="raise",
        processors=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level_number,
            structlog.stdlib.ExtraAdder(["user"]),
            structlog.processors.CallsiteParameterAdder([structlog.processors.CallsiteParameter.MODULE]),
            ProcessorFormatter.remove_processors_meta,
        ],
    )
    logger.addHandler(SinkHandler(sink, callsite=False))
    logger.warning({"event": "x"}, extra={"user": "u", "_logger": logger, "_name": "warning"})
    logger.warning("y", extra={"user": "u"})
    for event in sink.events:
        assert (event["logger"], event["level_number"], event["user"]) == (logger.name, 30, "u")
    assert sink.events[1]["module"] == "test_sinkhandler"


# -- handlers, filters, levels


def test_handler_and_sink_each_apply_their_level(logger, sink):
    """A record has to pass both."""
    sink.level = "error"
    logger.addHandler(SinkHandler(sink, "WARNING"))
    for level in (20, 30, 40):
        logger.log(level, "%s", level)
    assert [event["event"] for event in sink.events] == ["40"]
    assert sink.stats().filtered == 1


def test_filters_keep_records_out_and_add_to_them(attached, sink):
    """A filter's False ends it, and what a filter sets on the record is a field."""

    def only_even(record):
        record.checked = True
        return record.msg % 2 == 0

    handler = attached.handlers[0]
    handler.addFilter(only_even)
    attached.info(1)
    attached.info(2)
    assert [(event["event"], event["checked"]) for event in sink.events] == [("2", True)]
    assert handler.handle(_record(1)) is False
    assert handler.handle(_record(2)) is True


@pytest.mark.skipif(sys.version_info < (3, 12), reason="filters may replace records since Python 3.12")
def test_a_filter_may_replace_the_record(attached, sink):
    """The record that a filter returns is the one that is emitted, and other handlers keep theirs."""

    def redact(record):
        twin = copy.copy(record)
        twin.msg = "redacted"
        return twin

    attached.handlers[0].addFilter(redact)
    attached.info("secret")
    assert [event["event"] for event in sink.events] == ["redacted"]


def test_an_overridden_filter_method_is_asked(logger, sink):
    """A subclass that overrides filter() instead of adding filters is heard, as logging.Handler hears it."""

    class Picky(SinkHandler):
        def filter(self, record):
            return record.msg != "no"

    logger.addHandler(Picky(sink))
    logger.info("no")
    logger.info("yes")
    assert [event["event"] for event in sink.events] == ["yes"]


def test_a_subclass_may_change_the_event(logger, sink):
    """event() is a method to override."""

    class Tagged(SinkHandler):
        def event(self, record):
            return {**super().event(record), "tag": 1}

    logger.addHandler(Tagged(sink))
    logger.info("x")
    assert sink.events[0]["tag"] == 1


def test_no_handler_lock_is_held_around_the_sink(logger):
    """A __repr__ that waits for another thread which logs through the same handler does not deadlock."""
    stream = io.StringIO()
    logger.addHandler(SinkHandler(StreamSink(stream)))

    class Logs:
        done = False

        def __repr__(self):
            thread = threading.Thread(target=logger.info, args=("from the other thread",), daemon=True)
            thread.start()
            thread.join(60)
            self.done = not thread.is_alive()
            return "logs"

    logs = Logs()
    logger.info("x", extra={"thing": logs})
    assert logs.done
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["from the other thread", "x"]


def test_the_handler_s_lock_does_not_stop_an_event(attached, sink):
    """While another thread holds the handler's lock, as logging.shutdown does, events still pass."""
    handler = attached.handlers[0]
    with handler.lock:
        thread = threading.Thread(target=attached.info, args=("x",), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert len(sink.events) == 1


def test_a_sink_s_failure_follows_the_sink_s_policy(logger, capsys):
    """Under the default policy the caller never sees it, under "raise" the log call raises."""
    told = []
    quiet, audit = CaptureSink(on_error=told.append), CaptureSink(on_error="raise")
    quiet.close()
    audit.close()
    logger.addHandler(SinkHandler(quiet))
    logger.info("x")
    assert [failure.events for failure in told] == [1]
    logger.addHandler(SinkHandler(audit))
    with pytest.raises(Exception, match="CaptureSink is closed"):
        logger.info("y")
    formatted = SinkHandler(audit)
    formatted.setFormatter(logging.Formatter())
    with pytest.raises(Exception, match="CaptureSink is closed"):
        formatted.handle(_record())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", [_record(_Hostile()), _record(created=1e300), _record(created="now")])
def test_a_record_that_cannot_be_read_is_told_and_keeps_what_it_can(sink, capsys, broken):
    """A broken record from elsewhere does not raise into the application, and what is known of it arrives."""
    SinkHandler(sink).handle(broken)
    assert sink.events[0]["event"] is broken.msg or sink.events[0]["event"] == "x"
    assert (sink.events[0]["level_number"], sink.events[0]["logger"]) == (20, "app")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_what_is_no_sink_is_refused(sink):
    """A sink or a description is needed; a wrong level leaves no described sink open."""
    for thing in (None, "app.log", [], {"()": dict}):
        with pytest.raises(TypeError, match="is not a Sink"):
            SinkHandler(thing)
    with pytest.raises(TypeError, match=r"sink=\{'filename': 'x'\} has no '\(\)'.*\{'\(\)': 'outfall.FileSink', …\}"):
        SinkHandler({"filename": "x"})
    with pytest.raises(TypeError, match=r"sink=CaptureSink is not a Sink but a class; write CaptureSink\(…\)"):
        SinkHandler(CaptureSink)
    made = []
    with pytest.raises(ValueError, match="level='LOUDEST' is not a known level"):
        SinkHandler({"()": lambda: made.append(CaptureSink()) or made[-1]}, "LOUDEST")
    assert all(sink.closed for sink in made)
    with pytest.raises(ValueError, match="level='LOUDEST' is not a known level"):
        SinkHandler(sink, "LOUDEST")
    assert not sink.closed
    assert repr(SinkHandler(sink, 30)).startswith("<SinkHandler (WARNING) to <CaptureSink")


# -- formatters


@pytest.mark.parametrize(
    "formatter",
    [
        logging.Formatter("%(levelname)s:%(name)s:%(message)s"),
        logging.Formatter("{levelname}:{name}:{message}", style="{"),
        logging.Formatter("$levelname:$name:$message", style="$"),
    ],
)
def test_a_formatter_s_text_is_written_as_it_is(tmp_path, sink, formatter):
    """Byte sinks write the text unchanged, whatever the style; others get it as the event."""
    with FileSink(tmp_path / "app.log") as file:
        for target in (file, sink):
            handler = SinkHandler(target)
            handler.setFormatter(formatter)
            handler.handle(_record("hé\n%s", ("you",)))
    assert (tmp_path / "app.log").read_text("utf-8") == "INFO:app:hé\nyou\n"
    assert sink.events == [{"event": "INFO:app:hé\nyou"}]


def test_formatted_text_is_filtered_by_the_record_s_level(sink):
    """Text has no level of its own; the record's number counts at the sink."""
    sink.level = 33
    handler = SinkHandler(sink)
    handler.setFormatter(logging.Formatter("%(levelno)s"))
    for level in (32, 33, 34):
        handler.handle(_record(level=level))
    assert [event["event"] for event in sink.events] == ["33", "34"]


def test_structlog_s_formatter_writes_its_text(logger):
    """ProcessorFormatter renders both kinds of records, and its text is written unchanged."""
    stream = io.StringIO()
    handler = SinkHandler(StreamSink(stream))
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
        )
    )
    logger.addHandler(handler)
    logger.warning("foreign")
    logger.warning({"event": "own", "a": 1}, extra={"_logger": logger, "_name": "warning"})
    assert stream.getvalue() == "event='foreign' level='warning'\nevent='own' a=1\n"


def test_a_failing_formatter_costs_no_event(sink, capsys):
    """logging tells of the failure and the event goes out unformatted."""

    class Broken(logging.Formatter):
        def format(self, record):
            raise RuntimeError("broken formatter")

    handler = SinkHandler(sink)
    handler.setFormatter(Broken())
    handler.handle(_record())
    assert sink.events[0]["event"] == "x"
    assert sink.events[0]["logger"] == "app"
    assert "broken formatter" in capsys.readouterr().err


@pytest.mark.parametrize(("made", "event"), [(b"bytes", "bytes"), ({"event": "dict", "a": 1}, None)])
def test_a_formatter_may_return_bytes_or_a_dict(sink, made, event):
    """Formatters that make no str, as some for collectors do, are taken at their word."""

    class Odd(logging.Formatter):
        def format(self, record):
            return made

    handler = SinkHandler(sink)
    handler.setFormatter(Odd())
    handler.handle(_record())
    assert sink.events == [made if event is None else {"event": event}]


def test_what_a_formatter_returns_that_is_no_event_is_counted():
    """None instead of text is a loss that the sink tells, not an exception in the application."""

    class Nothing(logging.Formatter):
        def format(self, record):
            return None

    told = []
    sink = CaptureSink(on_error=told.append)
    handler = SinkHandler(sink)
    handler.setFormatter(Nothing())
    handler.handle(_record())
    assert sink.stats().dropped == {"error": 1}
    assert len(told) == 1


def test_a_formatter_taken_away_gives_events_again(sink):
    """setFormatter(None) returns to events."""
    handler = SinkHandler(sink, callsite=False)
    handler.setFormatter(logging.Formatter())
    handler.setFormatter(None)
    handler.handle(_record())
    assert sink.events[0].keys() == {"event", "level", "logger", "timestamp"}


# -- flush, close, shutdown


def test_logging_shutdown_drains_and_leaves_a_sink_of_the_user_s_open(tmp_path):
    """A buffered file is complete after logging.shutdown, and still takes events."""
    path = tmp_path / "app.jsonl"
    with FileSink(path, buffer_bytes=1 << 16, flush_interval=1e9) as sink:
        handler = SinkHandler(sink)
        handler.handle(_record("one"))
        assert not path.exists() or path.read_bytes() == b""
        logging.shutdown([logging.weakref.ref(handler)])
        assert json.loads(path.read_bytes())["event"] == "one"
        assert not sink.closed
        handler.handle(_record("two"))
        handler.flush()
        assert len(path.read_bytes().splitlines()) == 2


def test_close_flushes_a_sink_that_it_leaves_open(tmp_path):
    """A handler that is removed and closed by hand keeps nothing back."""
    with FileSink(tmp_path / "app.jsonl", buffer_bytes=1 << 16, flush_interval=1e9) as sink:
        handler = SinkHandler(sink)
        handler.handle(_record())
        handler.close()
        assert json.loads((tmp_path / "app.jsonl").read_bytes())["event"] == "x"
        assert not sink.closed


def test_close_closes_a_described_sink_alone(tmp_path, sink):
    """Who made the sink closes it: the handler if it came as a description, else nobody."""
    handler = SinkHandler({"()": FileSink, "filename": tmp_path / "app.jsonl", "buffer_bytes": 1 << 16})
    handler.handle(_record())
    handler.close()
    handler.close()
    assert handler.sink.closed
    assert len((tmp_path / "app.jsonl").read_bytes().splitlines()) == 1
    given_ = SinkHandler(sink)
    given_.close()
    assert not sink.closed


@pytest.mark.parametrize("mode", ["a", "w", "x"])
def test_a_record_after_close_opens_a_described_sink_again(tmp_path, mode):
    """As with logging.FileHandler: what stands in the file stays, and close() closes the sink again."""
    path = tmp_path / "app.jsonl"
    handler = SinkHandler({"()": FileSink, "filename": path, "mode": mode})
    for text in ("one", "two", "three"):
        handler.handle(_record(text))
        handler.close()
        assert handler.sink.closed
    assert [json.loads(line)["event"] for line in path.read_bytes().splitlines()] == ["one", "two", "three"]


def test_a_sink_that_was_opened_again_is_closed_when_its_handler_is_gone(tmp_path):
    """dictConfig closes the handlers before it removes them, and not again."""
    handler = SinkHandler({"()": BackgroundSink, "target": {"()": FileSink, "filename": tmp_path / "app.jsonl"}})
    handler.close()
    handler.handle(_record("late"))
    sink = handler.sink
    del handler
    gc.collect()
    until(lambda: sink.closed and sink.stats().delivered)
    assert json.loads((tmp_path / "app.jsonl").read_bytes())["event"] == "late"


def test_close_loses_no_record_of_other_threads(tmp_path):
    """A configuration is loaded again while requests are served: a record is in the old sink or in the new one."""
    path, failures, stop, counts = tmp_path / "app.jsonl", [], threading.Event(), []
    handler = SinkHandler(
        {"()": RotatingFileSink, "filename": path, "max_bytes": 9_000_000, "on_error": failures.append}
    )

    def work():
        count = 0
        while not stop.is_set():
            handler.handle(_record())
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        handler.close()
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    handler.close()
    assert failures == []
    assert sum(file.read_bytes().count(b"\n") for file in tmp_path.iterdir()) == sum(counts)


def test_close_does_not_wait_for_the_record_that_it_interrupts(tmp_path):
    """A signal handler may call logging.shutdown, in the midst of an event."""
    handler = SinkHandler({"()": FileSink, "filename": tmp_path / "app.jsonl"})
    handler.sink.drain_timeout = 1000

    class Interrupted:
        def __str__(self):
            handler.close()
            return "late"

    handler.handle(logging.makeLogRecord({"msg": "%s", "args": (Interrupted(),), "levelno": 20}))
    assert handler.sink.stats().dropped["closed"] == 1


def test_a_closed_handler_is_gone_from_logging_s_list(sink):
    """close() does what logging.Handler's does, too."""
    handler = SinkHandler(sink)
    handler.name = "outfall-close"
    handler.close()
    assert "outfall-close" not in logging._handlers


# -- dictConfig and fileConfig


def _upper(_logger, _name, event_dict):
    event_dict["event"] = event_dict["event"].upper()
    return event_dict


class _Suffix:
    """A processor made from a description."""

    def __init__(self, text, *, mark="!"):
        self.text, self.mark = text, mark

    def __call__(self, _logger, _name, event_dict):
        event_dict["event"] += self.text + self.mark
        return event_dict


UPPER, SUFFIX, WRAPPED = _upper, _Suffix, None


def _ext(name):
    return f"{__name__}.{name}"


def test_dict_config_alone_builds_a_nest_of_sinks(configured, tmp_path):
    """Names, arguments, attributes, processors and renderers of nested sinks come from the description alone."""
    configured(
        destinations={"warnings": {"()": "outfall.FileSink", "filename": str(tmp_path / "w.log"), "level": "WARNING"}},
        handlers={
            "out": {
                "class": "outfall.SinkHandler",
                "level": "INFO",
                "callsite": ["lineno"],
                "sink": {
                    "()": "outfall.FanoutSink",
                    "args": [
                        {
                            "()": "outfall.FileSink",
                            "filename": str(tmp_path / "a.log"),
                            "processors": [
                                f"ext://{_ext('UPPER')}",
                                {"()": _ext("SUFFIX"), "args": ["?"], "mark": "#", ".": {"text": "~"}},
                            ],
                            "renderer": {"()": "structlog.processors.LogfmtRenderer", "key_order": ["level", "event"]},
                            ".": {"drain_timeout": 2.5},
                        },
                        "cfg://destinations.warnings",
                    ],
                    "name": "both",
                },
            }
        },
        root={"handlers": ["out"], "level": "DEBUG"},
    )
    logging.getLogger("app").debug("d")
    logging.getLogger("app").info("i")
    logging.getLogger("app").warning("w")
    [handler] = logging.getLogger().handlers
    assert isinstance(handler.sink, FanoutSink)
    assert handler.sink.name == "both"
    assert handler.sink.sinks[0].drain_timeout == 2.5
    first = [line.split(" timestamp")[0] for line in (tmp_path / "a.log").read_text().splitlines()]
    assert first == ["level=info event=I~# logger=app", "level=warning event=W~# logger=app"]
    [second] = (tmp_path / "w.log").read_text().splitlines()
    assert json.loads(second).keys() == {"event", "level", "logger", "timestamp", "lineno"}


def test_dict_config_takes_a_live_sink_and_leaves_it_open(configured, sink, monkeypatch):
    """ext:// may name a sink of the program's, which is then the program's to close."""
    monkeypatch.setattr(sys.modules[__name__], "WRAPPED", sink)
    configured(
        handlers={"out": {"()": "outfall.SinkHandler", "sink": f"ext://{_ext('WRAPPED')}"}},
        root={"handlers": ["out"], "level": "INFO"},
    )
    logging.getLogger().info("x")
    configured()
    assert len(sink.events) == 1
    assert not sink.closed


def test_dict_config_s_formatter_is_used(configured, tmp_path):
    """A formatter named in the configuration writes its text, ProcessorFormatter included."""
    configured(
        formatters={
            "structlog": {
                "()": ProcessorFormatter,
                "processors": [
                    ProcessorFormatter.remove_processors_meta,
                    structlog.processors.KeyValueRenderer(),
                ],
            }
        },
        handlers={
            "out": {
                "class": "outfall.SinkHandler",
                "formatter": "structlog",
                "sink": {"()": "outfall.FileSink", "filename": str(tmp_path / "a.log")},
            }
        },
        root={"handlers": ["out"]},
    )
    logging.getLogger().warning("x")
    assert (tmp_path / "a.log").read_text() == "event='x'\n"


def test_reconfiguring_closes_the_described_sink_it_replaces(configured, tmp_path):
    """The old file is complete and closed, and events go to the new one alone."""
    for name in ("old", "new"):
        configured(
            handlers={
                "out": {
                    "class": "outfall.SinkHandler",
                    "sink": {"()": FileSink, "filename": tmp_path / name, "buffer_bytes": 1 << 16},
                }
            },
            root={"handlers": ["out"], "level": "INFO"},
        )
        [handler] = logging.getLogger().handlers
        if name == "old":
            old = handler
        logging.getLogger().info(name)
    assert old.sink.closed
    assert not handler.sink.closed
    assert json.loads((tmp_path / "old").read_bytes())["event"] == "old"
    handler.flush()
    assert json.loads((tmp_path / "new").read_bytes())["event"] == "new"


def test_a_wrong_description_fails_at_configuration(configured, tmp_path):
    """A misspelt name or argument stops the configuration, and nothing is left that breaks logging.shutdown."""
    for sink in (
        {"()": "outfall.NoSuchSink"},
        {"()": "outfall.FileSink", "filename": str(tmp_path / "a"), "nonsense": 1},
        {"filename": "a"},
    ):
        with pytest.raises(ValueError, match="Unable to configure handler 'out'") as caught:
            configured(handlers={"out": {"class": "outfall.SinkHandler", "sink": sink}}, root={"handlers": ["out"]})
        logging.shutdown()
        assert caught.value.__cause__ is not None


def test_file_config_builds_a_handler(tmp_path, monkeypatch):
    """The older format works as well: its arguments are Python, so a description can be written there."""
    config = tmp_path / "logging.ini"
    config.write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=out\n[formatters]\nkeys=\n"
        "[logger_root]\nlevel=INFO\nhandlers=out\n"
        "[handler_out]\nclass=outfall.SinkHandler\nlevel=INFO\n"
        f"args=({{'()': 'outfall.FileSink', 'filename': {str(tmp_path / 'a.log')!r}}},)\n"
        "kwargs={'callsite': False}\n"
    )
    handlers, listed = dict(logging._handlers), logging._handlerList[:]
    logging._handlers.clear()
    logging._handlerList.clear()
    try:
        logging.config.fileConfig(config, disable_existing_loggers=False)
        logging.getLogger().info("x")
        [handler] = logging.getLogger().handlers
        handler.close()
    finally:
        logging._handlers.update(handlers)
        logging._handlerList[:0] = listed
    assert json.loads((tmp_path / "a.log").read_bytes()).keys() == {"event", "level", "logger", "timestamp"}


def test_build_leaves_what_is_no_description_alone():
    """Plain containers keep their kind; only dicts with "()" become objects, at any depth."""
    Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind is what configurations have
    point = Point(1, 2)
    plain = {"a": [1, (2, "text")], "b": {"c": None}, "p": point}
    assert build(plain) == plain
    assert type(build(plain)["a"][1]) is tuple
    assert build(plain)["p"] is point
    assert isinstance(build([{"a": ({"()": NullSink},)}])[0]["a"][0], NullSink)
    assert build("ext://logging.INFO") == logging.INFO


# -- records from elsewhere


def test_records_forwarded_by_a_queue_arrive(logger, sink):
    """QueueHandler and QueueListener, which merge the message and its traceback, lose no record and no extra."""
    pipe = queue.Queue()
    logger.addHandler(logging.handlers.QueueHandler(pipe))
    listener = logging.handlers.QueueListener(pipe, SinkHandler(sink, logging.INFO), respect_handler_level=True)
    listener.start()
    logger.debug("too low")
    try:
        raise ValueError("v")
    except ValueError:
        logger.exception("hello %s", "you", extra={"user": "u"})
    listener.stop()
    [event] = sink.events
    assert event["event"].startswith("hello you")
    assert "ValueError: v" in event["event"] + event.get("exception", "")
    assert (event["level"], event["logger"], event["user"]) == ("error", logger.name, "u")


def test_records_unpickled_from_a_socket_arrive(sink):
    """What SocketHandler sends is an event with its extra fields and its traceback as text."""
    sender = logging.handlers.SocketHandler("localhost", 1)
    try:
        raise ValueError("v")
    except ValueError:
        record = _record("hello %s", ("you",), 35, exc_info=sys.exc_info(), user="u", event="collides")
    frame = sender.makePickle(record)
    sender.close()
    assert struct.unpack(">L", frame[:4])[0] == len(frame) - 4
    SinkHandler(sink, callsite=True).handle(logging.makeLogRecord(pickle.loads(frame[4:])))
    [event] = sink.events
    assert (event["event"], event["level_number"], event["user"]) == ("hello you", 35, "u")
    assert event["extra_event"] == "collides"
    assert event["exception"].endswith("ValueError: v")
    assert timestamp_of(event) == pytest.approx(record.created, abs=1e-6)
    assert event["func_name"] == "work"


def test_a_nearly_empty_record_arrives(sink):
    """makeLogRecord({}) has no level, no name and no line, and passes every level."""
    sink.level = "critical"
    SinkHandler(sink).handle(logging.makeLogRecord({"msg": "x"}))
    assert sink.events[0]["event"] == "x"


# -- round trips


_COLLIDING = """
    event level level_number logger timestamp exception stack func_name task_name
    extra_event extra_name extra_msg extra_extra_args extra_exc_info extra_a extra_
"""
_NAMES = st.sampled_from(_COLLIDING.split()) | st.text("abcdefghé. ", min_size=1, max_size=5)
_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)


@settings(max_examples=50)
@given(
    extra=st.dictionaries(
        _NAMES.filter(lambda name: name not in logging.LogRecord("", 0, "", 0, "", (), None).__dict__), _VALUES
    ),
    level=st.integers(1, 60),
    created=st.integers(0, 4_000_000_000_000_000).map(lambda micros: micros / 1e6),
    message=st.text(),
)
def test_a_record_that_becomes_an_event_and_a_record_again_loses_nothing(extra, level, created, message):
    """Message, level, time, call site and every extra are back, those with colliding names by name or by value."""
    record = _record(message, (), level)
    record.__dict__.update({"created": created, **extra})
    handler = SinkHandler(NullSink(), callsite=True)
    back = HandlerSink(logging.NullHandler()).record(handler.event(record))
    for name in ("name", "levelno", "levelname", "pathname", "filename", "module", "lineno", "funcName", "process"):
        assert getattr(back, name) == getattr(record, name)
    assert back.getMessage() == message
    assert back.created == pytest.approx(created, abs=1e-6)
    own = handler.event(_record(message, (), level, created=created)) | {"level_number": level}
    for name, value in extra.items():
        if name in ("exception", "stack") and isinstance(value, str):
            assert value in (back.exc_text, back.stack_info, back.__dict__.get(name))
        elif name == "task_name":
            assert value in (getattr(back, "taskName", None), back.__dict__.get(name))
        elif own.get(name) != value and not (name == "timestamp" and extra.get("level") == own["level"]):
            assert back.__dict__[name] == value


@settings(max_examples=50)
@given(
    event=st.dictionaries(_NAMES | st.sampled_from(["msg", "args", "name", "levelname", "created", "message"]), _VALUES)
)
def test_an_event_that_becomes_a_record_and_an_event_again_loses_nothing(event):
    """Every field is back under its own name, whatever a record calls its attributes."""
    event = {
        key: value
        for key, value in event.items()
        if key
        not in ("level", "level_number", "logger", "timestamp", "event", "func_name", "task_name", "positional_args")
    } | {"event": "x", "level": "warning", "logger": "app", "timestamp": "2024-05-06T07:08:09.123456Z"}
    back = SinkHandler(NullSink(), callsite=False).event(HandlerSink(logging.NullHandler()).record(event))
    assert {key: value for key, value in back.items() if key not in ("_record", "_from_structlog")} == event


@pytest.mark.parametrize("wrapper", [BackgroundSink, FanoutSink, FallbackSink])
def test_the_record_is_in_the_event_where_a_processor_can_see_it_and_nowhere_else(wrapper, attached):
    """Behind sinks around others too: a target's processor finds it; without one the event has nothing to take out."""
    seen = []

    def look(_logger: object, _name: str, event: dict) -> dict:
        seen.append(event.get("_record"))
        return event

    for processors in ([look], []):
        target = HTTPSink("http://127.0.0.1:9", processors=processors)
        with wrapper(target, processors=[]) as around:
            assert around._prepare_reads_metadata() is bool(processors)
            item = around.make_item(SinkHandler(around).event(_record()))
            assert item is not None
            assert b"_record" not in item.data
    assert [type(record) for record in seen] == [logging.LogRecord]


def test_a_mapping_of_one_s_own_sees_the_record():
    """Overriding map_event is a way to look at it."""

    class Mapped(HTTPSink):
        def map_event(self, event: dict) -> dict:
            return {"line": event["_record"].lineno}

    with BackgroundSink(Mapped("http://127.0.0.1:9")) as sink:
        item = sink.make_item(SinkHandler(sink).event(_record()))
        assert item is not None
        assert item.event == {"line": _record().lineno}


# -- what others do to handlers


@contextlib.contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """Give the root logger without handlers, and put back afterwards what was there."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("arguments", [{}, {"style": "{"}, {"style": "$"}, {"datefmt": "%H"}, {"force": True}])
def test_the_formatter_that_basicconfig_makes_of_itself_does_not_count(sink, arguments):
    """It gives one to each handler that has none; nobody asked for text, and the fields stay."""
    with bare_root():
        logging.basicConfig(level="INFO", handlers=[SinkHandler(sink)], **arguments)
        logging.getLogger("shop").info("paid %s", 12, extra={"order": 7})
    [event] = sink.events
    assert (event["event"], event["order"], event["logger"]) == ("paid 12", 7, "shop")


def test_a_format_given_to_basicconfig_counts(sink):
    """Text is written where somebody says what it looks like."""
    with bare_root():
        logging.basicConfig(level="INFO", format="%(message)s!", handlers=[SinkHandler(sink)])
        logging.getLogger("shop").info("paid %s", 12)
    assert sink.events == [{"event": "paid 12!"}]


@pytest.mark.parametrize("formatter", [logging.Formatter(logging.BASIC_FORMAT), logging.Formatter()])
def test_a_formatter_set_on_purpose_counts(sink, formatter):
    """Whatever its format is, that of basicConfig as well."""
    handler = SinkHandler(sink)
    handler.setFormatter(formatter)
    handler.handle(_record("x"))
    assert sink.events == [{"event": formatter.format(_record("x"))}]


@pytest.mark.parametrize("name", ["info", "Info", "INFO", "informational", 20])
def test_a_level_is_a_name_in_any_case_or_a_number(sink, name):
    """At construction and later."""
    assert SinkHandler(sink, level=name).level == 20
    handler = SinkHandler(sink)
    handler.setLevel(name)
    assert handler.level == 20


@pytest.mark.parametrize("name", ["info", "Warn", "fatal", "notice", "WARNING", 15])
def test_dictconfig_takes_a_level_in_any_case(configured, name):
    """For handler and sink; what records show as their level stays as it was."""
    described = {"()": "outfall.CaptureSink", "level": name}
    known = {number: logging.getLevelName(number) for number in (10, 20, 25, 30, 40, 50)}
    configured(
        handlers={
            "out": {"class": "outfall.SinkHandler", "level": name, "sink": {"()": "outfall.CaptureSink", "level": name}}
        },
        root={"handlers": ["out"], "level": "DEBUG"},
    )
    handler = logging.getLogger().handlers[-1]
    assert handler.level == handler.sink.level == parse_level(name)
    assert {number: logging.getLevelName(number) for number in known} == known


def test_a_level_nobody_knows_is_refused_by_dictconfig(configured):
    """With the name that is wrong."""
    with pytest.raises(ValueError, match="Unable to configure handler 'out'") as refused:
        configured(
            handlers={"out": {"class": "outfall.SinkHandler", "level": "loud", "sink": {"()": "outfall.NullSink"}}}
        )
    assert "loud" in str(refused.value.__cause__)


def test_no_call_site_is_added_unless_asked_for(attached, logger, sink):
    """The shape is that of an event of structlog."""
    logger.handlers[:] = [SinkHandler(sink)]
    logger.info("x")
    assert sink.events[0].keys() == {"event", "level", "logger", "timestamp"}


def test_what_uvicorn_adds_becomes_fields(sink):
    """Its message with colours leaves, and the arguments of a request have names."""
    handler = SinkHandler(sink)
    started = _record("Started server process [%d]", (7,), color_message="Started [\x1b[36m%d\x1b[0m]")
    started.name = "uvicorn.error"
    handler.handle(started)
    access = _record('%s - "%s %s HTTP/%s" %d', ("127.0.0.1:5", "GET", "/a?b=c", "1.1", 200))
    access.name = "uvicorn.access"
    handler.handle(access)
    other = _record("x", color_message="mine")
    handler.handle(other)
    assert "color_message" not in sink.events[0]
    assert sink.events[0]["event"] == "Started server process [7]"
    shown = {key: value for key, value in sink.events[1].items() if key != "timestamp"}
    assert shown == {
        "event": '127.0.0.1:5 - "GET /a?b=c HTTP/1.1" 200',
        "level": "info",
        "logger": "uvicorn.access",
        "client": "127.0.0.1:5",
        "method": "GET",
        "path": "/a?b=c",
        "http_version": "1.1",
        "status": 200,
    }
    assert sink.events[2]["color_message"] == "mine"


def test_dictconfig_takes_a_url(tmp_path, own_logging):
    """A sink in one string, which the handler owns."""
    path = tmp_path / "app.jsonl"
    handler = {"class": "outfall.SinkHandler", "sink": f"file:{path}?max_bytes=50MB&backup_count=5", "level": "info"}
    config = {"version": 1, "disable_existing_loggers": False, "handlers": {"json": handler}}
    logging.config.dictConfig({**config, "root": {"level": "DEBUG", "handlers": ["json"]}})
    logging.getLogger("shop").debug("left out")
    logging.getLogger("shop").info("sold %s", "bolts")
    [made] = logging.getLogger().handlers
    assert (type(made.sink), made.sink.max_bytes) == (RotatingFileSink, 50_000_000)
    made.close()
    assert made.sink.closed
    assert json.loads(path.read_text())["event"] == "sold bolts"
    handler["sink"] = "flie:app.jsonl"
    with pytest.raises(ValueError, match="Unable to configure handler 'json'") as caught:
        logging.config.dictConfig(config)
    assert "did you mean 'file'" in str(caught.value.__cause__)
