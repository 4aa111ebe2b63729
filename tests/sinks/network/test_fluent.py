"""FluentSink: read by an input written from the specification, and by npm's @fluent-org/logger."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import ssl
import struct
import sys
import threading
import time

import pytest
import trustme

from outfall import BackgroundSink, FluentSink, RetryPolicy, SpoolSink
from outfall.sinks.core.item import Batch, Encoded
from outfall.sinks.errors import MissingDependencyError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.testing import SinkContract, assert_balanced
from tests._node import Node
from tests.sinks._processes import check, in_fork, until
from tests.sinks._wire import Stream
from tests.sinks.network._fluent import Forward

KEY = "sesame-open-the-door"
USERS = {"ada": "lovelace-1815"}
TIME = "2026-03-14T15:09:26.535897Z"
SERVER = """
const {FluentServer} = require('@fluent-org/logger');
const options = JSON.parse(process.argv[2]);
const server = new FluentServer({...options, listenOptions: {port: Number(process.argv[1]), host: '127.0.0.1'}});
server.on('entry', (tag, time, record) => console.log(JSON.stringify({
  tag, record, seconds: time.epoch ?? time, nano: time.nano ?? null})));
server.listen().then(() => console.log('ready'));
"""


@pytest.fixture
def forward():
    """Give an input without a login."""
    with Forward() as made:
        yield made


def _sink(forward, **options):
    options.setdefault("on_error", "raise")
    options.setdefault("timeout", 10)
    return FluentSink(*forward.target, tag="shop.web", **options)


class TestFluentSink(SinkContract):
    """TCP."""

    @pytest.fixture(autouse=True)
    def _peers(self):
        with contextlib.ExitStack() as self.stack:
            yield

    def make_sink(self, **options):
        self.forward = self.stack.enter_context(Forward())
        return FluentSink(*self.forward.target, tag="shop", **options)

    def received(self, sink):
        return None  # an entry's record has no timestamp, which is its time


# -- entries


@pytest.mark.parametrize("packed", [True, False])
def test_an_entry_has_the_time_and_the_fields(forward, packed):
    """EventTime to the microsecond; values keep their types."""
    event = {
        "event": "order placed",
        "level": "info",
        "timestamp": TIME,
        "order": 17,
        "big": 2**63,
        "huge": 2**70,
        "share": 0.25,
        "nan": float("nan"),
        "raw": b"\x00\xff",
        "tags": ["a", {"b": None, "deep": 2**80}],
        "text": "Grüße",
        "yes": True,
        "odd": "\ud800",
    }
    with _sink(forward, packed=packed) as sink:
        sink.handle(event)
    tag, when, record = forward.entries[0]
    assert tag == "shop.web"
    assert (when.code, struct.unpack(">LL", when.data)) == (0, (1773500966, 535897000))
    assert math.isnan(record.pop("nan"))
    assert "timestamp" not in record
    odd = record.pop("odd")
    assert isinstance(odd, str)
    assert record == {
        "event": "order placed",
        "level": "info",
        "order": 17,
        "big": 2**63,
        "huge": str(2**70),
        "share": 0.25,
        "raw": b"\x00\xff",
        "tags": ["a", {"b": None, "deep": str(2**80)}],
        "text": "Grüße",
        "yes": True,
    }
    assert forward.modes == ["packed" if packed else "forward"]


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_is_one_message(forward, packed):
    """With one acknowledgement; delivered means that it has come."""
    with BackgroundSink(_sink(forward, packed=packed), linger=5) as sink:
        for number in range(200):
            sink.handle({"event": "e", "n": number})
        assert sink.flush(60)
        assert sink.stats().delivered == 200
        assert [record["n"] for record in forward.wait(200)] == list(range(200))
        assert len(forward.chunks) == 1
        assert all(abs(struct.unpack(">LL", when.data)[0] - time.time()) < 600 for _, when, _ in forward.entries)


def test_a_batch_over_the_size_goes_in_several_messages(forward):
    """Each acknowledged; an event too large by itself is shortened."""
    with BackgroundSink(_sink(forward, max_chunk_bytes=10_000), linger=5) as sink:
        for number in range(30):
            sink.handle({"event": "e", "n": number, "text": "x" * (50_000 if number == 7 else 3000)})
        assert sink.flush(60)
    records = forward.wait(30)
    assert [record["n"] for record in records] == list(range(30))
    assert [record.get("truncated") for record in records].count(True) == 1
    assert len(forward.chunks) == len(set(forward.chunks)) > 9


def test_behind_a_thread_values_keep_their_types(forward):
    """Bytes and NaN too, within lists and mappings; on disk they are text."""
    with BackgroundSink(_sink(forward), linger=0) as sink:
        sink.handle({"event": "e", "raw": b"\xff", "deep": {"list": [b"\0", float("inf")]}})
        assert sink.flush(60)
    assert forward.wait(1)[0] == {"event": "e", "raw": b"\xff", "deep": {"list": [b"\0", math.inf]}}


def test_text_of_somebody_else_is_an_event(forward):
    """As for every sink that sends fields."""
    with _sink(forward) as sink:
        sink.handle("ready made")
    assert forward.wait(1) == [{"event": "ready made"}]


# -- acknowledgements


def test_what_is_not_acknowledged_is_not_delivered(forward):
    """The peer has the connection open and says nothing: the event is lost and told, and the next waits for nobody."""
    failures = []
    with _sink(forward, on_error=failures.append, retry_start=600, retry_max=600) as sink:
        sink.handle({"event": "acknowledged"})
        forward.before_answer = lambda *_: False
        sink.timeout = 0.05
        for number in range(10):
            sink.handle({"event": number})
        assert (sink.stats().delivered, sink.stats().dropped) == (1, {"error": 1, "backoff": 9})
        assert "has not acknowledged within" in str(failures[0].error)
    until(lambda: len(forward.chunks) == 2)
    assert_balanced(sink.stats())


def test_a_batch_that_is_not_acknowledged_is_sent_again_by_the_same_name(forward):
    """So that who looks can tell that it is the same."""
    target = _sink(forward, timeout=0.2, retry_start=0)
    forward.before_answer = lambda number, _sock: number > 1
    with BackgroundSink(target, linger=0) as sink:
        sink.handle({"event": 1})
        assert sink.flush(60)
        assert sink.stats().delivered == 1
        assert sink.stats().retried >= 1
    assert len(forward.chunks) >= 2
    assert len(set(forward.chunks)) == 1


def test_what_is_acknowledged_does_not_come_again_when_the_rest_of_a_batch_fails(forward):
    """The first message of the batch is taken; the answer to the second is none of the protocol's."""

    def answer(number, sock):
        if number == 2:
            sock.sendall(b"\xc1")
        return number != 2

    forward.before_answer = answer
    target = _sink(forward, max_chunk_bytes=2000, on_error=lambda _: None)
    batch = Batch([Encoded(b'{"event":"e","n":%d,"text":"%s"}' % (n, b"x" * 900), 20, 0.0) for n in range(6)])
    left = batch
    with target as sink:
        for _ in range(5):
            try:
                result = sink.emit_batch(left)
            except TemporaryDeliveryError:
                sink.retry_time = None
                continue
            sink.retry_time = None
            if result is None:
                break
            left = left.part(result.retry)
    numbers = [record["n"] for _, _, record in forward.entries]
    first = len(numbers) // len(forward.chunks)
    assert sorted(set(numbers)) == list(range(6))
    assert all(numbers.count(number) == 1 for number in range(first))
    assert len(set(forward.chunks)) < len(forward.chunks)


