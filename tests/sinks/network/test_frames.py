"""JSONFrames, JSONLines, PickleFrames and SignedFrames, and the frames of a batch."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import logging
import logging.handlers
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outfall.sinks.core.item import Encoded
from outfall.sinks.event.event import TextEvent
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.network.frames import FrameError, Frames, JSONFrames, JSONLines, PickleFrames, SignedFrames

KEY = b"0123456789abcdef"
render = OrjsonRenderer().render


def _text_of(event):
    return event.rendered().encode() if isinstance(event, TextEvent) else render(event)


# -- JSON


def test_json_frames_are_what_the_renderer_makes():
    """The payload is the renderer's JSON and nothing else, and comes back as the same event."""
    event = {"event": "e", "n": 2**70, "text": "ä"}
    payload = JSONFrames().encode(event, render)
    assert payload == render(event)
    assert JSONFrames().decode(payload) == event


def test_a_batch_item_is_sent_as_it_is():
    """It is neither decoded nor encoded again."""
    item = Encoded(b"not even json", 20, 0.0)
    assert JSONFrames().encode_item(item) == b"not even json"


def test_rendered_text_becomes_an_event():
    """Text that is no JSON object is wrapped; one that is, is sent as it is."""
    codec = JSONFrames()
    assert codec.encode(TextEvent("hello"), _text_of) == b'{"event":"hello"}'
    assert codec.encode(TextEvent("[1]"), _text_of) == b'{"event":"[1]"}'
    assert codec.encode(TextEvent('{"a": 1'), _text_of) == b'{"event":"{\\"a\\": 1"}'
    assert codec.encode(TextEvent('{"a": 1}'), _text_of) == b'{"a": 1}'


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"17", b"null", b'"text"', b'{"a":\xff}', b'{"a":1}{}', b"\x80\x02}q\x00.", b"[" * 100_000],
    ids=lambda payload: repr(payload[:12]),
)
def test_what_is_no_json_object_is_garbage(payload):
    """Nothing but one object in UTF-8 is an event, and the error repeats nothing of it."""
    with pytest.raises(FrameError) as raised:
        JSONFrames().decode(payload)
    assert raised.value.reason == "garbage"
    assert str(raised.value) == f"a frame of {len(payload)} bytes is no JSON object"


def test_metadata_cannot_be_sent():
    """Keys that mean something between sinks and adapters are dropped: a peer must not choose them."""
    payload = b'{"event":"e","_record":1,"_logger":2,"_name":"x","_from_structlog":true}'
    assert JSONFrames().decode(payload) == {"event": "e"}


# -- pickle


def _handler_payload(record):
    """Return what the standard library's handler sends for the record, without its length."""
    handler = logging.handlers.SocketHandler("127.0.0.1", 1)
    try:
        return handler.makePickle(record)[4:]
    finally:
        handler.close()


def test_a_pickled_event_has_what_a_handler_sends():
    """The attributes are those that SocketHandler.makePickle sends of such a record, and protocol 1 is used."""
    record = logging.LogRecord("shop", 30, "/app/a.py", 7, "low: %s", ("bolt",), None, "check")
    theirs = pickle.loads(_handler_payload(record))
    event = {"event": "low: bolt", "level": "warning", "logger": "shop", "pathname": "/app/a.py", "lineno": 7}
    payload = PickleFrames().encode({**event, "func_name": "check", "timestamp": record.created}, render)
    ours = pickle.loads(payload)
    assert payload[:1] == pickle.dumps({}, 1)[:1]
    same = ("msg", "args", "exc_info", "exc_text", "levelname", "levelno", "name", "pathname", "filename", "module")
    same += ("lineno", "funcName", "created", "msecs", "process", "processName", "thread", "threadName", "stack_info")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours.keys() - {"taskName"} == theirs.keys() - {"taskName"}
    assert ours["relativeCreated"] == pytest.approx(theirs["relativeCreated"], abs=1)


def test_make_log_record_rebuilds_it():
    """makeLogRecord gives a record that formats, with fields as attributes and none of its own overwritten."""
    event = {"event": "100%", "level": "error", "exception": "Traceback: x", "order": 17, "msg": "m", "args": [1]}
    record = logging.makeLogRecord(pickle.loads(PickleFrames().encode({**event, "stack": "Stack: y"}, render)))
    assert (record.getMessage(), record.levelno, record.levelname, record.order) == ("100%", 40, "ERROR", 17)
    assert (record.extra_msg, record.extra_args, record.name) == ("m", [1], "root")
    text = logging.Formatter("%(message)s").format(record)
    assert text.splitlines() == ["100%", "Traceback: x", "Stack: y"]


