"""From sinks out to `logging.Handler`: `HandlerSink`."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import logging.handlers
import pickle
import queue
import sys
import threading

import pytest
import structlog
from structlog.stdlib import ProcessorFormatter

from outfall import CaptureSink, FanoutSink, HandlerSink, SinkHandler, tee
from outfall.sinks.core.item import Encoded
from tests.sinks._zones import local_zone


class _Keeper(logging.Handler):
    """A handler that keeps its records and says when it is flushed or closed."""

    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.records = []
        self.flushed = self.closed = 0

    def emit(self, record):
        self.records.append(record)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed += 1
        super().close()


@pytest.fixture
def keeper():
    """Give a handler that keeps its records."""
    return _Keeper()


@pytest.fixture
def sink(keeper):
    """Give a sink on the keeper that tells of failures by raising."""
    return HandlerSink(keeper, on_error="raise")


def _structlog_formatter(*processors):
    return ProcessorFormatter(
        processors=[*processors, ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
    )


# -- an event becomes a record


def test_an_event_becomes_a_record(sink, keeper):
    """Message, level, logger, time, call site and every other field are where a handler looks for them."""
    event = {
        "event": "100% %s",
        "level": "warning",
        "logger": "app.db",
        "timestamp": "2024-05-06T07:08:09.123456Z",
        "pathname": "/a/b.py",
        "lineno": 7,
        "func_name": "work",
        "process": 11,
        "process_name": "P",
        "thread": 22,
        "thread_name": "T",
        "task_name": "K",
        "user": {"name": "u"},
    }
    before = dict(event)
    sink.handle(event)
    [record] = keeper.records
    assert event == before
    assert (record.getMessage(), record.args) == ("100% %s", None)
    assert (record.levelno, record.levelname, record.name) == (30, "WARNING", "app.db")
    assert record.created == pytest.approx(1714979289.123456, abs=1e-6)
    assert record.msecs == 123
    assert (record.pathname, record.filename, record.module, record.lineno) == ("/a/b.py", "b.py", "b", 7)
    assert (record.funcName, record.process, record.processName) == ("work", 11, "P")
    assert (record.thread, record.threadName, record.taskName) == (22, "T", "K")
    assert record.user == {"name": "u"}
    assert not record.__dict__.keys() & {"event", "level", "logger", "timestamp", "func_name", "task_name"}


def test_an_event_without_anything_is_a_record(sink, keeper):
    """Defaults are those of logging: the root logger, INFO, now, no exception."""
    before = logging.LogRecord("", 0, "", 0, "", (), None).created
    sink.handle({})
    [record] = keeper.records
    assert (record.name, record.levelno, record.levelname, record.getMessage()) == ("root", 20, "INFO", "")
    assert before <= record.created <= logging.LogRecord("", 0, "", 0, "", (), None).created
    assert (record.exc_info, record.exc_text, record.stack_info) == (None, None, None)


def test_file_name_and_module_may_come_without_a_path(sink, keeper):
    """Call-site fields that structlog adds one by one fill the attributes they name."""
    sink.handle({"event": "x", "filename": "b.py", "module": "b", "lineno": 3})
    assert (keeper.records[0].filename, keeper.records[0].module, keeper.records[0].lineno) == ("b.py", "b", 3)


@pytest.mark.parametrize(
    "stamp",
    [
        "2024-05-06T07:08:09.123456Z",
        "2024-05-06T09:08:09.123456+02:00",
        1714979289.123456,
        dt.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=dt.timezone.utc),
        dt.datetime.fromtimestamp(1714979289.123456),  # noqa: DTZ006 - a naive time is local
    ],
)
def test_every_kind_of_timestamp_is_the_record_s_time(sink, keeper, stamp):
    """Text, seconds and datetimes give created, msecs and relativeCreated alike."""
    started = logging.LogRecord("", 0, "", 0, "", (), None)
    sink.handle({"event": "x", "timestamp": stamp})
    [record] = keeper.records
    assert record.created == pytest.approx(1714979289.123456, abs=1e-6)
    assert record.msecs == 123
    assert record.relativeCreated - started.relativeCreated == pytest.approx(
        (record.created - started.created) * 1000, abs=60_000
    )
    formatter = logging.Formatter("%(asctime)s")
    formatter.converter = lambda seconds: dt.datetime.fromtimestamp(seconds, dt.timezone.utc).timetuple()
    assert formatter.format(record) == "2024-05-06 07:08:09,123"
    assert not hasattr(record, "timestamp")


@pytest.mark.parametrize(("naive", "offset"), [("utc", 0), ("local", 4 * 3600)])
def test_text_without_a_zone_is_what_the_sink_takes_it_for(naive, offset, keeper):
    """UTC unless the sink is told that it is local time."""
    with local_zone("America/New_York"):
        HandlerSink(keeper, naive_timestamps=naive).handle({"event": "x", "timestamp": "2024-05-06T07:08:09"})
    assert keeper.records[0].created == 1714979289 + offset


@pytest.mark.parametrize("stamp", ["07:08", None, 1714979289123.0, float("nan")])
def test_a_timestamp_that_nobody_can_read_is_kept(sink, keeper, stamp):
    """The record has the present time, and what stood in the event is an attribute."""
    sink.handle({"event": "x", "timestamp": stamp})
    assert keeper.records[0].timestamp is stamp
    assert keeper.records[0].created > 1_700_000_000


@pytest.mark.parametrize(
    ("fields", "number", "name"),
    [
        ({"level": "warn"}, 30, "WARNING"),
        ({"level": "Error"}, 40, "ERROR"),
        ({"level": "notice"}, 25, "NOTICE"),
        ({"level": "trace"}, 5, "TRACE"),
        ({"level": "loud", "level_number": 35}, 35, "LOUD"),
        ({"level_number": 35}, 35, "Level 35"),
        ({"level": "info", "level_number": 35}, 35, "INFO"),
        ({"level": "nobody knows"}, 20, "NOBODY KNOWS"),
        ({"level": 40}, 40, "ERROR"),
        ({"level_number": float("inf")}, 20, "INFO"),
        ({"level_number": float("nan")}, 20, "INFO"),
        ({"level_number": 29.9}, 29, "Level 29"),
    ],
)
def test_a_level_s_number_and_name_are_the_record_s(sink, keeper, fields, number, name):
    """Names that logging has no number for, and numbers without a name, survive."""
    sink.handle({"event": "x", **fields})
    assert (keeper.records[0].levelno, keeper.records[0].levelname) == (number, name)


@pytest.mark.usefixtures("own_logging")
def test_a_level_carried_beside_the_event_counts(keeper):
    """An event that a chain hands over without a level has its method's, rendered text too."""
    sink = HandlerSink(keeper)
    structlog.configure(processors=[tee(sink), structlog.processors.KeyValueRenderer(), sink])
    structlog.get_logger().error("x")
    assert [(record.levelno, record.getMessage()) for record in keeper.records] == [(40, "x"), (40, "event='x'")]


