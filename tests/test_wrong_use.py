"""Wrong use: each mistake is refused where it is made, with the argument, its value and what to write instead."""

from __future__ import annotations

import io
import json
import logging
import queue

import pytest
import structlog
from structlog.dev import ConsoleRenderer

import outfall
from outfall import (
    BackgroundSink,
    CaptureSink,
    FanoutSink,
    FileSink,
    NullSink,
    OrjsonRenderer,
    RotatingFileSink,
    Sink,
    SinkHandler,
    SinkLoggerFactory,
    StreamSink,
    TimedRotatingFileSink,
    tee,
)


def redact(_logger, _name, event):
    """Be a processor."""
    return event


class Own(Sink):
    """A sink of an application, with an argument of its own."""

    def __init__(self, target, *, retries=1, **options):
        super().__init__(**options)


class Open(Sink):
    """A sink that takes out of its options what it knows."""

    def __init__(self, **options):
        self.colour = options.pop("colour")
        super().__init__(**options)


#: What is written, and what has to be in the message.
ROWS = {
    "a processor that is no list": (
        lambda p: FileSink(p, processors=redact),
        ["processors=redact", "processors=[redact]"],
    ),
    "a text as processors": (lambda p: FileSink(p, processors="redact"), ["processors='redact'", "not a sequence"]),
    "a processor that is none": (lambda p: FileSink(p, processors=[5]), ["processors=5", "not callable"]),
    "a processor of one argument": (
        lambda p: FileSink(p, processors=[lambda event: event]),
        ["processors=<lambda>(event)", "does not take (logger, method_name, event_dict)"],
    ),
    "a function as a renderer": (lambda p: FileSink(p, renderer=json.dumps), ["renderer=dumps(", "method_name"]),
    "a function as a mail's renderer": (
        lambda _: outfall.SMTPSink("h", "a@x.org", "b@x.org", "s", renderer=json.dumps),
        ["renderer=dumps(", "method_name"],
    ),
    "a date in a file's name": (lambda _: FileSink("a-{date:%Y}.jsonl"), ["filename='a-{date:%Y}", "{date:%Y-%m-%d}"]),
    "a date without a form": (
        lambda _: TimedRotatingFileSink("a-{time}.jsonl", when="D"),
        ["filename='a-{time}.jsonl'", "{date:%Y-%m-%d}"],
    ),
    "no directory for a spool": (lambda _: outfall.SpoolSink(NullSink(), ""), ["directory=''", "empty"]),
    "None as a spool's directory": (lambda _: outfall.SpoolSink(NullSink(), None), ["directory=None", "not a path"]),
    "a URL as a host": (lambda _: outfall.SocketSink("tcp://h", 5), ["host='tcp://h'", "not the name"]),
    "a port that is none": (lambda _: outfall.SMTPSink("h:x", "a@x.org", "b@x.org", "s"), ["mailhost='h:x'"]),
    "a host without a port": (
        lambda _: outfall.SysLogSink("localhost"),
        ["address='localhost'", "write address=('localhost', 514)"],
    ),
    "a header of the sink's": (
        lambda _: outfall.HTTPSink("http://h", headers={"Transfer-Encoding": "chunked"}),
        ["headers: the sink sets 'Transfer-Encoding' itself"],
    ),
    "a class as a processor": (
        lambda p: FileSink(p, processors=[structlog.processors.TimeStamper]),
        ["processors=TimeStamper", "TimeStamper(…)"],
    ),
    "a sink as a processor": (lambda p: FileSink(p, processors=[NullSink()]), ["processors", "NullSink", "tee(sink)"]),
    "a class as a renderer": (
        lambda p: FileSink(p, renderer=ConsoleRenderer),
        ["renderer=ConsoleRenderer", "ConsoleRenderer(…)"],
    ),
    "our own class as a renderer": (lambda p: StreamSink(renderer=OrjsonRenderer), ["renderer=OrjsonRenderer", "(…)"]),
    "no renderer": (lambda p: FileSink(p, renderer="json"), ["renderer='json'", "not callable"]),
    "logging's name": (
        lambda p: RotatingFileSink(p, maxBytes=1000),
        ["RotatingFileSink", "maxBytes=1000", "max_bytes="],
    ),
    "logging's other name": (
        lambda p: RotatingFileSink(p, max_bytes=9, backupCount=5),
        ["RotatingFileSink", "backupCount=5", "backup_count="],
    ),
    "a time of day by logging's name": (lambda p: TimedRotatingFileSink(p, atTime=None), ["atTime", "at_time="]),
    "another sink's argument": (
        lambda p: FileSink(p, max_bytes=1000),
        ["max_bytes=1000", "RotatingFileSink has"],
    ),
    "another sink's argument, misspelt": (
        lambda p: FileSink(p, maxBytes=9),
        ["maxBytes=9", "RotatingFileSink has max_bytes="],
    ),
    "a misspelt argument": (lambda p: FileSink(p, encodng="utf-8"), ["FileSink", "encodng", "encoding="]),
    "a misspelt argument of a background": (
        lambda p: BackgroundSink(NullSink(), batchsize=5),
        ["BackgroundSink", "batchsize=5", "batch_size="],
    ),
    "an argument that nothing is like": (lambda p: NullSink(colour="red"), ["NullSink has no argument colour"]),
    "an argument of an own sink, misspelt": (lambda p: Own(1, retrys=2), ["Own", "retrys=2", "retries="]),
    "a misspelt level": (lambda p: FileSink(p, level="waring"), ["level='waring'", "'warning'"]),
    "a level that is none": (lambda p: FileSink(p, level=[]), ["level=[]", "list"]),
    "a misspelt level of a handler": (lambda p: SinkHandler(NullSink(), level="debgu"), ["level='debgu'", "'debug'"]),
    "a misspelt level of a buffer": (
        lambda p: outfall.MemorySink(5, flush_level="eror"),
        ["flush_level='eror'", "'error'"],
    ),
    "a list of sinks": (lambda p: FanoutSink([NullSink(), NullSink()]), ["FanoutSink(*sinks)"]),
    "a path as a sink": (lambda p: FanoutSink("app.log"), ["'app.log'", "FileSink('app.log')"]),
    "a path as a target": (lambda p: BackgroundSink("app.log"), ["target='app.log'", "FileSink('app.log')"]),
    "a class as a target": (lambda p: BackgroundSink(FileSink), ["target=FileSink", "FileSink(…)"]),
    "a handler as a target": (
        lambda p: outfall.MemorySink(5, target=logging.NullHandler()),
        ["target=<NullHandler", "HandlerSink(NullHandler(…))"],
    ),
    "a stream as a sink": (lambda p: SinkHandler(io.StringIO()), ["sink=<_io.StringIO", "StreamSink(stream)"]),
    "a list to a listener": (
        lambda p: outfall.QueueListener(queue.Queue(), [NullSink()]),
        ["sinks=[", "FanoutSink(*sinks)"],
    ),
    "a sink as a handler": (
        lambda p: outfall.HandlerSink(NullSink()),
        ["handler=<NullSink", "a sink is used as it is"],
    ),
    "a class as a sink": (lambda p: SinkHandler(NullSink), ["sink=NullSink", "NullSink(…)"]),
    "a class as a factory's sink": (lambda p: SinkLoggerFactory(NullSink), ["sink=NullSink", "NullSink(…)"]),
    "a class to tee": (lambda p: tee(NullSink), ["sink=NullSink", "NullSink(…)"]),
    "a description without its class": (
        lambda p: SinkHandler({"class": "outfall.FileSink", "filename": "x"}),
        ["'()'", "{'()': 'outfall.FileSink', …}"],
    ),
    "an on_error that is none": (lambda p: FileSink(p, on_error="ignore"), ["on_error='ignore'", "'raise'"]),
    "a misspelt call site": (
        lambda p: SinkHandler(NullSink(), callsite=["funcName"]),
        ["callsite", "'funcName'", "func_name"],
    ),
    "a misspelt choice": (
        lambda p: BackgroundSink(NullSink(), overflow="drop-oldest"),
        ["overflow='drop-oldest'", "did you mean 'drop_oldest'?"],
    ),
}


