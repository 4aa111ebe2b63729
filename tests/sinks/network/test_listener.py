"""SocketListener, with real peers on loopback."""

from __future__ import annotations

import contextlib
import gc
import json
import logging.handlers
import os
import pickle
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
import trustme

from outfall import DatagramSink, SocketSink
from outfall.sinks.delivery.memory import CaptureSink
from outfall.sinks.network.frames import JSONFrames, PickleFrames, SignedFrames
from outfall.sinks.network.incoming import Incoming
from outfall.sinks.network.listener import ListenerStats, SocketListener
from outfall.sinks.testing import FailingSink, StuckSink
from tests.sinks._processes import PATIENCE_SECONDS, ROOT, check, in_fork, until
from tests.sinks._wire import free_port, has_ipv6

KEY = b"0123456789abcdef"
LOOPBACK = ("127.0.0.1", 0)


def _frame(payload):
    return struct.pack(">L", len(payload)) + payload


def _good(number=0):
    return _frame(json.dumps({"event": "good", "number": number}).encode())


class Listening(contextlib.ExitStack):
    """A listener into a sink, and connections to it."""

    def __init__(self, address=LOOPBACK, **options):
        super().__init__()
        self.sink = CaptureSink()
        self.failures = []
        options.setdefault("on_error", self.failures.append)
        self.listener = self.enter_context(SocketListener(address, self.sink, **options))

    def connect(self):
        made = self.enter_context(socket.create_connection(self.listener.address, 10))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def rejected(self, **counts):
        """Wait until so many were refused, and no others."""
        until(lambda: self.listener.stats().rejected == counts)

    def takes_events(self):
        """Send one over a new connection, and wait until it has come."""
        before = len(self.sink.events)
        self.connect().sendall(_good())
        until(lambda: len(self.sink.events) > before)


def _ended(connection):
    """Wait for the end of a connection; return True if the peer ended it."""
    connection.settimeout(60)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


# -- what arrives


def test_events_arrive_over_tcp():
    """What a SocketSink is given, the listener's sinks get, in order; the port is the one bound."""
    with Listening() as here:
        host, port = here.listener.address
        assert (host, port > 0) == ("127.0.0.1", True)
        with SocketSink(host, port) as sink:
            for number in range(100):
                sink.handle({"event": "e", "number": number, "text": "ä" * number})
        until(lambda: len(here.sink.events) == 100)
        assert [event["number"] for event in here.sink.events] == list(range(100))
        until(lambda: here.listener.stats().connections == 0)
        assert here.listener.stats() == ListenerStats("SocketListener", 0, 1, 100, {}, 0)
    assert here.failures == []


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_events_arrive_over_ipv6(kind):
    """TCP and UDP."""
    with Listening(("::1", 0), kind=kind) as here:
        with (SocketSink if kind == "stream" else DatagramSink)(*here.listener.address) as sink:
            sink.handle({"event": "six"})
        until(lambda: here.sink.events == [{"event": "six"}])


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_events_arrive_over_unix_sockets(tmp_path, kind):
    """By a path, which is gone after stop."""
    path = tmp_path / "socket"
    with Listening(path, kind=kind) as here:
        assert here.listener.address == str(path)
        with (SocketSink if kind == "stream" else DatagramSink)(path, None) as sink:
            sink.handle({"event": "by path"})
        until(lambda: here.sink.events == [{"event": "by path"}])
    assert not path.exists()