def test_fields_that_a_record_has_for_itself_get_a_prefix(sink, keeper):
    """No field can overwrite what handlers rely on, and none is lost."""
    names = ["name", "msg", "args", "levelname", "levelno", "exc_text", "created", "msecs", "message", "asctime"]
    sink.handle({"event": "x", **dict.fromkeys(names, "mine")})
    [record] = keeper.records
    assert record.getMessage() == "x"
    assert {name: record.__dict__["extra_" + name] for name in names} == dict.fromkeys(names, "mine")
    assert (record.name, record.levelname, record.args) == ("root", "INFO", None)


def test_two_fields_never_share_an_attribute(sink, keeper):
    """Where the prefix is taken already, one more is put before it."""
    sink.handle({"event": "x", "exc_info": "no exception", "extra_exc_info": 1, "msg": 2, "extra_msg": 3})
    values = [value for name, value in keeper.records[0].__dict__.items() if name.startswith("extra_")]
    assert sorted(map(str, values)) == ["1", "2", "3", "no exception"]


def test_keys_that_are_no_text_become_text(sink, keeper):
    """A number as a key costs no event; the field is found under its text."""
    sink.handle({"event": "x", 1: "one"})
    assert keeper.records[0].__dict__["1"] == "one"


def test_a_message_that_is_no_text_becomes_text(sink, keeper):
    """The record's message is always text, so that no formatter is surprised."""
    sink.handle({"event": {"a": 1}})
    assert keeper.records[0].msg == "{'a': 1}"


# -- exceptions and stacks


