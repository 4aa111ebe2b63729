"""Connections that keep their time whatever the way, what comes before a request is through, and names leaned on."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import os
import queue
import socket
import ssl
import struct
import threading
import time

import pytest
import requests.adapters
import trustme
import urllib3.connection
import urllib3.connectionpool
import urllib3.poolmanager

from outfall import NDJSON, BackgroundSink, HTTPSink, OversizeDeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.http import deadlines
from tests.sinks._http import Answer, Server, server_context
from tests.sinks._processes import until
from tests.sinks._socks import SOCKSProxy

#: Much longer than what is asked for, and much shorter than what would happen without the limit.
SOON_SECONDS = 30


@pytest.fixture(scope="module")
def authority():
    """Give a certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority):
    """Give a server's certificate for localhost and 127.0.0.1."""
    return authority.issue_cert("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def authority_file(authority, tmp_path_factory):
    """Give the path of a file with the authority's certificate."""
    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Keep the proxies and authorities of the machine out."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def context(request, certificate):
    """Give what a server encrypts with, or None."""
    return server_context(certificate) if request.param else None


@pytest.fixture
def server(context):
    """Give a server that takes everything, in plain text and over TLS."""
    with Server(context=context) as made:
        yield made


@pytest.fixture
def sink_for(authority_file):
    """Give a function that makes sinks."""

    def make(url, **options):
        options.setdefault("on_error", "raise")
        return HTTPSink(url, verify=authority_file, **options)

    return make


# -- interim answers


EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "interim",
    [EARLY, PROCESSING, b"HTTP/1.1 100 Continue\r\n\r\n", EARLY * 10 + PROCESSING, b"HTTP/1.1 199 Own\r\n\r\n"],
)
def test_interim_answers_are_skipped(server, sink_for, interim):
    """Whatever their number, the answer is the one that comes after them, and the connection is kept."""
    server.answers += [Answer(raw=interim + OK), 200]
    with sink_for(server.url) as sink:
        sink.handle({"event": "hello", "n": 1})
    assert len(server.requests) == 1


def test_interim_answers_without_end_are_no_answer(server, sink_for):
    """The event is kept for another attempt."""
    server.answers.append(Answer(raw=EARLY * 1_000))
    with sink_for(server.url) as sink, pytest.raises(TemporaryDeliveryError, match="no answer that is HTTP"):
        sink.handle({"event": "hello"})


