"""SocketSink and DatagramSink, against real peers on loopback."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import re
import select
import signal
import socket
import socketserver
import ssl
import struct
import threading
import time

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from outfall import BackgroundSink, DatagramSink, SocketSink, SysLogSink
from outfall.sinks.core.item import Batch, Encoded
from outfall.sinks.errors import (
    PausedDeliveryError,
    PermanentDeliveryError,
    SinkClosedError,
    TemporaryDeliveryError,
)
from outfall.sinks.event.fit import shortened
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.network import connection, peer
from outfall.sinks.network.frames import JSONFrames, JSONLines, PickleFrames, SignedFrames
from outfall.sinks.network.peer import await_socket
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, in_fork, start, until
from tests.sinks._wire import Clock, Datagrams, Receiver, Stream, free_port, has_ipv6

KEY = b"0123456789abcdef"
#: More than any event here has.
LARGE = 100_000_000
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


@pytest.fixture
def receiver():
    """Give a TCP peer that takes frames."""
    with Receiver() as made:
        yield made


@pytest.fixture
def datagrams():
    """Give a UDP socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(60)
        yield made


def _events(receiver, number):
    return [json.loads(payload) for payload in receiver.wait(number)]


def _plain(event):
    """Give the event a form that keeps the hot path off, and is rendered the same."""
    return {**event, "_name": "info"}


# -- the contract


class TestSocketSink(SinkContract):
    """TCP."""

    @pytest.fixture(autouse=True)
    def _peers(self, tmp_path):
        self.directory = tmp_path
        with contextlib.ExitStack() as self.stack:
            yield

    def make_sink(self, **options):
        self.receiver = self.stack.enter_context(Receiver())
        return SocketSink(*self.receiver.target, **options)

    def received(self, sink):
        # One more frame, by which all that went before it has come; no event, so that the ledger is as it was.
        sink.write(b"\0\0\0\x10" + b'{"event":"last"}')
        until(lambda: b'{"event":"last"}' in self.receiver.payloads)
        events = [json.loads(payload) for payload in self.receiver.payloads]
        return [event for event in events if event["event"] != "last"]


class TestUnixSocketSink(TestSocketSink):
    """A Unix socket."""

    def make_sink(self, **options):
        path = str(self.directory / str(len(list(self.directory.iterdir()))))
        self.receiver = self.stack.enter_context(Receiver(socket.AF_UNIX, path))
        return SocketSink(*self.receiver.target, **options)


class TestDatagramSink(SinkContract):
    """UDP."""

    @pytest.fixture(autouse=True)
    def _peers(self):
        with contextlib.ExitStack() as self.stack:
            yield

    def make_sink(self, **options):
        self.socket = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.bind(("127.0.0.1", 0))
        return DatagramSink(*self.socket.getsockname(), **options)

    def received(self, sink):
        # On loopback a datagram is there when it has been sent. Of very many some may find no room.
        self.socket.setblocking(False)
        events = []
        with contextlib.suppress(BlockingIOError):
            while True:
                events.append(json.loads(self.socket.recv(65_536)))
        return events if len(events) < 100 else None


# -- what is sent, and where to


def test_a_frame_is_a_length_and_json(receiver):
    """Four bytes, big-endian, and the event in UTF-8: on the hot path and on the other."""
    raw = Receiver()
    with SocketSink(*raw.target) as sink:
        assert sink.make_frame({"event": "ä"}) == struct.pack(">L", 14) + '{"event":"ä"}'.encode()
        sink.handle({"event": "ä"})
        sink.handle({"event": "ä"})
        sink.handle(_plain({"event": "ä"}))
        assert raw.wait(3) == ['{"event":"ä"}'.encode()] * 3
    raw.close()


def test_nothing_is_connected_before_the_first_event(receiver):
    """Making a sink costs nothing and cannot fail for want of a peer."""
    with SocketSink(*receiver.target) as sink:
        assert sink.sock is None
        sink.handle({"event": 1})
        assert sink.sock is not None
        _events(receiver, 1)
    assert sink.sock is None


@needs_ipv6
def test_ipv6():
    """An IPv6 address, and brackets around it in what is told."""
    with Receiver(socket.AF_INET6, ("::1", 0)) as receiver, SocketSink(*receiver.target) as sink:
        sink.handle({"event": "six"})
        assert _events(receiver, 1) == [{"event": "six"}]
        assert repr(sink) == f"<SocketSink to [::1]:{sink.port}>"


def test_all_addresses_of_a_name_are_tried(receiver, monkeypatch):
    """A name that leads to a dead address first costs nothing."""
    port = receiver.target[1]
    dead = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_port()))
    live = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [dead, live])
    with SocketSink("two.example", port) as sink:
        sink.handle({"event": 1})
        assert _events(receiver, 1) == [{"event": 1}]


def test_the_level_filters_on_the_hot_path(receiver):
    """With a level set the events below it are filtered, whatever way they take."""
    with SocketSink(*receiver.target, level="warning") as sink:
        sink.handle({"event": 0, "level": "error"})
        for event in ({"level": "info"}, {"level": "error"}, {"level": "info", "level_number": 50}, {}, {"level": 10}):
            sink.handle({"event": 1, **event})
        assert len(_events(receiver, 3)) == 3
        assert (sink.stats().delivered, sink.stats().filtered) == (3, 3)


def test_the_usual_event_takes_the_hot_path(receiver, monkeypatch):
    """From the second event on the pipeline is not asked, and what is odd takes it."""
    with SocketSink(*receiver.target) as sink:
        sink.handle({"event": 1})
        asked = []
        monkeypatch.setattr(sink, "deliver", asked.append)
        sink.handle({"event": 2})
        assert asked == []
        for odd in ({"exc_info": None}, {"_record": 1}, {"_logger": 1}, {"_name": "n"}, {"_from_structlog": 1}):
            sink.handle({"event": 3, **odd})
        assert len(asked) == 5
        sink.handle("text")
        sink.handle({"event": object()})
        assert len(asked) == 7


@pytest.mark.parametrize(
    "options",
    [
        {"codec": SignedFrames(KEY)},
        {"codec": PickleFrames()},
        {"renderer": OrjsonRenderer(sort_keys=True)},
        {"processors": [lambda logger, name, event: event]},
    ],
)
def test_the_hot_path_is_off_where_it_would_be_wrong(receiver, options, monkeypatch):
    """Another codec, renderer or a processor goes the whole way."""
    with SocketSink(*receiver.target, **options) as sink:
        sink.handle({"event": 1})
        asked = []
        monkeypatch.setattr(sink, "deliver", asked.append)
        sink.handle({"event": 2})
        assert len(asked) == 1
        sink.codec = JSONFrames()
        sink.renderer = OrjsonRenderer()
        sink.handle({"event": 3})
        assert len(asked) == (2 if "processors" in options else 1)


@pytest.mark.parametrize("hook", ["make_frame", "send", "emit", "write", "render", "deliver"])
def test_an_overridden_hook_is_used(receiver, hook):
    """Whatever a subclass overrides is called for each event."""
    calls = []

    def counted(self, *arguments):
        calls.append(arguments)
        return getattr(super(made, self), hook)(*arguments)

    made = type("Made", (SocketSink,), {hook: counted})
    with made(*receiver.target) as sink:
        sink.handle({"event": 1})
        sink.handle({"event": 2})
        assert _events(receiver, 2) == [{"event": 1}, {"event": 2}]
    assert len(calls) == 2


