"""What may stand in the files of a spool: anything, after a crash, a full disk or an editor."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from outfall import CaptureSink, TemporaryDeliveryError
from outfall.sinks.core.item import item_of
from outfall.sinks.errors import SinkError
from outfall.sinks.spool import cursor
from outfall.sinks.spool.lines import line_of, raw_of
from outfall.sinks.spool.sink import SpoolSink
from outfall.sinks.testing import FailingSink, assert_balanced
from tests.fuzz._fuzzing import fuzz

DATA = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"[]",
            b'{"event":"x"}',
            b'{"event":"\\n"}',
            b'{"$outfall":1,"event":{}}',
            b'{"event":"x","timestamp":1e300}',
            b'{"level":"error","n":1}',
            b'{"timestamp":"2026-01-01T00:00:00Z"}',
            b'{"a":99999999999999999999999}',
        ]
    ),
)


@fuzz(data=DATA, level=st.floats(0, 100), time=st.floats(-1e9, 1e11))
def test_an_item_comes_back_from_its_line_as_it_was(data, level, time):
    """Data, level and time: whatever they are, they take one line and are read as the same."""
    line = line_of(data, level, time)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    raw = raw_of(line[:-1])
    assert raw is not None
    item = item_of(raw)
    assert (item.data, item.level, item.time) == (data, level, time)


@fuzz(
    line=st.one_of(
        st.binary(max_size=80),
        st.builds(lambda data, cut: line_of(data, 20, 0.5)[:cut], DATA, st.integers(0, 80)),
        st.builds(
            lambda key, value: b'{"$outfall":1,"%b":%b,"event":{}}' % (key, value),
            st.sampled_from([b"time", b"level", b"text", b"base64", b"event"]),
            st.sampled_from([b"null", b"1e999", b'"x"', b"[]", b"{}", b"true", b'"\xed\xa0\x80"']),
        ),
    )
)
def test_a_line_is_an_item_or_it_is_none(line):
    """Reading raises nothing, and what it gives is an event."""
    raw = raw_of(line)
    if raw is not None:
        item = item_of(raw)
        assert type(item.event) is dict
        assert type(item.data) is bytes
        float(item.level), float(item.time)


@fuzz(data=st.binary(max_size=300) | st.builds(lambda *cut: bytes(cut), *[st.integers(0, 255)] * 8))
def test_a_cursor_that_is_none_is_an_error_of_ours(data):
    """Only `CursorError` and `NewerFormatError` come of it."""
    with contextlib.suppress(SinkError):
        cursor.decode(data)


@fuzz(
    place=st.floats(0, 1),
    junk=st.binary(max_size=40),
    cuts=st.booleans(),
    target=st.sampled_from(["segment", "cursor"]),
    events=st.integers(1, 8),
)
def test_damage_costs_the_lines_it_hits_and_no_others(place, junk, cuts, target, events):
    """Bytes written over, or the rest cut off, in a segment or the cursor: every other line is delivered."""
    directory = Path(tempfile.mkdtemp(prefix="outfall-fuzz-"))
    try:
        _damage_and_deliver(directory, place, junk, cuts, target, events)
    finally:
        shutil.rmtree(directory)


def _damage_and_deliver(directory, place, junk, cuts, target, events):
    away = SpoolSink(FailingSink(TemporaryDeliveryError("away")), directory, segment_bytes=150, on_error=ignore)
    for number in range(events):
        away.handle({"event": "x" * 10 * number, "number": number, "timestamp": float(number)})
    assert away.close(0)
    assert away.stats().spooled == events
    found = sorted(directory.glob("*/*.ndjson" if target == "segment" else "*/cursor.json"))
    if found:
        path = found[int(place * len(found)) % len(found)]
        content = path.read_bytes()
        at = int(place * len(content))
        path.write_bytes(content[:at] + junk + (b"" if cuts else content[at + len(junk) :]))
    whole = [
        event["number"]
        for path in directory.glob("*/*.ndjson")
        for line in path.read_bytes().split(b"\n")
        if (raw := raw_of(line)) and type((event := item_of(raw).event).get("number")) is int
    ]
    taken = CaptureSink()
    with SpoolSink(taken, directory, on_error=ignore) as sink:
        sink.start()
        assert sink.flush(30)
        stats = sink.stats()
    assert stats.pending == stats.spooled == 0
    assert set(whole) <= {event.get("number") for event in taken.events}
    assert_balanced(sink.stats())
    assert list(directory.glob("*/*.ndjson")) == []


def ignore(failure):
    """Be told of what is damaged."""