def _serve_once(context, answer, then=lambda connection: None):
    """Listen, and answer the head of the first request, whose body is not read; return the URL, and a way to end it."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            # Else the answer might wait, and be thrown away by a reset, before it has left.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            connection.sendall(answer)
            then(connection)
            done.wait(SOON_SECONDS)
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def end():
        done.set()
        listener.close()
        thread.join(SOON_SECONDS)
        assert not thread.is_alive()

    return f"{'http' if context is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}/", end


def test_interim_answers_do_not_end_the_request(context, sink_for):
    """One that comes while the body is being sent is no reason to stop sending."""
    got = []

    def then(connection):
        size = 0
        while size < 7_900_000 and (data := connection.recv(65536)):
            size += len(data)
        got.append(size)
        connection.sendall(OK)

    url, end = _serve_once(context, EARLY, then)
    try:
        with sink_for(url, max_body_bytes=2**24) as sink:
            sink.handle({"event": "x" * 8_000_000})
    finally:
        end()
    assert got[0] >= 7_900_000


# -- answers before the request is through


@pytest.mark.parametrize("status", [413, 403])
@pytest.mark.parametrize("way", ["stays", "closes", "resets"])
def test_an_answer_before_the_body_is_through_is_read(context, sink_for, status, way, monkeypatch):
    """The server says no and takes no more; what it said is what is raised, long before the time is over."""

    def then(connection):
        if way == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way != "stays":
            until(asked_for.is_set)
            connection.close()

    asked_for = threading.Event()
    answer = b"HTTP/1.1 %d No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno" % status
    url, end = _serve_once(context, answer, then)
    kind = OversizeDeliveryError if status == 413 else PausedDeliveryError
    began = time.monotonic()
    try:
        with sink_for(url, max_body_bytes=2**25, timeout=(20, 60)) as sink:
            usual = deadlines._Paced._answered

            def answered(self, *args):
                try:
                    return usual(self, *args)
                finally:
                    asked_for.set()

            monkeypatch.setattr(deadlines._Paced, "_answered", answered)
            with pytest.raises(kind, match=f"answered {status}"):
                sink.handle({"event": "x" * 13_000_000})  # more than buffers take
    finally:
        end()
    assert time.monotonic() - began < SOON_SECONDS


def test_after_an_early_answer_the_next_request_has_a_connection_of_its_own(server, sink_for):
    """Half a request is in the old one."""
    server.answers.append(Answer(413, read_body=False))
    with sink_for(server.url, max_body_bytes=2**25) as sink:
        with pytest.raises(OversizeDeliveryError):
            sink.handle({"event": "x" * 20_000_000})
        sink.handle({"event": "hello"})
    assert [request.connection for request in server.requests] == [1, 2]


def test_too_large_a_batch_is_halved_over_tls_too(context, authority_file):
    """A server that refuses large bodies before they are through gets smaller ones."""

    def judge(request):
        return 200

    with Server(judge, context=context) as server:
        usual = server._exchange

        def exchange(sock, stream, number):
            head = stream.peek(4_000)
            sizes = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
            if sizes and int(sizes[0].split(b":")[1]) > 100_000:
                server.answers.append(Answer(413, read_body=False))
            return usual(sock, stream, number)

        server._exchange = exchange
        target = HTTPSink(server.url, body=NDJSON(), verify=authority_file, max_body_bytes=20_000_000)
        with BackgroundSink(target, on_error=lambda failure: None) as sink:
            for n in range(200):
                sink.handle({"event": "x", "n": n, "pad": "y" * 20_000})
            assert sink.flush(SOON_SECONDS)
            assert sink.stats().delivered == 200
        taken = [event["n"] for request in server.requests if request.raw_body for event in request.lines]
        assert taken == list(range(200))


# -- what TLS says


def test_a_client_certificate_that_is_refused_is_told(authority, certificate, authority_file):
    """With TLS 1.3 the refusal comes after the handshake; the events are kept, and the report says why."""
    stranger = trustme.CA().issue_cert("client.example.org")
    for client, words in ((None, "certificate required"), (stranger, "unknown ca")):
        context = ssl.create_default_context(cafile=authority_file)
        if client is not None:
            client.configure_cert(context)
        with (
            Server(context=server_context(certificate, authority)) as server,
            HTTPSink(server.url, ssl_context=context, on_error="raise") as sink,
            pytest.raises(PausedDeliveryError, match=f"TLS alert: .*{words}"),
        ):
            sink.handle({"event": "hello"})
        assert server.requests == []


def test_a_server_that_cannot_be_trusted_pauses(certificate):
    """Its certificate is the set-up's fault."""
    with (
        Server(context=server_context(certificate)) as server,
        HTTPSink(server.url, on_error="raise") as sink,
        pytest.raises(PausedDeliveryError, match="the certificate is not good: unable to get local issuer"),
    ):
        sink.handle({"event": "hello"})