def test_make_socket_and_create_socket_can_be_overridden(receiver):
    """As with the handler, for another kind of connection or another policy."""
    calls = []

    class Made(SocketSink):
        def make_socket(self, timeout=None):
            calls.append("make")
            return socket.create_connection(receiver.target, timeout)

        def create_socket(self):
            calls.append("create")
            super().create_socket()

    with Made("nowhere.invalid", 9) as sink:
        sink.handle({"event": 1})
        sink.handle({"event": 2})
        assert len(_events(receiver, 2)) == 2
    assert calls == ["create", "make"]


def test_signed_frames_arrive_signed(receiver):
    """The receiver with the key reads them."""
    codec = SignedFrames(KEY)
    with SocketSink(*receiver.target, codec=codec) as sink:
        sink.handle({"event": "secret"})
        assert codec.decode(receiver.wait(1)[0]) == {"event": "secret"}


def test_a_batch_goes_by_one_send(receiver):
    """The system is called once for a batch on a stream, and once for each 64 KiB of a large one."""
    sent = []
    with SocketSink(*receiver.target) as sink:
        real = sink._push

        def push(data):
            sent.append(len(data))
            real(data)

        sink._push = push
        batch = [sink.encode({"event": number}) for number in range(1000)]
        assert sink.emit_batch(batch) is None
        assert len(sent) == 1
        large = [sink.encode({"event": number, "text": "x" * 1000}) for number in range(100)]
        assert sink.emit_batch(large) is None
        assert len(sent) == 3
        events = _events(receiver, 1100)
    assert [each["event"] for each in events] == [*range(1000), *range(100)]


ALL_KINDS = [
    {"event": "plain", "level": "info"},
    {"event": "gr\u00fc\u00df dich \x85", "level": "error", "n": 1.5},
    {"event": "long " + "x" * 3_000, "level": "info"},
    "text\nof two lines\r\n",
    b'{"event":"text that is JSON"}',
    b"bytes \xff\n",
]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("codec", [JSONFrames(), JSONLines(), SignedFrames(KEY)], ids=str)
@pytest.mark.parametrize("made", [SocketSink, DatagramSink])
def test_behind_a_thread_the_frames_are_the_same(made, codec, alike):
    """Whatever the events are: what is quick for a batch of usual ones makes no difference."""
    events = ALL_KINDS[:2] * 5 if alike else ALL_KINDS
    found = []
    for around in (lambda sink: sink, lambda sink: BackgroundSink(sink, linger=60)):
        with Datagrams() if made is DatagramSink else Stream() as there:
            target = made(*there.address, codec=codec, on_error="raise", **{f"max_{_LIMITED[made]}_bytes": 1_000})
            with around(target) as sink:
                for event in events:
                    sink.handle(event)
                assert sink.flush(60)
                assert sink.stats().delivered == len(events)
                if made is DatagramSink:
                    found.append([there.next() for _ in events])
            if made is SocketSink:
                found.append(there.whole())
    assert found[0] == found[1]


_LIMITED = {SocketSink: "frame", DatagramSink: "datagram"}


def test_lines_that_a_disk_has_kept_for_another_sink_stay_lines():
    """Whatever was between them then."""
    with Stream() as there, SocketSink(*there.address, codec=JSONLines(), on_error="raise") as sink:
        kept = [sink.restore_item(data, 20, 0.0) for data in (b'{"event":1}', b"two\nlines", b"a\rb")]
        assert sink.emit_batch(Batch(kept)) is None
        sink.close()
        assert there.whole() == b'{"event":1}\ntwo\\nlines\na\\rb\n'


def test_what_of_a_batch_has_gone_is_not_sent_again(receiver):
    """A batch whose second part cannot be sent is left for a retry from there on."""
    with SocketSink(*receiver.target) as sink:
        real, calls = sink._push, []

        def push(data):
            calls.append(len(data))
            if len(calls) == 2:
                raise TemporaryDeliveryError("no more", retry_after=7.0)
            real(data)

        sink._push = push
        batch = [sink.encode({"event": number, "text": "x" * 1000}) for number in range(100)]
        result = sink.emit_batch(batch)
        assert result.retry_after == 7.0
        assert sink.emit_batch([batch[index] for index in result.retry]) is None
        assert [each["event"] for each in _events(receiver, 100)] == list(range(100))


def test_of_a_batch_that_broke_the_rest_is_sent_from_the_first_frame_that_was_not_whole(receiver):
    """Over a new connection: what the system had taken whole is not sent twice, and the torn frame is sent whole."""
    with SocketSink(*receiver.target) as sink:
        real, pushed = sink._push, []

        def push(data):
            pushed.append(data)
            if len(pushed) == 1:
                # The system takes ten frames and a part of the next.
                cut = 10 * len(data) // 100 + 7
                real(data[:cut])
                sink._taken = cut
                raise ConnectionResetError(errno.ECONNRESET, "reset")
            real(data)

        sink._push = push
        batch = [sink.encode({"event": number}) for number in range(10, 110)]
        del batch[-10:]
        batch += [sink.encode({"event": number}) for number in range(10, 20)]
        assert sink.emit_batch(batch) is None
        events = sorted(event["event"] for event in _events(receiver, 100))
        assert events == sorted([*range(10, 100), *range(10, 20)])
        assert sink.stats().retried == 1
        until(lambda: any(receiver.endings))


def test_losses_before_a_batch_are_reported_and_never_raised_from_it(receiver, capfd):
    """A batch that raises would be sent again."""
    with SocketSink(*receiver.target, on_error="raise") as sink:
        sink._refused.append((PermanentDeliveryError("refused after 2 events"), 2))
        sink._aftermath = True
        assert sink.emit_batch([sink.encode({"event": 1})]) is None
        assert _events(receiver, 1) == [{"event": 1}]
        assert not sink._refused
    assert "refused after 2 events" in capfd.readouterr().err


def test_a_batch_that_broke_twice_is_left_for_a_retry_from_what_has_gone(receiver):
    """The index is that of the first frame that the system has not taken whole."""
    with SocketSink(*receiver.target) as sink:

        def push(data):
            sink._taken = 3 * len(sink._frame(sink.encode({"event": 10}).data)) + 1
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        sink._push = push
        result = sink.emit_batch([sink.encode({"event": number}) for number in range(10, 20)])
        assert list(result.retry) == list(range(6, 10))


def test_events_of_other_threads_wait_with_their_frame_made(receiver, monkeypatch):
    """Whoever finds another thread sending does not render again."""
    with SocketSink(*receiver.target) as sink:
        sink.handle({"event": 0})
        asked = []
        monkeypatch.setattr(sink, "deliver", asked.append)
        with sink._lock:
            thread = threading.Thread(target=sink.handle, args=({"event": 1},))
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
        thread.join(60)
        assert _events(receiver, 2)[1] == {"event": 1}
        assert (asked, sink.stats().delivered) == ([], 2)


