"""From structlog into sinks: `SinkLogger`, `SinkLoggerFactory`, `tee`, and a sink as the last processor."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import logging
import pickle
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.stdlib import ProcessorFormatter

from outfall import CaptureSink, FileSink, SinkHandler, SinkLogger, SinkLoggerFactory, StreamSink, tee
from outfall.sinks.event.event import as_event, timestamp_of, without_metadata
from tests.adapters._structlog import OLD, PACKING, Told

pytestmark = pytest.mark.usefixtures("own_logging")

packing_arguments = pytest.mark.skipif(OLD, reason="structlog has no render_to_log_args_and_kwargs yet")

LEVELS = ["debug", "info", "warning", "error", "critical"]
ALIASES = {
    "msg": "info",
    "warn": "warning",
    "err": "error",
    "failure": "error",
    "exception": "error",
    "fatal": "critical",
}


@pytest.fixture
def sink():
    """Give a sink that keeps its events and tells of failures by raising."""
    return CaptureSink(on_error="raise")


@pytest.fixture
def printed(monkeypatch):
    """Give the list of what reached structlog's default logger, which ends up on the console."""
    calls = []
    for method in (*LEVELS, *ALIASES, "log"):
        monkeypatch.setattr(structlog.PrintLogger, method, lambda _, *a, **k: calls.append((a, k)), raising=False)
    return calls


class _Hostile(Mapping):
    """A mapping that cannot be read."""

    def __getitem__(self, key):
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        return 1


def _pass(_logger, _name, event_dict):
    """Return the event dict, as a chain without a last processor does."""
    return event_dict


# -- a sink as the last processor


def test_a_sink_ends_the_chain_and_the_logger_behind_is_not_called(sink, printed):
    """The event goes to the sink and nothing reaches the PrintLogger that structlog puts behind every chain."""
    structlog.configure(processors=[structlog.processors.add_log_level, sink])
    assert structlog.get_logger().info("hello", answer=42) is None
    assert Told(sink.events) == [{"event": "hello", "answer": 42, "level": "info"}]
    assert printed == []


def test_each_call_as_processor_raises_a_drop_event_of_its_own(sink):
    """The exception is new each time, so that it does not collect the tracebacks of every call in the process."""
    raised = []
    for _ in range(2):
        with pytest.raises(structlog.DropEvent) as caught:
            sink(None, "info", {"event": "x"})
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_a_sink_as_processor_drops_the_event_even_when_it_filters_or_is_closed(sink, printed):
    """Whatever becomes of the event in the sink, it never falls through to the logger behind."""
    told = []
    sink = CaptureSink(level="error", on_error=told.append)
    structlog.configure(processors=[sink])
    structlog.get_logger().info("filtered")
    sink.close()
    structlog.get_logger().error("late")
    assert printed == []
    assert Told(sink.events) == []
    assert sink.stats().filtered == 1
    assert sink.stats().dropped == {"closed": 1}
    assert len(told) == 1


@pytest.mark.parametrize("method", LEVELS)
def test_the_method_s_name_is_the_level_that_a_sink_filters_by(method):
    """An event without a level is filtered by the method it was logged with, and gets no field it did not have."""
    sink = CaptureSink(level="warning")
    structlog.configure(processors=[sink])
    getattr(structlog.get_logger(), method)("x")
    assert Told(sink.events) == ([{"event": "x"}] if LEVELS.index(method) >= 2 else [])


def test_a_level_in_the_event_wins_over_the_method_s_name():
    """What the event says of its level is what counts, level_number before level."""
    sink = CaptureSink(level="warning")
    for event in ({"level": "debug"}, {"level": "info", "level_number": 50}, {"level_number": 10}):
        with pytest.raises(structlog.DropEvent):
            sink(None, "error", event)
    assert Told(sink.events) == [{"level": "info", "level_number": 50}]


def test_a_method_of_a_registered_level_has_that_level():
    """A wrapper class with a method for a level that logging knows is filtered by it; an unknown method is INFO."""
    logging.addLevelName(17, "OUTFALLTEST")
    sink = CaptureSink(level=18)
    for name in ("outfalltest", "somethingelse"):
        with pytest.raises(structlog.DropEvent):
            sink(None, name, {"event": name})
    assert Told(sink.events) == [{"event": "somethingelse"}]


