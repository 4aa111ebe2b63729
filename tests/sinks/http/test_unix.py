"""HTTP over a Unix socket: nginx listens on one, in front of a server that keeps what comes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from outfall import (
    NDJSON,
    BackgroundSink,
    HTTPSink,
    PausedDeliveryError,
    RetryPolicy,
    TemporaryDeliveryError,
    datadog_sink,
    elasticsearch_sink,
    gelf_sink,
    loki_sink,
    open_sink,
    opensearch_sink,
    otlp_sink,
    splunk_sink,
)
from tests.sinks._http import Answer, Server
from tests.sinks._nginx import Nginx
from tests.sinks._processes import until

QUICK = RetryPolicy(start_seconds=0.05, max_seconds=0.1, pause_start_seconds=0.05, pause_max_seconds=0.1)


@pytest.fixture
def place():
    """Give a directory whose path is short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="out"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def shared(require_service, tmp_path_factory):
    """Give an nginx that listens on a Unix socket, its path, and the server behind it."""
    program = require_service("nginx")
    directory = Path(tempfile.mkdtemp(prefix="out"))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    path = directory / "In Box%.sock"  # upper case, a blank and a percent sign
    with (
        Server() as server,
        Nginx(
            program,
            directory,
            certificate=directory / "server.pem",
            authority=directory / "authority.pem",
            behind=server.url,
            settings=f'listen "unix:{path}"; proxy_set_header X-Host $http_host;',
        ),
    ):
        yield path, server
    shutil.rmtree(directory)


@pytest.fixture
def gateway(shared):
    """Give the path of nginx's socket, and the server behind it with nothing received yet."""
    path, server = shared
    server.requests.clear()
    server.answers.clear()
    server.default = Answer()
    return path, server


def encoded(path):
    """Return a path as the host of a URL."""
    return quote(str(path), safe="")


@pytest.mark.service
@pytest.mark.parametrize("form", ["http+unix://{encoded}/in/box?a=1", "http+unix://{quoted}:/in/box?a=1"])
def test_events_arrive_through_nginx_on_a_unix_socket(gateway, form, monkeypatch):
    """Both ways to write it lead there, over one connection, whatever proxies the environment names."""
    path, server = gateway
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    url = form.format(encoded=encoded(path), quoted=quote(str(path)))
    with BackgroundSink(HTTPSink(url, body=NDJSON(), token="t0ken", compression="gzip"), retry=QUICK) as sink:
        for number in range(1_000):
            sink.handle({"event": "order placed", "number": number})
    assert [event["number"] for request in server.requests for event in request.lines] == list(range(1_000))
    first = server.requests[0]
    assert (first.target, first.headers["x-host"]) == ("/in/box?a=1", "localhost")
    assert first.headers["authorization"] == "Bearer t0ken"


@pytest.mark.service
def test_a_url_of_the_socket_alone_has_the_path_of_the_root(gateway):
    """What stands behind the slashes is the socket, and the request goes to "/"."""
    path, server = gateway
    for url in (f"http+unix://{quote(str(path))}", f"http+unix://{encoded(path)}"):
        with HTTPSink(url, on_error="raise") as sink:
            sink.handle({"event": "a"})
    assert [request.target for request in server.requests] == ["/", "/"]


@pytest.mark.service
@pytest.mark.parametrize(
    ("scheme", "options", "target"),
    [
        ("http+unix", "", "/"),
        ("loki+http+unix", "labels.app=shop", "/loki/api/v1/push"),
        ("otlp+http+unix", "", "/v1/logs"),
        ("elasticsearch+http+unix", "index=logs", "/logs/_bulk?filter_path=errors,items.*.status,items.*.error.type"),
        ("opensearch+http+unix", "index=logs", "/logs/_bulk?filter_path=errors,items.*.status,items.*.error.type"),
        ("splunk+http+unix", "token=t", "/services/collector/event"),
        ("datadog+http+unix", "api_key=k&service=shop", "/api/v2/logs"),
        ("gelf+http+unix", "", "/gelf"),
    ],
)
def test_one_url_opens_every_collector_on_a_unix_socket(gateway, scheme, options, target):
    """The collector's path is added behind the socket's, as it is behind a host."""
    path, server = gateway
    for place in (encoded(path), quote(str(path))):
        server.requests.clear()
        sink = open_sink(f"{scheme}://{place}?{options}", on_error=lambda failure: None, linger=0)
        sink.handle({"event": "a", "level": "info"})
        until(lambda: server.requests)
        sink.close(0)  # the answer is not the collector's
        assert {request.target for request in server.requests} == {target}


@pytest.mark.parametrize(
    "make",
    [
        lambda url: loki_sink(url, labels={"app": "shop"}),
        otlp_sink,
        lambda url: elasticsearch_sink(url, index="logs"),
        lambda url: opensearch_sink(url, index="logs"),
        lambda url: splunk_sink(url, token="t"),
        lambda url: datadog_sink("k", url=url),
        gelf_sink,
    ],
)
def test_a_path_of_ones_own_stays_before_the_collectors(make):
    """A gateway's prefix stands behind a colon, or behind the encoded path."""
    for url in ("http+unix:///run/c.sock:/prefix", "http+unix://%2Frun%2Fc.sock/prefix"):
        with make(url) as sink:
            assert sink.target.url.startswith("http+unix://%2Frun%2Fc.sock/prefix"), sink.target.url


