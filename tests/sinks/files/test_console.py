"""What the console shows: `StreamSink` with ``color``."""

from __future__ import annotations

import io
import json
import sys

import pytest

import outfall
from outfall import StreamSink


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Neither variable is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


TEXT, COLOUR, LINES = "text", "colour", "json"


@pytest.mark.parametrize(
    ("stream", "color", "environment", "shown"),
    [
        (io.StringIO, False, {}, LINES),
        (Terminal, False, {"FORCE_COLOR": "1"}, LINES),
        (io.StringIO, True, {}, COLOUR),
        (io.StringIO, True, {"NO_COLOR": "1"}, COLOUR),
        (io.StringIO, "auto", {}, LINES),
        (Terminal, "auto", {}, COLOUR),
        (Terminal, "auto", {"NO_COLOR": "1"}, TEXT),
        (Terminal, "auto", {"NO_COLOR": ""}, COLOUR),
        (io.StringIO, "auto", {"NO_COLOR": "1"}, LINES),
        (io.StringIO, "auto", {"FORCE_COLOR": "1"}, COLOUR),
        (io.StringIO, "auto", {"FORCE_COLOR": ""}, LINES),
        (Terminal, "auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, TEXT),
    ],
)
def test_color_says_what_a_stream_gets(monkeypatch, stream, color, environment, shown):
    """Text for people where a terminal shows colours, JSON elsewhere; the environment counts for "auto" alone."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output = stream()
    StreamSink(output, color=color).handle({"event": "stock is low", "level": "warning", "left": 3})
    line = output.getvalue()
    if shown == LINES:
        assert json.loads(line) == {"event": "stock is low", "level": "warning", "left": 3}
    else:
        assert ("\x1b[" in line) is (shown == COLOUR)
        assert "stock is low" in line
        assert not line.startswith("{")


def test_without_a_stream_it_fits_what_stderr_is_now(monkeypatch):
    """Also where a test or a notebook exchanges it."""
    sink = StreamSink(color="auto")
    for stream, colored in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        sink.handle({"event": "x"})
        assert ("\x1b[" in stream.getvalue()) is colored
    output = Terminal()
    sink.set_stream(output)
    sink.handle({"event": "x"})
    assert "\x1b[" in output.getvalue()


def test_another_stream_gets_what_fits_it():
    """A renderer set by hand stays."""
    sink = StreamSink(io.StringIO(), color="auto")
    output = Terminal()
    sink.set_stream(output)
    sink.handle({"event": "x"})
    assert "\x1b[" in output.getvalue()
    sink.renderer = lambda _logger, _name, event: event["event"]
    sink.set_stream(other := io.StringIO())
    sink.handle({"event": "x"})
    assert other.getvalue() == "x\n"


class _Broken:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "event",
    [
        {"event": "x", "value": _Broken()},
        {"event": _Broken()},
        {"event": "x", _Broken(): 1},
        {"event": "x", "exception": {"not": "text"}},
        {"event": "x", "exception": 3, "stack": 4},
        {"event": "x", "timestamp": _Broken()},
        {"event": "x", "level": ["a"]},
        {"event": "x", "exc_info": ("not", "a", "triple")},
        {"event": "x", "exc_info": 3},
        {3: 4, None: 5},
        {},
        {"event": "\ud800"},
    ],
    ids=lambda event: ",".join(type(each).__name__ for each in (*event, *event.values())),
)
def test_no_event_is_lost_by_its_rendering(event):
    """Whatever structlog's renderer makes of it."""
    output = io.StringIO()
    failures = []
    sink = StreamSink(output, color=True, on_error=failures.append)
    sink.handle(event)
    assert failures == []
    assert sink.stats().delivered == 1
    assert output.getvalue().endswith("\n")


def test_local_variables_stay_out_of_a_traceback():
    """Though rich is installed."""
    output = io.StringIO()
    sink = StreamSink(output, color=True)
    password = "hunter2"
    try:
        raise ValueError(len(password))
    except ValueError:
        sink.handle({"event": "failed", "exc_info": True})
    assert "ValueError: 7" in output.getvalue()
    assert "hunter2" not in output.getvalue()


def test_what_makes_no_sense_is_refused():
    """Another word, and color beside a renderer."""
    with pytest.raises(ValueError, match="color='always' is none of 'auto', True, False"):
        StreamSink(color="always")
    with pytest.raises(ValueError, match="color=True chooses a renderer"):
        StreamSink(color=True, renderer=outfall.OrjsonRenderer())


def test_a_url_has_it_too(capsys):
    """As `stdout:?color=true`."""
    outfall.open_sink("stdout:?color=true").handle({"event": "x"})
    assert "\x1b[" in capsys.readouterr().out