def test_a_sink_as_processor_leaves_the_event_as_it_was(sink):
    """The dict is neither changed nor kept: what its owner does to it afterwards is not seen."""
    nested = [1]
    event = {"event": "x", "nested": nested}
    before = copy.deepcopy(event)
    with pytest.raises(structlog.DropEvent):
        sink(None, "info", event)
    assert event == before
    nested.append(2)
    assert Told(sink.events) == [before]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (OrderedDict(event="x", a=1), {"event": "x", "a": 1}),
        ("text", {"event": "text"}),
        (b"text", {"event": "text"}),
        (bytearray(b"text"), {"event": "text"}),
        (
            (("hello %s", "you"), {"extra": {"a": 1}, "exc_info": True}),
            {"event": "hello you", "a": 1, "exc_info": True},
        ),
        ((("alone",), {}), {"event": "alone"}),
        (((), {"event": "kw"}), {"event": "kw"}),
        (({"event": "wrapped"},), None),
        (42, None),
    ],
)
def test_whatever_a_chain_may_end_in_is_taken(given, expected):
    """Mappings, rendered text and logging arguments become events; anything else is a failure that is told."""
    told = []
    sink = CaptureSink(on_error=told.append)
    with pytest.raises(structlog.DropEvent):
        sink(None, "info", given)
    assert Told(sink.events) == ([] if expected is None else [expected])
    assert [type(failure.error) for failure in told] == ([TypeError] if expected is None else [])
    assert sink.stats().dropped == ({"error": 1} if expected is None else {})


def test_rendered_text_before_a_byte_sink_is_written_as_it_is(tmp_path):
    """A chain that renders and then ends in a sink has its text in the file, byte for byte."""
    path = tmp_path / "app.log"
    with FileSink(path, level="info") as sink:
        structlog.configure(processors=[structlog.processors.LogfmtRenderer(), sink])
        structlog.get_logger().info("hello", a=1)
        structlog.get_logger().debug("too low")
    assert path.read_bytes() == b"a=1 event=hello\n"


@packing_arguments
def test_a_message_alone_among_logging_arguments_is_an_event_and_not_rendered_text(tmp_path):
    """What render_to_log_args_and_kwargs makes of an event without fields is still written as JSON."""
    path = tmp_path / "app.log"
    with FileSink(path) as sink:
        structlog.configure(processors=[structlog.stdlib.render_to_log_args_and_kwargs, sink])
        structlog.get_logger().info("alone")
    assert json.loads(path.read_bytes()) == {"event": "alone"}


def test_a_sink_may_end_two_chains_at_once(sink):
    """One sink handed to two loggers takes the events of both."""
    one = structlog.wrap_logger(None, processors=[sink], wrapper_class=structlog.stdlib.BoundLogger, origin=1)
    two = structlog.wrap_logger(None, processors=[sink], wrapper_class=structlog.stdlib.BoundLogger, origin=2)
    one.info("x")
    two.info("x")
    assert [event["origin"] for event in sink.events] == [1, 2]


# -- tee


def test_tee_hands_the_event_over_and_passes_the_same_object_on(sink):
    """The chain goes on with the very dict it had, unchanged."""
    event = {"event": "x", "nested": {"a": [1]}}
    before = copy.deepcopy(event)
    assert tee(sink)(None, "info", event) is event
    assert event == before
    assert Told(sink.events) == [before]


def test_tee_sees_the_event_as_it_is_at_its_place_in_the_chain(sink):
    """What later processors do is not in the tee's sink, and what its sink's processors do is not in the chain."""

    def redact(_logger, _name, event_dict):
        del event_dict["secret"]
        return event_dict

    kept = CaptureSink(processors=[redact])
    structlog.configure(processors=[tee(kept), structlog.processors.add_log_level, sink])
    structlog.get_logger().info("x", secret="s")
    assert kept.events == [{"event": "x"}]
    assert Told(sink.events) == [{"event": "x", "secret": "s", "level": "info"}]


