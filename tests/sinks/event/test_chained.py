"""ChainedRenderer: what a line says, whose key fits, and who may use it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re

import pytest

from outfall import ChainedRenderer, FileSink, OrjsonRenderer, RotatingFileSink, SocketSink, StreamSink
from outfall.sinks.event.chained import NOTHING, sealed_line

KEY = b"a key of thirty-two bytes, or so"


def lines(path):
    """Return the lines of a file."""
    return path.read_bytes().splitlines()


def test_each_line_has_its_number_the_code_before_it_and_its_own(tmp_path):
    """The code is the first half of HMAC-SHA256 of all before it; the event is what it was."""
    path = tmp_path / "audit.jsonl"
    with FileSink(path, renderer=ChainedRenderer(KEY, "2026"), on_error="raise") as sink:
        for number in range(3):
            sink.handle({"event": "paid", "level": "info", "number": number})
    previous = NOTHING
    for number, line in enumerate(lines(path)):
        parsed = json.loads(line)
        chain = parsed.pop("_chain")
        assert parsed == {"event": "paid", "level": "info", "number": number}
        assert (chain["n"], chain["prev"], chain["key"]) == (number + 1, previous, "2026")
        covered = line[: line.index(b',"mac":')]
        assert chain["mac"] == hmac.new(KEY, covered, hashlib.sha256).hexdigest()[:32]
        assert sealed_line(line).covered == covered
        previous = chain["mac"]


@pytest.mark.parametrize("key", [b"x" * 16, b"x" * 64, b"x" * 65, b"x" * 200, "schlüssel " * 4])
def test_keys_of_any_length_make_codes_as_hmac_does(tmp_path, key):
    """Up to a block, and longer ones, which are hashed first."""
    with FileSink(tmp_path / "a", renderer=ChainedRenderer(key), on_error="raise") as sink:
        sink.handle({})
    [line] = lines(tmp_path / "a")
    secret = key.encode() if isinstance(key, str) else key
    assert line.startswith(b'{"_chain":{')
    expected = hmac.new(secret, line[: line.index(b',"mac":')], hashlib.sha256).hexdigest()[:32]
    assert json.loads(line)["_chain"]["mac"] == expected


@pytest.mark.parametrize(
    "event",
    [
        {"event": "as _chain", "_chain": {"n": 1}},
        {"event": 'quotes "_chain":{"id":"0123456789abcdef"'},
        {"event": "odd", "set": {1, 2}, "bytes": b"\xff", "exc_info": ValueError("x")},
        "text that somebody else has rendered",
        b'{"ready": 1}\n{"two": 2}',
        b"\xff not text",
    ],
)
def test_any_event_is_one_line_of_the_chain(tmp_path, event):
    """What is rendered by others, or has such a field itself, is sealed as well."""
    path = tmp_path / "audit.jsonl"
    with FileSink(path, renderer=ChainedRenderer(KEY), on_error="raise") as sink:
        sink.handle(event)
        sink.handle({"event": "next"})
    found = [sealed_line(line) for line in lines(path)]
    assert [line.number for line in found] == [1, 2]
    assert found[1].previous == found[0].code
    assert [json.loads(line)["_chain"]["n"] for line in lines(path)] == [1, 2]


def test_position_is_the_last_number(tmp_path):
    """To be kept elsewhere: 0 before the first line of this process."""
    renderer = ChainedRenderer(KEY)
    assert renderer.position == 0
    with FileSink(tmp_path / "a", renderer=renderer, on_error="raise") as sink:
        for _ in range(5):
            sink.handle({"event": "a"})
        assert renderer.position == 5


def test_a_second_sink_is_refused_while_the_first_is_open(tmp_path):
    """One chain belongs to one sink; a set-up that replaces its sink may go on with the renderer."""
    renderer = ChainedRenderer(KEY)
    first = FileSink(tmp_path / "a", renderer=renderer)
    with pytest.raises(ValueError, match="make a ChainedRenderer for each sink"):
        RotatingFileSink(tmp_path / "b", renderer=renderer)
    first.renderer = renderer
    first.close()
    FileSink(tmp_path / "b", renderer=renderer).close()


def test_only_files_number_lines(tmp_path):
    """A stream and a socket say so, and so does a file whose lines end otherwise."""
    for make in (
        lambda renderer: StreamSink(renderer=renderer),
        lambda renderer: SocketSink("127.0.0.1", 9, renderer=renderer),
    ):
        with pytest.raises((ValueError, TypeError), match="renderer"):
            make(ChainedRenderer(KEY))
    with pytest.raises(ValueError, match="terminator"):
        FileSink(tmp_path / "a", renderer=ChainedRenderer(KEY), terminator="\0")


def test_no_secret_is_shown():
    """Neither the repr nor a message has the key."""
    assert repr(ChainedRenderer(KEY, "k1")) == "ChainedRenderer(key_id='k1')"
    with pytest.raises(ValueError, match="at least 16 bytes are needed, not 6") as caught:
        ChainedRenderer("secret")
    assert "secret'" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None,), TypeError),
        ((KEY, "a b"), ValueError),
        ((KEY, ""), ValueError),
        ((KEY, "x" * 65), ValueError),
        ((KEY, 7), ValueError),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    """By their names."""
    with pytest.raises(error, match=re.compile("key")):
        ChainedRenderer(*arguments)
    with pytest.raises(TypeError, match="renderer="):
        ChainedRenderer(KEY, renderer=json.dumps)


def test_the_order_of_keys_may_be_chosen(tmp_path):
    """By an OrjsonRenderer with options of its own."""
    renderer = ChainedRenderer(KEY, renderer=OrjsonRenderer(key_order=("level", "event")))
    with FileSink(tmp_path / "a", renderer=renderer, on_error="raise") as sink:
        sink.handle({"event": "a", "level": "info"})
    assert lines(tmp_path / "a")[0].startswith(b'{"level":"info","event":"a","_chain":{')