@pytest.mark.parametrize("nodelay", [False, True])
def test_small_frames_wait_for_one_another_unless_told_otherwise(receiver, nodelay):
    """By Nagle's algorithm, whose switch is TCP_NODELAY."""
    with SocketSink(*receiver.target, nodelay=nodelay) as sink:
        sink.handle({"event": 1})
        assert bool(sink.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
    with SocketSink(*receiver.target) as usual:
        assert usual.nodelay is False


def test_a_batch_is_sent_frame_by_frame(receiver):
    """A batch's data is what the renderer made, so a spool of it is JSON; what cannot be sent is left for a retry."""
    with SocketSink(*receiver.target) as sink:
        batch = [sink.encode({"event": number}) for number in range(3)]
        assert batch[0].data == b'{"event":0}'
        assert sink.emit_batch(batch) is None
        assert _events(receiver, 3) == [{"event": number} for number in range(3)]
    with SocketSink("127.0.0.1", free_port()) as sink, pytest.raises(TemporaryDeliveryError) as raised:
        sink.emit_batch(batch)
    assert raised.value.retry_after == 1.0


# -- the standard library's receivers


class _CookbookHandler(socketserver.StreamRequestHandler):
    """Python's logging cookbook, "Sending and receiving logging events across a network"."""

    def handle(self):
        while True:
            chunk = self.connection.recv(4)
            if len(chunk) < 4:
                break
            length = struct.unpack(">L", chunk)[0]
            chunk = self.connection.recv(length)
            while len(chunk) < length:
                chunk += self.connection.recv(length - len(chunk))
            self.server.records.append(logging.makeLogRecord(pickle.loads(chunk)))


def test_a_socketserver_receiver_gets_records():
    """A receiver as in Python's logging cookbook receives, and makeLogRecord rebuilds the record."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _CookbookHandler) as server:
        server.daemon_threads = True
        server.records = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with SocketSink(*server.server_address, codec=PickleFrames()) as sink:
                try:
                    raise ValueError("broken")
                except ValueError:
                    sink.handle({"event": "100 %", "level": "error", "logger": "shop", "order": 17, "exc_info": True})
                sink.handle({"event": "x" * 300_000})
            until(lambda: len(server.records) == 2)
        finally:
            server.shutdown()
            thread.join()
    record, large = server.records
    assert (record.getMessage(), record.name, record.levelno, record.order) == ("100 %", "shop", 40, 17)
    assert record.args is None
    assert record.exc_info is None
    assert record.exc_text.endswith("ValueError: broken")
    assert len(large.getMessage()) == 300_000


def test_a_datagram_for_the_standard_library(datagrams):
    """With PickleFrames a datagram is what DatagramHandler sends, its length included."""
    with DatagramSink(*datagrams.getsockname(), codec=PickleFrames()) as sink:
        sink.handle({"event": "e", "level": "info"})
        data = datagrams.recv(65_536)
    assert struct.unpack(">L", data[:4])[0] == len(data) - 4
    assert logging.makeLogRecord(pickle.loads(data[4:])).getMessage() == "e"


# -- TLS


@pytest.fixture(scope="module")
def authority():
    """Give a certificate authority that nobody else trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority):
    """Give the TLS settings of a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority):
    """Give the TLS settings of a client that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls(server_context, client_context):
    """Events arrive encrypted, one after the other, and the connection ends in order."""
    with Receiver(context=server_context) as receiver:
        with SocketSink(*receiver.target, tls=client_context) as sink:
            for number in range(50):
                sink.handle({"event": number, "text": "x" * 20_000})
            assert [event["event"] for event in _events(receiver, 50)] == list(range(50))
            assert isinstance(sink.sock, ssl.SSLSocket)
        until(lambda: receiver.endings == [b""])
    assert sink.stats().retried == 0


def test_tls_with_a_client_certificate(authority, client_context):
    """A server that asks for the client's certificate gets it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("shop@example.org").configure_cert(client_context)
    with Receiver(context=context) as receiver, SocketSink(*receiver.target, tls=client_context) as sink:
        sink.handle({"event": 1})
        assert _events(receiver, 1) == [{"event": 1}]
        assert receiver.certificates[0]["subjectAltName"] == (("email", "shop@example.org"),)


def _strict(authority):
    """Return what a server encrypts with that takes no client but those with a certificate of an authority unknown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    trustme.CA().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _make_syslog(target, **options):
    return SysLogSink(target, **options)


def _make_socket(target, **options):
    return SocketSink(*target, **options)