@pytest.mark.parametrize(("use", "told"), ROWS.values(), ids=ROWS)
def test_wrong_use_is_told_where_it_happens(tmp_path, use, told):
    """The message names the argument, its value, and what is nearest to it."""
    with pytest.raises((TypeError, ValueError)) as refused:
        use(tmp_path / "a")
    for text in told:
        assert text in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_value_that_may_be_a_secret_is_in_no_message():
    """Of an unknown argument only a number is shown."""
    with pytest.raises(TypeError, match="pasword") as refused:
        FileSink("x", pasword="hunter2")
    assert "hunter2" not in str(refused.value)


def test_a_default_of_a_wrong_processor_is_in_no_message():
    """It may be a secret."""

    def sign(event, key="hunter2"):
        return event

    with pytest.raises(TypeError, match=r"sign\(event, key\) does not take") as refused:
        NullSink(processors=[sign, redact])
    assert "hunter2" not in str(refused.value)


def test_a_callable_that_shows_no_signature_is_taken():
    """There are some that are not written in Python."""

    class Hidden:
        __signature__ = "none"

        def __call__(self, *call):
            return call[2]

        __call__.__signature__ = "none"

    sink = CaptureSink(processors=[Hidden()])
    sink.handle({"event": "x"})
    assert sink.events == [{"event": "x"}]


def test_a_password_in_a_url_is_in_no_message():
    """A URL where a sink is wanted is not repeated."""
    with pytest.raises(TypeError, match=r"target: a URL is not a Sink; write open_sink\(url\)") as refused:
        BackgroundSink("https://user:hunter2@logs.example.org")
    assert "hunter2" not in str(refused.value)


def test_a_sink_that_takes_what_it_is_given_decides_itself():
    """What a class of an application takes out of its options is nobody else's to refuse."""
    assert Open(colour="red", level="info").colour == "red"


