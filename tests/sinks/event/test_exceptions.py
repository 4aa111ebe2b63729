"""The parts of an exception: from the exception itself, and from text only where it is certain."""

import builtins
import io
import logging
import queue
import sys

import orjson
import pytest
import structlog
from structlog.processors import dict_tracebacks, format_exc_info

from outfall import (
    BackgroundSink,
    CaptureSink,
    FanoutSink,
    FileSink,
    HTTPSink,
    MemorySink,
    NullSink,
    OrjsonRenderer,
    Projection,
    QueueListener,
    QueueSink,
    Sink,
    SinkHandler,
    SpoolSink,
    StreamSink,
)
from outfall.sinks.event.exceptions import failure_of, take_failure

SEPARATOR = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
FORGED = f'failed:{SEPARATOR}Traceback (most recent call last):\n  File "w.py", line 1, in f\nValueError: inner'


class Outer:
    """What a class is in."""

    class QuotaError(Exception):
        """One within another class."""


class Silent(Exception):
    """One whose message cannot be had."""

    def __str__(self):
        raise ZeroDivisionError


class NoText(Exception):
    """One whose message is no text."""

    __str__ = int


def caused():
    """Raise for a cause."""
    try:
        {}["k"]
    except KeyError as error:
        raise RuntimeError("no stock") from error


def in_context():
    """Raise while another is being handled."""
    try:
        {}["k"]
    except KeyError:
        raise RuntimeError("no stock")  # noqa: B904 - the context is what is tried


def local():
    """Raise what only this function knows."""

    class QuotaError(Exception):
        pass

    raise QuotaError("full")


def raising(error):
    """Return a function that raises *error*."""

    def function():
        raise error

    return function


def syntax():
    """Raise what has text of its own."""
    compile("x =", "<text>", "exec")


MODULE = __name__
ExceptionGroup = getattr(builtins, "ExceptionGroup", None)
CASES = [
    (caused, "RuntimeError", "no stock"),
    (in_context, "RuntimeError", "no stock"),
    (local, f"{MODULE}.local.<locals>.QuotaError", "full"),
    (raising(Outer.QuotaError("over\n  it")), f"{MODULE}.Outer.QuotaError", "over\n  it"),
    (raising(RuntimeError(FORGED)), "RuntimeError", FORGED),
    (raising(KeyError("k")), "KeyError", "'k'"),
    (raising(ValueError), "ValueError", ""),
    (raising(OSError(2, "gone")), "FileNotFoundError", "[Errno 2] gone"),
    (raising(Silent()), f"{MODULE}.Silent", "<unrenderable message: ZeroDivisionError>"),
    (raising(NoText()), f"{MODULE}.NoText", "<unrenderable message: TypeError>"),
    (raising(ValueError("a: b: \ud800")), "ValueError", "a: b: \\ud800"),
    (syntax, "SyntaxError", "invalid syntax (<text>, line 1)"),
]
if sys.version_info >= (3, 11):

    def noted():
        """Raise with a note."""
        error = TypeError("short")
        error.add_note("and a long note")
        raise error

    CASES += [
        (raising(ExceptionGroup("two", [ValueError("bad")])), "ExceptionGroup", "two (1 sub-exception)"),
        (noted, "TypeError", "short"),
    ]
NAMES = [f"{kind.rpartition('.')[2]}-{index}" for index, (_, kind, _) in enumerate(CASES)]


def by_exc_info(sink, make):
    """Log as structlog does whose chain renders no exception."""
    try:
        make()
    except Exception:
        sink.handle({"event": "failed", "exc_info": True})


def by_format_exc_info(sink, make):
    """Log as structlog does with its usual chain."""
    try:
        make()
    except Exception:
        sink.handle(format_exc_info(None, "error", {"event": "failed", "exc_info": True}))


def by_logging(sink, make):
    """Log by the standard library."""
    logger = logging.Logger("shop")
    logger.addHandler(SinkHandler(sink))
    try:
        make()
    except Exception:
        logger.exception("failed")


