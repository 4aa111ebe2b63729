"""HTTP requests on their way: time, connections that end, encryption, proxies, forks."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings

import pytest
import requests
import trustme

from outfall import NDJSON, HTTPSink, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.http import client, deadlines
from outfall.sinks.testing import assert_balanced
from tests.sinks._http import Answer, Proxy, Server, server_context
from tests.sinks._processes import in_fork, until
from tests.sinks._wire import Clock, free_port, has_ipv6

PASSWORD = "correct-horse-battery"

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
    return path


@pytest.fixture
def server():
    """Give a server that takes everything in plain text."""
    with Server() as made:
        yield made


@pytest.fixture
def secure_server(certificate):
    """Give a server that takes everything over TLS."""
    with Server(context=server_context(certificate)) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Keep the proxies and authorities of the machine out."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def _nothing_leaks():
    """Let what is in a cycle and was not closed warn here; all else warns in its test."""
    yield
    gc.collect()


def sink_for(server, **options):
    """Return a sink that raises, for *server*."""
    options.setdefault("on_error", "raise")
    return HTTPSink(f"{server.url}/ingest", **options)


@contextlib.contextmanager
def failing_soon(words, kind=TemporaryDeliveryError):
    """Expect a failure of this *kind* that says *words*, soon."""
    started = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        yield
    assert time.monotonic() - started < SOON_SECONDS
    assert type(caught.value) is kind


# -- time


@pytest.mark.parametrize(
    "answer",
    [
        Answer(hang=True),
        # Four times as many bytes a second as the time that is left would need to see the end of the headers.
        Answer(200, headers={"X-Long": "x" * 10_000}, drip=0.05),
        Answer(hang=True, read_body=False),
    ],
    ids=["hang", "drip", "unread"],
)
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_request_is_over_in_time(answer, encrypted, certificate, authority_file):
    """A black hole, a byte at a time, and a body that nobody reads: none takes longer than it may, with TLS neither."""
    context = server_context(certificate) if encrypted else None
    verify = str(authority_file) if encrypted else True
    with Server(answer, context=context) as server:
        # More than the system's buffers take.
        event = {"event": "x" * 40_000_000 if answer.read_body is False else "hello"}
        with sink_for(server, timeout=(20, 0.25), verify=verify, max_body_bytes=10**9) as sink:
            with failing_soon(r"did not answer within 0\.25 s"):
                sink.handle(event)
            # The next one has a connection of its own.
            server.default = 200
            server.release()
            sink.timeout = (20, 20)
            sink.handle({"event": "again"})
            assert sink.stats().delivered == 1


def test_a_body_that_drips_ends_in_time_and_was_taken(server):
    """The status is what counts; the rest of a slow answer is waited for no longer than the request may take."""
    server.default = Answer(200, "x" * 10_000, drip_body=0.05)
    with sink_for(server, timeout=(20, 1)) as sink:
        started = time.monotonic()
        sink.handle({"event": "hello"})
        assert time.monotonic() - started < SOON_SECONDS
        assert sink.stats().delivered == 1
        server.default = 200
        sink.timeout = (20, 20)
        sink.handle({"event": "hello"})
    assert [request.connection for request in server.requests] == [1, 2]


def test_connecting_is_over_in_time():
    """A host that does not answer at all is given up after the time for connecting."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        # The queue of a listener that accepts nothing is full after a few; what comes then is not answered.
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.3)
            try:
                client.connect(full.getsockname())
            except TimeoutError:
                break
        with (
            HTTPSink(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=(0.2, 100), on_error="raise") as sink,
            failing_soon(r"could not be reached within 0\.2 s"),
        ):
            sink.handle({"event": "hello"})