def test_a_class_tells_its_parameters():
    """With their defaults, those that it passes on included."""
    known = FileSink.parameters()
    assert (known["mode"].default, known["level"].default) == ("a", 0)
    assert Own.parameters().keys() == {"target", "retries", "level", "processors", "on_error", "name"}


def test_a_sink_as_a_factory_of_loggers_says_what_to_write():
    """At the first logger, which is when structlog asks."""
    structlog.configure(logger_factory=NullSink())
    try:
        with pytest.raises(TypeError, match=r"logger_factory=SinkLoggerFactory\(sink\)"):
            structlog.get_logger().info("x")
        with pytest.raises(TypeError, match=r"logger_factory=SinkLoggerFactory\(sink\)"):
            structlog.get_logger("shop").info("x")
    finally:
        structlog.reset_defaults()


def test_a_sink_given_to_basicconfig_says_what_to_write():
    """It wants handlers."""
    root = logging.getLogger()
    handlers, root.handlers[:] = root.handlers[:], []
    try:
        with pytest.raises(
            AttributeError, match=r"NullSink is a sink and no handler of logging: write SinkHandler\(sink\)"
        ):
            logging.basicConfig(handlers=[NullSink()])
    finally:
        root.handlers[:] = handlers
    assert not hasattr(NullSink(), "formatter")


def test_a_sink_added_to_a_logger_says_what_to_write(capfd):
    """At the first record: addHandler takes anything."""
    logger = logging.Logger("shop")
    sink = NullSink()
    logger.addHandler(sink)
    logger.info("x")
    assert "addHandler(SinkHandler(sink))" in capfd.readouterr().err
    assert sink.stats().dropped == {"error": 1}


def test_an_event_after_close_says_which_sink(tmp_path):
    """By its path."""
    failures = []
    sink = FileSink(tmp_path / "orders.jsonl", on_error=failures.append)
    sink.close()
    sink.handle({"event": "x"})
    assert str(failures[0].error) == f"FileSink {str(tmp_path / 'orders.jsonl')!r} is closed"


# -- sinks in a chain


@pytest.fixture
def chain():
    """Give a function that makes a logger of processors, and counts what comes to the logger behind them."""
    seen = []

    class Logger:
        def msg(self, *args, **kwargs):
            seen.append((args, kwargs))

        info = msg

    def make(*processors):
        return structlog.wrap_logger(Logger(), processors=list(processors), wrapper_class=structlog.BoundLogger), seen

    return make


def test_a_sink_that_is_not_the_last_passes_the_event_on(chain):
    """Each of the sinks in a chain gets each event, and the last ends it."""
    first, second = CaptureSink(), CaptureSink()
    log, seen = chain(structlog.processors.add_log_level, first, second)
    for number in range(3):
        log.info("order", n=number)
    wanted = [{"event": "order", "level": "info", "n": number} for number in range(3)]
    assert first.events == second.events == wanted
    assert seen == []


def test_a_sink_before_a_renderer_passes_the_event_on(chain):
    """What comes behind it is what the chain was made for."""
    sink = CaptureSink()
    log, seen = chain(sink, structlog.processors.KeyValueRenderer())
    log.info("order")
    assert (len(sink.events), seen) == (1, [(("event='order'",), {})])


def test_one_sink_may_end_a_chain_and_stand_within_another(chain):
    """It goes by the chain that runs, if it stood within one first."""
    shared, last = CaptureSink(), CaptureSink()
    within, _ = chain(shared, last)
    ends, seen = chain(shared)
    for log in (within, ends, within):
        log.info("x")
    assert (len(shared.events), len(last.events), seen) == (3, 2, [])


@pytest.mark.parametrize("colors", [True, False])
@pytest.mark.parametrize("way", ["factory", "processor"])
def test_text_for_people_in_front_of_a_sink_that_keeps_json_is_told_once(tmp_path, capfd, way, colors):
    """With the line to write instead."""
    sink = FileSink(tmp_path / "a.jsonl")
    chain = [structlog.processors.add_log_level, ConsoleRenderer(colors=colors)]
    if way == "factory":
        structlog.configure(processors=chain, logger_factory=SinkLoggerFactory(sink))
    else:
        structlog.configure(processors=[*chain, sink])
    try:
        for _ in range(2):
            structlog.get_logger().info("x", n=1)
    finally:
        structlog.reset_defaults()
    sink.close()
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert "a.jsonl" in told[0]
    assert "structlog.configure(processors=[…], logger_factory=SinkLoggerFactory(sink))" in told[0]
    assert sink.stats().delivered == 2


def test_text_for_people_on_a_console_is_right(capfd):
    """And so is text for machines in a file."""
    stream = io.StringIO()
    for sink, renderer in (
        (StreamSink(stream), ConsoleRenderer(colors=True)),
        (FanoutSink(StreamSink(stream)), ConsoleRenderer(colors=True)),
        (BackgroundSink(NullSink()), structlog.processors.LogfmtRenderer()),
    ):
        structlog.configure(processors=[renderer], logger_factory=SinkLoggerFactory(sink))
        try:
            structlog.get_logger().info("x")
        finally:
            structlog.reset_defaults()
        sink.close()
    assert capfd.readouterr().err == ""