def test_a_connection_closed_while_idle_swallows_nothing(forward):
    """As balancers close it; each event is acknowledged, over the next connection."""
    with _sink(forward) as sink:
        for number in range(10):
            sink.handle({"event": number})
            forward.hang_up()
        assert sink.stats().delivered == 10
    assert [record["event"] for record in forward.wait(10)] == list(range(10))


def test_a_connection_that_breaks_before_the_answer_is_made_anew_once(forward):
    """The message is sent again; it may have come twice, and has not been lost."""

    def answer(number, sock):
        if number == 1:
            sock.shutdown(socket.SHUT_RDWR)
        return number > 1

    forward.before_answer = answer
    with _sink(forward) as sink:
        sink.handle({"event": 1})
        assert (sink.stats().delivered, sink.stats().retried) == (1, 1)
    assert len(forward.chunks) == 2


def test_a_peer_without_keepalive_is_served(forward):
    """One message a connection is no peer that cannot be reached."""
    forward.keepalive = False
    with _sink(forward) as sink:
        for number in range(10):
            sink.handle({"event": number})
        assert sink.stats().delivered == 10
    assert forward.connections == 10


def test_a_time_out_amid_a_send_leaves_no_broken_chunk(forward):
    """The half message ends with its connection, and the next begins on another."""
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sink = FluentSink(*stuck.getsockname(), tag="t", timeout=0.05, on_error="raise")
        with pytest.raises(TemporaryDeliveryError, match="has not acknowledged"):
            sink.deliver({"event": "x" * 4_000_000})
        assert sink.sock is None
        connection, _ = stuck.accept()
        with connection:
            while connection.recv(65_536):
                pass  # it ends
        sink.host, sink.port = forward.target
        sink.retry_time = None
        sink.timeout = 10
        sink.handle({"event": "whole"})
        assert forward.wait(1) == [{"event": "whole"}]
        sink.close()


