"""The recipes of structlog's documentation that end in a logger or handler, each with its twin that ends in a sink.

Every test sets up what a page shows and asserts that the sink has what the documented ending gives; the pages are named
in the section comments. Where a recipe ends in text on a stream, both endings are run and compared.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import io
import json
import logging
import logging.config
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
import structlog
from structlog.processors import CallsiteParameter, CallsiteParameterAdder, JSONRenderer, KeyValueRenderer
from structlog.stdlib import ProcessorFormatter

from outfall import CaptureSink, FanoutSink, FileSink, OrjsonRenderer, SinkHandler, SinkLoggerFactory, StreamSink, tee
from tests.adapters._structlog import OLD, PACKING, Told

pytestmark = pytest.mark.usefixtures("own_logging")

FROZEN = structlog.processors.TimeStamper


def _stamp(_logger, _name, event_dict):
    """Stand for TimeStamper where two runs are compared."""
    event_dict["timestamp"] = "2024-05-06T07:08:09Z"
    return event_dict


@pytest.fixture
def sink():
    """Give a sink that keeps its events and tells of failures by raising."""
    return CaptureSink(on_error="raise")


@pytest.fixture
def root():
    """Give the root logger, at INFO and without handlers; all is put back afterwards."""
    logger = logging.getLogger()
    before, logger_class = logger.handlers[:], logging.getLoggerClass()
    logger.handlers[:] = []
    logger.setLevel(logging.INFO)
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:] = before
    logging.setLoggerClass(logger_class)


def _either(documented, twin):
    """Return what *documented* and *twin* wrote, each given a stream of its own."""
    texts = []
    for run in (documented, twin):
        stream = io.StringIO()
        structlog.reset_defaults()
        run(stream)
        texts.append(stream.getvalue())
    return texts


def _work():
    log = structlog.get_logger("app").bind(user="u")
    log.debug("quiet")
    log.info("greeted", whom="world", more=[1, 2, 3])
    try:
        raise ValueError("broken")
    except ValueError:
        # Not exception(): logging.Logger's appends a traceback of its own to the text.
        log.error("failed", exc_info=True)  # noqa: G201


# -- standard-library: do not integrate


def test_two_systems_side_by_side_share_a_sink(root, sink):
    """structlog and logging are not integrated, and their events end in one place with the same fields."""
    structlog.configure(
        processors=[structlog.stdlib.add_logger_name, structlog.stdlib.add_log_level, FROZEN(fmt="iso"), sink],
        logger_factory=SinkLoggerFactory(sink),
    )
    root.addHandler(SinkHandler(sink, callsite=False))
    structlog.get_logger("test").warning("hello")
    logging.getLogger("test").warning("hello")
    for event in sink.events:
        assert event.pop("timestamp").endswith("Z")
    assert sink.events == [{"event": "hello", "level": "warning", "logger": "test"}] * 2


# -- standard-library: rendering within structlog


def _rendering_within(end):
    return {
        "processors": [
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _stamp,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            CallsiteParameterAdder([CallsiteParameter.FILENAME, CallsiteParameter.FUNC_NAME, CallsiteParameter.LINENO]),
            *end,
        ],
        "wrapper_class": structlog.stdlib.BoundLogger,
        "cache_logger_on_first_use": True,
    }


@pytest.mark.parametrize("way", ["factory", "last processor", "handler"])
def test_rendering_within_structlog(root, way):
    """A chain that renders JSON itself writes the same lines through a sink, whichever way the sink is attached."""

    def documented(stream):
        root.handlers[:] = [logging.StreamHandler(stream)]
        root.handlers[0].setFormatter(logging.Formatter("%(message)s"))
        structlog.configure(**_rendering_within([JSONRenderer()]), logger_factory=structlog.stdlib.LoggerFactory())
        _work()

    def twin(stream):
        root.handlers[:] = []
        sink = StreamSink(stream, level="info", on_error="raise")
        if way == "factory":
            structlog.configure(**_rendering_within([JSONRenderer()]), logger_factory=SinkLoggerFactory(sink))
        elif way == "last processor":
            structlog.configure(
                **_rendering_within([JSONRenderer(), sink]), logger_factory=structlog.stdlib.LoggerFactory()
            )
        else:
            handler = SinkHandler(sink)
            handler.setFormatter(logging.Formatter("%(message)s"))
            root.addHandler(handler)
            structlog.configure(**_rendering_within([JSONRenderer()]), logger_factory=structlog.stdlib.LoggerFactory())
        _work()

    expected, got = _either(documented, twin)
    assert got == expected
    assert [json.loads(line)["event"] for line in got.splitlines()] == ["greeted", "failed"]


def test_rendering_within_structlog_needs_no_renderer_before_a_sink(root):
    """Without JSONRenderer the sink renders, and each line has the same fields."""

    def documented(stream):
        root.handlers[:] = [logging.StreamHandler(stream)]
        root.handlers[0].setFormatter(logging.Formatter("%(message)s"))
        structlog.configure(**_rendering_within([JSONRenderer()]), logger_factory=structlog.stdlib.LoggerFactory())
        _work()

    def twin(stream):
        sink = StreamSink(stream, level="info", on_error="raise")
        structlog.configure(**_rendering_within([]), logger_factory=SinkLoggerFactory(sink))
        _work()

    expected, got = ([json.loads(line) for line in text.splitlines()] for text in _either(documented, twin))
    assert got == expected


def test_structlog_s_defaults_on_top_of_logging(root, capsys):
    """recreate_defaults() goes through logging; its text ends in a sink when a SinkHandler formats only the message."""
    stream = io.StringIO()
    structlog.stdlib.recreate_defaults(log_level=None)
    handler = SinkHandler(StreamSink(stream, on_error="raise"))
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    structlog.get_logger("app").info("hello %s", "you", a=1)
    # The defaults of older releases leave the arguments alone.
    assert ("hello %s" if OLD else "hello you") in stream.getvalue()
    assert capsys.readouterr().out == ""


def test_asynchronous_methods_end_in_a_sink(root, sink):
    """The standard library's bound logger logs from a thread pool, with the caller's name and context."""
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.add_logger_name],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=SinkLoggerFactory(sink),
    )

    async def serve(number):
        structlog.contextvars.bind_contextvars(request=number)
        await structlog.get_logger("app").ainfo("served %s", number)

    async def both() -> None:
        await asyncio.gather(serve(1), serve(2))

    asyncio.run(both())
    assert sorted(event["request"] for event in sink.events) == [1, 2]
    assert {event["logger"] for event in sink.events} == {"app"}


# -- standard-library: rendering using logging-based formatters


def _for_logging_formatters(last, **ending):
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _stamp,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            last,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
        **ending,
    )


@pytest.mark.parametrize("last", PACKING)
@pytest.mark.parametrize("way", ["factory", "handler"])
def test_rendering_using_logging_s_formatters(root, sink, last, way):
    """The event that structlog packed into a logging call is the event in the sink, with logging between or without."""
    if way == "factory":
        _for_logging_formatters(last, logger_factory=SinkLoggerFactory(sink))
        sink.level = "info"
    else:
        _for_logging_formatters(last, logger_factory=structlog.stdlib.LoggerFactory())
        root.addHandler(SinkHandler(sink, callsite=False))
    _work()
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("app").bind(user="u").exception("failed")
    greeted, failed, again = sink.events
    common = {"user": "u", "logger": "app", "timestamp": "2024-05-06T07:08:09Z"}
    assert greeted == {"event": "greeted", "whom": "world", "more": [1, 2, 3], "level": "info", **common}
    for event in (failed, again):
        assert event.pop("exception").endswith("ValueError: broken")
        assert event == {"event": "failed", "level": "error", **common}


def test_a_json_formatter_of_another_library_writes_into_a_sink(root):
    """python-json-logger's text is written as it is, for structlog's events and for logging's."""
    module = pytest.importorskip("pythonjsonlogger.json")

    def run(stream, make):
        handler = make(stream)
        handler.setFormatter(module.JsonFormatter())
        root.handlers[:] = [handler]
        _for_logging_formatters(structlog.stdlib.render_to_log_kwargs, logger_factory=structlog.stdlib.LoggerFactory())
        _work()
        logging.getLogger("test").warning("hello")

    expected, got = _either(
        lambda stream: run(stream, logging.StreamHandler),
        lambda stream: run(stream, lambda s: SinkHandler(StreamSink(s, on_error="raise"))),
    )
    assert got == expected
    assert [json.loads(line)["message"] for line in got.splitlines()] == ["greeted", "failed", "hello"]