@pytest.mark.parametrize("form", ["true", "one", "exception", "tuple"])
def test_every_form_of_exc_info_is_the_record_s(sink, keeper, form):
    """True, the exception and the tuple all give the tuple that formatters take."""
    try:
        raise ValueError("v")
    except ValueError as error:
        exc_info = {"true": True, "one": 1, "exception": error, "tuple": sys.exc_info()}[form]
        sink.handle({"event": "x", "exc_info": exc_info})
        expected = error
    kind, value, trace = keeper.records[0].exc_info
    assert (kind, value, trace) == (ValueError, expected, expected.__traceback__)
    assert logging.Formatter().format(keeper.records[0]).endswith("ValueError: v")


@pytest.mark.parametrize("exc_info", [True, False, None, 0, (None, None, None)])
def test_exc_info_without_an_exception_is_none(sink, keeper, exc_info):
    """What stands for no exception prints no "NoneType: None"."""
    sink.handle({"event": "x", "exc_info": exc_info})
    assert keeper.records[0].exc_info is None
    assert logging.Formatter().format(keeper.records[0]) == "x"
    assert not hasattr(keeper.records[0], "extra_exc_info")


def test_a_rendered_exception_is_written_by_any_formatter(sink, keeper):
    """Text in `exception` stands where a traceback would, and is preferred to rendering a live one again."""
    sink.handle({"event": "x", "exception": "Traceback: text"})
    sink.handle({"event": "x", "exception": "Traceback: text", "exc_info": ValueError("v")})
    for record in keeper.records:
        assert logging.Formatter().format(record) == "x\nTraceback: text"
        assert not hasattr(record, "exception")


def test_dict_tracebacks_are_kept_as_they_are(sink, keeper):
    """An `exception` that is no text is an attribute of that name."""
    sink.handle({"event": "x", "exception": [{"exc_type": "ValueError"}], "stack": ["frame"]})
    assert keeper.records[0].exception == [{"exc_type": "ValueError"}]
    assert keeper.records[0].stack == ["frame"]
    assert keeper.records[0].exc_text is None


def test_a_stack_is_written_by_any_formatter(sink, keeper):
    """Text in `stack` or `stack_info` is the record's stack; a request that nobody answered is none."""
    sink.handle({"event": "x", "stack": "Stack: s"})
    sink.handle({"event": "x", "stack_info": "Stack: s"})
    sink.handle({"event": "x", "stack": "Stack: s", "stack_info": "Stack: other"})
    for record in keeper.records:
        assert logging.Formatter().format(record) == "x\nStack: s"
    assert keeper.records[2].extra_stack_info == "Stack: other"
    sink.handle({"event": "x", "stack_info": True})
    assert keeper.records[3].stack_info is None


# -- levels, filters, ownership


def test_the_handler_s_level_is_applied(sink, keeper):
    """What the handler would not get from a logger it does not get here; an unknown level passes."""
    keeper.setLevel(logging.WARNING)
    for level in ("info", "warning", "whatever"):
        sink.handle({"event": level, "level": level})
    assert [record.msg for record in keeper.records] == ["warning", "whatever"]
    assert (sink.stats().filtered, sink.stats().delivered) == (1, 2)


def test_the_handler_s_filters_are_applied(sink, keeper):
    """A filtered event is counted as such and is no failure."""
    keeper.addFilter(lambda record: record.user == "u")
    sink.handle({"event": "x", "user": "u"})
    sink.handle({"event": "y", "user": "v"})
    assert [record.msg for record in keeper.records] == ["x"]
    assert (sink.stats().filtered, sink.stats().delivered, dict(sink.stats().dropped)) == (1, 1, {})


def test_the_handler_s_lock_is_taken(keeper):
    """Handlers that rely on logging's lock around emit have it."""
    held = []

    class Locked(_Keeper):
        def emit(self, record):
            held.append(self.lock._is_owned())

    HandlerSink(Locked()).handle({"event": "x"})
    assert held == [True]