def test_events_arrive_over_udp():
    """One datagram each."""
    with Listening(kind="datagram") as here:
        with DatagramSink(*here.listener.address) as sink:
            for number in range(50):
                sink.handle({"event": "e", "number": number})
        until(lambda: len(here.sink.events) == 50)
        assert here.listener.stats().events == 50


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("codec", [PickleFrames(), SignedFrames(KEY), SignedFrames(KEY, PickleFrames())], ids=repr)
def test_each_codec_both_ways(kind, codec):
    """What one end encodes the other decodes, in frames and in datagrams."""
    with Listening(kind=kind, codec=codec) as here:
        with (SocketSink if kind == "stream" else DatagramSink)(*here.listener.address, codec=codec) as sink:
            sink.handle({"event": "e", "number": 1, "level": "info"})
        until(lambda: here.sink.events)
        assert {"event": "e", "number": 1, "level": "info"}.items() <= here.sink.events[0].items()


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_the_handlers_of_the_standard_library_are_received(kind):
    """A SocketHandler's and a DatagramHandler's records, if the caller names PickleFrames."""
    with Listening(kind=kind, codec=PickleFrames()) as here:
        made = logging.handlers.SocketHandler if kind == "stream" else logging.handlers.DatagramHandler
        handler = made(*here.listener.address)
        try:
            handler.handle(logging.LogRecord("shop", 30, "a.py", 1, "low: %s", ("bolt",), None))
            until(lambda: here.sink.events)
        finally:
            handler.close()
        event = here.sink.events[0]
        assert (event["event"], event["level"], event["logger"]) == ("low: bolt", "warning", "shop")


def test_frames_may_come_in_any_pieces():
    """Byte by byte, or many at once."""
    with Listening() as here:
        slow = here.connect()
        for byte in _good(1) + _good(2):
            slow.sendall(bytes([byte]))
        here.connect().sendall(b"".join(_good(number) for number in range(3, 2000)))
        until(lambda: len(here.sink.events) == 1999)
        assert sorted(event["number"] for event in here.sink.events) == list(range(1, 2000))


def test_all_sinks_get_each_event_whatever_one_does():
    """A sink that raises starves no other, and is counted and told without the event's values."""
    capture = CaptureSink()
    failing = FailingSink(ValueError("password hunter22"), on_error="raise", name="audit")
    failures = []
    with SocketListener(LOOPBACK, failing, capture, on_error=failures.append) as listener:
        with SocketSink(*listener.address) as sink:
            sink.handle({"event": "e", "password": "hunter22"})
            sink.handle({"event": "f", "password": "hunter22"})
        until(lambda: len(capture.events) == 2)
        until(lambda: listener.stats().events == 2)
        assert listener.stats().failed == 2
    assert len(failures) == 1
    assert "hunter22" not in str(failures)
    assert not capture.closed


def test_metadata_from_outside_does_no_harm():
    """A peer cannot make a sink believe that an event has a record."""
    with Listening() as here:
        here.sink._processors = (lambda logger, name, event: event,)
        here.connect().sendall(_frame(b'{"event":"e","_record":1,"_logger":2,"_name":3,"exc_info":true}'))
        until(lambda: len(here.sink.events) == 1)
        assert here.sink.stats().dropped == {}


# -- TLS