# -- standard-library: rendering using structlog-based formatters within logging


def _stdlib_and_structlog():
    logging.getLogger("stdlog").info("woo", extra={"a": 1})
    structlog.get_logger("structlog").info("amazing", events="oh yes")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("stdlog").exception("failed %s", "twice")
        structlog.get_logger("structlog").exception("failed")


def _formatter(**options):
    return ProcessorFormatter(
        processors=[ProcessorFormatter.remove_processors_meta, structlog.dev.ConsoleRenderer(colors=False)], **options
    )


@pytest.mark.parametrize("shared", [[], [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(), _stamp]])
def test_structlog_s_formatter_writes_into_a_sink(root, shared):
    """ProcessorFormatter, with a foreign chain and without, writes the same text into a sink as into a stream."""

    def run(stream, make):
        structlog.configure(
            processors=[*shared, structlog.dev.set_exc_info, ProcessorFormatter.wrap_for_formatter],
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        handler = make(stream)
        handler.setFormatter(_formatter(foreign_pre_chain=shared or None))
        root.handlers[:] = [handler]
        _stdlib_and_structlog()

    expected, got = _either(
        lambda stream: run(stream, logging.StreamHandler),
        lambda stream: run(stream, lambda s: SinkHandler(StreamSink(s, on_error="raise"))),
    )
    assert got == expected
    assert "woo" in got
    assert "amazing" in got


def test_a_sink_does_what_structlog_s_formatter_did(root):
    """Without a formatter, the sink's own renderer writes both kinds of events, and no foreign chain is needed."""
    stream = io.StringIO()
    sink = StreamSink(
        stream, on_error="raise", renderer=structlog.processors.LogfmtRenderer(key_order=["level", "event"])
    )
    root.addHandler(SinkHandler(sink, callsite=False))
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, _stamp, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logging.getLogger("stdlog").info("woo", extra={"a": 1})
    structlog.get_logger("structlog").info("amazing", b=2)
    foreign, own = stream.getvalue().splitlines()
    assert foreign.startswith("level=info event=woo logger=stdlog timestamp=")
    assert foreign.endswith(" a=1")
    assert own == "level=info event=amazing b=2 timestamp=2024-05-06T07:08:09Z"


def _extract_from_record(_logger, _name, event_dict):
    record = event_dict["_record"]
    event_dict["thread_name"] = record.threadName
    event_dict["process_name"] = record.processName
    return event_dict


@pytest.mark.parametrize("way", ["formatters", "renderers"])
def test_colours_on_the_console_and_plain_text_in_a_file_by_dict_config(root, tmp_path, way):
    """Two destinations with their own rendering come from dictConfig, by formatters or by the sinks' renderers."""
    handlers, listed = dict(logging._handlers), logging._handlerList[:]
    logging._handlers.clear()
    logging._handlerList.clear()
    console = io.StringIO()
    plain_renderer = structlog.dev.ConsoleRenderer(colors=False)
    colour_renderer = structlog.dev.ConsoleRenderer(colors=True, force_colors=True)
    pre_chain = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(), _stamp]
    remove = ProcessorFormatter.remove_processors_meta
    to_console = {"()": "outfall.StreamSink", "stream": console, "on_error": "raise"}
    to_file = {"()": "outfall.FileSink", "filename": str(tmp_path / "test.log"), "on_error": "raise"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "loggers": {"": {"handlers": ["default", "file"], "level": "DEBUG"}},
    }
    if way == "formatters":
        config["formatters"] = {
            "plain": {"()": ProcessorFormatter, "processors": [remove, plain_renderer], "foreign_pre_chain": pre_chain},
            "colored": {
                "()": ProcessorFormatter,
                "processors": [_extract_from_record, remove, colour_renderer],
                "foreign_pre_chain": pre_chain,
            },
        }
        config["handlers"] = {
            "default": {"class": "outfall.SinkHandler", "level": "DEBUG", "formatter": "colored", "sink": to_console},
            "file": {"class": "outfall.SinkHandler", "level": "DEBUG", "formatter": "plain", "sink": to_file},
        }
    else:
        to_console |= {"processors": [_extract_from_record, remove], "renderer": colour_renderer}
        to_file |= {"renderer": plain_renderer, "processors": [remove, _stamp]}
        config["handlers"] = {
            "default": {"class": "outfall.SinkHandler", "level": "DEBUG", "callsite": False, "sink": to_console},
            "file": {"class": "outfall.SinkHandler", "level": "DEBUG", "callsite": False, "sink": to_file},
        }
    try:
        logging.config.dictConfig(config)
        structlog.configure(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.PositionalArgumentsFormatter(),
                _stamp,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=True,
        )
        logging.getLogger().warning("bar", extra={"y": 1})
        structlog.get_logger("structlog").warning("foo %s", "baz", x=42)
        for handler in root.handlers:
            handler.close()
    finally:
        logging._handlers.update(handlers)
        logging._handlerList[:0] = listed
    plain = (tmp_path / "test.log").read_text().splitlines()
    assert [line.split()[:4] for line in plain] == [
        ["2024-05-06T07:08:09Z", "[warning", "]", "bar"],
        ["2024-05-06T07:08:09Z", "[warning", "]", "foo"],
    ]
    assert plain[0].rstrip().endswith("y=1")
    assert plain[1].rstrip().endswith("x=42")
    assert console.getvalue().count("MainThread") == 2
    assert "\x1b[" in console.getvalue()
    assert "_record" not in console.getvalue() + "".join(plain)