@pytest.mark.parametrize("method", LEVELS)
def test_tee_filters_by_the_method_s_name(method):
    """A missing level is the method's, for filtering alone."""
    sink = CaptureSink(level="warning")
    event = {"event": "x"}
    tee(sink)(None, method, event)
    assert event == {"event": "x"}
    assert Told(sink.events) == ([event] if LEVELS.index(method) >= 2 else [])


def test_tee_passes_on_what_is_no_event_and_the_failure_is_told():
    """An object that no sink can take costs the chain nothing."""
    told = []
    thing = object()
    assert tee(CaptureSink(on_error=told.append))(None, "info", thing) is thing
    assert [type(failure.error) for failure in told] == [TypeError]


def test_a_failing_sink_behind_tee_does_not_stop_the_chain(sink):
    """The event reaches the end of the chain although the tee's sink is closed; an audit sink may stop it."""
    quiet, audit = CaptureSink(on_error=lambda _: None), CaptureSink(on_error="raise")
    quiet.close()
    audit.close()
    structlog.configure(processors=[tee(quiet), sink])
    structlog.get_logger().info("x")
    assert Told(sink.events) == [{"event": "x"}]
    structlog.configure(processors=[tee(audit), sink])
    with pytest.raises(Exception, match="is closed"):
        structlog.get_logger().info("y")
    assert len(sink.events) == 1


@pytest.mark.parametrize("make", [tee, SinkLogger, SinkLoggerFactory])
@pytest.mark.parametrize("thing", [None, "app.log", print, CaptureSink])
def test_what_is_no_sink_is_refused_at_once(make, thing):
    """The mistake is named where it is made and not at the first event."""
    with pytest.raises(TypeError, match="is not a Sink"):
        make(thing)


# -- SinkLogger


@pytest.mark.parametrize(("method", "level"), [*zip(LEVELS, LEVELS, strict=True), *ALIASES.items()])
def test_every_method_gives_a_missing_level(sink, method, level):
    """An event without a level gets the method's, by its usual name."""
    getattr(SinkLogger(sink), method)(event="x")
    assert Told(sink.events) == [{"event": "x", "level": level}]


@pytest.mark.parametrize("method", [*LEVELS, *ALIASES])
def test_a_level_in_the_event_stays(sink, method):
    """A level that the chain put in is not overwritten by any method."""
    getattr(SinkLogger(sink), method)(event="x", level="trace")
    assert Told(sink.events) == [{"event": "x", "level": "trace"}]


@pytest.mark.parametrize("method", [*LEVELS, *ALIASES])
@pytest.mark.parametrize("text", ["hello", b"hello", bytearray(b"hello")])
def test_text_keeps_the_method_s_level_aside(method, text):
    """Rendered text is filtered by the method and stays the text it is."""
    sink = CaptureSink(level="error", on_error="raise")
    getattr(SinkLogger(sink), method)(text)
    passes = ALIASES.get(method, method) in ("error", "critical")
    assert Told(sink.events) == ([{"event": "hello"}] if passes else [])


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (30, {"level": "warning"}),
        ("WARN", {"level": "warning"}),
        ("error", {"level": "error"}),
        (35, {"level": "level 35", "level_number": 35}),
        (25, {"level": "level 25", "level_number": 25}),
    ],
)
def test_log_takes_a_level_by_name_or_number(sink, level, expected):
    """The level given to log() is the event's, and a number without a name is not lost."""
    SinkLogger(sink).log(level, event="x")
    assert Told(sink.events) == [{"event": "x", **expected}]


def test_log_with_a_level_filters_text_and_events_by_it():
    """What log() was given as level decides, for text as well."""
    sink = CaptureSink(level=33, on_error="raise")
    logger = SinkLogger(sink)
    for level in (32, 33):
        logger.log(level, "text")
        logger.log(level, event="dict")
    assert [event["event"] for event in sink.events] == ["text", "dict"]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {"event": "x"}, {"event": "x", "level": "info"}),
        (("rendered",), {}, {"event": "rendered"}),
        (("info",), {}, {"event": "info"}),
        (({"event": "x"},), {"extra": {"_name": "log"}}, {"event": "x", "level": "info"}),
    ],
)
def test_log_without_a_level_is_an_event_like_any_other(sink, args, kwargs, expected):
    """structlog.BoundLogger proxies log() without any level, and such an event counts as INFO."""
    SinkLogger(sink).log(*args, **kwargs)
    assert Told(sink.events) == [expected]