@pytest.fixture(scope="module")
def contexts():
    """Give TLS settings for a server and for a client that has a certificate."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context()
    authority.configure_trust(client)
    bare = ssl.create_default_context()
    authority.configure_trust(bare)
    authority.issue_cert("shop@example.org").configure_cert(client)
    return server, client, bare


def test_tls(contexts):
    """Large and small events, many at once, over an encrypted connection."""
    server, client, _ = contexts
    with Listening(tls=server) as here:
        with SocketSink(*here.listener.address, tls=client, timeout=10) as sink:
            for number in range(30):
                sink.handle({"event": number, "text": "x" * (number * 9000)})
        until(lambda: len(here.sink.events) == 30)
        assert [event["event"] for event in here.sink.events] == list(range(30))
        until(lambda: not here.listener.stats().connections)
        assert here.listener.stats().rejected == {}


def test_who_speaks_no_tls_or_has_no_certificate_is_refused(contexts):
    """And counted, while the others are served; who says nothing at all is closed in time."""
    server, client, bare = contexts
    with Listening(tls=server) as here:
        plain = here.connect()
        plain.sendall(_good())
        assert _ended(plain)
        here.rejected(tls=1)
        # The refusal comes when the client takes the handshake to be done.
        with contextlib.suppress(OSError), bare.wrap_socket(here.connect(), server_hostname="127.0.0.1") as made:
            made.sendall(_good())
        here.rejected(tls=2)
        with SocketSink(*here.listener.address, tls=client, timeout=10) as sink:
            sink.handle({"event": "good"})
            until(lambda: here.sink.events == [{"event": "good"}])
    with Listening(tls=server, frame_timeout=0.05) as here:
        assert _ended(here.connect())
        here.rejected(timeout=1)


# -- peers that misbehave


BAD = {
    "garbage": [_frame(b"not json"), _frame(b"[]"), _frame(b""), _frame(pickle.dumps({"msg": "m"}, 1))],
    "oversize": [struct.pack(">L", 64 * 1024 * 1024 + 1), b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff"],
}


@pytest.mark.parametrize(("reason", "data"), [(reason, data) for reason in BAD for data in BAD[reason]])
def test_a_bad_frame_closes_that_connection(reason, data):
    """What came before it counts, what comes after it does not, others are served, and nothing of it is told."""
    with Listening(max_frame_bytes=1000) as here:
        other = here.connect()
        other.sendall(_good(1)[:7])
        bad = here.connect()
        bad.sendall(_good(2) + data + _good(3))
        assert _ended(bad)
        other.sendall(_good(1)[7:])
        until(lambda: len(here.sink.events) == 2)
        assert {event["number"] for event in here.sink.events} == {1, 2}
        here.rejected(**{reason: 1})
        until(lambda: here.listener.stats().connections == 1)
        here.takes_events()
    [failure] = here.failures
    assert failure.sink == "SocketListener"
    assert "not json" not in str(failure)


def test_a_frame_may_be_as_large_as_said():
    """The limit is what is allowed; one byte more is not."""
    payload = b'{"event":"' + b"x" * 988 + b'"}'
    with Listening(max_frame_bytes=1000) as here:
        here.connect().sendall(_frame(payload))
        until(lambda: len(here.sink.events) == 1)
        here.connect().sendall(_frame(payload + b" "))
        here.rejected(oversize=1)


@pytest.mark.parametrize("pieces", [1, 7, 400_000])
@pytest.mark.parametrize("codec", [None, SignedFrames(KEY), PickleFrames()])
def test_a_frame_too_large_costs_itself_alone(codec, pieces):
    """However it is cut on its way, what comes before and after it on the connection arrives."""
    large = {"max_frame_bytes": 1 << 30}
    frames = [
        SocketSink("localhost", 9, codec=codec, **large).make_frame({"event": "e", "number": number, "text": text})
        for number, text in enumerate(["", "x" * 900_000, "", "x" * 1_500, "x" * 1_500, ""])
    ]
    stream = b"".join(frames)
    with Listening(max_frame_bytes=1000, codec=codec) as here:
        made = here.connect()
        size = len(stream) if pieces == 1 else pieces
        for at in range(0, len(stream), size):
            made.sendall(stream[at : at + size])
        until(lambda: len(here.sink.events) == 3)
        assert [event["number"] for event in here.sink.events] == [0, 2, 5]
        here.rejected(oversize=3)
        assert here.listener.stats().connections == 1
    assert "bytes came, where max_frame_bytes=1000" in str(here.failures[0].error)


def test_a_frame_too_large_has_to_come_in_time():
    """As any other; and one that is given up is counted."""
    with Listening(max_frame_bytes=1000) as here:
        made = here.connect()
        made.sendall(_good(1) + struct.pack(">L", 5000) + b"x")
        here.rejected(oversize=1)
        here.listener.frame_timeout = 0.05
        here.listener._sweep_due = 0.0
        here.listener._wake_up()
        assert _ended(made)
        here.rejected(oversize=1, timeout=1)
        until(lambda: len(here.sink.events) == 1)


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("codec", [None, SignedFrames(KEY), PickleFrames(), SignedFrames(KEY, PickleFrames())])
@pytest.mark.parametrize("batched", [False, True])
def test_by_default_either_end_takes_what_the_other_sends(kind, codec, batched):
    """An event of any size arrives, marked if it had to be shortened, and so do its neighbours."""
    make = SocketSink if kind == "stream" else DatagramSink
    with Listening(kind=kind, codec=codec) as here, make(*here.listener.address, codec=codec, on_error="raise") as sink:
        events = [{"event": "e", "number": n, "text": "ü" * (600_000 if n == 5 else 10)} for n in range(10)]
        if batched:
            assert sink.emit_batch([sink.encode(event) for event in events]) is None
        else:
            for event in events:
                sink.handle(event)
        until(lambda: len(here.sink.events) == 10)
        assert [event["number"] for event in here.sink.events] == list(range(10))
        assert [event["number"] for event in here.sink.events if event.get("truncated")] == [5]
        assert here.listener.stats().rejected == {}


def test_a_unix_datagram_may_be_as_large_as_the_system_lets_it(tmp_path):
    """The listener has room for it."""
    path = tmp_path / "socket"
    with Listening(path, kind="datagram") as here:
        with DatagramSink(path, None, max_datagram_bytes=150_000, on_error="raise") as sink:
            sink.handle({"event": "x" * 140_000})
        until(lambda: here.sink.events == [{"event": "x" * 140_000}])


def test_a_pickle_is_never_loaded_unless_the_caller_names_it(tmp_path):
    """Neither from a frame nor from a datagram, nor if it is not signed."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = pickle.dumps(Bomb(), 1)
    for codec in (None, JSONFrames(), SignedFrames(KEY), SignedFrames(KEY, PickleFrames())):
        with Listening(codec=codec) as here:
            here.connect().sendall(_frame(bomb))
            until(lambda here=here: here.listener.stats().rejected)
        with Listening(codec=codec, kind="datagram") as here:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for data in (bomb, _frame(bomb)):
                    sender.sendto(data, here.listener.address)
            until(lambda here=here: sum(here.listener.stats().rejected.values()) == 2)
    assert list(tmp_path.iterdir()) == []


