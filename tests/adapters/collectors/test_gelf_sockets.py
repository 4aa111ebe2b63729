"""GELF over UDP, TCP and TLS: read as the specification says, and by npm's graygelf."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import random
import socket
import ssl
import time
import zlib

import pytest
import trustme

from outfall import BackgroundSink, CaptureSink, GELFDatagramSink, GELFFrames, SocketListener, SocketSink
from outfall.sinks.network.frames import FrameError
from outfall.sinks.testing import SinkContract, assert_balanced
from tests._node import Node
from tests.sinks._processes import until
from tests.sinks._wire import Clock, Stream

TIME = "2026-03-14T15:09:26.535897Z"
SERVER = """
const server = require('graygelf/server')();
server.on('message', message => console.log(JSON.stringify(message)));
server.on('error', error => console.log(JSON.stringify({error: String(error)})));
server.listen(Number(process.argv[1]), '127.0.0.1');
server._udp.on('listening', () => console.log('ready'));
"""


def _noise(size):
    """Give text that compression makes little of, the same each time."""
    return "".join(random.Random(7).choices("0123456789abcdefghijklmnopqrstuvwxyz", k=size))


class Reader:
    """A GELF input for UDP, written from the specification alone."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(60)
        self.address = self.socket.getsockname()
        self.parts = {}
        #: Sizes of the datagrams that came, and the first two bytes of the message that was whole last.
        self.sizes = []
        self.magic = b""

    def next(self):
        """Return the next message that is whole."""
        while True:
            data = self.socket.recv(65_536)
            self.sizes.append(len(data))
            if data[:2] == b"\x1e\x0f":
                key, place, number = data[2:10], data[10], data[11]
                assert place < number <= 128
                parts = self.parts.setdefault(key, {})
                assert place not in parts
                parts[place] = data[12:]
                if len(parts) < number:
                    continue
                data = b"".join(parts[place] for place in range(number))
            self.magic = data[:2]
            if data[:2] == b"\x1f\x8b":
                data = gzip.decompress(data)
            elif data[:1] == b"\x78":
                data = zlib.decompress(data)
            return json.loads(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


@pytest.fixture
def reader():
    """Give a GELF input for UDP."""
    with Reader() as made:
        yield made


class TestGELFDatagramSink(SinkContract):
    """UDP."""

    @pytest.fixture(autouse=True)
    def _peers(self):
        with contextlib.ExitStack() as self.stack:
            yield

    def make_sink(self, **options):
        self.reader = self.stack.enter_context(Reader())
        return GELFDatagramSink(*self.reader.address, **options)

    def received(self, sink):
        return None  # what a message makes of an event has tests of its own


# -- UDP


@pytest.mark.parametrize(("compression", "magic"), [("zlib", b"\x78"), ("gzip", b"\x1f\x8b"), (None, b"{")])
def test_a_message_is_compressed_as_asked(reader, compression, magic):
    """By default with zlib; every receiver sees by its first bytes what it is."""
    with GELFDatagramSink(*reader.address, sender="web-1", compression=compression, on_error="raise") as sink:
        sink.handle({"event": "order placed", "level": "warning", "timestamp": TIME, "order": 17, "nul": "a\0b"})
    message = reader.next()
    assert reader.magic.startswith(magic)
    assert message == {
        "version": "1.1",
        "host": "web-1",
        "short_message": "order placed",
        "timestamp": 1773500966.535897,
        "level": 4,
        "_level_name": "warning",
        "_order": 17,
        "_nul": "a\0b",
    }


@pytest.mark.parametrize("chunk_bytes", [128, 1420, 8192])
@pytest.mark.parametrize("compression", ["zlib", None])
def test_a_large_message_goes_in_chunks(reader, chunk_bytes, compression):
    """None larger than said; put together they are the message."""
    text = _noise(20_000 if chunk_bytes > 2000 else 10_000)
    with GELFDatagramSink(*reader.address, chunk_bytes=chunk_bytes, compression=compression, on_error="raise") as sink:
        sink.handle({"event": "e", "text": text})
        message = reader.next()
    assert message["_text"] == text
    assert len(reader.sizes) > 1
    assert max(reader.sizes) == chunk_bytes
    assert all(size == chunk_bytes for size in reader.sizes[:-1])


def test_a_message_of_a_chunks_size_needs_no_chunks(reader):
    """One byte more does."""
    with GELFDatagramSink(*reader.address, compression=None, chunk_bytes=1000, sender="h", on_error="raise") as sink:
        room = 1000 - len(sink.make_frame({"event": "", "timestamp": TIME, "text": ""}))
        for extra, datagrams in ((0, 1), (1, 2)):
            reader.sizes.clear()
            sink.handle({"event": "-", "timestamp": TIME, "text": "x" * (room + extra)})
            assert len(reader.next()["_text"]) == room + extra
            assert len(reader.sizes) == datagrams


@pytest.mark.parametrize("behind", [False, True])
def test_over_128_chunks_a_message_is_shortened_and_marked(reader, behind):
    """The longest text is cut; what is short is whole, and what compression makes small enough is not cut."""
    target = GELFDatagramSink(*reader.address, chunk_bytes=512, on_error="raise")
    with BackgroundSink(target, linger=0) if behind else target as sink:
        sink.handle({"event": "e", "text": _noise(200_000), "order": 17, "timestamp": TIME})
        message = reader.next()
        assert (message["_truncated"], message["_order"]) in ((True, 17), ("true", 17))
        assert message["timestamp"] == 1773500966.535897
        assert 32_000 < len(message["_text"]) < 200_000
        assert len(reader.sizes) <= 128
        sink.handle({"event": "e", "text": "x" * 1_000_000})
        message = reader.next()
        assert "_truncated" not in message
        assert len(message["_text"]) == 1_000_000


def test_no_name_is_looked_up_for_a_message_but_by_age(reader, monkeypatch):
    """Once, and again after a minute; neither the target's name nor this machine's."""
    asked, clock, real = [], Clock(), socket.getaddrinfo

    def resolved(host, *rest):
        asked.append(host)
        return real("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with GELFDatagramSink("graylog.example", reader.address[1], clock=clock, on_error="raise") as sink:
        monkeypatch.setattr(socket, "gethostname", lambda: pytest.fail("asked for this machine's name"))
        monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked for this machine's name"))
        for _ in range(100):
            sink.handle({"event": "e", "text": _noise(5000)})
        assert asked == ["graylog.example"]
        clock.now += 60
        sink.handle({"event": "e"})
        assert asked == ["graylog.example"] * 2


def test_fields_that_graylog_refuses_go_where_they_can(reader):
    """It throws away a message with ``_id``, and leaves out what the message has already."""
    names = ("id", "_id", "host", "source", "message", "short_message", "timestamp", "status", "version", "streams")
    with GELFDatagramSink(*reader.address, on_error="raise") as sink:
        sink.handle({"event": "e", **dict.fromkeys(names, "mine")})
    message = reader.next()
    taken = {"_id", "_host", "_source", "_message", "_short_message", "_timestamp", "_streams", "_full_message"}
    assert not taken & set(message)
    assert sum(value == "mine" for value in message.values()) == len(names)
    assert message["_status"] == "mine"


@pytest.mark.parametrize(
    "options", [{"chunk_bytes": 127}, {"chunk_bytes": 8193}, {"compression": "bzip2"}, {"max_connection_age": 0}]
)
def test_wrong_arguments_are_refused(options):
    """At construction, by their names."""
    with pytest.raises(ValueError, match=next(iter(options))):
        GELFDatagramSink("127.0.0.1", **options)


def test_a_refused_chunk_sends_the_whole_message_again(reader):
    """Under another id, so that no receiver puts parts of both together."""
    with GELFDatagramSink(*reader.address, chunk_bytes=512, on_error="raise") as sink:
        sink.handle({"event": "first"})
        reader.next()
        real, failed = socket.socket.send, []

        class Refusing(socket.socket):
            def send(self, data, *rest):
                if data[10:11] == b"\3" and not failed:
                    failed.append(data[2:10])
                    raise ConnectionRefusedError(111, "Connection refused")
                return real(self, data, *rest)

        made = Refusing(socket.AF_INET, socket.SOCK_DGRAM)
        made.connect(reader.address)
        sink.sock.close()
        sink._adopt(made)
        sink.handle({"event": "e", "text": _noise(5000)})
        assert reader.next()["_text"] == _noise(5000)
        assert set(reader.parts) > set(failed)
        assert sink.stats().retried == 1
    assert_balanced(sink.stats())


# -- TCP and TLS


def test_over_tcp_a_nul_ends_each_message():
    """And none is within one, whatever the values."""
    with Stream() as peer:
        with SocketSink(*peer.address, codec=GELFFrames("web-1"), on_error="raise") as sink:
            for number in range(3):
                sink.handle({"event": "a\0b", "n": number, "key\0": "\0\n"})
        until(lambda: b"".join(peer.data).count(b"\0") == 3)
        messages = b"".join(peer.data).split(b"\0")
        assert messages.pop() == b""
        for number, message in enumerate(map(json.loads, messages)):
            assert (message["short_message"], message["_n"], message["_key_"]) == ("a\0b", number, "\0\n")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_a_listener_reads_the_messages(tls, behind):
    """In batches and one by one; a garbage message costs itself alone."""
    server = client = None
    if tls:
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
    with (
        CaptureSink() as received,
        SocketListener(("127.0.0.1", 0), received, codec=GELFFrames(), tls=server) as listener,
    ):
        target = SocketSink(*listener.address, codec=GELFFrames("web-1"), tls=client, timeout=10, on_error="raise")
        with BackgroundSink(target, linger=0) if behind else target as sink:
            for number in range(20):
                sink.handle({"event": "e", "level": "error", "n": number, "timestamp": TIME, "text": "a\0b"})
        until(lambda: len(received.events) == 20)
        assert [event["n"] for event in received.events] == list(range(20))
        assert received.events[0] == {
            "event": "e",
            "level": "error",
            "level_name": "error",
            "timestamp": 1773500966.535897,
            "host": "web-1",
            "n": 0,
            "text": "a\0b",
        }


def test_what_is_no_message_is_garbage():
    """A JSON object without a message is none."""
    for payload in (b"no", b"[]", b"{}", b'{"short_message":1}'):
        with pytest.raises(FrameError):
            GELFFrames().decode(payload)
    assert GELFFrames().decode(b'{"short_message":"e","level":"x","__record":1,"_":2,"_event":3}') == {
        "event": "e",
        "level": "info",
    }


# -- a server of others


def test_graygelf_reads_messages():
    """Compressed either way, plain, and in chunks."""
    with Node("graygelf", SERVER) as node:
        kinds = itertools.cycle(("zlib", "gzip", None))
        for number in range(6):
            text = _noise(8000 if number > 2 else 10)
            with GELFDatagramSink("127.0.0.1", node.port, compression=next(kinds), on_error="raise") as sink:
                sink.handle({"event": "e", "n": number, "text": text, "level": "error"})
        messages = sorted(node.wait(6), key=lambda message: message["_n"])
        assert [len(message["_text"]) for message in messages] == [10] * 3 + [8000] * 3
        assert all(message["level"] == 3 and abs(message["timestamp"] - time.time()) < 600 for message in messages)