def test_a_key_of_any_name_may_be_in_the_event(sink):
    """Keys that are parameter names elsewhere do not get in the way."""
    event = {"event": "x", "self": 1, "level": "info", "args": 2, "kwargs": 3, "method_name": 4, "msg": 5, "extra": 6}
    for method in LEVELS:
        getattr(SinkLogger(sink), method)(**event)
    assert Told(sink.events) == [event] * len(LEVELS)


def test_an_event_whose_message_was_renamed_stays_as_it_is(sink):
    """EventRenamer's "msg" is a field, not the message of a logging call; with its usual fields or without."""
    structlog.configure(processors=[structlog.processors.EventRenamer("msg")], logger_factory=SinkLoggerFactory(sink))
    structlog.get_logger().info("x")
    structlog.get_logger().info("x", extra=1)
    structlog.get_logger().info("x", extra={"a": 1}, user="u")
    assert Told(sink.events) == [
        {"msg": "x", "level": "info"},
        {"extra": 1, "msg": "x", "level": "info"},
        {"extra": {"a": 1}, "user": "u", "msg": "x", "level": "info"},
    ]


def test_the_arguments_of_a_logging_call_become_an_event(sink):
    """msg and extra, exc_info and stack_info are fields again; stacklevel means nothing here."""
    error = ValueError("v")
    SinkLogger(sink).warning(msg="x", extra={"a": 1}, exc_info=error, stack_info=True, stacklevel=3)
    SinkLogger(sink).warning("x", extra={"a": 1}, exc_info=error, stack_info=True, stacklevel=3)
    expected = {"event": "x", "a": 1, "exc_info": error, "stack_info": True, "level": "warning"}
    assert Told(sink.events) == [expected, expected]


@pytest.mark.parametrize(
    ("args", "event"),
    [
        (("%s and %s", 1, 2), "1 and 2"),
        (("%(a)s", {"a": 1}), "1"),
        (("%s", {"a": 1}), "{'a': 1}"),
        (("%s %s", {"a": 1}, 2), "{'a': 1} 2"),
        ((5, 6), None),
        (("%d", "x"), None),
        (("none", 1), None),
    ],
)
def test_positional_arguments_are_formatted_as_logging_does(sink, args, event):
    """%-arguments are merged in; where that fails, the text and its arguments are kept apart."""
    SinkLogger(sink).info(*args)
    if event is None:
        assert Told(sink.events) == [{"event": args[0], "positional_args": args[1:], "level": "info"}]
    else:
        assert Told(sink.events) == [{"event": event, "level": "info"}]


def test_an_event_that_cannot_be_read_costs_itself_alone():
    """A mapping whose own methods raise is counted and told, and the application goes on."""
    told = []
    sink = CaptureSink(on_error=told.append)
    logger = SinkLogger(sink)
    logger.info(_Hostile())
    logger.info(event="next")
    assert sink.stats().dropped == {"error": 1}
    assert len(told) == 1
    assert Told(sink.events) == [{"event": "next", "level": "info"}]


def test_a_logger_has_what_structlog_asks_a_standard_library_logger_for():
    """Name, level and the questions about it are there, and follow the sink's level when it is set."""
    sink = CaptureSink(level="warning")
    logger = SinkLogger(sink, "app")
    assert (logger.name, logger.level, logger.getEffectiveLevel(), logger.disabled) == ("app", 30, 30, False)
    assert [logger.isEnabledFor(level) for level in (29, 30)] == [False, True]
    sink.level = "debug"
    assert logger.isEnabledFor(10)
    assert logger.level == logger.getEffectiveLevel() == 10
    assert logger.sink is sink
    assert repr(logger).startswith("<SinkLogger 'app' to <CaptureSink")