def test_a_live_exception_travels_as_text():
    """exc_info is rendered at the sender: an exception's class may not exist elsewhere."""
    try:
        raise KeyError("k")
    except KeyError as error:
        payload = PickleFrames().encode({"event": "e", "exc_info": error}, render)
    attributes = pickle.loads(payload)
    assert attributes["exc_info"] is None
    assert attributes["exc_text"].endswith("KeyError: 'k'")


def test_nothing_but_plain_values_is_pickled():
    """Any Python can load it: objects are reduced to what JSON has."""

    class Local:
        def __repr__(self):
            return "<local>"

    event = {"event": {"nested": 1}, "local": Local(), "when": dt.date(2030, 1, 2), "big": 2**80, "set": {1}}
    attributes = pickle.loads(PickleFrames().encode(event, render))
    assert (attributes["msg"], attributes["local"], attributes["when"]) == ('{"nested": 1}', "<local>", "2030-01-02")
    assert (attributes["big"], attributes["set"]) == (2**80, [1])


def test_a_record_comes_back_as_an_event():
    """What a handler pickles becomes the event that the record is."""
    record = logging.LogRecord("shop", 35, "/app/a.py", 7, "low: %s", ("bolt",), None, "check")
    record.order = 17
    record.exc_text = "Traceback"
    record.created = 1_900_000_000.25
    event = PickleFrames().decode(_handler_payload(record))
    wanted = {
        "event": "low: bolt",
        "level": "level 35",
        "logger": "shop",
        "timestamp": "2030-03-17T17:46:40.250000Z",
        "order": 17,
        "exception": "Traceback",
        "pathname": "/app/a.py",
        "lineno": 7,
        "func_name": "check",
    }
    assert wanted.items() <= event.items()
    assert "stack" not in event


def test_an_event_survives_both_ways():
    """Encoded and decoded it is the event that it was, with the call site that a record has."""
    event = {"event": "e", "level": "info", "logger": "a.b", "n": 1, "name": "n", "message": "m", "msg": [1]}
    event["timestamp"] = "2030-03-17T17:46:40.250000Z"
    back = PickleFrames().decode(PickleFrames().encode(event, render))
    assert {key: back[key] for key in event} == event


def test_a_batch_item_has_its_time_and_level():
    """An event without a timestamp gets the one it was handled at."""
    item = Encoded(b'{"event":"e"}', 40, 1_900_000_000.5)
    attributes = pickle.loads(PickleFrames().encode_item(item))
    assert (attributes["created"], attributes["levelno"], attributes["msg"]) == (1_900_000_000.5, 40, "e")


class _Explosive:
    def __reduce__(self):
        return (int, ("no number",))


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", pickle.dumps([1]), pickle.dumps({1: 2}), pickle.dumps(_Explosive()), pickle.dumps({"created": "x"})],
)
def test_what_is_no_pickled_record_is_garbage(payload):
    """Whatever unpickling raises, and whatever else comes out of it."""
    with pytest.raises(FrameError, match="no pickled record") as raised:
        PickleFrames().decode(payload)
    assert raised.value.reason == "garbage"


# -- signatures


def test_a_signed_frame_begins_with_its_hmac():
    """The signature is HMAC-SHA256 of the payload, as anybody can compute it."""
    payload = SignedFrames(KEY).encode({"event": "e"}, render)
    assert payload == hmac.new(KEY, b'{"event":"e"}', hashlib.sha256).digest() + b'{"event":"e"}'
    assert SignedFrames(KEY).decode(payload) == {"event": "e"}
    assert SignedFrames(KEY).encode_item(Encoded(b'{"event":"e"}', 20, 0.0)) == payload


def test_what_was_changed_or_signed_with_another_key_is_refused():
    """Each single byte counts, and so does the length."""
    codec = SignedFrames(KEY)
    payload = codec.encode({"event": "e"}, render)
    other = SignedFrames(KEY[::-1]).encode({"event": "e"}, render)
    changed = [payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :] for at in range(len(payload))]
    for bad in (*changed, payload[:-1], payload + b"}", b"", payload[:31], payload[:32], other, b'{"event":"e"}'):
        with pytest.raises(FrameError) as raised:
            codec.decode(bad)
        assert raised.value.reason == "signature"