def test_what_is_too_much_to_be_acknowledged_in_time_is_sent_in_parts(forward):
    """The same batch would be as slow each time, and come again and again."""
    taken = [0]

    def is_little(_number, _sock):
        before, taken[0] = taken[0], len(forward.entries)
        return taken[0] - before <= 4

    forward.before_answer = is_little
    retry = RetryPolicy(start_seconds=0.01, max_seconds=0.01)
    with BackgroundSink(
        _sink(forward, timeout=0.5, retry_start=0.01), linger=5, retry=retry, on_error=lambda _: None
    ) as sink:
        for number in range(8):
            sink.handle({"event": "e", "n": number})
        assert sink.flush(60)
        assert sink.stats().delivered == 8
    assert {record["n"] for record in forward.wait(16)} == set(range(8))


def test_a_peer_that_is_away_costs_the_exit_its_one_deadline():
    """However many events wait; they are counted and told."""
    script = """
        import socket, time
        from outfall import BackgroundSink, FluentSink
        with socket.create_server(("127.0.0.1", 0)) as silent:
            target = FluentSink(*silent.getsockname(), tag="t", timeout=0.2, on_error=lambda _: None)
            sink = BackgroundSink(target, on_error=lambda _: None)
            for number in range(200):
                sink.handle({"event": number})
            began = time.monotonic()
            assert not sink.close(0.5)
            print(time.monotonic() - began < 30, sum(sink.stats().dropped.values()))
    """
    assert check(script).split() == ["True", "200"]


def test_a_spool_keeps_what_is_not_acknowledged(tmp_path, forward):
    """Until it is."""
    forward.before_answer = lambda *_: False
    target = _sink(forward, timeout=0.05, on_error=lambda _: None)
    sink = SpoolSink(target, tmp_path, on_error=lambda _: None)
    for number in range(20):
        sink.handle({"event": number})
    sink.close(0.2)
    forward.before_answer = lambda *_: True
    with SpoolSink(_sink(forward), tmp_path) as sink:
        assert sink.flush(60)
    assert {record["event"] for _, _, record in forward.entries} == set(range(20))


# -- who the peer is


@pytest.mark.parametrize("users", [None, USERS])
def test_login_by_shared_key(users):
    """And by name and password, if the input asks for them."""
    with Forward(KEY, users) as forward:
        login = {"username": "ada", "password": USERS["ada"]} if users else {}
        with _sink(forward, shared_key=KEY, **login) as sink:
            sink.handle({"event": 1})
            forward.hang_up()
            sink.handle({"event": 2})
            assert sink.stats().delivered == 2
        assert forward.connections == 2


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "asks for a login: give it shared_key"),
        ({"shared_key": "wrong"}, "shared key mismatch"),
        ({"shared_key": KEY}, "username/password mismatch"),
        ({"shared_key": KEY, "username": "ada", "password": "wrong-word"}, "username/password mismatch"),
    ],
)
def test_a_refused_login_is_told_and_keeps_events(given, reason):
    """It is nobody's event's fault; no secret is in what is told."""
    with Forward(KEY, USERS) as forward:
        failures = []
        with _sink(forward, on_error=failures.append, **given) as sink:
            sink.handle({"event": 1})
            sink.handle({"event": 2})
            assert reason in str(failures[0].error)
            assert isinstance(failures[0].error, PausedDeliveryError)
            assert sink.stats().dropped == {"error": 1, "backoff": 1}
            told = f"{failures} {sink!r}"
        assert not any(secret in told for secret in (KEY, "wrong-word", *USERS.values()))