def test_stdlib_bound_loggers_can_ask_for_name_and_level():
    """The properties of structlog.stdlib.BoundLogger that pass through to the logger work."""
    structlog.configure(
        wrapper_class=structlog.stdlib.BoundLogger, logger_factory=SinkLoggerFactory(CaptureSink(level="error"))
    )
    log = structlog.get_logger("app").bind()
    assert (log.name, log.level, log.disabled) == ("app", 40, False)
    assert log.isEnabledFor(40)
    assert not log.isEnabledFor(30)
    assert log.getEffectiveLevel() == 40


# -- SinkLoggerFactory


def test_a_chain_needs_no_last_processor(sink):
    """With the factory, what the last processor returns is the event, bound values included."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars], logger_factory=SinkLoggerFactory(sink))
    structlog.get_logger().bind(a=1).warning("x", b=2)
    assert Told(sink.events) == [{"a": 1, "b": 2, "event": "x", "level": "warning"}]


def test_a_logger_is_named_as_asked_or_after_the_calling_module(sink):
    """The first argument of get_logger is the name; without one it is the module that logs."""
    factory = SinkLoggerFactory(sink)
    structlog.configure(processors=[structlog.stdlib.add_logger_name], logger_factory=factory)
    structlog.get_logger("given").info("x")
    structlog.get_logger().info("x")
    structlog.get_logger().bind(a=1).info("x")
    assert [event["logger"] for event in sink.events] == ["given", __name__, __name__]
    assert factory().name == __name__
    assert factory("a", "b").name == "a"
    assert repr(factory).startswith("SinkLoggerFactory(<CaptureSink")


def test_a_module_whose_name_merely_begins_like_structlog_is_a_caller(sink):
    """Only structlog's and this package's own frames are passed over."""
    namespace = {"__name__": "structlog_user.views", "factory": SinkLoggerFactory(sink)}
    exec("logger = factory()", namespace)
    assert namespace["logger"].name == "structlog_user.views"
    for ours in ("structlog._config", "outfall.adapters.structlog"):
        namespace = {"__name__": ours, "factory": SinkLoggerFactory(sink)}
        exec("def make():\n    return factory()", namespace)
        assert namespace["make"]().name == __name__


def test_the_factory_does_not_own_its_sink():
    """Neither loggers nor the factory close the sink when they go."""
    sink = CaptureSink()
    structlog.configure(processors=[_pass], logger_factory=SinkLoggerFactory(sink))
    structlog.get_logger().info("x")
    structlog.reset_defaults()
    assert not sink.closed
    assert len(sink.events) == 1


@pytest.mark.parametrize("cache", [False, True])
def test_caching_the_logger_changes_nothing_but_speed(sink, cache):
    """Events come through on the first use and on later ones."""
    structlog.configure(processors=[_pass], logger_factory=SinkLoggerFactory(sink), cache_logger_on_first_use=cache)
    log = structlog.get_logger("app", bound=1)
    for number in range(3):
        log.info("x", number=number)
    assert [(event["number"], event["bound"]) for event in sink.events] == [(0, 1), (1, 1), (2, 1)]


def test_a_generic_bound_logger_reaches_every_method(sink):
    """structlog.BoundLogger lets any name through; each that SinkLogger has gives its level, log() counts as INFO."""
    structlog.configure(processors=[_pass], wrapper_class=structlog.BoundLogger, logger_factory=SinkLoggerFactory(sink))
    log = structlog.get_logger().bind(a=1)
    for method in [*LEVELS, *ALIASES, "log"]:
        getattr(log, method)("x")
    levels = [*LEVELS, *ALIASES.values(), "info"]
    assert Told(sink.events) == [{"a": 1, "event": "x", "level": level} for level in levels]


@pytest.mark.parametrize("wrapper", [structlog.stdlib.BoundLogger, structlog.make_filtering_bound_logger(0)])
def test_both_bound_loggers_log_by_number(sink, wrapper):
    """The log() of structlog's own bound loggers ends in the method of that level."""
    structlog.configure(processors=[_pass], wrapper_class=wrapper, logger_factory=SinkLoggerFactory(sink))
    for number in (10, 20, 30, 40, 50):
        structlog.get_logger().log(number, "x")
    assert [event["level"] for event in sink.events] == LEVELS