def test_no_foreign_chain_leaves_formatting_to_logging(root):
    """A ProcessorFormatter with a format of its own wraps it around the text, in a sink too."""
    stream = io.StringIO()
    handler = SinkHandler(StreamSink(stream, on_error="raise"))
    handler.setFormatter(
        ProcessorFormatter(
            processors=[ProcessorFormatter.remove_processors_meta, KeyValueRenderer()], fmt="%(name)s|%(message)s"
        )
    )
    root.addHandler(handler)
    logging.getLogger("stdlog").info("woo")
    assert stream.getvalue() == "stdlog|event='woo'\n"


# -- configuration and getting-started


def test_all_it_takes_is_a_factory(sink):
    """configure(logger_factory=…) alone is enough, with the loggers that came before as well."""
    early = structlog.get_logger("early", a=1)
    structlog.configure(logger_factory=SinkLoggerFactory(sink))
    assert structlog.is_configured()
    assert structlog.get_config()["logger_factory"].sink is sink
    early.critical("too easy")
    [event] = sink.events
    assert "too easy" in event["event"]  # the default chain ends in structlog's console renderer


def test_configuring_again_changes_one_setting(sink):
    """The factory stays when only the processors change."""
    structlog.configure(logger_factory=SinkLoggerFactory(sink))
    structlog.configure(processors=[structlog.processors.add_log_level])
    structlog.get_logger().info("x")
    assert Told(sink.events) == [{"event": "x", "level": "info"}]