def test_the_signature_is_looked_at_before_the_pickle():
    """Nothing is unpickled that is not signed; what is, is."""
    codec = SignedFrames(KEY, PickleFrames())
    payload = codec.encode({"event": "e"}, render)
    assert codec.decode(payload)["event"] == "e"
    with pytest.raises(FrameError, match="not signed"):
        codec.decode(pickle.dumps(_Explosive()))


def test_signatures_are_compared_in_constant_time(monkeypatch):
    """It is hmac.compare_digest that compares."""
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append((one, other)) or True)
    SignedFrames(KEY).decode(b"x" * 32 + b"{}")
    assert [one for one, _ in compared] == [b"x" * 32]


@pytest.mark.parametrize(("key", "error"), [("text" * 8, TypeError), (b"short", ValueError), (b"", ValueError)])
def test_a_key_that_is_none_is_refused(key, error):
    """The message names the argument and does not repeat the key."""
    with pytest.raises(error, match=r"^key ") as raised:
        SignedFrames(key)
    assert not key or str(key) not in str(raised.value)


def test_a_key_is_in_no_repr():
    """What is printed of a codec can be logged."""
    text = repr(SignedFrames(KEY, PickleFrames()))
    assert text == "SignedFrames(<key>, PickleFrames())"
    assert "0123" not in json.dumps([text, repr(vars(SignedFrames(KEY)))])


# -- lines


@pytest.mark.parametrize(
    ("rendered", "line"),
    [
        (b'{"event":1}', b'{"event":1}'),
        (b'{\n  "event": "a\\nb",\r\n  "n": 1\n}\n', b'{   "event": "a\\nb",    "n": 1 }'),
        (b"event=a\nb\r\nc\n", rb"event=a\nb\r\nc"),
    ],
)
def test_whatever_a_renderer_makes_is_one_line(rendered, line):
    """JSON over several lines stays the same JSON; in other text a line break is escaped."""
    codec = JSONLines()
    assert codec.encode({"event": 1}, lambda _: rendered) == line
    assert codec.encode_item(Encoded(rendered, 20, 0.0)) == line


def test_a_line_of_text_is_an_object():
    """Text that somebody rendered becomes an event's, unless it is an object already."""
    assert JSONLines().encode(TextEvent("two\nlines"), _text_of) == (b'{"event":"two\\nlines"}')


# -- the frames of a batch

_DATA = st.lists(st.binary(max_size=40), max_size=20)


@settings(max_examples=100)
@given(data=_DATA, end=st.sampled_from([b"", b"\n"]), heads=st.sampled_from(["none", "one", "each", "length"]))
def test_frames_of_a_batch_are_the_same_one_by_one_and_together(data, end, heads):
    """However their heads are given, whole or in chunks, none of which is larger than it may be or empty."""
    expected = {
        "none": [each + end for each in data],
        "one": [b"<14>" + each + end for each in data],
        "each": [b"%d " % number + each + end for number, each in enumerate(data)],
        "length": [len(each).to_bytes(4, "big") + each + end for each in data],
    }[heads]
    given_heads = {"none": b"", "one": b"<14>", "each": [b"%d " % number for number in range(len(data))]}.get(heads)
    frames = Frames(data, end, given_heads)
    assert list(frames.each()) == expected
    assert frames.joined() == b"".join(expected)
    assert max(map(len, expected), default=0) <= frames.longest
    chunks = list(frames.chunks(50))
    assert [frame for chunk in chunks for frame in chunk.each()] == expected
    at = 0
    for chunk in chunks:
        assert len(chunk)
        assert len(chunk) == 1 or sum(map(len, data[at : at + len(chunk)])) <= 50
        at += len(chunk)


@settings(max_examples=100)
@given(data=_DATA, sent=st.integers(0, 1000), lengths=st.booleans())
def test_of_frames_sent_in_part_those_remain_that_were_not_sent_whole(data, sent, lengths):
    """So that each is sent again that the peer has no whole copy of, and no other."""
    frames = Frames(data, b"" if lengths else b"\n", None if lengths else b"<14>")
    whole = frames.joined()
    frames.drop_bytes(min(sent, len(whole)))
    left = frames.joined()
    assert whole.endswith(left)
    assert len(whole) - len(left) <= sent
    if len(frames):
        frames.drop(1)
        assert len(whole) - len(frames.joined()) > sent
    else:
        assert sent >= len(whole)