def test_a_port_that_does_not_speak_tls_pauses():
    """So is that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            HTTPSink(f"https://127.0.0.1:{listener.getsockname()[1]}/", on_error="raise") as sink,
            pytest.raises(PausedDeliveryError, match="TLS: "),
        ):
            sink.handle({"event": "hello"})
        thread.join(SOON_SECONDS)


# -- SOCKS


@pytest.mark.parametrize("user", [None, ("me", "pw")])
def test_events_go_through_a_socks_proxy(server, sink_for, user):
    """In plain text and encrypted; the connection is kept, and ends with the sink."""
    scheme = server.url.partition(":")[0]
    with SOCKSProxy(user) as proxy:
        login = "me:pw@" if user else ""
        with sink_for(server.url, proxies={scheme: f"socks5h://{login}127.0.0.1:{proxy.port}"}) as sink:
            sink.handle({"event": "hello"})
            sink.handle({"event": "hello"})
        assert proxy.asked == [server.address]
        assert [request.connection for request in server.requests] == [1, 1]
        until(lambda: not server._open)


@pytest.mark.parametrize(
    "answer", [Answer(200, headers={"X-Long": "x" * 10_000}, drip=0.05), Answer(hang=True)], ids=["drip", "hang"]
)
def test_a_request_through_a_socks_proxy_is_over_in_time(server, sink_for, answer):
    """As one without a proxy, and close breaks it off."""
    server.default = answer
    scheme = server.url.partition(":")[0]
    with SOCKSProxy() as proxy:
        proxies = {scheme: f"socks5://127.0.0.1:{proxy.port}"}
        began = time.monotonic()
        with (
            sink_for(server.url, proxies=proxies, timeout=(20, 0.3)) as sink,
            pytest.raises(TemporaryDeliveryError, match=r"did not answer within 0\.3 s"),
        ):
            sink.handle({"event": "hello"})
        assert time.monotonic() - began < SOON_SECONDS
        told = []
        sink = sink_for(server.url, proxies=proxies, timeout=(20, 600), on_error=told.append)
        thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
        thread.start()
        server.wait(2)
        assert not sink.close(0.05)
        thread.join(SOON_SECONDS)
        assert not thread.is_alive()
        assert [type(failure.error) for failure in told] == [TemporaryDeliveryError]


def test_a_socks_proxy_that_says_nothing_is_given_up_in_time(server, sink_for):
    """It has the time for connecting."""
    scheme = server.url.partition(":")[0]
    with (
        SOCKSProxy(silent=True) as proxy,
        sink_for(server.url, proxies={scheme: f"socks5://127.0.0.1:{proxy.port}"}, timeout=(0.3, 600)) as sink,
        pytest.raises(TemporaryDeliveryError, match=r"could not be reached within 0\.3 s"),
    ):
        sink.handle({"event": "hello"})


# -- names that urllib3, requests and http.client do not promise


def _calls(function, name):
    return name in inspect.getsource(function)


def test_urllib3_asks_its_connections_for_sockets():
    """``_new_conn`` makes them, ``_dns_host`` is the name to look up, and ``sock`` is what is sent by."""
    connection = urllib3.connection.HTTPConnection("localhost", 80)
    assert connection._dns_host == "localhost"
    assert connection.sock is None
    assert _calls(urllib3.connection.HTTPConnection.connect, "self._new_conn()")
    assert _calls(urllib3.connection.HTTPSConnection.connect, "self._new_conn()")


def test_urllib3_makes_pools_and_connections_of_our_classes():
    """``pool_classes_by_scheme``, ``ConnectionCls`` and ``QueueCls`` choose them; ``_validate_conn`` connects."""
    assert _calls(urllib3.poolmanager.PoolManager._new_pool, "self.pool_classes_by_scheme")
    for kind in (deadlines._Pool, deadlines._PoolTLS):
        assert type(kind("localhost").pool) is queue.SimpleQueue
    assert _calls(urllib3.connectionpool.HTTPConnectionPool._new_conn, "self.ConnectionCls")
    assert _calls(urllib3.connectionpool.HTTPConnectionPool._make_request, "self._validate_conn(conn)")


def test_urllib3_reads_an_answer_after_a_broken_pipe():
    """So that what a server says before the request is through is heard."""
    assert _calls(urllib3.connectionpool.HTTPConnectionPool._make_request, "except BrokenPipeError")


def test_urllib3_tells_what_is_missing_of_a_body():
    """``length_remaining`` is 0 or None at the end."""
    assert urllib3.HTTPResponse(b"", preload_content=False).length_remaining in (0, None)


def test_http_client_makes_responses_of_our_class():
    """``response_class`` makes them, ``_read_status`` reads a line, and ``fp`` is where the headers come from."""
    assert _calls(http.client.HTTPConnection.getresponse, "self.response_class(")
    assert _calls(http.client.HTTPConnection._tunnel, "self.response_class(")
    assert _calls(http.client.HTTPResponse.begin, "self._read_status()")
    assert _calls(http.client.HTTPResponse.begin, "parse_headers(self.fp)")


def test_requests_asks_its_adapters():
    """For pools, proxies, what connections are told apart by, and TLS; ``_content`` is a body that was read."""
    adapter = requests.adapters.HTTPAdapter
    assert _calls(adapter.__init__, "self.init_poolmanager(")
    assert _calls(adapter.get_connection_with_tls_context, "self.proxy_manager_for(")
    assert _calls(adapter.get_connection_with_tls_context, "self.build_connection_pool_key_attributes(")
    assert _calls(adapter.send, "self.cert_verify(")
    response = requests.Response()
    deadlines.keep_body(response, b"kept")
    assert response.content == b"kept"
    assert next(response.iter_content(4)) == b"kept"


def test_socks_connections_are_made_by_a_method():
    """``_new_conn`` takes its time from ``timeout``."""
    socks = pytest.importorskip("urllib3.contrib.socks")
    assert _calls(socks.SOCKSConnection._new_conn, "timeout=self.timeout")