def test_the_default_chain_ends_in_a_sink():
    """structlog's defaults, written out, print the same text through a sink."""

    def run(stream, factory):
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.StackInfoRenderer(),
                structlog.dev.set_exc_info,
                _stamp,
                structlog.dev.ConsoleRenderer(colors=False),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
            context_class=dict,
            logger_factory=factory(stream),
            cache_logger_on_first_use=False,
        )
        structlog.get_logger().info("hello, %s!", "world", key="value!", more_than_strings=[1, 2, 3])

    expected, got = _either(
        lambda stream: run(stream, structlog.PrintLoggerFactory),
        lambda stream: run(stream, lambda s: SinkLoggerFactory(StreamSink(s, on_error="raise"))),
    )
    assert got == expected
    assert "hello, world!" in got


@pytest.mark.parametrize("renderer", [KeyValueRenderer(), JSONRenderer(), structlog.processors.LogfmtRenderer()])
@pytest.mark.parametrize("place", ["in the chain", "in the sink"])
def test_every_renderer_writes_the_same_line(renderer, place):
    """A processor of one's own and any renderer, in the chain or in the sink, give PrintLogger's line."""

    def timestamper(_logger, _name, event_dict):
        event_dict["time"] = "12:00"
        return event_dict

    def documented(stream):
        structlog.configure(processors=[timestamper, renderer], logger_factory=structlog.PrintLoggerFactory(stream))
        structlog.get_logger().info("hi", user_agent="ua", peer_ip="127.0.0.1")

    def twin(stream):
        if place == "in the chain":
            structlog.configure(
                processors=[timestamper, renderer],
                logger_factory=SinkLoggerFactory(StreamSink(stream, on_error="raise")),
            )
        else:
            structlog.configure(processors=[timestamper, StreamSink(stream, renderer=renderer, on_error="raise")])
        structlog.get_logger().info("hi", user_agent="ua", peer_ip="127.0.0.1")

    expected, got = _either(documented, twin)
    assert got == expected