def test_unsigned_and_wrongly_signed_frames_are_refused():
    """And a good one is taken."""
    with Listening(codec=SignedFrames(KEY)) as here:
        wrong = SignedFrames(KEY[::-1]).encode({"event": "forged"}, lambda event: b'{"event":"forged"}')
        for data in (_good(), _frame(wrong), _frame(b"")):
            bad = here.connect()
            bad.sendall(data)
            assert _ended(bad)
        here.rejected(signature=3)
        with SocketSink(*here.listener.address, codec=SignedFrames(KEY)) as sink:
            sink.handle({"event": "mine"})
        until(lambda: here.sink.events == [{"event": "mine"}])


@pytest.mark.parametrize("data", [_good()[:-1], _good()[:2], _good() + _good()[:5]])
@pytest.mark.parametrize("reset", [False, True])
def test_a_peer_that_is_gone_in_the_midst_of_a_frame(data, reset):
    """Half a frame is no event, and counted."""
    with Listening() as here:
        bad = here.connect()
        bad.sendall(data)
        until(lambda: here.listener._buffered)
        if reset:
            bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bad.close()
        here.rejected(truncated=1)
        here.takes_events()
        assert here.listener._buffered == 0


def test_a_slow_loris_is_closed():
    """A frame must be whole in time, however diligently its bytes drip; so must the first, which never begins."""
    with Listening() as here:
        proven = here.connect()
        proven.sendall(_good(1))
        until(lambda: here.sink.events)
        here.listener.frame_timeout = 0.15
        here.listener._sweep_due = 0.0
        here.listener._wake_up()
        silent, dripping = here.connect(), here.connect()
        gone = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                for byte in _frame(b" " * 5000):
                    dripping.sendall(bytes([byte]))
                    if gone.wait(0.01):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        assert _ended(silent)
        assert _ended(dripping)
        gone.set()
        thread.join(60)
        here.rejected(timeout=2)
        # Silence between frames is another matter.
        proven.sendall(_good(2))
        until(lambda: len(here.sink.events) == 2)