def test_the_sink_holds_no_lock_of_its_own(sink, keeper):
    """An event passes while another thread flushes the sink; the handler's lock is the only one."""
    with sink._lock:
        thread = threading.Thread(target=sink.handle, args=({"event": "x"},), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert len(keeper.records) == 1


def test_a_handler_whose_handle_returns_nothing_has_delivered(sink, keeper, monkeypatch):
    """Only a False is a filter's answer; NullHandler and others return None."""
    monkeypatch.setattr(keeper, "handle", keeper.emit)
    sink.handle({"event": "x"})
    assert sink.stats().delivered == 1
    assert sink.stats().filtered == 0


def test_a_handler_that_raises_is_a_failure_of_the_sink(keeper, monkeypatch):
    """A loss that the handler does not handle itself is counted and told."""
    told = []
    sink = HandlerSink(keeper, on_error=told.append, name="out")

    def broken(record):
        raise OSError(5, "broken")

    monkeypatch.setattr(keeper, "emit", broken)
    sink.handle({"event": "x"})
    assert sink.stats().dropped == {"error": 1}
    assert [(failure.sink, type(failure.error)) for failure in told] == [("out", OSError)]


def test_the_handler_is_flushed_and_never_closed(sink, keeper):
    """The handler is its owner's; the closed sink takes no more."""
    assert sink.flush()
    assert keeper.flushed == 1
    assert sink.close()
    assert (keeper.flushed, keeper.closed) == (2, 0)
    with pytest.raises(Exception, match="is closed"):
        sink.handle({"event": "x"})
    assert keeper.records == []


def test_a_batch_is_given_to_the_handler_one_by_one(sink, keeper):
    """What a worker hands over arrives, and what the handler filters is no reason to reject it."""
    keeper.setLevel(logging.WARNING)
    batch = [
        Encoded(b'{"event": "a", "level": "error"}', 40, 0.0),
        Encoded(b'{"event": "b", "level": "debug"}', 10, 0.0),
        Encoded(b'{"event": "c", "level": "error"}', 40, 0.0),
    ]
    assert sink.emit_batch(batch) is None
    assert [record.msg for record in keeper.records] == ["a", "c"]


def test_what_is_no_handler_is_refused():
    """The mistake is named at construction."""
    for thing in (None, logging.getLogger(), logging.Handler, CaptureSink()):
        with pytest.raises(TypeError, match=r"handler=.* is not a logging\.Handler"):
            HandlerSink(thing)
    assert repr(HandlerSink(logging.NullHandler())).startswith("<HandlerSink to <NullHandler")


def test_a_redaction_on_the_sink_cannot_be_got_around(keeper):
    """What a processor removes is nowhere in the record, though the event came with the original one."""

    def redact(_logger, _name, event):
        event.pop("password")
        event["event"] = "redacted"
        event["nested"].pop("token")
        return event

    for formatter in (None, _structlog_formatter()):
        keeper.setFormatter(formatter)
        keeper.records.clear()
        handler = SinkHandler(FanoutSink(HandlerSink(keeper, processors=[redact], on_error="raise")))
        record = logging.LogRecord("app", 20, "", 0, "hush %s", ("hunter2",), None)
        record.password = record.nested = "hunter2"
        record.nested = {"token": "hunter2"}
        handler.handle(record)
        [made] = keeper.records
        assert "hunter2" not in repr(made.__dict__)
        assert not hasattr(made, "_record")
        assert "hunter2" not in keeper.format(made)
        assert record.nested == {"token": "hunter2"}


# -- real handlers


def test_a_file_handler_writes_with_its_formatter(tmp_path):
    """Format, date format and exception text are what logging makes of an equal record."""
    handler = logging.FileHandler(tmp_path / "app.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(name)s %(user)s: %(message)s", "%Y"))
    with HandlerSink(handler, on_error="raise") as sink:
        sink.handle(
            {"event": "hé", "level": "error", "logger": "app", "timestamp": 1.7e9, "user": "u", "exception": "E"}
        )
    handler.close()
    assert (tmp_path / "app.log").read_text("utf-8") == "2023 ERROR    app u: hé\nE\n"


def test_a_rotating_file_handler_rotates(tmp_path):
    """Rollover by the handler's own rules works on events."""
    handler = logging.handlers.RotatingFileHandler(tmp_path / "app.log", maxBytes=20, backupCount=2)
    sink = HandlerSink(handler, on_error="raise")
    for number in range(3):
        sink.handle({"event": f"{number}" * 15})
    handler.close()
    assert [(tmp_path / f"app.log{end}").read_text() for end in ("", ".1", ".2")] == [
        f"{n}" * 15 + "\n" for n in (2, 1, 0)
    ]


def test_a_memory_handler_keeps_and_passes_on(keeper):
    """The flush level of a MemoryHandler is that of the event, and closing the sink flushes it."""
    memory = logging.handlers.MemoryHandler(10, logging.ERROR, keeper)
    with HandlerSink(memory, on_error="raise") as sink:
        sink.handle({"event": "a", "level": "info"})
        assert keeper.records == []
        sink.handle({"event": "b", "level": "error"})
        sink.handle({"event": "c", "level": "info"})
        assert len(keeper.records) == 2
    assert [record.msg for record in keeper.records] == ["a", "b", "c"]
    memory.close()