def test_a_context_is_built_step_by_step(sink):
    """bind, new, unbind and initial values give the fields they give any logger."""
    structlog.configure(processors=[], logger_factory=SinkLoggerFactory(sink))
    log = structlog.get_logger(app="a")
    log = log.bind(user_agent="ua")
    log.info("one")
    log.unbind("app").info("two")
    log.new(only=1).info("three")
    for event in sink.events:
        assert event.pop("level") == "info"
    assert Told(sink.events) == [
        {"app": "a", "user_agent": "ua", "event": "one"},
        {"user_agent": "ua", "event": "two"},
        {"only": 1, "event": "three"},
    ]


# -- logging-best-practices, console-output, exceptions


def test_one_canonical_line_per_request(sink):
    """What is bound along the way comes out in a single event at the end."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, sink])
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id="r1", path="/")
    structlog.contextvars.bind_contextvars(user="u", status=200)
    structlog.get_logger().info("canonical")
    assert sink.events == [{"request_id": "r1", "path": "/", "user": "u", "status": 200, "event": "canonical"}]


def test_pretty_for_people_and_json_for_machines():
    """Both endings at once: what the page chooses by isatty() are two sinks here, each with its own traceback."""
    pretty, machine = io.StringIO(), io.StringIO()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            FanoutSink(
                StreamSink(pretty, renderer=structlog.dev.ConsoleRenderer(colors=False), on_error="raise"),
                StreamSink(machine, renderer=OrjsonRenderer(tracebacks="dict"), on_error="raise"),
                on_error="raise",
            ),
        ]
    )
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("failed", a=1)
    line = json.loads(machine.getvalue())
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert (line["event"], line["level"], line["a"]) == ("failed", "error", 1)
    assert "[error    ] failed" in pretty.getvalue()
    # With rich older releases colour the traceback all the same.
    assert "ValueError: broken" in re.sub(r"\x1b\[[0-9;]*m", "", pretty.getvalue())


def test_structured_tracebacks_of_the_chain_are_written(tmp_path):
    """dict_tracebacks in the chain gives JSON the list of exceptions, as before JSONRenderer."""
    with FileSink(tmp_path / "app.jsonl", on_error="raise") as sink:
        structlog.configure(processors=[structlog.processors.dict_tracebacks, sink])
        try:
            raise ValueError("broken")
        except ValueError:
            structlog.get_logger().exception("failed")
    [exception] = json.loads((tmp_path / "app.jsonl").read_bytes())["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "broken")


def test_the_console_renderer_beside_logging():
    """The suggested console configuration writes the same through a sink's logger as through logging's."""

    def run(stream, factory):
        structlog.configure(
            processors=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.stdlib.PositionalArgumentsFormatter(),
                _stamp,
                structlog.processors.StackInfoRenderer(),
                structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
            ],
            context_class=dict,
            logger_factory=factory(stream),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=True,
        )
        _work()

    def with_logging(stream):
        logger = logging.getLogger("app")
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        try:
            run(stream, lambda _: structlog.stdlib.LoggerFactory())
        finally:
            logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)

    logger_class = logging.getLoggerClass()
    try:
        expected, got = _either(
            with_logging,
            lambda stream: run(stream, lambda s: SinkLoggerFactory(StreamSink(s, on_error="raise"))),
        )
    finally:
        logging.setLoggerClass(logger_class)
    assert got == expected
    assert "ValueError: broken" in got


# -- performance


@pytest.mark.parametrize("renderer", ["in the chain", "the sink's own"])
def test_as_fast_as_it_gets(tmp_path, renderer):
    """The production configuration writes BytesLogger's lines into a file sink, with the chain's orjson or its own."""

    def processors(*last):
        return [
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _stamp,
            *last,
        ]

    def run(chain, factory):
        structlog.reset_defaults()
        structlog.configure(
            cache_logger_on_first_use=True,
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            processors=chain,
            logger_factory=factory,
        )
        _work()

    with (tmp_path / "documented").open("wb") as file:
        run(processors(JSONRenderer(serializer=orjson.dumps)), structlog.BytesLoggerFactory(file))
    with FileSink(tmp_path / "twin", on_error="raise") as sink:
        last = [JSONRenderer(serializer=orjson.dumps)] if renderer == "in the chain" else []
        run(processors(*last), SinkLoggerFactory(sink))
    twin = (tmp_path / "twin").read_bytes()
    # Which the logger adds, as it adds a level and a time, to events that are not rendered yet.
    assert twin.replace(b',"logger":"app"', b"") == (tmp_path / "documented").read_bytes()
    assert twin.count(b"\n") == 2


# -- recipes


def test_the_event_key_is_renamed(sink):
    """EventRenamer's names are what the sink has, either way in."""
    renamer = structlog.processors.EventRenamer("msg", "_event")
    structlog.configure(processors=[renamer], logger_factory=SinkLoggerFactory(sink))
    structlog.get_logger().info("something happened", _event="our event!")
    structlog.configure(processors=[renamer, sink])
    structlog.get_logger().info("something happened", _event="our event!")
    named = {"msg": "something happened", "event": "our event!"}
    assert Told(sink.events) == [{**named, "level": "info"}, named]