def test_what_a_failure_tells_is_the_sockets_path(place):
    """A socket that is not there, one that nobody listens on, and one that is a file, each with its reason."""
    missing, dead, plain = place / "missing.sock", place / "dead.sock", place / "plain.sock"
    plain.touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(dead))
    for path, reason in ((missing, "No such file"), (dead, "refused"), (plain, "refused")):
        sink = HTTPSink(f"http+unix://{path}:/push?key=secret", on_error="raise")
        with pytest.raises(TemporaryDeliveryError, match=reason) as caught:
            sink.handle({"event": "a"})
        assert f"unix:{path} could not be reached" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert f"unix:{path}" in repr(sink)
        sink.close()


def listening(path, backlog=0):
    """Return a socket that listens at *path*, and whose queue is full, with the connections in it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    waiting = []
    for _ in range(backlog + 1):
        waiting.append(socket.socket(socket.AF_UNIX))
        waiting[-1].connect(str(path))
    return listener, waiting


def test_a_server_whose_queue_is_full_is_waited_for(place):
    """connect(2) of a Unix socket says EAGAIN at once then; the sink waits as long as it may, and no longer."""
    path = place / "busy.sock"
    listener, waiting = listening(path)
    hasty = HTTPSink(f"http+unix://{path}", timeout=(0.2, 1), on_error="raise")
    with hasty, pytest.raises(TemporaryDeliveryError, match=r"could not be reached within 0\.2 s"):
        hasty.handle({"event": "a"})
    patient = HTTPSink(f"http+unix://{path}", timeout=(30, 30), on_error="raise")
    came = []

    def serve():
        listener.accept()[0].close()
        peer, _ = listener.accept()
        came.append(peer.recv(65_536))
        peer.sendall(b"HTTP/1.1 204 Taken\r\n\r\n")
        peer.close()

    thread = threading.Timer(0.1, serve)
    thread.start()
    patient.handle({"event": "a"})
    thread.join(30)
    patient.close()
    assert came[0].startswith(b"POST / HTTP/1.1\r\nHost: localhost\r\n")
    for each in (*waiting, listener):
        each.close()


def test_a_server_that_comes_back_is_found_again(place):
    """The socket's file is gone and made anew while the sink waits: nothing is lost."""
    path = place / "back.sock"
    sink = BackgroundSink(HTTPSink(f"http+unix://{path}", body=NDJSON()), retry=QUICK, on_error=lambda failure: None)
    for number in range(10):
        sink.handle({"event": "a", "number": number})
    came = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        peer, _ = listener.accept()
        text = b""
        while text.count(b"\n{") < 10:
            text += peer.recv(65_536)
        came.append(text.count(b'"event"'))
        peer.sendall(b"HTTP/1.1 204 Taken\r\n\r\n")
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert sink.close()
    thread.join(30)
    listener.close()
    assert came == [10]
    assert sink.stats().delivered == 10


@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="Linux has sockets without a file")
def test_a_socket_without_a_file_is_reached_too():
    """A name in Linux's abstract name space begins with a NUL, %00."""
    name = f"outfall-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        with HTTPSink(f"http+unix://%00{name}/push", on_error="raise") as sink:

            def serve():
                peer, _ = listener.accept()
                peer.recv(65_536)
                peer.sendall(b"HTTP/1.1 204 Taken\r\n\r\n")
                peer.close()

            thread = threading.Thread(target=serve)
            thread.start()
            sink.handle({"event": "a"})
            thread.join(30)
            assert f"unix:@{name}" in repr(sink)


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("http+unix://", {}, "url="),
        ("http+unix://run%2Fc.sock/push", {}, "'run/c.sock' is not the absolute path"),
        ("http+unix://localhost/run/c.sock", {}, "'localhost' is not the absolute path"),
        ("http+unix:///" + "x" * 200, {}, "at most 107 bytes, not 201"),
        ("https+unix:///run/c.sock", {}, "http\\+unix"),
        ("http+unix:///run/c.sock", {"proxies": {"http": "http://127.0.0.1:1"}}, "proxies"),
    ],
)
def test_a_url_that_leads_to_no_socket_is_refused(url, options, named):
    """At construction, by the argument's name."""
    with pytest.raises(ValueError, match=named):
        HTTPSink(url, **options)


def test_the_url_can_be_set_to_another_kind(place):
    """From a host to a socket and back; one that is refused changes nothing."""
    sink = HTTPSink("http://127.0.0.1:9/push", on_error="raise", timeout=(1, 1))
    sink.url = f"http+unix://{place / 'none.sock'}"
    with pytest.raises(TemporaryDeliveryError, match=r"none\.sock could not be reached: No such file"):
        sink.handle({"event": "a"})
    with pytest.raises(ValueError, match="absolute"):
        sink.url = "http+unix://relative"
    assert sink.url.startswith("http+unix://%2F")
    sink.url = "http://127.0.0.1:9/push"
    with pytest.raises(TemporaryDeliveryError, match=r"127\.0\.0\.1:9 could not be reached"):
        sink.handle({"event": "a"})
    sink.close()


def test_a_user_and_password_in_the_url_are_basic_authentication():
    """They stand before the encoded path, and are in no repr."""
    with HTTPSink("http+unix://user:pass%21@%2Frun%2Fc.sock/push") as sink:
        assert sink.url == "http+unix://%2Frun%2Fc.sock/push"
        assert "pass" not in repr(sink)
        with pytest.raises((TemporaryDeliveryError, PausedDeliveryError)):
            sink.deliver({"event": "a"})