class _Relay:
    """A way to *far* on which what the server says after its handshake waits until it is let through."""

    def __init__(self, far) -> None:
        self.through = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._far = far
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self):
        with self._listener.accept()[0] as near, socket.create_connection(self._far) as far:
            answers = threading.Thread(target=self._pump, args=(far, near, True))
            answers.start()
            self._pump(near, far, False)
            answers.join(60)

    def _pump(self, source, target, held):
        with contextlib.suppress(OSError):
            # The record with which a server's handshake of TLS 1.3 ends is in what it sends first.
            first = True
            while data := source.recv(65_536):
                if held and not first:
                    self.through.wait(60)
                first = False
                target.sendall(data)
            if held:
                self.through.wait(60)
            target.shutdown(socket.SHUT_WR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.through.set()
        self._listener.close()
        self._threads[0].join(60)


REFUSED = r"(?i)certificate|alert|unknown.ca"


@pytest.mark.parametrize("make", [_make_socket, _make_syslog])
@pytest.mark.parametrize("certificate", ["none", "of another authority"])
def test_a_refused_client_certificate_loses_no_event_in_silence(authority, client_context, make, certificate):
    """With TLS 1.3 the server refuses after the handshake: that is waited for before the first event is sent."""
    if certificate != "none":
        trustme.CA().issue_cert("shop@example.org").configure_cert(client_context)
    failures = []
    with (
        Receiver(context=_strict(authority)) as receiver,
        make(receiver.target, tls=client_context, timeout=10, on_error=failures.append) as sink,
    ):
        sink.handle({"event": 1})
        sink.handle({"event": 2})
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (0, {"error": 1, "backoff": 1})
    assert type(failures[0].error) is PausedDeliveryError
    assert re.search(REFUSED, str(failures[0].error))
    assert "check tls" in str(failures[0].error)


@pytest.mark.parametrize("make", [_make_socket, _make_syslog])
def test_behind_a_thread_a_refused_certificate_keeps_the_events(authority, client_context, make):
    """Nothing is called delivered; the report says why."""
    failures = []
    told = threading.Event()

    def tell(failure):
        failures.append(failure)
        told.set()

    with Receiver(context=_strict(authority)) as receiver:
        sink = BackgroundSink(make(receiver.target, tls=client_context, timeout=10), on_error=tell)
        sink.handle({"event": 1})
        assert told.wait(60)
        assert (sink.stats().delivered, sink.stats().pending) == (0, 1)
        sink.close(0)
    assert re.search(REFUSED, str(failures[0].error))


@pytest.mark.parametrize("make", [_make_socket, _make_syslog])
@pytest.mark.parametrize("ending", ["before close", "during close", "before the next event"])
def test_a_refusal_that_comes_late_is_counted_and_told(authority, client_context, monkeypatch, make, ending):
    """What went to a server that had not said yet that it takes the client is lost, once it says that it does not."""
    failures = []
    with (
        Receiver(context=_strict(authority)) as receiver,
        _Relay(receiver.target) as relay,
        make(relay.address, tls=client_context, timeout=60, on_error=failures.append) as sink,
    ):
        sink.handle({"event": 1})
        sink.handle({"event": 2})
        assert sink.stats().delivered == 2
        if ending == "during close":
            # The last that close does is to wait for what the server says.
            wait = sink._await_end

            def wait_and_let_through(sock):
                relay.through.set()
                wait(sock)

            monkeypatch.setattr(sink, "_await_end", wait_and_let_through)
        else:
            relay.through.set()
            assert await_socket(sink.sock, 60, for_reading=True)
        lost = 2
        if ending == "before the next event":
            sink.timeout = 0.2  # nobody takes a second connection
            sink.handle({"event": 3})
            lost = 3
        else:
            assert sink.close(60) is False
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (0, {"error": lost})
    assert sum(failure.events for failure in failures) == lost
    assert any("after 2 events" in str(failure.error) for failure in failures)
    assert any(re.search(REFUSED, str(failure.error)) for failure in failures)


def test_a_tls_server_that_says_nothing_after_the_handshake_is_not_waited_for_long(server_context, client_context):
    """As one without session tickets: it gets its events all the same."""
    server_context.num_tickets = 0
    with Receiver(context=server_context) as receiver:
        with SocketSink(*receiver.target, tls=client_context, timeout=60) as sink:
            began = time.monotonic()
            sink.handle({"event": 1})
            assert time.monotonic() - began < 30
            assert _events(receiver, 1) == [{"event": 1}]
        assert sink.stats().delivered == 1
    server_context.num_tickets = 2


def test_a_certificate_that_is_not_trusted_is_an_error(server_context):
    """tls=True trusts what the system trusts, which this authority is not; nothing is sent unencrypted."""
    failures = []
    with Receiver(context=server_context) as receiver:
        with SocketSink(*receiver.target, tls=True, on_error=failures.append, timeout=5) as sink:
            sink.handle({"event": 1})
        assert sink.stats().dropped == {"error": 1}
        assert "CERTIFICATE_VERIFY_FAILED" in str(failures[0].error)
        assert receiver.payloads == []


def test_tls_notices_a_restart(server_context, client_context):
    """Session tickets that wait unread are no reason to connect anew, a close is."""
    with Receiver(context=server_context) as receiver:
        with SocketSink(*receiver.target, tls=client_context) as sink:
            sink.handle({"event": 1})
            receiver.wait(1)
            sink.handle({"event": 2})
            receiver.wait(2)
            assert len(receiver.connections) == 1
            receiver.hang_up()
            until(sink._has_ended)
            sink.handle({"event": 3})
            assert _events(receiver, 3)[2] == {"event": 3}
        assert sink.stats().dropped == {}


@pytest.mark.parametrize("ending", ["close", "drain"])
def test_a_tls_server_may_take_its_time(server_context, client_context, ending):
    """One that finishes its handshake, and sends session tickets, after the client has said all gets all of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = SocketSink(*server.getsockname(), tls=client_context, timeout=10, on_error="raise")

        def log():
            sink.handle({"event": "x" * 100_000})
            getattr(sink, ending)(10)

        client = threading.Thread(target=log)
        client.start()
        accepted, _ = server.accept()
        with server_context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as made:
            made.setblocking(False)
            answered = False
            while not answered:
                # Done for now when the client's first message has been answered.
                select.select([made], [], [], 10)
                with contextlib.suppress(ssl.SSLWantReadError):
                    made.do_handshake()
                answered = made.version() is not None
            until(lambda: sink.stats().delivered == 1)
            client.join(0.05)  # without waiting for the server it would be gone by now
            made.settimeout(60)
            made.do_handshake()
            received = b""
            while chunk := made.recv(65_536):
                received += chunk
        client.join(60)
        assert len(received) == 100_016
        assert sink.sock is None
        assert sink.closed is (ending == "close")
        sink.close()


def test_close_does_not_wait_for_a_tls_peer_for_ever(server_context, client_context):
    """One that does not end the connection costs the timeout of close."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            accepted, _ = server.accept()
            connections.append(server_context.wrap_socket(accepted, server_side=True))

        thread = threading.Thread(target=serve)
        thread.start()
        sink = SocketSink(*server.getsockname(), tls=client_context, timeout=PATIENCE_SECONDS)
        sink.handle({"event": 1})
        thread.join(60)
        began = time.monotonic()
        assert sink.close(0.1)
        assert 0.05 < time.monotonic() - began < PATIENCE_SECONDS / 2
        connections[0].close()


# -- peers that misbehave


@pytest.mark.parametrize("odd", [False, True])
def test_the_first_event_after_a_restart_is_not_lost(odd):
    """A connection that the peer has closed is noticed before the send: the classic lost first event."""
    make = _plain if odd else dict
    first = Receiver()
    port = first.target[1]
    with SocketSink("127.0.0.1", port) as sink:
        sink.handle({"event": 1})
        first.wait(1)
        first.close()
        with Receiver(address=("127.0.0.1", port)) as second:
            sink.handle(make({"event": 2}))
            sink.handle(make({"event": 3}))
            assert _events(second, 2) == [{"event": 2}, {"event": 3}]
    assert sink.stats().delivered == 3
    assert sink.stats().retried == 0


def test_an_event_whose_send_fails_is_sent_once_more():
    """A broken connection that shows in the send alone: the same event goes over a new one, and that is counted."""
    with socket.create_server(("127.0.0.1", 0)) as server, SocketSink(*server.getsockname(), timeout=10) as sink:
        sink.handle({"event": 1})
        first, _ = server.accept()
        sink.sock.shutdown(socket.SHUT_WR)  # EPIPE at the next send, and nothing to read
        sink.handle({"event": 2})
        second, _ = server.accept()
        with first, second:
            assert second.recv(100) == b'\0\0\0\x0b{"event":2}'
        assert (sink.stats().delivered, sink.stats().retried) == (2, 1)


def test_an_event_that_fails_twice_is_lost_and_told(receiver):
    """Once more, and not for ever."""
    failures = []

    class Broken(SocketSink):
        def make_socket(self, timeout=None):
            made = super().make_socket(timeout)
            made.shutdown(socket.SHUT_WR)
            return made

    with Broken(*receiver.target, on_error=failures.append) as sink:
        sink.handle({"event": "never", "password": "hunter22"})
        assert (sink.stats().dropped, sink.stats().retried) == ({"error": 1}, 1)
        assert len(receiver.connections) <= 2
        assert sink.sock is None
    assert isinstance(failures[0].error, TemporaryDeliveryError)
    assert "broke twice" in str(failures[0].error)
    assert_balanced(sink.stats())


def test_a_peer_that_never_reads_costs_the_timeout_and_not_more():
    """The frame that does not fit is sent over a new connection; the torn one is closed, so no frame follows it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        options = {"timeout": PATIENCE_SECONDS, "max_frame_bytes": LARGE, "on_error": lambda failure: None}
        with SocketSink(*server.getsockname(), **options) as sink:
            sink.handle({"event": 0})
            first, _ = server.accept()
            sink.timeout = 0.1
            sink.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            began = time.monotonic()
            sink.handle({"event": "x" * 30_000_000})
            assert time.monotonic() - began < PATIENCE_SECONDS / 2
            assert sink.stats().retried == 1
            assert sink.stats().dropped == {"error": 1}
            assert sink.sock is None
            first.close()


def test_a_slow_peer_gets_whole_frames(receiver):
    """A frame that goes in parts arrives whole, on either path."""
    with SocketSink(*receiver.target, timeout=30, max_frame_bytes=LARGE) as sink:
        for number in range(4):
            sink.handle({"event": "x" * 9_000_000, "number": number})
            sink.handle(_plain({"event": "x" * 9_000_000, "number": number}))
        assert [event["number"] for event in _events(receiver, 8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sink.stats().retried == 0


def test_a_peer_that_resets_in_the_midst_of_a_frame(receiver):
    """The rest goes nowhere; the whole frame is sent again over a new connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        received = []

        def serve():
            made, _ = server.accept()
            made.recv(4096)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.close()
            made, _ = server.accept()
            with made, made.makefile("rb") as stream:
                received.append(stream.read(struct.unpack(">L", stream.read(4))[0]))

        thread = threading.Thread(target=serve)
        thread.start()
        with SocketSink(*server.getsockname(), timeout=10, max_frame_bytes=LARGE) as sink:
            sink.handle({"event": "x" * 20_000_000})
            thread.join(60)
    assert len(received[0]) == 20_000_012
    assert (sink.stats().delivered, sink.stats().retried) == (1, 1)


def test_a_peer_that_comes_up_late():
    """What comes before it is counted; the attempts are as far apart as said, and nobody waits in between."""
    clock = Clock()
    failures = []
    port = free_port()
    sink = SocketSink("127.0.0.1", port, clock=clock, on_error=failures.append, retry_max=3.0)
    periods = []
    for _ in range(4):
        sink.handle({"event": "lost"})
        periods.append(sink.retry_period)
        clock.now += sink.retry_period - 0.001
        sink.handle({"event": "lost too"})
        clock.now += 0.002
    assert periods == [1.0, 2.0, 3.0, 3.0]
    assert sink.stats().dropped == {"error": 4, "backoff": 4}
    # Each attempt is told, with what was lost since the one before.
    assert [(failure.events, failure.suppressed) for failure in failures] == [(1, 0), (2, 1), (2, 1), (2, 1)]
    assert f"no connection to 127.0.0.1:{port}" in str(failures[0].error)
    assert "ConnectionRefusedError" in str(failures[0].error)
    with Receiver(address=("127.0.0.1", port)) as receiver:
        sink.handle({"event": "found"})
        assert _events(receiver, 1) == [{"event": "found"}]
        assert [failure.events for failure in failures] == [1, 2, 2, 2, 1]
        assert sink.close()
    assert sum(failure.events for failure in failures) == sum(sink.stats().dropped.values())
    assert_balanced(sink.stats())


def test_what_was_dropped_at_last_is_told_at_close():
    """No loss is silent, even if no connection is ever made."""
    failures = []
    sink = SocketSink("127.0.0.1", free_port(), on_error=failures.append)
    for _ in range(5):
        sink.handle({"event": 1})
    assert [failure.events for failure in failures] == [1]
    assert sink.close()
    assert sink.close()
    assert [(failure.events, failure.suppressed) for failure in failures] == [(1, 0), (4, 3)]


def test_a_wait_raises_where_it_is_asked_for():
    """deliver tells wrappers how long to wait, and on_error="raise" hides nothing."""
    sink = SocketSink("127.0.0.1", free_port(), on_error="raise", clock=Clock())
    with pytest.raises(TemporaryDeliveryError, match="refused"):
        sink.handle({"event": 1})
    with pytest.raises(TemporaryDeliveryError, match=r"due in 1\.0 s") as raised:
        sink.handle({"event": 2})
    assert raised.value.retry_after == 1.0
    with pytest.raises(TemporaryDeliveryError):
        sink.deliver({"event": 3})
    assert sink.stats().dropped == {"error": 1, "backoff": 2}


def test_a_peer_that_closes_at_once_is_not_called_for_each_event():
    """Two short-lived connections are forgiven; then it is treated like one that cannot be reached."""
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = []

        def serve():
            while True:
                try:
                    made, _ = server.accept()
                except OSError:
                    return
                accepted.append(1)
                made.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        sink = SocketSink(*server.getsockname(), clock=clock, on_error=lambda failure: None)
        for number in range(10):
            sink.handle({"event": number})
            until(lambda: sink.sock is None or sink._has_ended())
        assert len(accepted) == 3
        assert sink.stats().dropped["backoff"] == 7
        clock.now += 1.0
        sink.handle({"event": "again"})
        until(lambda: len(accepted) == 4)
        sink.close()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def test_a_connection_that_lasted_is_forgiven_at_once(receiver):
    """However often a server is restarted, if it is up for longer than retry_start."""
    clock = Clock()
    with SocketSink(*receiver.target, clock=clock) as sink:
        for number in range(1, 8):
            sink.handle({"event": number})
            receiver.wait(number)
            clock.now += 1.0
            receiver.hang_up()
            until(sink._has_ended)
        assert sink.stats().dropped == {}


def test_what_a_peer_says_is_thrown_away(receiver):
    """A chatty peer neither breaks the connection nor fills up memory."""
    with SocketSink(*receiver.target) as sink:
        sink.handle({"event": 1})
        receiver.wait(1)
        receiver.connections[0].sendall(b"hello" * 1000)
        until(lambda: sink._poll(0))
        sink._look_due = 0.0
        sink.handle({"event": 2})
        receiver.wait(2)
        assert len(receiver.connections) == 1
        assert not sink._poll(0)


def test_what_a_peer_says_last_does_not_cost_it_what_it_has_not_read():
    """Unread at close, it would make the system reset the connection and forget what is not transmitted yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        with SocketSink(*server.getsockname(), timeout=10, on_error="raise") as sink:
            sink.handle({"event": "x" * 200_000})
            made, _ = server.accept()
            made.sendall(b"bye")
            until(lambda: sink._poll(0))
        with made, made.makefile("rb") as stream:
            assert len(stream.read()) == 200_016


def test_without_poll_select_does(receiver, monkeypatch):
    """Windows has no poll; the hot path is off there, and everything works."""
    for module in (connection, peer):
        monkeypatch.setattr(module, "POLL", None)
    with SocketSink(*receiver.target, timeout=30, max_frame_bytes=LARGE) as sink:
        for number in range(3):
            sink.handle({"event": "x" * 5_000_000, "number": number})
        receiver.wait(3)
        receiver.hang_up()
        until(sink._has_ended)
        sink.handle({"event": 4})
        assert len(_events(receiver, 4)) == 4


# -- threads, signals, forks, the end


def test_threads_tear_no_frame(receiver):
    """Eight threads on both paths: each event arrives once and whole."""

    def log(thread):
        for number in range(500):
            event = {"event": "x" * (number % 50), "thread": thread, "number": number}
            sink.handle(_plain(event) if number % 7 == 0 else event)

    with SocketSink(*receiver.target) as sink:
        threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = _events(receiver, 4000)
    assert len({(event["thread"], event["number"]) for event in events}) == 4000
    for thread in range(8):
        assert [event["number"] for event in events if event["thread"] == thread] == list(range(500))


@pytest.mark.parametrize("odd", [False, True])
def test_an_event_from_a_signal_handler_comes_after_the_frame_it_interrupts(odd):
    """While a large frame waits for its reader, a signal handler logs: no frame lands within another."""
    make = _plain if odd else dict
    server = socket.create_server(("127.0.0.1", 0))
    with SocketSink(*server.getsockname(), timeout=30, max_frame_bytes=LARGE) as sink:
        sink.handle(make({"event": "first"}))
        made, _ = server.accept()
        before = signal.signal(signal.SIGUSR1, lambda *_: sink.handle({"event": "from the handler"}))
        payloads = []

        def read():
            # Nothing is read until the frame is stuck and the signal has come.
            until(lambda: sink._lock.depth or not sink._turn)
            time.sleep(0.03)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.03)
            with made.makefile("rb") as stream:
                while len(payloads) < 3:
                    payloads.append(stream.read(struct.unpack(">L", stream.read(4))[0]))

        thread = threading.Thread(target=read)
        try:
            thread.start()
            sink.handle(make({"event": "x" * 30_000_000}))
            thread.join(30)
        finally:
            signal.signal(signal.SIGUSR1, before)
            made.close()
            server.close()
        assert [len(payload) for payload in payloads] == [17, 30_000_012, 28]
        assert (sink.stats().delivered, sink.stats().retried) == (3, 0)


def test_an_event_from_a_signal_handler_that_cannot_be_sent_is_counted(receiver):
    """It was taken when it came, so the ledger is put right."""
    failures = []

    class Interrupted(SocketSink):
        nested = False

        def send(self, data):
            if not self.nested:
                self.nested = True
                self.handle({"event": "nested"})
            elif b"nested" in data:
                raise PermanentDeliveryError("refused")
            super().send(data)

    with Interrupted(*receiver.target, on_error=failures.append) as sink:
        sink.handle({"event": "outer"})
        assert _events(receiver, 1) == [{"event": "outer"}]
        assert (sink.stats().delivered, sink.stats().dropped) == (1, {"error": 1})
        assert sum(failure.events for failure in failures) == 1
        assert_balanced(sink.stats())


@pytest.mark.parametrize("odd", [False, True])
def test_an_interrupted_send_leaves_no_half_frame(receiver, odd):
    """After a KeyboardInterrupt nobody knows how much has gone, so the connection is closed."""
    make = _plain if odd else dict
    with SocketSink(*receiver.target) as sink:
        sink.handle({"event": 1})

        class Interrupting:
            def __init__(self, sock):
                self.sock = sock

            def send(self, data):
                self.sock.send(data[:5])
                raise KeyboardInterrupt

            def __getattr__(self, name):
                return getattr(self.sock, name)

        sink.sock = Interrupting(sink.sock)
        sink._send = sink.sock.send
        with pytest.raises(KeyboardInterrupt):
            sink.handle(make({"event": 2}))
        assert sink.sock is None
        sink.handle(make({"event": 3}))
        assert sorted(event["event"] for event in _events(receiver, 2)) == [1, 3]
        assert sink.stats().dropped == {"interrupted": 1}
        assert_balanced(sink.stats())


@pytest.mark.parametrize("tls", [False, True])
def test_a_forked_child_opens_its_own_connection(tls, server_context, client_context):
    """Nothing of the parent's connection is used or shut down by the child, encrypted or not."""
    context = server_context if tls else None
    with Receiver(context=context) as receiver:
        with SocketSink(*receiver.target, tls=client_context if tls else None, timeout=10) as sink:
            sink.handle({"event": "parent"})
            receiver.wait(1)

            def child():
                assert sink.sock is None
                assert sink.stats().accepted == 0
                sink.handle({"event": "child"})
                assert sink.stats().delivered == 1
                assert sink.close()

            in_fork(child)
            until(lambda: receiver.endings == [b""])  # the child's alone
            sink.handle({"event": "parent again"})
            assert len(_events(receiver, 3)) == 3
            assert len(receiver.connections) == 2
            assert sink.stats().retried == 0
        until(lambda: receiver.endings == [b"", b""])


_FORKED_IN_C = """
    import ctypes, os, sys
    from outfall import DatagramSink, SocketSink, SysLogSink

    kind, port = sys.argv[1], int(sys.argv[2])
    sink = {
        "frames": lambda: SocketSink("127.0.0.1", port, timeout=30, on_error="raise"),
        "datagrams": lambda: DatagramSink("127.0.0.1", port, on_error="raise"),
        "syslog": lambda: SysLogSink(("127.0.0.1", port), socktype=1, timeout=30, on_error="raise"),
    }[kind]()
    for number in range(2):
        sink.handle({"event": "parent", "level": "info"})
    connection = sink.sock.getsockname()
    for child in range(2):
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            sink.handle({"event": "child", "level": "info"})
            fine = sink.sock.getsockname() != connection and sink.stats().accepted == 1
            os._exit(0 if sink.close() and fine else 1)
        assert os.waitpid(pid, 0)[1] == 0
    sink.handle({"event": "parent", "level": "info"})
    assert sink.sock.getsockname() == connection and sink.stats().accepted == 3
    assert sink.close()
"""


@pytest.mark.parametrize("kind", ["frames", "datagrams", "syslog"])
def test_a_child_that_was_forked_in_c_opens_its_own_connection(kind):
    """As uWSGI forks its workers, which tells Python nothing."""
    with (Datagrams if kind == "datagrams" else Stream)() as peer:
        assert start(_FORKED_IN_C, kind, peer.address[1]).wait(60) == 0
        if kind == "datagrams":
            received = b"".join(peer.so_far())
        else:
            received = peer.whole(connections=3)
            assert len(peer.connections) == 3
    assert (received.count(b"parent"), received.count(b"child")) == (3, 2)


def test_a_child_forked_while_connecting_holds_nothing(monkeypatch):
    """A connection that another thread of the parent is making is not kept open by the child."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = SocketSink(*server.getsockname())
        sink._candidate = held = socket.create_connection(server.getsockname())
        made, _ = server.accept()
        descriptor = held.fileno()

        def child():
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)

        in_fork(child)
        made.setblocking(False)
        with pytest.raises(BlockingIOError):
            made.recv(1)
        held.close()
        made.close()


@pytest.mark.parametrize("kind", ["frames", "datagrams"])
@pytest.mark.parametrize("other", ["nothing", "a file", "a socket"])
def test_a_socket_that_somebody_else_closed_is_noticed(receiver, datagrams, tmp_path, kind, other):
    """And what has its number by now is neither written to nor closed; the sink opens its own again."""
    target = receiver.target if kind == "frames" else datagrams.getsockname()
    make = SocketSink if kind == "frames" else DatagramSink
    theirs, reader = socket.socketpair(type=socket.SOCK_STREAM if kind == "frames" else socket.SOCK_DGRAM)
    path = tmp_path / "file"
    with theirs, reader, path.open("wb") as file, make(*target, timeout=10, on_error="raise") as sink:
        sink.handle({"event": 1})
        if kind == "frames":
            receiver.wait(1)
        number = sink.sock.fileno()
        if other == "nothing":
            os.close(number)
        else:
            os.dup2(file.fileno() if other == "a file" else theirs.fileno(), number)
        # A second later, or 255 datagrams.
        sink._look_due = sink._check_due = 0.0
        sink._ledger.delivered += 255
        sink.handle({"event": 2})
        sink.handle({"event": 3})
        if kind == "frames":
            assert [event["event"] for event in _events(receiver, 3)] == [1, 2, 3]
        else:
            assert [_datagram(datagrams)["event"] for _ in range(3)] == [1, 2, 3]
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (258, {})
        if other != "nothing":
            os.fstat(number)
            os.close(number)
            reader.settimeout(0)
            with pytest.raises(BlockingIOError):
                reader.recv(100)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("odd", [False, True])
def test_close_during_a_send_keeps_its_deadline(reads, odd):
    """A send in progress is given up, and its connection is closed by the thread that sends, however it ends."""
    event = {"event": "x" * 30_000_000}
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = {"timeout": PATIENCE_SECONDS, "max_frame_bytes": LARGE, "on_error": lambda failure: None}
        sink = SocketSink(*server.getsockname(), **options)
        sink.handle({"event": 1})
        made, _ = server.accept()
        thread = threading.Thread(target=sink.handle, args=(_plain(event) if odd else event,))
        thread.start()
        until(lambda: not sink._turn)
        began = time.monotonic()
        assert not sink.flush(0.01)
        assert not sink.close(0.02)
        assert time.monotonic() - began < PATIENCE_SECONDS / 2
        server.close()  # so that it cannot be sent once more
        with made:
            if reads:
                with made.makefile("rb") as stream:
                    assert len(stream.read(30_000_000)) == 30_000_000
        thread.join(60)
        assert sink.sock is None
        assert sink.stats().delivered == (2 if reads else 1)
        assert_balanced(sink.stats())


def test_after_close_nothing_connects(receiver):
    """It is counted as closed."""
    sink = SocketSink(*receiver.target, on_error="raise")
    sink.close()
    with pytest.raises(SinkClosedError):
        sink.handle({"event": 1})
    assert receiver.connections == []


def test_a_sink_nobody_holds_closes_its_connection(receiver):
    """Without a warning about a socket that was not closed."""
    sink = SocketSink(*receiver.target)
    sink.handle({"event": 1})
    receiver.wait(1)
    del sink
    until(lambda: receiver.endings == [b""])


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"port": 0}, ValueError),
        ({"port": 65_536}, ValueError),
        ({"port": "514"}, ValueError),
        ({"port": True}, ValueError),
        ({"host": 17}, TypeError),
        ({"host": ""}, ValueError),
        ({"host": "logs.example.org:9020"}, ValueError),
        ({"host": "[::1]:9020"}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"retry_start": None}, ValueError),
        ({"retry_max": "long"}, ValueError),
        ({"retry_factor": 0.5}, ValueError),
        ({"retry_factor": True}, ValueError),
        ({"codec": JSONFrames}, TypeError),
        ({"codec": "json"}, TypeError),
        ({"clock": 17}, TypeError),
    ],
)
@pytest.mark.parametrize("kind", [SocketSink, DatagramSink])
def test_what_makes_no_sense_is_refused(kind, arguments, error):
    """The message names the argument and the value."""
    [(name, value)] = arguments.items()
    with pytest.raises(error) as raised:
        kind(**{"host": "localhost", "port": 9, **arguments})
    assert f"{name}={value!r}" in str(raised.value)


@pytest.mark.parametrize(
    ("tls", "port", "error"), [("yes", 9, TypeError), (False, 9, TypeError), (True, None, ValueError)]
)
def test_tls_that_makes_no_sense_is_refused(tls, port, error):
    """False is not a way to say None, and a Unix socket is not encrypted."""
    with pytest.raises(error, match=f"tls={tls!r}"):
        SocketSink("localhost", port, tls=tls)


def test_times_may_be_timedeltas():
    """All of them."""
    import datetime as dt

    sink = SocketSink("h", 9, timeout=dt.timedelta(seconds=2), retry_start=dt.timedelta(minutes=1), retry_max=90)
    assert (sink.timeout, sink.retry_start, sink.retry_max, sink.retry_factor) == (2.0, 60.0, 90, 2.0)
    assert sink.address == ("h", 9)


# -- datagrams


def _datagram(receiver):
    return json.loads(receiver.recv(65_536))


def test_a_datagram_is_json_and_nothing_else(datagrams):
    """On both paths, without a length."""
    with DatagramSink(*datagrams.getsockname(), level="info") as sink:
        sink.handle({"event": 1, "level": "info"})
        sink.handle({"event": 2, "level": "info"})
        sink.handle({"event": "no", "level": "debug"})
        sink.handle({"event": "no", "level": "info", "level_number": 10})
        sink.handle(_plain({"event": 3}))
        assert [datagrams.recv(100) for _ in range(3)] == [
            b'{"event":1,"level":"info"}',
            b'{"event":2,"level":"info"}',
            b'{"event":3}',
        ]
        assert (sink.stats().delivered, sink.stats().filtered) == (3, 2)


def test_the_usual_datagram_takes_the_hot_path(datagrams, monkeypatch):
    """From the second event on."""
    with DatagramSink(*datagrams.getsockname()) as sink:
        sink.handle({"event": 1})
        monkeypatch.setattr(sink, "deliver", pytest.fail)
        sink.handle({"event": 2})
        assert sink.stats().delivered == 2


@needs_ipv6
def test_datagrams_over_ipv6():
    """An IPv6 address works, which DatagramHandler does not know."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("::1", 0))
        receiver.settimeout(60)
        with DatagramSink("::1", receiver.getsockname()[1]) as sink:
            sink.handle({"event": "six"})
            assert _datagram(receiver) == {"event": "six"}


def test_unix_datagrams_and_a_reader_that_is_replaced(tmp_path):
    """The event at which a new reader shows is sent to it; one that is gone is an error, then a wait."""
    path = tmp_path / "socket"
    clock = Clock()
    sink = DatagramSink(path, None, clock=clock, on_error=lambda failure: None)
    for number in (1, 2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            receiver.settimeout(60)
            sink.handle({"event": number})
            assert _datagram(receiver) == {"event": number}
        path.unlink()
    assert sink.stats().retried == 1
    for _ in range(3):
        sink.handle({"event": "lost"})
    assert sink.stats().dropped == {"error": 1, "backoff": 2}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(60)
        clock.now += 1.0
        sink.handle({"event": "back"})
        assert _datagram(receiver) == {"event": "back"}
    sink.close()


def test_a_reader_that_does_not_read_costs_one_timeout(tmp_path):
    """A Unix socket fills up: the event at which it does waits, those after it do not."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        sink = DatagramSink(path, None, timeout=0.05, on_error=lambda failure: None)
        began = time.monotonic()
        for _ in range(2000):
            sink.handle({"event": "x" * 400})
        assert time.monotonic() - began < PATIENCE_SECONDS / 2
        stats = sink.stats()
        assert stats.delivered > 0
        assert stats.dropped["error"] >= 1
        assert stats.dropped["backoff"] > 500
        assert stats.retried == 0
        sink.close()
        assert_balanced(sink.stats())


def test_room_that_is_made_in_time_is_used(tmp_path):
    """The event waits for the reader."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(60)
        with DatagramSink(path, None, timeout=30, on_error="raise") as sink:
            received = []
            thread = threading.Thread(target=lambda: [received.append(receiver.recv(1000)) for _ in range(1000)])
            thread.start()
            for _ in range(1000):
                sink.handle({"event": "x" * 400})
            thread.join(30)
    assert len(received) == 1000


def test_a_port_nobody_listens_on_is_no_error_for_the_next_event():
    """A refusal is about an earlier datagram; this one is sent on a new socket, to a name that is resolved anew."""
    port = free_port()
    with DatagramSink("127.0.0.1", port) as sink:
        sink.handle({"event": "into the void"})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", port))
            receiver.settimeout(60)
            sink.handle({"event": "heard"})
            assert _datagram(receiver) == {"event": "heard"}
        assert sink.stats().dropped == {}


def test_a_refusal_leads_to_the_next_address(datagrams, monkeypatch):
    """A name whose first address nobody listens at costs one event, and is not gone back to."""
    port = datagrams.getsockname()[1]
    dead = (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", free_port()))
    live = (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [dead, live])
    with DatagramSink("two.example", port) as sink:
        sink.handle({"event": "lost"})
        for number in range(3):
            sink.handle({"event": number})
            assert _datagram(datagrams) == {"event": number}
        assert sink.stats().retried == 1


def test_the_name_is_resolved_once_and_again_after_a_failure(datagrams, monkeypatch):
    """A lookup for each event is what makes DatagramHandler slow."""
    calls = []
    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: calls.append(a[:2]) or original(*a))
    with DatagramSink("127.0.0.1", datagrams.getsockname()[1]) as sink:
        for _ in range(5):
            sink.handle({"event": 1})
        assert len(calls) == 1
        sink.sock.close()
        sink.handle({"event": 2})
        assert len(calls) == 2
        assert sink.stats().delivered == 6


def test_a_name_that_does_not_resolve_is_asked_for_again_later(monkeypatch):
    """And not for each event: a resolver may take seconds to fail."""
    calls = []

    def fail(*_):
        calls.append(1)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    clock = Clock()
    with DatagramSink("nowhere.invalid", 9, clock=clock, on_error=lambda failure: None) as sink:
        for _ in range(5):
            sink.handle({"event": 1})
        clock.now += 1
        sink.handle({"event": 1})
        assert len(calls) == 2
        assert sink.stats().dropped == {"error": 2, "backoff": 4}


def test_an_oversize_event_arrives_shortened_and_valid(datagrams):
    """An event over the limit is cut to fit, marked, and still parses; short fields stay as they are."""
    event = {
        "event": "e",
        "level": "info",
        "body": "ä" * 20_000,
        "note": "n" * 9_000,
        "n": 1,
        "nested": {"t": "é" * 99},
    }
    with DatagramSink(*datagrams.getsockname(), max_datagram_bytes=2000) as sink:
        sink.handle(event)
        data = datagrams.recv(65_536)
        assert sink.emit_batch([sink.encode(event)]) is None
        assert datagrams.recv(65_536) == data
    assert 1990 <= len(data) <= 2000
    got = json.loads(data)
    assert got.pop("truncated") is True
    body, note = got.pop("body"), got.pop("note")
    assert event["body"].startswith(body)
    assert event["note"].startswith(note)
    assert len(body) == len(note) > 500
    assert got == {"event": "e", "level": "info", "n": 1, "nested": {"t": "é" * 99}}
    assert len(event["body"]) == 20_000


@pytest.mark.parametrize("codec", [JSONFrames(), SignedFrames(KEY), PickleFrames(), SignedFrames(KEY, PickleFrames())])
def test_shortened_events_fit_with_every_codec(datagrams, codec):
    """What the codec adds counts."""
    with DatagramSink(*datagrams.getsockname(), codec=codec, max_datagram_bytes=1500) as sink:
        sink.handle({"event": "x" * 5000, "numbers": list(range(5000))})
        data = datagrams.recv(65_536)
    assert len(data) <= 1500
    event = codec.decode(data[4:] if codec.length_in_datagrams else data)
    assert (event["truncated"], "numbers" in event) == (True, False)
    assert len(event["event"]) > 32


def test_what_cannot_be_made_to_fit_is_counted(datagrams):
    """A codec that makes much of little is the reason, and the limit is told."""

    class Large(JSONFrames):
        def encode(self, event, render):
            return super().encode(event, render).ljust(600)

    failures = []
    with DatagramSink(
        *datagrams.getsockname(), codec=Large(), max_datagram_bytes=512, on_error=failures.append
    ) as sink:
        sink.handle({"event": "x"})
    assert sink.stats().dropped == {"oversize": 1}
    assert "max_datagram_bytes=512" in str(failures[0].error)


def test_a_datagram_the_network_refuses_is_counted(datagrams):
    """More than IP can carry is refused by the system, and by nobody retried."""
    with DatagramSink(*datagrams.getsockname(), max_datagram_bytes=1_000_000, on_error=lambda failure: None) as sink:
        sink.handle({"event": "x" * 100_000})
        assert (sink.stats().dropped, sink.stats().retried) == ({"oversize": 1}, 0)
        sink.handle({"event": "fits"})
        assert _datagram(datagrams) == {"event": "fits"}


@pytest.mark.parametrize("size", [511, 0, -1, 8192.0, None, True])
def test_a_datagram_has_a_least_size(size):
    """Below 512 bytes hardly an event fits."""
    with pytest.raises(ValueError, match=f"max_datagram_bytes={size!r}"):
        DatagramSink("localhost", 9, max_datagram_bytes=size)


@pytest.mark.parametrize("size", [511, 0, -1, 2.5, True, "much", 1 << 32])
def test_a_frame_has_a_least_and_a_greatest_size(size):
    """The length before it has four bytes."""
    with pytest.raises(ValueError, match=f"max_frame_bytes={size!r}"):
        SocketSink("localhost", 9, max_frame_bytes=size)


def test_sizes_and_spans_may_be_text():
    """As people write them."""
    assert SocketSink("localhost", 9, max_frame_bytes="2 MiB", timeout="1m", retry_max="1h").max_frame_bytes == 2097152
    assert DatagramSink("localhost", 9, max_datagram_bytes="1 kB").max_datagram_bytes == 1000


@pytest.mark.parametrize("host", ["::1", "fe80::1%eth0", "localhost", "10.0.0.1"])
def test_an_address_with_colons_is_no_host_and_port(host):
    """Only what has one colon, or brackets, is taken for the two."""
    assert SocketSink(host, 9).host == host


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text(max_size=400),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=50), inner, max_size=20),
    max_leaves=30,
)
_EVENTS = st.dictionaries(st.text(max_size=300) | st.sampled_from(["event", "level", "logger", "timestamp"]), _VALUES)


