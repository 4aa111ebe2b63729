"""What hostile peers may send to a `SocketListener`: with each codec, over TCP and UDP."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import socket
import struct

import pytest
from hypothesis import strategies as st

from outfall import (
    CaptureSink,
    JSONFrames,
    PermanentDeliveryError,
    PickleFrames,
    SignedFrames,
    SocketListener,
    StreamSink,
)
from tests.fuzz._fuzzing import fuzz
from tests.sinks._processes import until

KEY = b"0123456789abcdef"
MAX_FRAME_BYTES = 2_000

CODECS = {
    "json": JSONFrames(),
    "signed json": SignedFrames(KEY),
    "pickle": PickleFrames(),
    "signed pickle": SignedFrames(KEY, PickleFrames()),
}

REASONS = {"garbage", "oversize", "signature", "truncated", "overload"}

#: Keys that mean something to a sink, with values that nobody who means well would give them.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["debug", "ERROR", "\ud800", "\n", "2026-01-01", "9999-12-31T23:59:59.999999-24:00", "1e400"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "event",
        "level",
        "level_number",
        "timestamp",
        "logger",
        "exc_info",
        "exception",
        "stack",
        "_record",
        "_logger",
        "_name",
        "_from_structlog",
        "name",
        "msg",
        "args",
        "levelno",
        "levelname",
        "created",
        "exc_text",
        "extra_name",
        "thread",
        "lineno",
        "event#2",
        "extra_extra_msg",
        "taskName",
    ]
)
EVENTS = st.dictionaries(NAMES | st.text(max_size=4), VALUES, max_size=6)


def _json(value):
    return json.dumps(value, ensure_ascii=True).encode()


def _nested(depth):
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


#: Plain pickles and halves of them. Bytes at random would be programs of a machine that can do anything.
PICKLED = st.builds(pickle.dumps, EVENTS | VALUES, st.sampled_from([0, 1, 2, 4]))
PAYLOADS = {
    "json": st.one_of(
        st.binary(max_size=80),
        st.builds(_json, EVENTS | VALUES),
        st.builds(lambda data, cut: data[:cut], st.builds(_json, EVENTS), st.integers(0, 60)),
        st.sampled_from([_nested(400), _nested(900), b'{"a":' + b"9" * 1_500 + b"}", b'{"a":"\xed\xa0\x80"}']),
        st.sampled_from([b"", b"null", b"[]", b"{}", b'\xef\xbb\xbf{"a":1}', b'{"a":1}\n{"a":2}', b'{"a":NaN}']),
    ),
    "pickle": st.one_of(PICKLED, st.builds(lambda data, cut: data[:cut], PICKLED, st.integers(0, 40))),
}
PAYLOADS["signed json"] = st.one_of(PAYLOADS["json"], PAYLOADS["json"].map(SignedFrames(KEY)._signed))
PAYLOADS["signed pickle"] = st.one_of(PAYLOADS["json"], PAYLOADS["pickle"].map(SignedFrames(KEY)._signed))


@st.composite
def frames(draw, payloads):
    """Draw a frame, whose length may be wrong."""
    payload = draw(payloads)
    length = len(payload)
    if draw(st.integers(0, 5)) == 0:
        length = draw(
            st.sampled_from([0, length + 1, max(0, length - 1), MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, 2**32 - 1])
        )
    return struct.pack(">L", length) + payload


class Listening:
    """A listener that stays for all examples, into sinks that render what they get."""

    def __init__(self, codec, kind):
        self.failures = []
        self.out = io.BytesIO()
        self.capture = CaptureSink(level="info", on_error=self.failures.append)
        self.stream = StreamSink(self.out, on_error=self.failures.append)
        self.listener = SocketListener(
            ("127.0.0.1", 0),
            self.capture,
            self.stream,
            kind=kind,
            codec=codec,
            max_frame_bytes=MAX_FRAME_BYTES,
            on_error=self.failures.append,
        ).start()

    def begin(self):
        """Forget what came for the example before, and return the counts."""
        until(lambda: self.listener.stats().connections == 0)
        self.out.seek(0)
        self.out.truncate()
        self.capture.clear()
        return self.listener.stats()

    def settled(self, before):
        """Wait until what was sent is settled, and see that nothing broke."""
        until(lambda: self.listener.stats().connections == 0)
        stats = self.listener.stats()
        assert set(stats.rejected) <= REASONS
        assert stats.failed == 0
        # Refused as what they are, and not caught by the last net.
        assert [failure for failure in self.failures if not isinstance(failure.error, PermanentDeliveryError)] == []
        assert self.stream.stats().dropped == self.capture.stats().dropped == {}
        lines = self.out.getvalue().split(b"\n")
        assert lines.pop() == b""
        assert len(lines) == stats.events - before
        for line in lines:
            assert type(json.loads(line)) is dict


#: By codec and kind.
LISTENING = {}


@pytest.fixture(scope="module", autouse=True)
def _listening():
    """Have listeners that stay for all examples."""
    LISTENING.update(
        {(name, kind): Listening(codec, kind) for name, codec in CODECS.items() for kind in ("stream", "datagram")}
    )
    yield
    for each in LISTENING.values():
        each.listener.stop()
    LISTENING.clear()


@fuzz(data=st.data(), codec=st.sampled_from(sorted(CODECS)), good=st.booleans())
def test_whatever_a_peer_sends_over_tcp_costs_its_own_connection_at_most(data, codec, good):
    """Frames that are none, half ones, lies about lengths: refused and counted; what is an event is written whole."""
    sent = b"".join(data.draw(st.lists(frames(PAYLOADS[codec]), max_size=4)))
    if data.draw(st.integers(0, 3)) == 0:
        sent = sent[: data.draw(st.integers(0, len(sent)))]
    step = data.draw(st.integers(1, 200))
    here = LISTENING[codec, "stream"]
    begun = here.begin()
    if good:
        # The first frame is whole, whatever comes after it.
        payload = CODECS[codec].encode({"event": "good", "level": "info"}, _json)
        sent = struct.pack(">L", len(payload)) + payload + sent
    with socket.create_connection(here.listener.address, 10) as made, contextlib.suppress(OSError):  # refused meanwhile
        for start in range(0, len(sent), step):
            made.sendall(sent[start : start + step])
        made.shutdown(socket.SHUT_WR)
    until(lambda: here.listener.stats().accepted > begun.accepted)
    until(lambda: here.listener.stats().connections == 0)
    if good:
        assert here.listener.stats().events > begun.events
    here.settled(begun.events)


@fuzz(data=st.data(), codec=st.sampled_from(sorted(CODECS)))
def test_whatever_comes_in_a_datagram_costs_that_datagram_at_most(data, codec):
    """Each is either an event or counted as refused."""
    payloads = data.draw(st.lists(st.one_of(PAYLOADS[codec], frames(PAYLOADS[codec])), min_size=1, max_size=4))
    here = LISTENING[codec, "datagram"]
    begun = here.begin()
    settled = begun.events + sum(begun.rejected.values()) + len(payloads)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for payload in payloads:
            sender.sendto(payload, here.listener.address)
    until(lambda: (now := here.listener.stats()).events + sum(now.rejected.values()) >= settled)
    assert (now := here.listener.stats()).events + sum(now.rejected.values()) == settled
    here.settled(begun.events)