def test_a_peer_without_the_key_gets_no_event():
    """It has to prove that it has it too."""

    class Impostor(Forward):
        def _log_in(self, sock, unpacker):
            import msgpack

            sock.sendall(msgpack.packb(["HELO", {"nonce": b"n", "auth": "", "keepalive": True}]))
            sock.recv(65_536)
            sock.sendall(msgpack.packb(["PONG", True, "", "server", "0" * 128]))
            return True

    with Impostor(KEY) as forward:
        failures = []
        with _sink(forward, shared_key=KEY, on_error=failures.append) as sink:
            sink.handle({"event": 1})
        assert "does not have the shared key" in str(failures[0].error)
        assert forward.entries == []


@pytest.mark.parametrize("shared_key", [None, KEY])
@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xc1\xc1", b"\x00" * 300_000, b"\x93\x01\x02\x03"]
)
def test_a_peer_that_speaks_something_else_is_told(answer, shared_key):
    """A wrong port is not a peer that is away."""

    class Other(Stream):
        def _read(self, made, data):
            made.sendall(answer)
            super()._read(made, data)

    with Other() as other:
        failures = []
        with FluentSink(*other.address, tag="t", timeout=10, shared_key=shared_key, on_error=failures.append) as sink:
            sink.handle({"event": 1})
        assert isinstance(failures[0].error, PausedDeliveryError)
        assert "Forward protocol" in str(failures[0].error) or "does not ask for a login" in str(failures[0].error)


def test_tls_and_a_login_within_it():
    """The first word of the server, which comes right after the handshake, is not lost."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with Forward(KEY, context=server) as forward:
        for _ in range(5):
            with _sink(forward, shared_key=KEY, tls=client) as sink:
                sink.handle({"event": 1})
                sink.handle({"event": 2})
                assert sink.stats().delivered == 2


def test_a_unix_socket(tmp_path):
    """As Fluent Bit and Fluentd listen on."""
    with Forward(path=tmp_path / "fluent") as forward, _sink(forward) as sink:
        sink.handle({"event": 1})
        assert forward.wait(1) == [{"event": 1}]


def test_many_threads_and_a_fork(forward):
    """Each event once, whoever sends it."""
    with _sink(forward) as sink:

        def send(start):
            for number in range(start, start + 20):
                sink.handle({"event": number})

        threads = [threading.Thread(target=send, args=(start,)) for start in range(0, 80, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        in_fork(lambda: send(80))
        send(100)
    assert sorted(record["event"] for record in forward.wait(120)) == list(range(120))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tag": ""}, ValueError),
        ({"tag": 1}, TypeError),
        ({"username": "a", "password": "b"}, ValueError),
        ({"username": "a", "shared_key": "k"}, ValueError),
        ({"shared_key": b"k"}, TypeError),
        ({"max_chunk_bytes": 10}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options, error):
    """At construction, by their names."""
    with pytest.raises(error, match=next(iter(options))):
        FluentSink("127.0.0.1", **{"tag": "t", **options})


def test_without_msgpack_the_extra_is_named(monkeypatch):
    """At construction."""
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(MissingDependencyError, match=r"outfall\[fluent\]"):
        FluentSink("127.0.0.1", tag="t")


# -- a server of others


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("secure", [False, True])
def test_the_node_logger_reads_entries(packed, secure):
    """With a login and without, in batches; it acknowledges each."""
    security = {"serverHostname": socket.gethostname(), "sharedKey": KEY, "authorize": True, "userDict": USERS}
    login = {"shared_key": KEY, "username": "ada", "password": USERS["ada"]} if secure else {}
    options = json.dumps({"security": security} if secure else {})
    with Node("@fluent-org/logger", SERVER, options) as node:
        target = FluentSink("127.0.0.1", node.port, tag="shop", packed=packed, timeout=10, on_error="raise", **login)
        with BackgroundSink(target, linger=0.01) as sink:
            for number in range(30):
                sink.handle({"event": "Grüße", "n": number, "timestamp": TIME, "list": [1, {"a": None}]})
            assert sink.flush(60)
            assert sink.stats().delivered == 30
        entries = node.wait(30)
    assert [entry["record"]["n"] for entry in entries] == list(range(30))
    assert entries[0]["tag"] == "shop"
    assert entries[0]["record"] == {"event": "Grüße", "n": 0, "list": [1, {"a": None}]}
    assert (entries[0]["seconds"], entries[0]["nano"]) == (1773500966, 535897000)