@pytest.mark.parametrize("wrapper", [structlog.stdlib.BoundLogger, structlog.make_filtering_bound_logger(0)])
def test_exception_brings_the_exception(sink, tmp_path, wrapper):
    """log.exception() is an error with its traceback, in a chain that does not render it."""
    with FileSink(tmp_path / "app.log", on_error="raise") as file:
        structlog.configure(processors=[tee(sink)], wrapper_class=wrapper, logger_factory=SinkLoggerFactory(file))
        try:
            raise ValueError("broken")
        except ValueError:
            structlog.get_logger().exception("failed")
    line = json.loads((tmp_path / "app.log").read_bytes())
    assert (line["event"], line["level"]) == ("failed", "error")
    assert line["exception"].endswith("ValueError: broken")
    assert sink.events[0]["exc_info"] is True


# -- structlog.stdlib's processors


def test_filter_by_level_asks_the_sink_s_level():
    """filter_by_level drops before the expensive part of the chain what the sink would filter, as it is set."""
    sink = CaptureSink(level="warning", on_error="raise")
    costly = []
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, lambda _l, _n, event: costly.append(1) or event],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=SinkLoggerFactory(sink),
    )
    log = structlog.get_logger()
    log.info("low")
    log.warning("high")
    assert [event["event"] for event in sink.events] == ["high"]
    assert costly == [1]
    assert sink.stats().filtered == 0
    sink.level = "info"
    log.info("now high enough")
    assert len(sink.events) == 2


def test_the_processors_that_add_fields_find_what_they_need(sink):
    """Logger name, level, level number and formatted arguments are in the event as with a standard library logger."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_log_level_number,
            structlog.stdlib.ExtraAdder(),
            structlog.stdlib.PositionalArgumentsFormatter(),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=SinkLoggerFactory(sink),
    )
    structlog.get_logger("app").warning("hello %s", "you")
    assert Told(sink.events) == [{"event": "hello you", "logger": "app", "level": "warning", "level_number": 30}]


def test_a_level_number_alone_gets_its_level_s_name(sink):
    """With add_log_level_number and no add_log_level the missing name comes from the method."""
    structlog.configure(processors=[structlog.stdlib.add_log_level_number], logger_factory=SinkLoggerFactory(sink))
    structlog.get_logger().error("x")
    assert Told(sink.events) == [{"event": "x", "level_number": 40, "level": "error"}]


@pytest.mark.parametrize("last", PACKING)
@pytest.mark.parametrize("end", ["factory", "processor"])
def test_logging_arguments_become_the_event_they_were(sink, last, end):
    """A chain that prepares a logging call loses nothing when it ends in a sink, either way in."""
    error = ValueError("v")
    ending = {"logger_factory": SinkLoggerFactory(sink)} if end == "factory" else {}
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, last, *([sink] if end == "processor" else [])],
        wrapper_class=structlog.stdlib.BoundLogger,
        **ending,
    )
    structlog.get_logger("app").error("x", a=1, msg="m", exc_info=error, stack_info=True)
    assert Told(sink.events) == [
        {"event": "x", "a": 1, "msg": "m", "level": "error", "exc_info": error, "stack_info": True}
    ]


@packing_arguments
def test_deferred_formatting_happens_on_the_way_in(sink):
    """render_to_log_args_and_kwargs leaves the %-arguments to the logger, which is the sink's then."""
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_args_and_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=SinkLoggerFactory(sink),
    )
    structlog.get_logger().info("%s of %s", 1, 2, a=3)
    assert Told(sink.events) == [{"event": "1 of 2", "a": 3, "level": "info"}]