def by_render_to_log_kwargs(sink, make):
    """Log by structlog's loggers of the standard library, whose chain ends in a logging call."""
    logger = logging.Logger("shop")
    logger.addHandler(SinkHandler(sink))
    bound = structlog.wrap_logger(
        logger,
        processors=[structlog.processors.add_log_level, format_exc_info, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        make()
    except Exception:
        bound.exception("failed")


WAYS = [by_exc_info, by_format_exc_info, by_logging, by_render_to_log_kwargs]


def sent_of(target):
    """Return the one event that *target* was to send."""
    [event] = target.seen
    return event


class Sending(Sink):
    """What ships JSON, as HTTPSink does."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, event):
        """Keep what would be sent."""
        self.seen.append(self.encode(event).event)

    def emit_batch(self, batch):
        """Keep what would be sent."""
        self.seen += [item.event for item in batch]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "kind", "message"), CASES, ids=NAMES)
def test_type_and_message_come_from_the_exception(way, make, kind, message):
    """Whatever its traceback looks like, and by whichever way it came."""
    target = Sending()
    way(target, make)
    event = sent_of(target)
    assert (event["exception_type"], event["exception_message"]) == (kind, message)
    assert failure_of(event) == (kind, message, event["exception"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("around", ["background", "spool", "queue", "memory", "background of a fanout"])
def test_the_parts_travel_with_the_event(tmp_path, way, around):
    """A background, a spool, a queue and a memory deliver type and message as they got them."""
    target = Sending()
    if around == "queue":
        waiting = queue.SimpleQueue()
        way(QueueSink(waiting), raising(RuntimeError(FORGED)))
        with QueueListener(waiting, target):
            pass
    else:
        sink = {
            "background": lambda: BackgroundSink(target),
            "background of a fanout": lambda: BackgroundSink(FanoutSink(target, NullSink())),
            "spool": lambda: SpoolSink(target, tmp_path / "spool"),
            "memory": lambda: MemorySink(10, target=target, flush_level=100),
        }[around]()
        way(sink, raising(RuntimeError(FORGED)))
        sink.close()
    assert failure_of(sent_of(target))[:2] == ("RuntimeError", FORGED)


def test_a_file_has_the_parts_of_an_exception_that_nobody_rendered(tmp_path):
    """A line of JSON tells type and message, so that it can be sent later."""
    with FileSink(tmp_path / "a.jsonl") as sink:
        by_exc_info(sink, caused)
    assert failure_of(orjson.loads((tmp_path / "a.jsonl").read_bytes()))[:2] == ("RuntimeError", "no stock")


def test_a_file_s_line_is_what_the_chain_made():
    """A chain that rendered the exception finds the fields it made, and no others."""
    stream = io.BytesIO()
    by_format_exc_info(StreamSink(stream), caused)
    assert orjson.loads(stream.getvalue()).keys() == {"event", "exception"}


def test_what_a_processor_took_out_of_the_text_does_not_come_back():
    """A text that was redacted is no more that of the exception."""

    def redacted(_logger, _name, event):
        event["exception"] = event["exception"].replace("hunter2", "***")
        return event

    target = Sending()
    chain = [format_exc_info, redacted]
    sink = BackgroundSink(target, processors=chain)
    by_exc_info(sink, raising(ValueError("hunter2\nx")))
    sink.close()
    assert "hunter2" not in str(target.seen)


def test_one_that_was_never_raised_is_told_too():
    """It has no traceback, and type and message all the same."""
    event = orjson.loads(OrjsonRenderer().render({"exc_info": Outer.QuotaError("x: y")}))
    assert (event["exception_type"], event["exception_message"]) == (f"{MODULE}.Outer.QuotaError", "x: y")


def test_fields_of_the_event_are_not_written_over():
    """An exception_type of the application's own stays what it is."""
    event = orjson.loads(OrjsonRenderer().render({"exception_type": "mine", "exc_info": ValueError("bad")}))
    assert (event["exception_type"], event["exception_message"]) == ("mine", "bad")


def test_the_traceback_of_another_exception_is_not_taken_for_that_of_this_one():
    """A text is compared with the exception that is being handled."""
    try:
        raise KeyError("this")
    except KeyError:
        item = Sending().encode({"event": "x", "exception": "Traceback (most recent call last):\nother"})
    assert item.event.keys() == {"event", "exception"}


def test_a_projection_finds_the_parts():
    """Type and message may be asked for by name, as the traceback may."""
    project = Projection({"kind": "exception_type", "why": "exception_message"})
    assert project({"exc_info": ValueError("bad")}) == {"kind": "ValueError", "why": "bad"}
    assert Projection(["exception_type"])({"exc_info": None}) == {}


def test_http_sends_the_parts():
    """They are fields of the JSON like others."""
    with HTTPSink("http://127.0.0.1:9/") as sink:
        try:
            caused()
        except RuntimeError:
            item = sink.encode(format_exc_info(None, "error", {"event": "failed", "exc_info": True}))
    assert item.event["exception_type"] == "RuntimeError"


def test_the_event_that_was_given_is_not_changed():
    """The parts are put into a copy."""
    kept = CaptureSink()
    event = {"event": "x", "exc_info": ValueError("bad")}
    kept.handle(event)
    OrjsonRenderer().render(event)
    assert event.keys() == {"event", "exc_info"}


# -- from text alone


def text_of(make):
    """Return the traceback that *make* raises, as structlog renders it outside of any handler."""
    try:
        make()
    except Exception as error:
        raised = error
    return format_exc_info(None, "error", {"exc_info": raised})["exception"]


def test_one_traceback_of_one_line_is_certain():
    """Its type and message can be nothing else."""
    for error, kind, message in (
        (ValueError("a: b"), "ValueError", "a: b"),
        (Outer.QuotaError("full"), f"{MODULE}.Outer.QuotaError", "full"),
        (RuntimeError(), "RuntimeError", ""),
    ):
        text = text_of(raising(error))
        assert failure_of({"exception": text}) == (kind, message, text)
    text = text_of(local)
    assert failure_of({"exception": text}) == (f"{MODULE}.local.<locals>.QuotaError", "full", text)


def test_of_a_message_with_line_breaks_only_the_type_is_certain():
    """What follows may be notes."""
    text = text_of(raising(ValueError("first\nsecond")))
    assert failure_of({"exception": text}) == ("ValueError", None, text)


@pytest.mark.parametrize("make", [caused, in_context, raising(RuntimeError(FORGED))])
def test_a_chain_is_not_certain(make):
    """A message may hold what a chain looks like, so neither type nor message are guessed."""
    text = text_of(make)
    assert failure_of({"exception": text}) == (None, None, text)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_a_group_is_not_certain():
    """Its text is of another shape."""
    text = text_of(raising(ExceptionGroup("two", [ValueError("bad")])))
    assert failure_of({"exception": text}) == (None, None, text)


@pytest.mark.parametrize(
    "text",
    ["went wrong", "  + Exception Group Traceback", "\n", "two words: x", "timeout: after 3 s", "shop.Error: x"],
)
def test_a_text_that_is_no_traceback_is_kept_whole(text):
    """Nothing is taken for a type that may be none."""
    assert failure_of({"exception": text}) == (None, None, text)


def test_a_line_that_names_an_exception_of_python_is_certain():
    """It is what one that was never raised looks like."""
    assert failure_of({"exception": "ValueError: x: y"}) == ("ValueError", "x: y", "ValueError: x: y")
    assert failure_of({"exception": "KeyError"}) == ("KeyError", "", "KeyError")


def test_dict_tracebacks_name_causes_as_causes():
    """structlog's dict tracebacks become text with the interpreter's words between them."""
    try:
        caused()
    except RuntimeError:
        event = dict_tracebacks(None, "error", {"exc_info": True})
    kind, message, stack = failure_of(event)
    assert (kind, message) == ("RuntimeError", "no stock")
    assert stack.index("KeyError: 'k'") < stack.index("direct cause") < stack.index("RuntimeError: no stock")
    try:
        in_context()
    except RuntimeError:
        event = dict_tracebacks(None, "error", {"exc_info": True})
    assert SEPARATOR in failure_of(event).stack


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_dict_tracebacks_tell_the_members_of_a_group():
    """Type and message are the group's; the text has its members."""
    try:
        raise ExceptionGroup("two", [ValueError("bad")])
    except ExceptionGroup:
        event = dict_tracebacks(None, "error", {"exc_info": True})
    kind, message, stack = failure_of(event)
    assert (kind, message) == ("ExceptionGroup", "two (1 sub-exception)")
    assert "  | ValueError: bad" in stack or "exceptions" not in event["exception"][0]


def test_what_is_taken_out_is_what_was_told():
    """Fields that say more than the parts stay."""
    event = {"exception": "ValueError: x", "exception_type": 5, "exception_message": "x", "n": 1}
    assert take_failure(event) == ("ValueError", "x", "ValueError: x")
    assert event == {"exception_type": 5, "n": 1}
