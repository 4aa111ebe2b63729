"""Events as lines of a spool: what is written comes back as it was, and stays readable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfall.sinks.core.item import item_of
from outfall.sinks.event.levels import UNKNOWN
from outfall.sinks.spool.lines import line_of, raw_of

STAMP = "2026-11-22T14:16:24.327371Z"
TIME = 1795356984.327371


def _again(data, level, time):
    line = line_of(data, level, time)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert isinstance(json.loads(line), dict)
    raw = raw_of(line[:-1])
    assert raw is not None
    item = item_of(raw)
    return line, (item.data, item.level, item.time)


def test_an_event_that_tells_its_time_and_level_is_its_own_line():
    """A JSON object with a readable timestamp and the item's level is written as it is."""
    data = b'{"event":"x","level":"warning","timestamp":"%b"}' % STAMP.encode()
    line, item = _again(data, 30, TIME)
    assert line == data + b"\n"
    assert item == (data, 30, TIME)


@pytest.mark.parametrize(
    ("data", "level", "time"),
    [
        (b'{"event":"no timestamp"}', 20, 1.5),
        (b'{"event":"x","timestamp":"yesterday"}', 20, 1.5),
        (b'{"event":"another time","timestamp":"%b"}' % STAMP.encode(), 20, 2.0),
        (b'{"event":"another level","level":"info","timestamp":"%b"}' % STAMP.encode(), 35, TIME),
        (b'{"event":"long number","n":123456789012345678901234567890}', 20, 1.25),
        (b'{"event":"a number","n":1.10}', 20, 1.25),
        (b'{"$outfall":1,"event":{"not":"an envelope"},"timestamp":1.5}', 20, 1.5),
        (b'{"event":"of no level","level":"nonsense"}', UNKNOWN, 1.5),
    ],
)
def test_other_objects_are_put_into_an_envelope(data, level, time):
    """What the line alone could not tell stands beside the event, whose bytes stay the same."""
    line, item = _again(data, level, time)
    assert json.loads(line)["$outfall"] == 1
    assert json.loads(line)["event"] == json.loads(data)
    assert item == (data, level, time)


@pytest.mark.parametrize("data", [b"", b"text\n", b'{"a":1}\n', b'{"a":\n1}', b"[1]", "ä\u2028".encode(), b"{", b"{]}"])
def test_text_is_a_text_in_an_envelope(data):
    """What a byte sink has rendered comes back with its terminator."""
    line, item = _again(data, 20, 1.5)
    assert json.loads(line)["text"].encode() == data
    assert item == (data, 20, 1.5)


@given(st.binary(), st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from([0, 20, 35.5, UNKNOWN]))
def test_any_bytes_come_back(data, time, level):
    """Bytes that are no text as well, whatever the time and the level."""
    _, item = _again(data, level, time)
    assert item == (data, level, time)


@pytest.mark.parametrize(
    "line",
    [
        b'{"$outfall": 1, "time": 1.5, "level": 20, "event": {"a": 1}}',
        b'{"$outfall":1,"event":{"a":1},"level":20,"time":1.5}',
        b'{"level":20,"time":1.5,"event":{"a":1},"$outfall":1}',
        b'{"$outfall":1,"time":1.5,"level":20,"event":{"a":1},"more":2}',
    ],
)
def test_an_envelope_that_somebody_has_written_anew_is_understood(line):
    """Spaces, another order and more keys change nothing."""
    item = item_of(raw_of(line))
    assert (json.loads(item.data), item.level, item.time) == ({"a": 1}, 20, 1.5)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"a":1}{"b":2}',
        b'{"a":1',
        b'{"a":1} x}',
        b'{"$outfall":2,"event":{}}',
        b'{"$outfall":1,"time":1.5,"level":20}',
        b'{"$outfall":1,"time":null,"level":20,"text":"x"}',
        b'{"$outfall":1,"time":1.5,"level":20,"text":7}',
        b'{"$outfall":1,"time":1.5,"level":20,"base64":"?"}',
        b'{"$outfall":1,"time":1.5,"level":20,"event":7}',
        b'{"$outfall":1,"time":1.5,"level":"x","event":{}}',
        b'{"$outfall":1}',
        b"\0" * 20,
    ],
)
def test_what_is_no_event_is_none(line):
    """A damaged line is told from an event."""
    assert raw_of(line) is None