@pytest.mark.parametrize("method", ["debug", "warning"])
@pytest.mark.parametrize("end", ["factory", "processor"])
def test_wrapped_event_dicts_are_unwrapped(method, end):
    """wrap_for_formatter before a sink changes nothing: same fields, level by the method, metadata unwritten."""
    seen = []
    sink = CaptureSink(level="info", processors=[lambda logger, name, event: seen.append((logger, name)) or event])
    ending = {"logger_factory": SinkLoggerFactory(sink)} if end == "factory" else {}
    structlog.configure(
        processors=[ProcessorFormatter.wrap_for_formatter, *([sink] if end == "processor" else [])],
        wrapper_class=structlog.stdlib.BoundLogger,
        **ending,
    )
    getattr(structlog.get_logger("app"), method)("x", a=1)
    level = {"level": "warning"} if end == "factory" else {}
    assert Told(sink.events) == ([{"event": "x", "a": 1, **level}] if method == "warning" else [])
    if method == "warning":
        [(logger, name)] = seen
        assert name == "warning"
        assert isinstance(logger, SinkLogger if end == "factory" else structlog.PrintLogger)


def test_fields_beside_a_wrapped_event_dict_are_kept(sink):
    """An exception or arguments given with a dict as the message are not lost."""
    SinkLogger(sink).info({"event": "%s!", "a": 1}, "x", exc_info=True)
    SinkLogger(sink).info({"a": 1}, "x")
    assert Told(sink.events) == [
        {"event": "x!", "a": 1, "exc_info": True, "level": "info"},
        {"a": 1, "positional_args": ("x",), "level": "info"},
    ]


@settings(max_examples=50)
@given(
    event=st.dictionaries(
        st.text(max_size=6) | st.sampled_from(["msg", "extra", "exc_info", "stack_info", "args", "positional_args"]),
        st.none() | st.integers() | st.text() | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        max_size=6,
    ).filter(lambda event: "event" in event or "msg" not in event)
)
@pytest.mark.parametrize("way", ["wrapped", "keywords", "plain"])
def test_no_way_through_structlog_loses_a_field(way, event):
    """Wrapped, as keywords or plain, every field that goes into the end of a chain comes out of it."""
    given_ = {
        "wrapped": ProcessorFormatter.wrap_for_formatter("logger", "info", dict(event)),
        "keywords": ((), dict(event)),
        "plain": dict(event),
    }[way]
    assert without_metadata(as_event(given_, "info")) == without_metadata(event)


@settings(max_examples=50)
@given(
    event=st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda key: key not in ("event", "stacklevel", "positional_args")),
        st.none() | st.integers() | st.text(),
        max_size=6,
    )
)
@pytest.mark.parametrize("last", PACKING)
def test_no_logging_argument_is_lost(last, event):
    """Every field that a chain packs for a logging call is a field again."""
    full = {"event": "x", **event}
    assert dict(as_event(last(None, "info", dict(full)), "info")) == full


# -- context and asyncio


def test_context_variables_are_merged(sink):
    """What is bound to the context is in the event, and gone once it is unbound."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, sink])
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("in")
    structlog.get_logger().info("out")
    assert Told(sink.events) == [{"request_id": "r1", "event": "in"}, {"event": "out"}]


@pytest.mark.parametrize("wrapper", [structlog.stdlib.BoundLogger, structlog.make_filtering_bound_logger(logging.INFO)])
@pytest.mark.parametrize("end", ["factory", "processor"])
def test_async_methods_log_with_their_context(sink, wrapper, end):
    """ainfo and its kin reach the sink from their executor with the caller's context, level and exception."""
    ending = {"logger_factory": SinkLoggerFactory(sink)} if end == "factory" else {}
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.CallsiteParameterAdder([structlog.processors.CallsiteParameter.FUNC_NAME]),
            structlog.processors.add_log_level,
            *([sink] if end == "processor" else []),
        ],
        wrapper_class=wrapper,
        **ending,
    )
    error = ValueError("v")

    async def work() -> None:
        structlog.contextvars.bind_contextvars(task="t")
        log = structlog.get_logger()
        await log.ainfo("one", a=1)
        await log.alog(logging.WARNING, "two")
        try:
            raise error
        except ValueError:
            await log.aexception("three")

    asyncio.run(work())
    # Older releases look for the call's site in the executor's stack.
    site = "run" if OLD and wrapper is structlog.stdlib.BoundLogger else "work"
    assert [(event["event"], event["level"], event["task"], event["func_name"]) for event in sink.events] == [
        ("one", "info", "t", site),
        ("two", "warning", "t", site),
        ("three", "error", "t", site),
    ]
    assert sink.events[2]["exc_info"][1] is error