def test_a_queue_handler_s_records_can_be_pickled_and_handled(keeper):
    """The record that a QueueHandler prepares from an event crosses a process boundary."""
    pipe = queue.Queue()
    sink = HandlerSink(logging.handlers.QueueHandler(pipe), on_error="raise")
    sink.handle({"event": "x", "level": "warning", "user": "u", "exc_info": ValueError("v")})
    record = pickle.loads(pickle.dumps(pipe.get_nowait()))
    keeper.handle(record)
    assert (record.levelname, record.user) == ("WARNING", "u")
    assert "ValueError: v" in keeper.format(record)


def test_python_json_logger_writes_every_field():
    """A JSON formatter of another library finds the fields as extra."""
    module = pytest.importorskip("pythonjsonlogger.json")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(module.JsonFormatter("%(message)s %(levelname)s %(name)s"))
    HandlerSink(handler, on_error="raise").handle({"event": "x", "level": "error", "user": {"a": [1]}, "logger": "app"})
    assert json.loads(stream.getvalue()) == {"message": "x", "levelname": "ERROR", "name": "app", "user": {"a": [1]}}


def _structlog_stream(**options):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.processors.format_exc_info,
                ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
            **options,
        )
    )
    return stream, handler


def test_a_handler_with_structlog_s_formatter_gets_the_event_dict():
    """ProcessorFormatter sees exactly the event, as from structlog, without its foreign chain."""

    def foreign(_logger, _name, event):
        pytest.fail("the event is no foreign record")

    stream, handler = _structlog_stream(foreign_pre_chain=[foreign])
    event = {"event": "100% x", "a": {"b": 1}, "exc_info": ValueError("v"), "msg": 1}
    HandlerSink(handler, on_error="raise").handle({**event, "level": "error"})
    assert json.loads(stream.getvalue()) == {
        "event": "100% x",
        "a": {"b": 1},
        "level": "error",
        "exception": "ValueError: v",
        "msg": 1,
    }
    assert stream.getvalue().count("ValueError") == 1


def test_structlog_s_formatter_behind_a_memory_handler_gets_the_event_dict():
    """Where a MemoryHandler stands between, it is the target's formatter that counts."""
    stream, handler = _structlog_stream()
    memory = logging.handlers.MemoryHandler(1, target=handler)
    HandlerSink(memory, on_error="raise").handle({"event": "x", "a": 1, "level": "info"})
    memory.close()
    assert json.loads(stream.getvalue()) == {"event": "x", "a": 1, "level": "info"}


def test_structlog_s_formatter_learns_logger_and_method():
    """Its processors get what the chain's had, or the level's name."""
    seen = []

    def look(logger, name, event):
        seen.append((logger, name, event["_record"].name, event["_from_structlog"]))
        assert not event.keys() & {"_logger", "_name"}
        return event

    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(_structlog_formatter(look))
    sink = HandlerSink(handler, on_error="raise")
    sink.handle({"event": "x", "_logger": "L", "_name": "exception", "logger": "app"})
    sink.handle({"event": "x", "level": "warn"})
    assert seen == [("L", "exception", "app", True), (None, "warning", "root", True)]


def test_structlog_s_formatter_cannot_change_the_event():
    """The dict it works on is a copy."""
    _, handler = _structlog_stream()
    event = {"event": "x", "exc_info": ValueError("v")}
    before = dict(event)
    HandlerSink(handler, on_error="raise").handle(event)
    assert event == before


def test_there_and_back_again(keeper):
    """A record through SinkHandler and HandlerSink formats as it did, with its exception, stack and extra."""
    formatter = logging.Formatter(
        "%(asctime)s %(levelname)s %(levelno)s %(name)s %(pathname)s:%(lineno)d %(filename)s %(module)s %(funcName)s "
        "%(process)d %(processName)s %(thread)d %(threadName)s %(user)s %(message)s"
    )
    logger = logging.getLogger("outfall.tests.back")
    logger.propagate = False
    direct = _Keeper()
    handlers = [SinkHandler(HandlerSink(keeper, on_error="raise"), callsite=True), direct]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        raise ValueError("v")
    except ValueError:
        logger.exception("hello %s", "you", extra={"user": "u"}, stack_info=True)
    for handler in handlers:
        logger.removeHandler(handler)
    assert formatter.format(keeper.records[0]) == formatter.format(direct.records[0])