@pytest.mark.parametrize("place", ["in the chain", "in the sink"])
def test_filtering_by_call_site(place):
    """A processor that drops the events of one function does so in the chain and among the sink's own processors."""

    def filter_f(_logger, _name, event_dict):
        if event_dict.get("func_name") == "f":
            raise structlog.DropEvent
        return event_dict

    sink = CaptureSink(processors=[filter_f] if place == "in the sink" else [], on_error="raise")
    structlog.configure(
        processors=[
            CallsiteParameterAdder([CallsiteParameter.FUNC_NAME]),
            *([filter_f] if place == "in the chain" else []),
            sink,
        ]
    )
    log = structlog.get_logger()

    def f():
        log.info("f called")

    def g():
        log.info("g called")

    f()
    g()
    assert sink.events == [{"event": "g called", "func_name": "g"}]
    assert sink.stats().filtered == (1 if place == "in the sink" else 0)


def test_a_wrapper_class_of_one_s_own(sink):
    """Methods that are no levels end in those that are."""

    class Semantic(structlog.BoundLoggerBase):
        def info(self, event, **fields):
            fields.setdefault("status", "ok")
            return self._proxy_to_logger("info", event, **fields)

        def user_error(self, event, **fields):
            self.info(event, status="user_error", **fields)

    log = structlog.wrap_logger(SinkLoggerFactory(sink)(), processors=[], wrapper_class=Semantic).bind(user="u")
    log.user_error("forgot towel")
    log.info("fine")
    assert [(event["status"], event["level"]) for event in sink.events] == [("user_error", "info"), ("ok", "info")]