def test_one_logger_may_be_used_by_many_threads(sink):
    """Events of threads that share a bound logger all arrive, each whole."""
    structlog.configure(processors=[_pass], logger_factory=SinkLoggerFactory(sink), cache_logger_on_first_use=True)
    log = structlog.get_logger("app")

    def work(number: int) -> None:
        for index in range(200):
            log.info("x", number=number, index=index)

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((event["number"], event["index"]) for event in sink.events) == [
        (number, index) for number in range(4) for index in range(200)
    ]


# -- pickle and copy


@pytest.mark.parametrize("end", ["factory", "processor"])
def test_a_lazy_proxy_pickles_although_the_configuration_holds_a_sink(sink, end):
    """What get_logger returns can travel to another process, where it takes that process's configuration."""
    ending = {"logger_factory": SinkLoggerFactory(sink)} if end == "factory" else {}
    structlog.configure(processors=[_pass, *([sink] if end == "processor" else [])], **ending)
    log = pickle.loads(pickle.dumps(structlog.get_logger("app", bound=1)))
    log.info("x")
    assert [(event["event"], event["bound"]) for event in sink.events] == [("x", 1)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bound_logger_on_an_open_sink_does_not_pickle_and_says_why(protocol):
    """The error names the sink's class and the way out."""
    structlog.configure(
        processors=[_pass],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=SinkLoggerFactory(StreamSink(None)),
    )
    bound = structlog.get_logger().bind()
    for thing in (bound, bound._logger):
        with pytest.raises(TypeError, match=r"bound to StreamSink cannot be pickled.*lazy proxy"):
            pickle.dumps(thing, protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_of_loggers_share_the_sink(sink, duplicate):
    """Loggers, bound loggers and proxies can be copied, deeply too, as those on structlog's own loggers can."""
    structlog.configure(
        processors=[_pass], wrapper_class=structlog.stdlib.BoundLogger, logger_factory=SinkLoggerFactory(sink)
    )
    proxy = structlog.get_logger("app", values=[1])
    bound = proxy.bind()
    for number, log in enumerate([duplicate(proxy), duplicate(bound), duplicate(bound).bind(b=2)]):
        log.info("x", number=number)
    logger = duplicate(bound._logger)
    assert (type(logger), logger.sink, logger.name) == (SinkLogger, sink, "app")
    assert [event["number"] for event in sink.events] == [0, 1, 2]
    assert sink.events[0]["values"] == [1]


# -- the shape


def test_events_have_one_shape_whichever_way_they_come(sink):
    """structlog's and logging's have the same fields, of the same kind, in the same order."""
    structlog.configure(processors=[], logger_factory=SinkLoggerFactory(sink))
    logger = logging.Logger("shop")
    logger.addHandler(SinkHandler(sink))
    before = time.time()
    structlog.get_logger("shop").info("x")
    logger.info("x")
    first, second = sink.events
    assert list(first) == list(second) == ["event", "level", "logger", "timestamp"]
    assert all(before - 1 <= timestamp_of(event) <= time.time() for event in sink.events)
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", event.pop("timestamp")) for event in sink.events
    )
    assert first == second


@pytest.mark.parametrize("method", ["info", "warning", "log"])
def test_what_the_chain_has_added_stays(sink, method):
    """A logger, a time and a level of the event's own are not written over."""
    own = {"level": "debug", "logger": "mine", "timestamp": 5}
    getattr(SinkLogger(sink, "shop"), method)(event="x", **own)
    assert sink.events == [{"event": "x", **own}]


def test_rendered_text_gets_nothing_added(sink):
    """It has no fields."""
    SinkLogger(sink, "shop").info("text")
    assert sink.events == [{"event": "text"}]