@settings(max_examples=25)
@given(event=_EVENTS, limit=st.integers(480, 3000))
def test_any_event_can_be_shortened(event, limit):
    """Whatever it is: it fits, is valid JSON, is marked, has at least its message, and the original is unchanged."""
    render = OrjsonRenderer().render
    before = render(event)
    data = shortened(event, render, limit)
    assert len(data) <= limit
    got = json.loads(data)
    assert got["truncated"] is True
    assert ("event" in got) == ("event" in event)
    assert render(event) == before
    for key, value in got.items():
        if isinstance(value, str) and isinstance(event.get(key), str) and key != "truncated":
            assert event[key].startswith(value)


def test_many_fields_are_shortened_in_reasonable_time():
    """Thousands of fields do not make it quadratic."""
    event = {"event": "e", **{f"field {number}": "x" * 100 for number in range(20_000)}}
    began = time.monotonic()
    data = shortened(event, OrjsonRenderer().render, 8192)
    assert 4000 < len(data) <= 8192
    assert time.monotonic() - began < PATIENCE_SECONDS / 2


def test_errors_of_a_batch_of_datagrams(datagrams):
    """One that cannot be sent is rejected, the others are sent."""
    with DatagramSink(*datagrams.getsockname(), max_datagram_bytes=1_000_000) as sink:
        batch = [Encoded(data, 20, 0.0) for data in (b'{"event":1}', b'{"event":"' + b"x" * 100_000 + b'"}')]
        result = sink.emit_batch(batch)
    assert list(result.rejected) == [1]
    assert "too large" in result.rejected[1]
    assert _datagram(datagrams) == {"event": 1}