def test_the_time_of_a_frame_is_that_of_its_first_byte():
    """A pause before it is not counted, and one byte more changes nothing."""
    with Listening(frame_timeout=30) as here:
        made = here.connect()
        made.sendall(_good(1))
        until(lambda: here.sink.events)
        [peer] = here.listener._peers.values()
        peer.began -= 100
        made.sendall(_good(2)[:3])
        until(lambda: here.listener._buffered)
        assert time.monotonic() - peer.began < 90
        peer.began -= 100
        here.listener._sweep_due = 0.0
        made.sendall(_good(2)[3:4])
        assert _ended(made)
        here.rejected(timeout=1)


def test_what_came_before_there_was_no_more_is_taken():
    """TLS may have more that does not make the socket readable again, or say so and then have nothing after all."""

    class Pending:
        chunks = [_good(1)[5:], _good(1)[:5]]  # noqa: RUF012

        def recv(self, size):
            if not self.chunks:
                raise ssl.SSLWantReadError
            return self.chunks.pop()

        def pending(self):
            return 1

    sink = CaptureSink()
    listener = SocketListener(LOOPBACK, sink)
    peer = Incoming(Pending(), 0.0, handshaking=False)
    listener._receive(peer, 0.0)
    assert sink.events == [{"event": "good", "number": 1}]


def test_an_idle_connection_is_closed():
    """After idle_timeout, and its sink finds out in time: the next event is not lost."""
    with Listening(idle_timeout=PATIENCE_SECONDS) as here, SocketSink(*here.listener.address) as sink:
        sink.handle({"event": 1})
        until(lambda: here.sink.events)
        [peer] = here.listener._peers.values()
        peer.heard -= 2 * PATIENCE_SECONDS
        here.listener._sweep_due = 0.0
        here.listener._wake_up()
        here.rejected(idle=1)
        until(sink._has_ended)
        sink.handle({"event": 2})
        until(lambda: len(here.sink.events) == 2)
    with Listening(idle_timeout=None) as here:
        here.connect().sendall(_good())
        until(lambda: here.sink.events)
        here.listener.frame_timeout = 0.05
        here.listener._sweep_due = 0.0
        here.listener._wake_up()
        time.sleep(0.12)
        assert here.listener.stats().connections == 1


def test_more_connections_than_allowed_are_closed_at_once():
    """Those that are open are served, and there is room again when one ends."""
    with Listening(max_connections=2) as here:
        first, second = here.connect(), here.connect()
        until(lambda: here.listener.stats().connections == 2)
        assert _ended(here.connect())
        here.rejected(overload=1)
        for made in (first, second):
            made.sendall(_good())
        until(lambda: len(here.sink.events) == 2)
        first.close()
        until(lambda: here.listener.stats().connections == 1)
        here.takes_events()


def test_half_frames_do_not_fill_up_memory():
    """All connections together have one bound; who holds most of it is closed, the others are served."""
    with Listening(max_frame_bytes=1_000_000, max_buffered_bytes=300_000) as here:
        small = here.connect()
        small.sendall(_good()[:10])
        for _ in range(4):
            made = here.connect()
            with contextlib.suppress(ConnectionError):
                made.sendall(struct.pack(">L", 1_000_000) + b"x" * 900_000)
            assert _ended(made)
        here.rejected(overload=4)
        assert here.listener._buffered == 10
        small.sendall(_good()[10:])
        until(lambda: here.sink.events)
        assert here.listener._buffered == 0


