"""Lists nested deeper than orjson can write without harm never come to it."""

from __future__ import annotations

import io
import json
import socket
from queue import SimpleQueue

import orjson
import pytest

from outfall import (
    NDJSON,
    BackgroundSink,
    CaptureSink,
    DatagramSink,
    Encoded,
    FileSink,
    OrjsonRenderer,
    QueueSink,
    RotatingFileSink,
    SocketSink,
    SpoolSink,
    StreamSink,
    WatchedFileSink,
)
from outfall.sinks.event.depth import MAX_LEVELS, too_deep
from tests.sinks._processes import check
from tests.sinks._wire import Receiver


def _nested(levels, make=lambda inner: [inner]):
    value = "innermost"
    for _ in range(levels):
        value = make(value)
    return value


# An allocator that looks at the end of each block ends the process at the first byte too many.
EVERY_PLACE = """
from outfall.sinks.core.item import Encoded
from outfall.sinks.event.json import OrjsonRenderer
import json

renderer = OrjsonRenderer()
for levels in (118, 125, 150, 200, 250):
    for make in (lambda inner: [inner], lambda inner: (inner,)):
        value = "innermost"
        for _ in range(levels):
            value = make(value)
        for size in range(350, 800):
            event = {"event": "x", "before": [1] * (size // 2) + [10] * (size % 2), "nested": value}
            assert renderer.render(event).endswith(b"}")
        text = json.dumps({"nested": value}).encode()
        renderer.render(Encoded(text, 20, 0.0).event)
"""


def test_no_nest_makes_orjson_write_past_its_buffer():
    """Whatever is nested how deep, and wherever the buffer ends."""
    check(EVERY_PLACE, env={"PYTHONMALLOC": "debug"})


def test_a_nest_is_too_deep_from_so_many_levels_on():
    """Lists, tuples, dicts and their subclasses count."""

    class Items(list):
        pass

    for make in (
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"k": inner},
        lambda inner: Items([inner]),
    ):
        assert not too_deep({"event": "x", "nested": _nested(MAX_LEVELS - 1, make)})
        assert too_deep({"event": "x", "nested": _nested(MAX_LEVELS + 1, make)})
    assert not too_deep({})
    assert not too_deep({"event": "x", "number": 1, "tags": ["a", "b"], "user": {"name": "ann"}})


def test_what_is_in_many_places_is_looked_at_once():
    """A list that holds each list before it twice is no more work than one nest."""
    value = ["x"]
    for _ in range(MAX_LEVELS + 1):
        value = [value, value]
    assert too_deep({"nested": value})


def test_a_cycle_is_too_deep():
    """It never ends."""
    value = []
    value.append(value)
    assert too_deep({"nested": value})


@pytest.fixture
def lines(tmp_path):
    """Give a function from a sink's name to the sink and to what it has written, a list of lines."""
    stream, queue, taken, receiver = io.BytesIO(), SimpleQueue(), CaptureSink(), Receiver()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    datagrams.settimeout(30)
    path = tmp_path / "events.jsonl"
    sinks = {
        "stream": (lambda: StreamSink(stream), lambda: stream.getvalue().splitlines()),
        "file": (lambda: FileSink(path), lambda: path.read_bytes().splitlines()),
        "buffered": (lambda: FileSink(path, buffer_bytes=1000), lambda: path.read_bytes().splitlines()),
        "level": (lambda: FileSink(path, level="info"), lambda: path.read_bytes().splitlines()),
        "rotating": (lambda: RotatingFileSink(path, max_bytes=9999), lambda: path.read_bytes().splitlines()),
        "watched": (lambda: WatchedFileSink(path), lambda: path.read_bytes().splitlines()),
        "queue": (lambda: QueueSink(queue), lambda: [queue.get_nowait()]),
        "background": (lambda: BackgroundSink(taken), lambda: [orjson.dumps(event) for event in taken.events]),
        "spool": (lambda: SpoolSink(taken, tmp_path), lambda: [orjson.dumps(event) for event in taken.events]),
        "socket": (lambda: SocketSink(*receiver.target), lambda: receiver.wait(1)),
        "datagram": (lambda: DatagramSink(*datagrams.getsockname()), lambda: [datagrams.recv(65_536)]),
    }
    yield lambda name: sinks[name]
    datagrams.close()
    receiver.close()


@pytest.mark.parametrize(
    "name",
    [
        "stream",
        "file",
        "buffered",
        "level",
        "rotating",
        "watched",
        "queue",
        "background",
        "spool",
        "socket",
        "datagram",
    ],
)
def test_no_short_cut_gives_it_to_orjson(name, lines):
    """Each sink with a short cut of its own writes the event, cut where it is too deep."""
    make, written = lines(name)
    event = {"event": "x", "level": "info", "timestamp": 1.5, "nested": _nested(150), "number": 7}
    with make() as sink:
        sink.handle(event)
        assert sink.flush()
        [line] = written()
    shown = json.loads(line)
    assert (shown["event"], shown["number"]) == ("x", 7)
    assert b"<nested too deep: list>" in line


def test_text_of_others_is_cut_when_it_is_read():
    """`Encoded.event` is fit to be encoded again, in a body for example, whatever the text was."""
    text = json.dumps({"event": "x", "nested": _nested(150)}).encode()
    event = Encoded(text, 20, 0.0).event
    assert not too_deep(event)
    assert event["event"] == "x"
    assert NDJSON().encode([Encoded(text, 20, 0.0)]) == text + b"\n"
    assert b"<nested too deep: list>" in OrjsonRenderer().render(event)


# Enough to be past the end of orjson's buffer in one size or another.
PLACES = """
import json
from outfall.adapters.commandline.redelivery import as_event
from outfall.sinks.core.item import Encoded
from outfall.sinks.spool.lines import raw_of
from outfall import CaptureSink
from outfall.sinks.routing.parts import restored

nested = "[" * 150 + "]" * 150
for size in range(350, 800):
    text = '{"event":"x","before":[' + ",".join("1" * size) + '],"nested":' + nested + "}"
    assert b"too deep" in raw_of(f'{{"$outfall":1,"event":{text},"time":1.5,"level":20}}'.encode())[0]
    assert "too deep" in str(as_event(Encoded(text.replace(",", ",\\n", 1).encode(), 20, 0.0)).event)
    part = f'{{"level":20,"time":1.5,"event":{text}}}'
    routed = f'{{"fanout":[{part}]}}'.encode()
    assert b"too deep" in as_event(Encoded(routed, 20, 0.0)).data
    assert b"too deep" in restored("fanout", routed, 20, 0.0, [CaptureSink()]).parts[0].data
"""


def test_what_is_stored_or_sent_again_is_cut():
    """Envelopes of a spool, of routers, and files that are replayed may have been written by anybody."""
    check(PLACES, env={"PYTHONMALLOC": "debug"})