def test_locals_are_redacted_in_dict_tracebacks(tmp_path):
    """A traceback transformer of one's own serves the chain and the sink's renderer alike."""

    class Redacting(structlog.tracebacks.ExceptionDictTransformer):
        def __call__(self, exc_info):
            made = super().__call__(exc_info)
            for exception in made:
                for frame in exception["frames"]:
                    frame["locals"] = {
                        name: "***" if name == "token" else value for name, value in frame["locals"].items()
                    }
            return made

    def fail():
        token = "hunter2"
        raise ValueError(len(token))

    with FileSink(tmp_path / "app.jsonl", on_error="raise", renderer=OrjsonRenderer(tracebacks=Redacting())) as sink:
        chain = structlog.processors.ExceptionRenderer(Redacting())
        for processors in ([sink], [chain, sink]):
            structlog.configure(processors=processors)
            try:
                fail()
            except ValueError:
                structlog.get_logger().exception("failed")
    text = (tmp_path / "app.jsonl").read_text()
    assert text.count("***") == 2
    assert "hunter2" not in text


def test_context_is_passed_to_worker_threads(sink):
    """Context that is bound again in a pool's threads is in their events."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, sink])

    def work(context, worker):
        structlog.contextvars.bind_contextvars(**context)
        structlog.get_logger().info("worked", worker=worker)

    structlog.contextvars.bind_contextvars(request_id="r1")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(functools.partial(work, structlog.contextvars.get_contextvars()), "abc"))
    assert sorted((event["request_id"], event["worker"]) for event in sink.events) == [("r1", w) for w in "abc"]


def test_console_output_on_standard_error(capfd, monkeypatch):
    """A stream sink without a stream is the one line that switches to stderr."""
    structlog.configure(processors=[KeyValueRenderer()], logger_factory=SinkLoggerFactory(StreamSink(sys.stderr)))
    structlog.get_logger().info("x")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "event='x'\n")


# -- contextvars


def test_context_variables_live_as_long_as_their_block(sink):
    """Bound, overwritten for a block, unbound and cleared: the events show each step, a task's own stay its own."""
    structlog.configure(processors=[structlog.contextvars.merge_contextvars], logger_factory=SinkLoggerFactory(sink))
    log = structlog.get_logger()
    structlog.contextvars.bind_contextvars(a=1, b=2)
    with structlog.contextvars.bound_contextvars(b=3):
        log.info("x")
    contextvars.copy_context().run(lambda: (structlog.contextvars.bind_contextvars(a="other"), log.info("x")))
    structlog.contextvars.unbind_contextvars("b")
    log.info("x", a="call")
    structlog.contextvars.clear_contextvars()
    log.info("x")
    assert [(event.get("a"), event.get("b")) for event in sink.events] == [
        (1, 3),
        ("other", 2),
        ("call", None),
        (None, None),
    ]


# -- testing


def test_structlog_s_own_capture_still_works(sink):
    """capture_logs takes the place of the sink while it lasts."""
    structlog.configure(processors=[sink])
    log = structlog.get_logger()
    with structlog.testing.capture_logs() as captured:
        log.info("captured", a=1)
    log.info("let through")
    assert captured == [{"event": "captured", "a": 1, "log_level": "info"}]
    assert [event["event"] for event in sink.events] == ["let through"]


def test_a_capture_sink_takes_the_place_of_a_capturing_logger(sink):
    """What LogCapture and CapturingLogger are for, a CaptureSink does, in the middle of a chain as well."""
    printed = io.StringIO()
    structlog.configure(processors=[tee(sink), JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(printed))
    structlog.get_logger().bind(x="y").info("hello", a=1)
    assert sink.events == [{"x": "y", "event": "hello", "a": 1}]
    assert json.loads(printed.getvalue()) == sink.events[0]
    sink.clear()
    assert sink.events == []