@pytest.fixture
def many_files():
    """Allow the process some thousands of open files, while a test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("too few open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_at_once(many_files):
    """All are open at the same time and each delivers; some send garbage, and memory is as before in the end."""
    with Listening(max_frame_bytes=100_000) as here:
        here.takes_events()
        tracemalloc.start()
        try:
            for _ in range(2):
                here.sink.clear()
                before = here.listener.stats()
                made = [here.connect() for _ in range(1000)]
                until(lambda before=before: here.listener.stats().accepted == before.accepted + 1000)
                for number, connection in enumerate(made):
                    connection.sendall(_frame(b"garbage") if number % 10 == 0 else _good(number))
                until(lambda: len(here.sink.events) == 900)
                assert {event["number"] for event in here.sink.events} == {n for n in range(1000) if n % 10}
                for connection in made:
                    connection.close()
                until(lambda: here.listener.stats().connections <= 1)
                gc.collect()
                used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        here.rejected(garbage=200)
        here.sink.clear()
        assert used < 3_000_000
    # One report for all of it.
    assert len(here.failures) == 1


def test_too_many_open_files_are_survived(many_files, monkeypatch):
    """Accepting pauses, what is open is served, and later all are accepted."""
    with Listening() as here:
        made = here.connect()
        until(lambda: here.listener.stats().connections == 1)
        bound = here.listener._bound.sock

        class Full:
            full = True

            def accept(self):
                if self.full:
                    raise OSError(24, "Too many open files")
                return bound.accept()

            def fileno(self):
                return bound.fileno()

            def __getattr__(self, name):
                return getattr(bound, name)

        full = Full()
        selector = here.listener._selector
        selector.unregister(bound)
        here.listener._bound.sock = full
        selector.register(full, 1)
        late = here.connect()
        late.sendall(_good(1))
        until(lambda: here.failures)
        made.sendall(_good(2))
        until(lambda: here.sink.events)
        full.full = False
        until(lambda: len(here.sink.events) == 2)
        assert "Too many" in str(here.failures[0].error)


@pytest.mark.parametrize(
    ("codec", "data", "reason"),
    [
        (None, b"garbage", "garbage"),
        (None, b"", "garbage"),
        (None, b"x" * 2001, "oversize"),
        (SignedFrames(KEY), b'{"event":"e"}', "signature"),
        (PickleFrames(), pickle.dumps({"msg": "no length"}, 1), "garbage"),
        (PickleFrames(), b"\0\0", "garbage"),
        (PickleFrames(), struct.pack(">L", 9999) + b"x" * 1990, "garbage"),
        (PickleFrames(), struct.pack(">L", 2400) + b"x" * 2400, "oversize"),
    ],
)
def test_a_bad_datagram_is_counted_and_the_next_one_taken(codec, data, reason):
    """A datagram is its own end."""
    with (
        Listening(kind="datagram", codec=codec, max_frame_bytes=2000) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(data, here.listener.address)
        here.rejected(**{reason: 1})
        with DatagramSink(*here.listener.address, codec=codec) as sink:
            sink.handle({"event": "good"})
        until(lambda: here.sink.events)


def test_random_bytes_do_no_harm():
    """Whatever comes, the listener serves on."""
    import random

    source = random.Random(7)
    with Listening(max_frame_bytes=5000) as here:
        for number in range(150):
            made = here.connect()
            with contextlib.suppress(ConnectionError):
                made.sendall(_good(number) + bytes(source.randrange(4)) + source.randbytes(source.randrange(300)))
            made.close()
        until(lambda: len(here.sink.events) == 150)
        here.takes_events()


# -- start and stop


def test_start_and_stop_may_be_called_again():
    """Twice does nothing, and after a stop it can be started anew."""
    before = threading.enumerate()
    sink = CaptureSink()
    listener = SocketListener(LOOPBACK, sink)
    assert listener.stop()
    assert not listener.running
    assert listener.address == LOOPBACK
    assert repr(listener) == "<SocketListener stream ('127.0.0.1', 0) stopped>"
    for number in range(2):
        assert listener.start() is listener.start()
        assert listener.running
        assert str(listener.address[1]) in repr(listener)
        with SocketSink(*listener.address) as sender:
            sender.handle({"event": number})
        assert listener.stop()
        assert listener.stop()
        assert sink.events[-1] == {"event": number}
    assert not sink.closed
    assert not [thread for thread in threading.enumerate() if thread not in before]


def test_what_was_sent_before_stop_is_handed_on():
    """Also what is in connections that were not accepted yet; half a frame is counted."""
    for _ in range(10):
        with Listening() as here, contextlib.ExitStack() as stack:
            for number in range(20):
                made = stack.enter_context(socket.create_connection(here.listener.address, 10))
                made.sendall(_good(number) + (b"\0" if number == 7 else b""))
            assert here.listener.stop()
            assert len(here.sink.events) == 20
            assert here.listener.stats().rejected == {"truncated": 1}
            assert here.listener.stats().connections == 0


def test_stop_keeps_its_deadline():
    """A sink that hangs is waited for so long and not longer; later stop can be called again."""
    stuck = StuckSink()
    listener = SocketListener(LOOPBACK, stuck).start()
    with SocketSink(*listener.address) as sender:
        sender.handle({"event": 1})
        assert stuck.stuck.wait(60)
        began = time.monotonic()
        assert not listener.stop(0.05)
        assert time.monotonic() - began < PATIENCE_SECONDS / 2
        stuck.release()
        assert listener.stop(60)
    assert stuck.events == [{"event": 1}]


def test_a_sink_may_stop_the_listener():
    """From within handle, without waiting for itself."""
    results = []

    class Stopping(CaptureSink):
        def emit(self, event):
            super().emit(event)
            results.append(listener.stop())

    listener = SocketListener(LOOPBACK, Stopping())
    listener.start()
    with SocketSink(*listener.address) as sender:
        sender.handle({"event": "stop"})
    until(lambda: results == [False])
    assert listener.stop()


def test_an_address_in_use_is_an_error_at_start():
    """It raises, and can be tried again."""
    with Listening() as here:
        second = SocketListener(here.listener.address, CaptureSink())
        with pytest.raises(OSError, match="in use"):
            second.start()
        assert not second.running
    with second:
        assert second.running


def test_a_restarted_listener_gets_its_port_again():
    """At once, whatever connections there were, and the sink goes on without a loss."""
    port = free_port()
    sink = CaptureSink()
    with SocketSink("127.0.0.1", port, on_error="raise") as sender:
        for number in range(3):
            with SocketListener(("127.0.0.1", port), sink):
                sender.handle({"event": number})
                until(lambda number=number: len(sink.events) == number + 1)
    assert sender.stats().retried == 0


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_stale_unix_socket_is_taken_over(tmp_path, kind):
    """One that a killed process left is; one that is in use, or no socket, is not."""
    path = tmp_path / "socket"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
    left.bind(str(path))
    left.close()
    with SocketListener(path, kind=kind):
        second = SocketListener(path, kind=kind)
        with pytest.raises(OSError, match="in use"):
            second.start()
        assert path.exists()
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        second.start()
    assert path.read_text() == "precious"


def test_somebody_elses_socket_is_not_removed(tmp_path):
    """If another listener has taken the path meanwhile, stop leaves it."""
    path = tmp_path / "socket"
    with SocketListener(path):
        path.unlink()
        other = SocketListener(path).start()
    assert path.exists()
    other.stop()
    assert not path.exists()


def test_a_forked_child_has_a_listener_that_is_not_started():
    """It can start its own; the parent's goes on, its connections are neither read nor shut down by the child."""
    with Listening() as here:
        made = here.connect()
        made.sendall(_good(1))
        until(lambda: here.sink.events)
        bound = here.listener._bound.sock.fileno()

        def child():
            assert not here.listener.running
            assert here.listener.stats().accepted == 0
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(bound)
            with here.listener:
                here.connect().sendall(_good(2))
                until(lambda: here.sink.events)
            assert here.listener.stop()

        in_fork(child)
        made.sendall(_good(3))
        here.connect().sendall(_good(4))
        until(lambda: len(here.sink.events) == 3)
        assert sorted(event["number"] for event in here.sink.events) == [1, 3, 4]


