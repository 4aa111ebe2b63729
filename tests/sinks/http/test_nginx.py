"""A real gateway between the sink and the server: nginx."""

from __future__ import annotations

import pytest
import trustme

from outfall import NDJSON, BackgroundSink, HTTPSink, PausedDeliveryError, RetryPolicy
from outfall.sinks.testing import assert_balanced
from tests.sinks._http import Server
from tests.sinks._nginx import Nginx
from tests.sinks._processes import until

pytestmark = pytest.mark.service

PATIENCE_SECONDS = 60
QUICK = RetryPolicy(start_seconds=0.05, max_seconds=0.1, pause_start_seconds=0.05, pause_max_seconds=0.1)


@pytest.fixture
def server():
    """Give the server behind the gateway."""
    with Server() as made:
        yield made


@pytest.fixture
def gateway(require_service, tmp_path, server):
    """Give a function that starts a gateway with some settings."""
    program = require_service("nginx")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.issue_cert("shop.example.org").private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")

    def start(settings):
        return Nginx(
            program,
            tmp_path,
            certificate=tmp_path / "server.pem",
            authority=tmp_path / "authority.pem",
            behind=server.url,
            settings=settings,
        )

    return start


def shipping(url, told, tmp_path, **options):
    """Return a sink that ships to *url*."""
    target = HTTPSink(url, body=NDJSON(), verify=tmp_path / "authority.pem", **options)
    return BackgroundSink(target, retry=QUICK, on_error=told.append)


def log(sink, count=200, **fields):
    """Log so many events."""
    for number in range(count):
        sink.handle({"event": "order placed", "number": number, **fields})


def test_a_missing_client_certificate_costs_no_event(gateway, server, tmp_path):
    """The gateway answers 400 with a page; the events are kept, and arrive once it lets them through."""
    told = []
    with (
        gateway("ssl_verify_client on;") as nginx,
        shipping(f"https://127.0.0.1:{nginx.port}/", told, tmp_path) as sink,
    ):
        log(sink)
        until(lambda: len(told) > 2)
        nginx.change("ssl_verify_client off;")
        assert sink.flush(PATIENCE_SECONDS)
        stats = sink.stats()
    assert (stats.delivered, dict(stats.dropped)) == (200, {})
    assert_balanced(stats)
    assert isinstance(told[0].error, PausedDeliveryError)
    assert "a page, “400 No required SSL certificate was sent”" in str(told[0].error)


def test_plain_http_to_a_port_for_tls_costs_no_event(gateway, server, tmp_path):
    """The same."""
    told = []
    with gateway("") as nginx, shipping(f"http://127.0.0.1:{nginx.port}/", told, tmp_path) as sink:
        log(sink)
        until(lambda: len(told) > 2)
        assert (sink.stats().pending, dict(sink.stats().dropped)) == (200, {})
        assert "The plain HTTP request was sent to HTTPS port" in str(told[0].error)
        sink.close(0)


def test_what_is_too_large_for_the_gateway_is_sent_in_parts(gateway, server, tmp_path):
    """It answers 413 before the body is through, over TLS."""
    told = []
    with (
        gateway("client_max_body_size 100k;") as nginx,
        shipping(f"https://127.0.0.1:{nginx.port}/", told, tmp_path, max_body_bytes=20_000_000) as sink,
    ):
        log(sink, pad="y" * 20_000)
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (200, {})
    assert [event["number"] for request in server.requests for event in request.lines] == list(range(200))


def test_a_client_certificate_is_shown(gateway, server, tmp_path):
    """With it, nothing is refused."""
    told = []
    with (
        gateway("ssl_verify_client on;") as nginx,
        shipping(f"https://127.0.0.1:{nginx.port}/", told, tmp_path, cert=tmp_path / "client.pem") as sink,
    ):
        log(sink)
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, told) == (200, [])
