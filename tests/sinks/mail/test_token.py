"""Mail by token: XOAUTH2, as Gmail and Exchange Online ask for, with aiosmtpd as the server."""

from __future__ import annotations

import base64
import traceback

import pytest

from outfall import (
    BackgroundSink,
    PausedDeliveryError,
    RetryPolicy,
    SMTPSink,
    TemporaryDeliveryError,
)
from tests.sinks._mail import MailServer, Script, TokenHandler

TOKEN = "ya29.a0AfB_by" + "x" * 200
ADDRESSES = ("shop@example.org", "ops@example.org", "failure")
QUICK = RetryPolicy(start_seconds=0.01, max_seconds=0.02, pause_start_seconds=0.01, pause_max_seconds=0.02)


@pytest.fixture
def server():
    """Give a mail server that takes one token."""
    with MailServer(handler=TokenHandler(TOKEN), auth_require_tls=False) as made:
        yield made


def sink_for(server, token, **options):
    """Return a sink that logs in at *server* by what *token* gives."""
    options.setdefault("on_error", "raise")
    return SMTPSink(server.address, *ADDRESSES, ("shop@example.org", token), **options)


def test_each_mail_is_sent_with_a_token_that_is_asked_for_then(server):
    """Not before, and the next mail asks again."""
    asked = []

    def token():
        asked.append(len(server.mails))
        return TOKEN

    with sink_for(server, token) as sink:
        assert asked == []
        sink.handle({"event": "one"})
        sink.handle({"event": "two"})
    assert asked == [0, 1]
    assert len(server.mails) == 2
    assert {envelope.login for envelope in server.handler.envelopes} == {"shop@example.org"}
    assert server.handler.tokens == [TOKEN, TOKEN]


def test_a_token_that_has_expired_keeps_the_events_until_there_is_a_new_one(server):
    """The server says why in a challenge; behind a background the mail is sent with the next token."""
    given = iter(["old", "old"])
    told = []
    with BackgroundSink(sink_for(server, lambda: next(given, TOKEN)), retry=QUICK, on_error=told.append) as sink:
        sink.handle({"event": "kept", "level": "error"})
        assert sink.flush(30)
    assert len(server.mails) == 1
    assert server.handler.tokens == ["old", "old", TOKEN]
    assert sink.stats().delivered == 1
    assert "refused AUTH: 535" in str(told[0].error)
    assert "check credentials" in str(told[0].error)


def test_a_token_may_be_longer_than_other_lines():
    """RFC 4954 allows 12 288 bytes; one of Exchange Online has two thousand, and is sent with the command."""
    long = "x" * 2_500
    with (
        Script({"EHLO": b"250-scripted\r\n250 AUTH XOAUTH2\r\n", "AUTH": b"235 OK\r\n"}) as server,
        sink_for(server, lambda: long) as sink,
    ):
        sink.handle({"event": "hello"})
    [line] = [line for line in server.heard if line.startswith(b"AUTH XOAUTH2 ")]
    assert base64.b64decode(line.split()[2]) == f"user=shop@example.org\1auth=Bearer {long}\1\1".encode()


def test_no_token_is_told(server):
    """Neither what the server says nor the failures, their tracebacks and the reprs have it in them."""
    with sink_for(server, lambda: "secret-token") as sink, pytest.raises(PausedDeliveryError) as caught:
        sink.handle({"event": "hello"})
    shown = [repr(sink), *traceback.format_exception(caught.value), repr(sink._route("secret-token"))]
    assert "secret-token" not in "".join(shown)
    encoded = base64.b64encode(b"auth=Bearer secret-token").decode()[4:-4]
    assert encoded not in "".join(shown)
    for replies in (
        {"AUTH": b"535 5.7.3 no secret-token\r\n"},
        {"AUTH": b"235 OK\r\n", "MAIL": b"550 no secret-token\r\n"},
    ):
        with (
            Script({"EHLO": b"250-scripted\r\n250 AUTH XOAUTH2\r\n", **replies}) as other,
            sink_for(other, lambda: "secret-token") as sink,
            pytest.raises(PausedDeliveryError) as caught,
        ):
            sink.handle({"event": "hello"})
        assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (lambda: 1 / 0, r"token\(\) raised ZeroDivisionError"),
        (lambda: None, r"token\(\) returned nothing that can be sent"),
        (lambda: "", r"token\(\) returned nothing that can be sent"),
        (lambda: "a\r\nQUIT", r"token\(\) returned nothing that can be sent"),
        (lambda: "a\1auth=x", r"token\(\) returned nothing that can be sent"),
    ],
)
def test_a_callable_without_a_token_keeps_the_events(server, token, said):
    """Nothing is connected; what it raised is told by its class alone, and nothing gets into the dialogue."""
    with sink_for(server, token) as sink, pytest.raises(PausedDeliveryError, match=said) as caught:
        sink.handle({"event": "hello"})
    assert caught.value.__context__ is None
    assert server.connections == 0


def test_a_server_that_knows_no_tokens_is_told_by_what_it_knows():
    """Whoever wrote the wrong host reads what that one offers."""
    with (
        MailServer(password="secret") as other,
        sink_for(other, lambda: TOKEN) as sink,
        pytest.raises(PausedDeliveryError, match=r"offers no AUTH XOAUTH2, but .*PLAIN"),
    ):
        sink.handle({"event": "hello"})
    with (
        Script() as bare,
        sink_for(bare, lambda: TOKEN) as sink,
        pytest.raises(PausedDeliveryError, match="check whether it asks for TLS first"),
    ):
        sink.handle({"event": "hello"})


def test_a_passing_trouble_of_the_login_is_temporary():
    """454 is no refusal."""
    with (
        Script({"EHLO": b"250-scripted\r\n250 AUTH XOAUTH2\r\n", "AUTH": b"454 4.7.0 later\r\n"}) as busy,
        sink_for(busy, lambda: TOKEN) as sink,
        pytest.raises(TemporaryDeliveryError, match="454") as caught,
    ):
        sink.handle({"event": "hello"})
    assert not isinstance(caught.value, PausedDeliveryError)


def test_what_the_callable_logs_does_not_ask_for_another_token(server):
    """An event for the same sink is dropped as reentrant, and the mail is sent."""

    def token():
        sink.handle({"event": "asking"})
        return TOKEN

    with sink_for(server, token) as sink:
        sink.handle({"event": "hello"})
    assert len(server.mails) == 1
    assert sink.stats().dropped == {"reentrant": 1}


def test_a_token_does_not_cross_the_network_in_plain_text():
    """Refused as a password is, at construction."""
    with pytest.raises(ValueError, match="allow_insecure"):
        SMTPSink("smtp.example.org", *ADDRESSES, ("shop@example.org", lambda: TOKEN))
    SMTPSink("smtp.example.org", *ADDRESSES, ("shop@example.org", lambda: TOKEN), ()).close()


def test_credentials_of_another_shape_are_refused():
    """The message has none of it."""
    for wrong in (("shop", None), ("shop", 7), (lambda: "x", "secret"), "shop"):
        with pytest.raises(TypeError, match="a callable that returns a token") as caught:
            SMTPSink("localhost", *ADDRESSES, wrong)
        assert "secret" not in str(caught.value)