def test_a_connection_closed_after_a_fork_is_closed_for_the_peer():
    """Though a child lives on: it holds no copy."""
    with Listening() as here:
        made = here.connect()
        until(lambda: here.listener.stats().connections == 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        made.sendall(_frame(b"garbage"))
        assert _ended(made)
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_the_end_of_the_process_hands_on_what_has_come(tmp_path):
    """A process that forgets to stop its listener ends, and what was sent is in the file."""
    script = """
        import sys
        from outfall.sinks.files.file import FileSink
        from outfall import SocketListener, SocketSink

        listener = SocketListener(("127.0.0.1", 0), FileSink(sys.argv[1], buffer_bytes=100_000)).start()
        sink = SocketSink(*listener.address)
        for number in range(500):
            sink.handle({"event": number})
    """
    path = tmp_path / "log"
    check(script, path)
    assert len(path.read_text().splitlines()) == 500


def test_many_processes_one_file(tmp_path):
    """The example: every event of every process is in the file, once."""
    path = tmp_path / "log.jsonl"
    command = [sys.executable, ROOT / "examples" / "many_processes.py", path, "--processes", "3"]
    result = subprocess.run([*command, "--events", "200"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(event["worker"], event["number"]) for event in events}) == len(events) == 600


# -- what is told, and arguments


def test_each_reason_is_told_seldom():
    """Once in 30 seconds, with the number of those left out; counted are all."""
    with Listening(kind="datagram") as here:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(20):
                sender.sendto(b"garbage", here.listener.address)
        here.rejected(garbage=20)
        here.listener._told["garbage"] = (time.monotonic() - 31, here.listener._told["garbage"][1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"garbage", here.listener.address)
        here.rejected(garbage=21)
        until(lambda: len(here.failures) == 2)
    assert [failure.suppressed for failure in here.failures] == [0, 19]


def test_an_on_error_that_raises_stops_nothing(capfd):
    """Nor does a codec that raises something of its own."""

    class Odd(JSONFrames):
        def decode(self, payload):
            raise RuntimeError(payload)

    def fail(failure):
        raise RuntimeError("on_error")

    with Listening(codec=Odd(), on_error=fail) as here:
        for _ in range(2):
            made = here.connect()
            made.sendall(_frame(b"secret"))
            assert _ended(made)
        here.rejected(garbage=2)
    told = capfd.readouterr().err
    assert "RuntimeError" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"address": ("127.0.0.1", 65_536)}, ValueError),
        ({"address": ("127.0.0.1",)}, ValueError),
        ({"address": ("127.0.0.1", True)}, ValueError),
        ({"address": 17}, TypeError),
        ({"address": "localhost:9020"}, ValueError),
        ({"kind": "udp"}, ValueError),
        ({"codec": JSONFrames}, TypeError),
        ({"max_frame_bytes": 0}, ValueError),
        ({"max_connections": -1}, ValueError),
        ({"max_buffered_bytes": 1.5}, ValueError),
        ({"frame_timeout": None}, ValueError),
        ({"idle_timeout": -1}, ValueError),
        ({"tls": True}, ValueError),
        ({"on_error": "raise"}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused(options, error):
    """The message names the argument and the value."""
    [(name, value)] = options.items()
    with pytest.raises(error) as raised:
        SocketListener(**{"address": LOOPBACK, **options})
    assert f"{name}={value!r}" in str(raised.value)


def test_what_is_no_sink_is_refused():
    """A class instead of an object, for example."""
    with pytest.raises(TypeError, match="is not a Sink"):
        SocketListener(LOOPBACK, CaptureSink)
    with SocketListener(LOOPBACK) as listener, pytest.raises(ValueError, match="timeout=-1"):
        listener.stop(-1)