def test_a_handshake_is_over_in_time():
    """A peer that accepts and then says nothing to TLS is given up after the time for connecting."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        HTTPSink(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout=(0.2, 100), on_error="raise") as sink,
        failing_soon(r"could not be reached within 0\.2 s"),
    ):
        sink.handle({"event": "hello"})


def test_each_address_of_a_name_has_its_turn(server, monkeypatch):
    """One that does not answer leaves time for the next, and one that refuses is passed over."""
    given = []

    class Socket(socket.socket):
        def settimeout(self, seconds):
            given.append(seconds)
            super().settimeout(seconds)

        def connect(self, address):
            if address[1] == silent:
                raise TimeoutError
            super().connect(address)

    refusing, silent = free_port(), 1
    addresses = [("127.0.0.1", silent), ("127.0.0.1", refusing), server.address]

    def getaddrinfo(host, port, *_):
        assert (host, port) == ("logs.test", 8080)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "socket", Socket)
    with HTTPSink("http://logs.test:8080/", timeout=(300, 20), on_error="raise") as sink:
        sink.handle({"event": "hello"})
    assert len(server.requests) == 1
    # A third of the time, half of what is left then, and the rest.
    assert [round(seconds / 50) for seconds in given[:3]] == [2, 3, 6]


def test_failures_to_connect_say_why(monkeypatch):
    """Nobody listens, no such name: in the system's words."""
    port = free_port()
    with (
        HTTPSink(f"http://127.0.0.1:{port}/", on_error="raise") as sink,
        failing_soon(f"^127.0.0.1:{port} could not be reached: Connection refused$"),
    ):
        sink.handle({"event": "hello"})

    def getaddrinfo(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with (
        HTTPSink("http://logs.test/", on_error="raise") as sink,
        failing_soon("^logs.test:80 could not be reached: Name or service not known$"),
    ):
        sink.handle({"event": "hello"})


@pytest.mark.parametrize("host", ["a" * 70 + ".test", "*.test", ".test"])
def test_a_name_that_cannot_be_one_pauses(host):
    """What would be refused for every event keeps them."""
    with (
        HTTPSink(f"http://{host}/", on_error="raise") as sink,
        pytest.raises(PausedDeliveryError, match=r"no request to .* can be made"),
    ):
        sink.handle({"event": "hello"})


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6():
    """An address of IPv6 is one like any other."""
    with Server(host="::1") as server, sink_for(server, token="abc") as sink:
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1
        assert f"[::1]:{server.port}" in repr(sink)


def test_no_time_is_left_at_the_end():
    """Whoever asks after the end is told, whatever a socket's own timeout was."""
    with pytest.raises(TimeoutError):
        deadlines.Exchange(0, 0).left()
    assert 0 < deadlines.Exchange(10, 10).left() <= 20


def test_what_is_not_the_transport_s_fault_is_told_by_its_type(server):
    """What a user's authentication, hook or session raises fails the attempt, and what it says is not repeated."""

    def fail(*_, **__):
        raise LookupError(PASSWORD)

    class Session(requests.Session):
        def request(self, *_, **__):
            raise requests.RequestException(PASSWORD)

    hooked = requests.Session()
    hooked.hooks["response"] = fail
    for options, words in (
        ({"auth": fail}, ": the request failed \\(LookupError\\)$"),
        ({"session": hooked}, ": the request failed \\(LookupError\\)$"),
        ({"session": Session()}, " was lost: RequestException$"),
    ):
        with sink_for(server, **options) as sink, failing_soon(words):
            sink.handle({"event": "hello"})


def test_an_address_that_is_none_leaves_no_socket(monkeypatch):
    """What is no error of the system fails the attempt too; a socket that was not closed would warn here."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", -1))]
    )
    with HTTPSink("http://logs.test/", on_error="raise") as sink, failing_soon("the request failed"):
        sink.handle({"event": "hello"})
    gc.collect()


# -- connections that end


def test_a_connection_that_was_closed_meanwhile_is_made_anew(server):
    """A server that hangs up after an answer costs no event and no report."""
    server.default = Answer(hang_up=True)
    with sink_for(server) as sink:
        for number in range(3):
            sink.handle({"event": "hello", "number": number})
            until(lambda: not server._open)
        assert sink.stats().delivered == 3
    assert [request.connection for request in server.requests] == [1, 2, 3]


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_connection_that_is_old_enough_is_made_anew(encrypted, certificate, authority_file, monkeypatch):
    """A changed address is found while the old one still answers; no event is sent twice or counts as retried."""
    clock, names = Clock(), []
    monkeypatch.setattr(client, "monotonic", clock)
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: names.append(host) or real(host, *rest))
    context = server_context(certificate) if encrypted else None
    with Server(context=context) as server:
        verify = str(authority_file) if encrypted else True
        with sink_for(server, verify=verify, max_connection_age="1m") as sink:
            for seconds in (0, 59, 1, 59, 1, 1):
                clock.now += seconds
                sink.handle({"event": "hello"})
            assert (sink.stats().delivered, sink.stats().retried) == (6, 0)
        assert [request.connection for request in server.requests] == [1, 1, 2, 2, 3, 3]
        assert len(names) == 3


def test_without_a_limit_a_connection_lasts(server, monkeypatch):
    """However old it is."""
    clock = Clock()
    monkeypatch.setattr(client, "monotonic", clock)
    with sink_for(server) as sink:
        for _ in range(3):
            sink.handle({"event": "hello"})
            clock.now += 1e9
    assert {request.connection for request in server.requests} == {1}


@pytest.mark.parametrize(
    "options", [{"max_connection_age": 0}, {"max_connection_age": 60, "session": requests.Session()}]
)
def test_an_age_is_for_connections_of_the_sinks_own(options):
    """A session of the user's has its own pool; and nothing can be sent in no time."""
    with pytest.raises(ValueError, match="max_connection_age"):
        HTTPSink("http://127.0.0.1:9", **options)


def test_a_path_that_dies_is_noticed_by_the_system(server):
    """While a connection is idle, within a minute."""
    with sink_for(server) as sink:
        sink.handle({"event": "hello"})
        (connection,) = sink._transport._adapter.connections
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert 0 < connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


@pytest.mark.parametrize("fault", [Answer(reset=True), Answer(send_only=0)], ids=["reset", "end"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_an_event_that_meets_the_end_of_a_connection_is_sent_again(fault, encrypted, certificate, authority_file):
    """If a used connection ends before any answer, the event is sent once more at once, under the same key."""
    context = server_context(certificate) if encrypted else None
    with Server(context=context) as server:
        server.answers += [200, fault, 200]
        with sink_for(server, verify=str(authority_file) if encrypted else True) as sink:
            sink.handle({"event": "hello", "number": 1})
            sink.handle({"event": "hello", "number": 2})
            assert sink.stats().delivered == 2
        assert [request.json["number"] for request in server.requests] == [1, 2, 2]
        keys = [request.headers["idempotency-key"] for request in server.requests]
        assert keys[0] != keys[1] == keys[2]
        assert [request.connection for request in server.requests] == [1, 1, 2]


def test_it_is_sent_again_once_only(server):
    """A server that hangs up on the second attempt too has failed; a fresh connection that ends is not used again."""
    with sink_for(server) as sink:
        server.answers += [200, Answer(reset=True), Answer(reset=True), Answer(reset=True)]
        sink.handle({"event": "hello", "number": 1})
        with failing_soon("was lost: Connection reset by peer"):
            sink.handle({"event": "hello", "number": 2})
        with failing_soon("was lost: Connection reset by peer"):
            sink.handle({"event": "hello", "number": 3})
    assert [request.json["number"] for request in server.requests] == [1, 2, 2, 3]


def test_a_fresh_connection_that_ends_is_a_failure(server):
    """What was made for this very event and ends has not become stale: the server does not want it."""
    server.answers += [Answer(hang_up=True), Answer(reset=True)]
    with sink_for(server) as sink:
        sink.handle({"event": "hello", "number": 1})
        until(lambda: not server._open)
        with failing_soon("was lost: Connection reset by peer"):
            sink.handle({"event": "hello", "number": 2})
    assert [(request.json["number"], request.connection) for request in server.requests] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    "fault",
    [Answer(send_only=10), Answer(send_only=30, reset=True), Answer(hang=True), Answer(raw=b"garbage\r\n")],
    ids=["cut", "reset", "late", "garbage"],
)
def test_what_the_server_has_begun_to_answer_is_not_sent_again(server, fault):
    """Half an answer, a late one and one that is none are failures: the server may be at work."""
    with sink_for(server) as sink:
        sink.handle({"event": "hello"})
        sink.timeout = 0.3
        server.answers.append(fault)
        with failing_soon("127.0.0.1"):
            sink.handle({"event": "hello"})
    assert len(server.requests) == 2


def test_a_server_that_restarts_is_found_again(server):
    """While it is down events fail; when it is back on its port they arrive."""
    told = []
    with sink_for(server, on_error=told.append) as sink:
        sink.handle({"event": "hello"})
        server.stop()
        sink.handle({"event": "lost"})
        server.start()
        sink.handle({"event": "back"})
        assert_balanced(sink.stats())
        assert (sink.stats().delivered, sink.stats().dropped) == (2, {"error": 1})
    assert ["could not be reached: Connection refused" in str(failure.error) for failure in told] == [True]
    assert [request.json["event"] for request in server.requests] == ["hello", "back"]


# -- encryption


def test_a_certificate_is_verified(secure_server, authority_file):
    """With the authority's file it is good; with the system's authorities it is not, and nothing is sent."""
    with sink_for(secure_server, verify=authority_file) as sink:
        sink.handle({"event": "hello"})
    with (
        sink_for(secure_server) as sink,
        failing_soon("could not be reached: the certificate is not good: .*local", PausedDeliveryError),
    ):
        sink.handle({"event": "hello"})
    assert len(secure_server.requests) == 1


def test_a_certificate_for_another_host_is_none(authority, authority_file):
    """The name in it has to be that of the URL."""
    context = server_context(authority.issue_cert("elsewhere.test"))
    with Server(context=context) as server:
        with (
            sink_for(server, verify=str(authority_file)) as sink,
            failing_soon(r"certificate is not good: .*127\.0\.0\.1", PausedDeliveryError),
        ):
            sink.handle({"event": "hello"})
        assert server.requests == []


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("given", [False, True])
def test_the_environment_names_authorities(secure_server, authority_file, monkeypatch, name, given):
    """What requests reads in the environment counts, in a session of the user's too."""
    monkeypatch.setenv(name, str(authority_file))
    with requests.Session() as session, sink_for(secure_server, session=session if given else None) as sink:
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1


def test_a_session_of_the_users_has_its_own_authorities(secure_server, authority_file):
    """What the session was told holds unless the sink was told otherwise."""
    with requests.Session() as session:
        session.verify = str(authority_file)
        with sink_for(secure_server, session=session) as sink:
            sink.handle({"event": "hello"})
    with requests.Session() as session, sink_for(secure_server, session=session, verify=authority_file) as sink:
        sink.handle({"event": "hello"})
    assert len(secure_server.requests) == 2


def test_nobody_need_be_trusted(secure_server):
    """verify=False takes any certificate, without a warning at each request."""
    with warnings.catch_warnings(record=True) as caught, sink_for(secure_server, verify=False) as sink:
        warnings.simplefilter("always")
        sink.handle({"event": "hello"})
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 2
    assert caught == []


def test_an_ssl_context_decides_alone(authority, secure_server):
    """It brings its own authorities, to which nothing is added, and its own view on names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    trusted = len(context.get_ca_certs())
    with sink_for(secure_server, ssl_context=context) as sink:
        sink.handle({"event": "hello"})
    assert len(context.get_ca_certs()) == trusted
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    empty = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with (
        sink_for(secure_server, ssl_context=empty) as sink,
        failing_soon("certificate is not good", PausedDeliveryError),
    ):
        sink.handle({"event": "hello"})
    with Server(context=server_context(authority.issue_cert("elsewhere.test"))) as server:
        with (
            sink_for(server, ssl_context=context) as sink,
            failing_soon("certificate is not good", PausedDeliveryError),
        ):
            sink.handle({"event": "hello"})
        context.check_hostname = False
        with sink_for(server, ssl_context=context) as sink:
            sink.handle({"event": "hello"})
            assert sink.stats().delivered == 1


@pytest.mark.parametrize("options", [{"verify": False}, {"cert": __file__}, {"session": requests.Session()}])
def test_an_ssl_context_stands_alone(options):
    """Beside it, what it would overrule is refused."""
    with pytest.raises(ValueError, match="ssl_context"):
        HTTPSink("https://localhost/", ssl_context=ssl.create_default_context(), **options)


@pytest.mark.parametrize("form", ["one file", "two files", "context"])
def test_a_client_shows_its_certificate(form, authority, authority_file, certificate, tmp_path):
    """A server that wants a certificate gets it, however it was given; without one nothing is sent."""
    client = authority.issue_cert("shop.example.org")
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    client.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    context = ssl.create_default_context(cafile=authority_file)
    context.load_cert_chain(tmp_path / "both.pem")
    options = {
        "one file": {"cert": tmp_path / "both.pem", "verify": authority_file},
        "two files": {"cert": (tmp_path / "cert.pem", tmp_path / "key.pem"), "verify": authority_file},
        "context": {"ssl_context": context},
    }
    with Server(context=server_context(certificate, authority)) as server:
        with sink_for(server, **options[form]) as sink:
            sink.handle({"event": "hello"})
        assert ("DNS", "shop.example.org") in server.requests[0].certificate["subjectAltName"]
        refused = failing_soon("TLS alert: certificate required", PausedDeliveryError)
        with sink_for(server, verify=authority_file) as sink, refused:
            sink.handle({"event": "hello"})
        assert len(server.requests) == 1


# -- proxies


@pytest.mark.parametrize("given", [False, True])
def test_proxies_of_the_environment(server, monkeypatch, given):
    """HTTP_PROXY is gone through and NO_PROXY is not, in a session of the user's too; credentials reach the proxy."""
    with Proxy() as proxy, requests.Session() as session:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:pw@"))
        options = {"session": session} if given else {}
        with sink_for(server, **options) as sink:
            sink.handle({"event": "by proxy"})
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with sink_for(server, **options) as sink:
            sink.handle({"event": "directly"})
    assert [request.json["event"] for request in server.requests] == ["by proxy", "directly"]
    [request] = proxy.requests
    assert request.target == f"{server.url}/ingest"
    assert request.headers["proxy-authorization"] == "Basic bWU6cHc="
    assert "idempotency-key" in request.headers


def test_an_encrypted_request_goes_through_a_tunnel(secure_server, authority_file, monkeypatch):
    """HTTPS_PROXY tunnels; the proxy sees no more than the host; the connection is kept."""
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with sink_for(secure_server, verify=authority_file, token="abc") as sink:
            sink.handle({"event": "hello"})
            sink.handle({"event": "hello"})
            assert sink.stats().delivered == 2
    [request] = proxy.requests
    assert (request.method, request.target) == ("CONNECT", f"127.0.0.1:{secure_server.port}")
    assert "authorization" not in request.headers
    assert [request.connection for request in secure_server.requests] == [1, 1]


def test_proxies_may_be_named(server, monkeypatch):
    """Given proxies come before those of the environment, and None is no proxy."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with Proxy() as proxy:
        for proxies in ({"http": proxy.url}, {"http": None}):
            with sink_for(server, proxies=proxies) as sink:
                sink.handle({"event": "hello"})
        assert (len(proxy.requests), len(server.requests)) == (1, 2)


def test_a_socks_proxy_needs_its_package(server, monkeypatch):
    """Without it events are kept, and the report says so."""

    def missing(*_, **__):
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", missing)
    with (
        sink_for(server, proxies={"http": "socks5://127.0.0.1:1"}) as sink,
        pytest.raises(PausedDeliveryError, match=r"no request .* can be made: InvalidSchema"),
    ):
        sink.handle({"event": "hello"})


def test_a_proxy_that_refuses_says_so(secure_server):
    """A tunnel that is refused, and a proxy that is not there, are temporary and keep the proxy's secrets."""
    with Proxy(Answer(407, "who is asking?")) as proxy:
        secret = proxy.url.replace("://", f"://me:{PASSWORD}@")
        with (
            sink_for(secure_server, proxies={"https": secret}) as sink,
            failing_soon("could not be reached through the proxy: the tunnel was refused with 407$"),
        ):
            sink.handle({"event": "hello"})
    with (
        sink_for(secure_server, proxies={"https": f"http://me:{PASSWORD}@127.0.0.1:{free_port()}"}) as sink,
        failing_soon("could not be reached through the proxy: Connection refused$"),
    ):
        sink.handle({"event": "hello"})


@pytest.mark.parametrize("answer", [Answer(hang=True), Answer(200, headers={"X-Long": "x" * 10_000}, drip=0.05)])
def test_a_tunnel_is_made_in_time(secure_server, answer):
    """A proxy that takes the request for a tunnel and says nothing, or too little, is given up in time."""
    with (
        Proxy(answer) as proxy,
        sink_for(secure_server, proxies={"https": proxy.url}, timeout=(20, 0.3)) as sink,
        failing_soon("127.0.0.1"),
    ):
        sink.handle({"event": "hello"})


# -- forks


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_child_has_a_connection_of_its_own(encrypted, certificate, authority_file):
    """The parent's is closed in the child without a word, and goes on in the parent."""
    context = server_context(certificate) if encrypted else None
    with Server(context=context) as server:
        sink = sink_for(server, verify=authority_file if encrypted else True)
        sink.handle({"event": "parent"})
        [(_, descriptor)] = sink._transport._adapter.connections.items()

        def child():
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
            assert sink.stats().accepted == 0
            sink.handle({"event": "child"})
            # What is left of the parent's connection must not close a descriptor that is the child's by now.
            gc.collect()
            sink.handle({"event": "child"})
            assert sink.close(60)

        in_fork(child)
        sink.handle({"event": "parent"})
        assert sink.close()
        assert [(request.json["event"], request.connection) for request in server.requests] == [
            ("parent", 1),
            ("child", 2),
            ("child", 2),
            ("parent", 1),
        ]
        assert sink.stats().delivered == 2


def test_a_child_has_a_connection_of_its_own_in_a_users_session(server):
    """A session that was given connects anew in the child, and goes on in the parent."""

    class Other(requests.adapters.BaseAdapter):
        def close(self):
            pass

    with requests.Session() as session:
        session.mount("other://", Other())
        sink = sink_for(server, session=session)
        sink.handle({"event": "parent"})

        def child():
            sink.handle({"event": "child"})
            assert sink.close(60)
            assert sink.stats().delivered == 1

        in_fork(child)
        sink.handle({"event": "parent"})
        assert sink.close()
        assert [request.connection for request in server.requests] == [1, 2, 1]


def test_a_fork_while_a_request_is_under_way(server):
    """The child neither waits for the request nor keeps its connection open; the parent gets its answer."""
    server.answers.append(Answer(hang=True))
    sink = sink_for(server)
    thread = threading.Thread(target=sink.handle, args=({"event": "parent"},))
    thread.start()
    server.wait(1)

    def child():
        sink.handle({"event": "child"})
        assert sink.close(60)
        assert sink.stats().delivered == 1

    in_fork(child)
    server.release()
    thread.join(60)
    assert sink.stats().delivered == 1
    assert sink.close()
    assert [request.json["event"] for request in server.requests] == ["parent", "child"]


def test_no_lock_of_a_pool_can_be_left_behind(secure_server, server, authority_file):
    """urllib3's own queue of free connections has a lock, which another thread may hold at a fork; ours has none."""
    for peer in (server, secure_server):
        with sink_for(peer, verify=authority_file) as sink:
            sink.handle({"event": "hello"})
            pools = sink._transport._adapter.poolmanager.pools
            assert [type(pools[key].pool) for key in pools.keys()] == [queue.SimpleQueue]  # noqa: SIM118 - no mapping


def test_a_fork_while_many_threads_log(server):
    """Forks at any moment of a request leave a child that works."""
    stop = threading.Event()

    def log():
        while not stop.is_set():
            sink.handle({"event": "parent"})

    def child():
        sink.handle({"event": "child"})
        assert sink.stats().delivered == 1
        assert sink.close(60)

    sink = sink_for(server)
    threads = [threading.Thread(target=log) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            in_fork(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert sink.close()
    assert_balanced(sink.stats())
    assert sum(request.json["event"] == "child" for request in server.requests) == 10
    assert sum(request.json["event"] == "parent" for request in server.requests) == sink.stats().delivered


# -- the end


def test_close_lets_go_of_the_connection(server):
    """After close the server sees the connection end, and no descriptor is left."""
    sink = sink_for(server, body=NDJSON())
    sink.handle({"event": "hello"})
    assert len(server._open) == 1
    transport = sink._transport
    assert sink.close()
    until(lambda: not server._open)
    assert not transport._adapter.connections


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 2"])
def test_a_failure_leaves_nothing_for_the_garbage_collector(server, raw):
    """urllib3's frames hold the exception that holds them; with them went the request, and the pool stayed open."""
    gc.collect()
    gc.disable()
    try:
        sink = sink_for(server, body=NDJSON(), on_error=lambda _: None)
        server.answers.append(Answer(raw=raw))
        sink.handle({"event": "hello"})
        assert not [each for each in gc.get_objects() if isinstance(each, requests.PreparedRequest)]
        sink.handle({"event": "hello"})
        transport = sink._transport
        assert sink.close()
        assert sink.stats().delivered == 1
        assert not transport._adapter.connections
        until(lambda: not server._open)
    finally:
        gc.enable()


def test_an_aborted_request_is_not_sent_again(server):
    """What close breaks off on a used connection does not begin anew on another."""
    server.answers += [200, Answer(hang=True)]
    told = []
    sink = sink_for(server, on_error=told.append)
    sink.handle({"event": "hello"})
    thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
    thread.start()
    server.wait(2)
    assert not sink.close(0)
    thread.join(60)
    assert [type(failure.error) for failure in told] == [TemporaryDeliveryError]
    assert (len(server.requests), server.connections) == (2, 1)


def test_a_request_of_a_users_session_goes_on_after_close(server):
    """Its connection is not ours to break off; close keeps its time all the same."""
    server.answers.append(Answer(hang=True))
    with requests.Session() as session:
        sink = sink_for(server, session=session)
        thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
        thread.start()
        server.wait(1)
        assert not sink.close(0.05)
        server.release()
        thread.join(60)
        assert sink.stats().delivered == 1


def test_close_during_a_handshake_keeps_its_time():
    """What is still being connected is left to its own time, and is no success."""
    told = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = HTTPSink(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout=(1, 100), on_error=told.append)
        thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
        thread.start()
        peer, _ = silent.accept()
        assert peer.recv(100)  # the client's greeting
        assert not sink.close(0)
        thread.join(60)
        assert not thread.is_alive()
        peer.close()
    assert [type(failure.error) for failure in told] == [TemporaryDeliveryError]
    assert sink._transport is None


LATE = """
import outfall
url = {url!r}
sink = outfall.{kind}
{first}
class Late:
    def __init__(self):
        self.sink = sink
    def __del__(self):
        self.sink.handle({{"event": "late"}})
late = Late()
late.itself = late
"""


@pytest.mark.skipif(sys.version_info[:3] == (3, 13, 0), reason="this Python crashes in requests at its end")
@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("HTTPSink(url)", ""),
        ("HTTPSink(url)", "sink.handle({'event': 'early'})"),
        ("HTTPSink(url, compression='gzip')", ""),
        ("HTTPSink(url.replace('127.0.0.1', 'localhost'))", ""),
        ("HTTPSink(url, body=outfall.ElasticsearchBulk())", ""),
        ("HTTPSink(url, body=outfall.OTLPLogs())", ""),
    ],
)
def test_an_event_at_the_interpreters_end_is_delivered(kind, first):
    """Nothing that a request or its answer needs is imported then, and nothing is called lost that was delivered."""
    with Server(Answer(200, {"errors": False, "items": []})) as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LATE.format(url=server.url, kind=kind, first=first)],
            capture_output=True,
            text=True,
            timeout=SOON_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(server.requests) == 1 + bool(first)
        assert b"late" in server.requests[-1].body


@pytest.mark.skipif(sys.version_info[:3] == (3, 13, 0), reason="this Python crashes in requests at its end")
@pytest.mark.parametrize(
    "answer", [Answer(503, headers={"Retry-After": "Tue, 14 Nov 2023 22:13:25 GMT"}), Answer(400, {})]
)
def test_a_failure_at_the_interpreters_end_is_told(answer):
    """By what the server said."""
    with Server(answer) as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LATE.format(url=server.url, kind="HTTPSink(url)", first="")],
            capture_output=True,
            text=True,
            timeout=SOON_SECONDS,
            check=False,
        )
        assert f"answered {answer.status}" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.version_info[:3] != (3, 13, 0), reason="other versions can send then")
def test_where_the_interpreter_would_crash_a_late_event_is_told_as_lost():
    """Nothing is sent, and the process ends as it should."""
    program = LATE.format(url="http://127.0.0.1:9/", kind="HTTPSink(url)", first="")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=SOON_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert "Python 3.13.0 crashes" in done.stderr
