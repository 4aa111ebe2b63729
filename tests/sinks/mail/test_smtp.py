"""Events as mails, to real servers on loopback and to some that misbehave."""

from __future__ import annotations

import asyncio
import datetime as dt
import email
import email.policy
import gc
import json
import logging
import os
import socket
import ssl
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from outfall import BackgroundSink, RetryPolicy
from outfall.adapters import handlers
from outfall.sinks.errors import (
    DeliveryError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.mail import message as mail
from outfall.sinks.mail.client import Route
from outfall.sinks.mail.smtp import SMTPSink
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._mail import Handler, MailServer, Script
from tests.sinks._processes import PATIENCE_SECONDS, until
from tests.sinks._wire import free_port, has_ipv6

if TYPE_CHECKING:
    from outfall import Sink

PASSWORD = "correct-horse-battery"
ADDRESSES = ("shop@example.org", "ops@example.org")


@pytest.fixture(scope="module")
def authority():
    """Give a certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority):
    """Give a server's certificate for localhost and 127.0.0.1."""
    return authority.issue_cert("localhost", "127.0.0.1")


@pytest.fixture
def server_context(certificate):
    """Give what a server encrypts with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def client_context(authority):
    """Give what a client needs to trust the server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def server():
    """Give a server that takes every mail in plain text."""
    with MailServer() as made:
        yield made
        made.wait_until_idle()


@pytest.fixture(autouse=True, scope="module")
def _nothing_leaks():
    """Let what is in a cycle and was not closed warn here; all else warns in its test."""
    yield
    gc.collect()


def sink_for(peer, subject="an event", **options):
    """Return a sink that raises, for *peer*."""
    options.setdefault("on_error", "raise")
    return SMTPSink(peer.address, *ADDRESSES, subject, **options)


def text_of(message):
    """Return the body, lines ending as they do in Python."""
    return message.get_body().get_content().replace("\r\n", "\n")


def attachments_of(message):
    """Return name, type and content of each attachment."""
    return [
        (part.get_filename(), part.get_content_type(), part.get_content().decode())
        for part in message.iter_attachments()
    ]


class TestContract(SinkContract):
    """The sink keeps the contract."""

    events_per_thread = 10

    @pytest.fixture(autouse=True)
    def _server(self, server) -> None:
        self.server = server

    def make_sink(self, **options: Any) -> Sink:
        return SMTPSink(self.server.address, *ADDRESSES, "an event", **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        lines = [
            line
            for message in self.server.mails
            for _, _, content in attachments_of(message)
            for line in content.splitlines()
        ]
        return [json.loads(line) for line in lines]


# -- the mail


def test_a_mail_has_its_headers(server):
    """It parses without a defect, and its Date is the event's time."""
    with SMTPSink(server.address, "Shop <shop@example.org>", ["a@example.org", "b@example.org"], "Alarm") as sink:
        sink.handle({"event": "hello", "timestamp": "2024-02-29T12:00:00.500Z"})
    [message] = server.mails
    assert message.defects == []
    assert message["From"] == "Shop <shop@example.org>"
    assert [address.addr_spec for address in message["To"].addresses] == ["a@example.org", "b@example.org"]
    assert message["Subject"] == "Alarm"
    assert message["Date"].datetime == dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc)
    assert message["Message-ID"].endswith("@example.org>")
    assert message["MIME-Version"] == "1.0"
    assert message["Auto-Submitted"] == "auto-generated"
    [envelope] = server.handler.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("shop@example.org", ["a@example.org", "b@example.org"])


def test_the_date_is_now_where_the_event_has_none_that_a_mail_can_have(server):
    """A time before 1900 or after the year 9999 is none for a header."""
    with sink_for(server) as sink:
        for timestamp in (None, -1e11, 9e11, "garbage"):
            sink.handle({"event": "hello", "timestamp": timestamp})
    for message in server.mails:
        assert abs(message["Date"].datetime.timestamp() - time.time()) < 60


def test_message_ids_differ(server):
    """Two mails of the same event are two mails."""
    with sink_for(server) as sink:
        sink.handle({"event": "hello"})
        sink.handle({"event": "hello"})
    first, second = server.mails
    assert first["Message-ID"] != second["Message-ID"]


def test_the_body_is_for_people_and_the_json_attached(server):
    """The message, the fields and the traceback can be read; a program finds the event."""
    event = {
        "event": "zu wenig Schrauben: 螺栓 🔩",
        "level": "error",
        "user": {"id": 3},
        "note": "a\nb\x1b[1m",
        "n": 2**70,
    }
    with sink_for(server) as sink:
        try:
            raise LookupError("kein Lager")
        except LookupError:
            sink.handle({**event, "exc_info": True})
    [message] = server.mails
    text = text_of(message)
    assert text.startswith("zu wenig Schrauben: 螺栓 🔩\n\nlevel: error\n")
    assert 'user:  {"id":3}\n' in text
    assert "note:  a\n       b\\x1b[1m\n" in text
    assert f"n:     {2**70}\n" in text
    assert "Traceback (most recent call last):" in text
    assert text.rstrip().endswith("LookupError: kein Lager")
    [(name, kind, content)] = attachments_of(message)
    assert (name, kind) == ("event.json", "application/json")
    attached = json.loads(content)
    assert attached.items() >= event.items()
    assert "LookupError" in attached["exception"]


def test_a_renderer_makes_the_body(server):
    """JSON alone, for mails that programs read."""
    with sink_for(server, renderer=OrjsonRenderer(), attach_json=False) as sink:
        sink.handle({"event": "hello", "n": 1})
        sink.renderer = lambda _logger, name, event: f"{name} {event['event']}"
        sink.handle({"event": "hello", "n": 2})
        sink.attach_json = True
        sink.handle({"event": "hello", "n": 3})
    first, second, third = server.mails
    assert json.loads(text_of(first)) == {"event": "hello", "n": 1}
    assert attachments_of(first) == []
    assert text_of(second) == "info hello\n"
    assert [content for *_, content in attachments_of(third)] == ['{"event":"hello","n":3}']


def test_a_renderer_that_returns_something_else_is_told(server):
    """It costs the event."""
    with sink_for(server, renderer=lambda *_: 1) as sink, pytest.raises(TypeError, match="returned int"):
        sink.handle({"event": "hello"})


def test_text_rendered_elsewhere_is_the_body(server):
    """A handler's formatter decides on the whole mail."""
    with sink_for(server) as sink:
        sink.handle("2024-02-29 ERROR größer")
        sink.handle(b"bytes \xff")
    assert [text_of(message) for message in server.mails] == ["2024-02-29 ERROR größer\n", "bytes \\xff\n"]
    assert [attachments_of(message) for message in server.mails] == [[], []]


def test_long_lines_dots_and_from_lines_arrive_as_they_are(server):
    """What SMTP and mailboxes treat specially is no different in the end."""
    text = "." + "\n.\n..\nFrom here\n" + "x" * 5000 + "\n" + "\ud800"
    with sink_for(server, renderer=lambda _logger, _name, event: event["event"]) as sink:
        sink.handle({"event": text})
    assert text_of(server.mails[0]) == text[:-1] + "\\ud800\n"
    assert max(map(len, server.handler.envelopes[0].content.split(b"\r\n"))) <= 998


@given(text=st.text())
def test_any_body_arrives(text):
    """Whatever the text, it is in the mail, but for the kind of its line ends."""
    data = mail.compose(
        sender=mail.Mailbox("a@b", "a@b"),
        recipients=[mail.Mailbox("a@b", "a@b")],
        subject="x",
        text=text,
        attachment=None,
        seconds=0.0,
    )
    message = email.message_from_bytes(data, policy=email.policy.default)
    expected = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    assert text_of(message).removesuffix("\n") == expected
    assert data.isascii()


# -- subjects


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("plain", "plain"),
        ("{level}: {event}", "error: order failed"),
        ("{level!r} {amount:.2f} {amount:>6}", "'error' 12.50   12.5".replace("   ", " ")),
        ("order {order.id} {order.no}", "order 17 {order.no}"),
        ("{http.status}", "500"),
        ("{nope} {nope!r:>3} {}", "{nope} {nope!r:>3} {}"),
        ("{ {event} }", "{ {event} }"),
        ("{", "{"),
        ("}{event}", "}{event}"),
        ("{{event}}", "{event}"),
        ("{event:d} {level:{width}}", "order failed error"),
        ("{event.__class__} {order.__class__.__mro__}", "{event.__class__} {order.__class__.__mro__}"),
        ("{order[id]}", "{order[id]}"),
        ("{bad}!", "{bad}!"),
        ("größer {event}", "größer order failed"),
    ],
)
def test_a_subject_is_a_template(subject, expected):
    """Fields of the event are filled in; nothing else in braces breaks anything or reaches further."""

    class Bad:
        def __format__(self, _spec):
            raise RuntimeError("no")

    event = {
        "event": "order failed",
        "level": "error",
        "amount": 12.5,
        "order": {"id": 17},
        "http.status": 500,
        "bad": Bad(),
    }
    assert mail.one_line(mail.SubjectTemplate(subject).fill(event)) == expected


def test_a_subject_may_be_a_callable_or_overridden(server):
    """Both get the event."""

    class Sink(SMTPSink):
        def get_subject(self, event):
            return "overridden: " + event["event"]

    with sink_for(server, lambda event: f"called: {event['event']}") as sink:
        sink.handle({"event": "a"})
        sink.subject = "set: {event}"
        sink.handle({"event": "a"})
    with Sink(server.address, *ADDRESSES, "not used", on_error="raise") as sink:
        sink.handle({"event": "a"})
    assert [message["Subject"] for message in server.mails] == ["called: a", "set: a", "overridden: a"]


def test_a_subject_that_raises_costs_no_mail(server):
    """The message is the subject, and on_error is told without the event's values."""
    failures = []

    def fail(event):
        raise ValueError(event["event"])

    with sink_for(server, fail, on_error=failures.append) as sink:
        sink.handle({"event": "hello there"})
        sink.emit_batch([sink.encode({"event": 1, "level": "error"})])
        assert sink.stats().delivered == 1
    assert [message["Subject"] for message in server.mails] == ["hello there", "error"]
    assert [failure.events for failure in failures] == [0, 0]
    assert "hello there" not in str(failures[0].error)


def test_a_long_subject_is_cut(server):
    """A subject is for reading at a glance."""
    with sink_for(server, "{event}") as sink:
        sink.handle({"event": "ü" * 10_000})
        sink.handle({"event": "u" * 10_000})
    for message, letter in zip(server.mails, "üu", strict=True):
        assert message["Subject"] == letter * 249 + "…"


HEADER_TEXT = st.text(st.characters() | st.sampled_from('\r\n\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029 \t:=?<>@,;"\\{}'))


@given(text=HEADER_TEXT)
def test_no_text_makes_a_header_of_its_own(text):
    """Whatever an event says, the subject is one header, and says the same but for white space."""
    subject = mail.one_line(mail.SubjectTemplate("{event}").fill({"event": text}))
    data = mail.compose(
        sender=mail.Mailbox("a@b", "a@b"),
        recipients=[mail.Mailbox("c@d", "c@d")],
        subject=subject,
        text="body",
        attachment=None,
        seconds=0.0,
    )
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert [name for name in message.keys() if name != "Content-Transfer-Encoding"] == [  # noqa: SIM118 - as often as there
        *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type", "MIME-Version"),
    ]
    assert text_of(message) == "body\n"
    assert "".join(message["Subject"].split()) == "".join(subject.split())
    assert all(len(line) <= 998 for line in data.split(b"\r\n"))


@given(text=HEADER_TEXT)
def test_an_address_has_no_control_character_or_is_refused(text):
    """What is taken as an address gives one header line of it."""
    try:
        boxes = mail.parse_addresses([text, f"{text} <a@example.org>"], "toaddrs")
    except ValueError as error:
        assert "toaddrs" in str(error)  # noqa: PT017 - that it does not raise is as good
        return
    for box in boxes:
        assert "\n" not in box.header.replace("\r\n ", "")
        assert not set(box.address) & set("\r\n\0 <>")


@pytest.mark.parametrize("kind", ["fromaddr", "toaddrs"])
@pytest.mark.parametrize(
    "address",
    [
        "a@example.org\r\nBcc: x@example.org",
        "a\n@example.org",
        "a@b\r\nDATA",
        "",
        "@",
        "a@",
        "a b@example.org",
        "<>",
        "a@b@c d",
    ],
)
def test_addresses_are_checked(kind, address):
    """A line break in an address, or none, is refused at construction and when set."""
    addresses = {"fromaddr": "a@example.org", "toaddrs": ["b@example.org"]}
    with pytest.raises(ValueError, match=kind):
        SMTPSink("localhost", **{**addresses, kind: address}, subject="x")
    sink = SMTPSink("localhost", **addresses, subject="x")
    with pytest.raises(ValueError, match=kind):
        setattr(sink, kind, address)
    assert (sink.fromaddr, sink.toaddrs) == ("a@example.org", ["b@example.org"])


def test_recipients_may_be_given_as_one_text_or_set_later(server):
    """Commas separate; a name may stand before an address; who comes twice gets one mail."""
    with SMTPSink(server.address, "a@example.org", 'B <b@example.org>, "C, D" <c@example.org>', "x") as sink:
        sink.handle({"event": "x"})
        sink.toaddrs = ["Dörte <d@example.org>", "d@example.org", "root"]
        sink.handle({"event": "x"})
    assert [envelope.rcpt_tos for envelope in server.handler.envelopes] == [
        ["b@example.org", "c@example.org"],
        ["d@example.org", "root"],
    ]
    first, second = server.mails
    assert [address.display_name for address in first["To"].addresses] == ["B", "C, D"]
    assert second["To"].addresses[0].display_name == "Dörte"


def test_addresses_that_are_not_ascii(server):
    """A domain is sent as ASCII; a local part needs a server that says it can."""
    with MailServer(enable_SMTPUTF8=True) as international:
        with SMTPSink(
            international.address, "a@bücher.example", "jürgen@bücher.example", "x", on_error="raise"
        ) as sink:
            sink.handle({"event": "ü"})
        international.wait_until_idle()
        [envelope] = international.handler.envelopes
        assert envelope.mail_from == "a@xn--bcher-kva.example"
        assert envelope.rcpt_tos == ["jürgen@xn--bcher-kva.example"]
        assert "jürgen@" in str(international.mails[0]["To"])
    with (
        SMTPSink(server.address, "a@example.org", "jürgen@example.org", "x", on_error="raise") as sink,
        pytest.raises(PausedDeliveryError, match="SMTPUTF8"),
    ):
        sink.handle({"event": "ü"})


# -- digests


def test_a_batch_is_one_mail(server):
    """One digest, with every event, under the subject of the worst one and the time of the last."""
    with sink_for(server, "{level}: {event}") as sink:
        batch = [
            sink.encode({"event": f"event {n}", "level": "error" if n == 3 else "info", "timestamp": 1e9 + n})
            for n in range(500)
        ]
        assert sink.emit_batch(batch) is None
    [message] = server.mails
    assert message["Subject"] == "error: event 3 (and 499 more)"
    assert message["Date"].datetime.timestamp() == 1e9 + 499
    text = text_of(message)
    assert text.startswith("500 events (error, info)\n")
    assert all(f"\nevent {n}\n" in text for n in range(500))
    [(name, kind, content)] = attachments_of(message)
    assert (name, kind) == ("events.jsonl", "application/x-ndjson")
    assert [json.loads(line)["event"] for line in content.splitlines()] == [f"event {n}" for n in range(500)]
    assert server.connections == 1


def test_a_batch_of_one_is_an_ordinary_mail_and_of_none_is_none(server):
    """No digest of a single event."""
    with sink_for(server, "{event}") as sink:
        assert sink.emit_batch([]) is None
        assert sink.emit_batch([sink.encode({"event": "alone"})]) is None
    [message] = server.mails
    assert message["Subject"] == "alone"
    assert [name for name, *_ in attachments_of(message)] == ["event.json"]


def test_a_refused_batch_raises(server):
    """None of it was taken."""
    server.handler.message_reply = "451 4.3.0 later"
    with sink_for(server) as sink, pytest.raises(TemporaryDeliveryError):
        sink.emit_batch([sink.encode({"event": "a"}), sink.encode({"event": "b"})])


# -- TLS and login


def test_starttls_without_credentials(server_context, client_context):
    """TLS does not wait for a login."""
    with MailServer(server_context, require_starttls=True) as server:
        with sink_for(server, ssl_context=client_context) as sink:
            sink.handle({"event": "hello"})
        server.wait_until_idle()
        assert server.handler.envelopes[0].encrypted


def test_starttls_and_login(server_context, client_context):
    """The password crosses the network encrypted."""
    with MailServer(server_context, password=PASSWORD, auth_required=True) as server:
        with sink_for(server, credentials=("shop", PASSWORD), ssl_context=client_context) as sink:
            sink.handle({"event": "hello"})
        server.wait_until_idle()
        [envelope] = server.handler.envelopes
        assert (envelope.encrypted, envelope.login) == (True, b"shop")


def test_implicit_tls_and_login(server_context, client_context):
    """As on port 465."""
    with MailServer(server_context, implicit=True, password=PASSWORD) as server:
        with sink_for(
            server, credentials=["shop", PASSWORD], secure=(), ssl_context=client_context, implicit_tls=True
        ) as sink:
            sink.handle({"event": "hello"})
        server.wait_until_idle()
        assert server.handler.envelopes[0].login == b"shop"


@pytest.mark.parametrize("implicit", [False, True])
def test_a_certificate_of_nobody_known_is_refused(server_context, implicit):
    """The default context verifies; nothing is sent, and the connection is closed."""
    with MailServer(server_context, implicit=implicit) as server:
        with (
            sink_for(server, secure=(), implicit_tls=implicit) as sink,
            pytest.raises(TemporaryDeliveryError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            sink.handle({"event": "hello"})
        server.wait_until_idle()
        assert server.mails == []


def test_a_certificate_for_another_host_is_refused(authority, client_context):
    """The name is looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(context)
    with MailServer(context) as server, sink_for(server, ssl_context=client_context) as sink:
        with pytest.raises(TemporaryDeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            sink.handle({"event": "hello"})
        server.wait_until_idle()


def test_nothing_is_sent_in_plain_text_where_tls_was_asked_for():
    """A server, or somebody in between, that offers no STARTTLS gets neither password nor mail."""
    with Script() as server, sink_for(server, credentials=("shop", PASSWORD), secure=()) as sink:
        with pytest.raises(TemporaryDeliveryError, match="no STARTTLS"):
            sink.handle({"event": "secret event"})
        until(lambda: server.ended == 1)
        assert [line.split()[0].upper() for line in server.heard] == [b"EHLO", b"QUIT"]


def test_a_refused_starttls_ends_it():
    """454 is no invitation to go on without."""
    replies = {"EHLO": b"250-scripted\r\n250 STARTTLS\r\n", "STARTTLS": b"454 4.7.0 no TLS now\r\n"}
    with Script(replies) as server, sink_for(server, secure=()) as sink:
        with pytest.raises(TemporaryDeliveryError, match=r"refused STARTTLS: 454 4\.7\.0 no TLS now"):
            sink.handle({"event": "hello"})
        until(lambda: server.ended == 1)


@pytest.mark.parametrize("files", [1, 2])
def test_the_tuple_of_the_handler_names_a_client_certificate(authority, certificate, monkeypatch, tmp_path, files):
    """(keyfile,) holds both; (keyfile, certfile) one each. The server asks for it and sees it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.issue_cert("client@example.org")
    both, key, chain, trusted = (tmp_path / name for name in ("both.pem", "key.pem", "chain.pem", "ca.pem"))
    client.private_key_and_cert_chain_pem.write_to_path(both)
    client.private_key_pem.write_to_path(key)
    client.cert_chain_pems[0].write_to_path(chain)
    authority.cert_pem.write_to_path(trusted)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    secure = (str(both),) if files == 1 else (key, str(chain))
    with MailServer(context) as server:
        with sink_for(server, secure=secure) as sink:
            assert sink.secure == secure
            sink.handle({"event": "hello"})
        server.wait_until_idle()
        assert server.handler.envelopes[0].encrypted


def _asking_for_certificates(authority, certificate):
    """Return what a server encrypts with that takes clients with a certificate of *authority* alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("twin", [False, True])
def test_a_certificate_renewed_on_disk_is_taken_up(authority, certificate, monkeypatch, tmp_path, twin):
    """By the next mail; until key and certificate fit, the one before stays in use."""
    trusted, key, chain = (tmp_path / name for name in ("ca.pem", "key.pem", "chain.pem"))
    authority.cert_pem.write_to_path(trusted)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    seen = []

    def issue(name):
        made = authority.issue_cert(name)
        return made.private_key_pem.bytes(), made.cert_chain_pems[0].bytes()

    def put(path, content):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)

    first, second = issue("one@example.org"), issue("two@example.org")
    put(key, first[0])
    put(chain, first[1])
    with MailServer(_asking_for_certificates(authority, certificate)) as server:
        original = server.handler.handle_DATA

        async def note(smtp, session, envelope):
            peer = smtp.transport.get_extra_info("ssl_object").getpeercert()
            seen.append(dict(peer["subjectAltName"])["email"])
            return await original(smtp, session, envelope)

        server.handler.handle_DATA = note
        failures = []
        files = (str(key), str(chain))
        if twin:
            handler = handlers.SMTPHandler(server.address, *ADDRESSES, "x", secure=files)
            monkeypatch.setattr(handler, "handleError", lambda record: failures.append(sys.exc_info()[1]))

            def send():
                handler.handle(logging.makeLogRecord({"msg": "hello"}))
        else:
            sink = SMTPSink(server.address, *ADDRESSES, "x", secure=files, on_error=failures.append)

            def send():
                sink.handle({"event": "hello"})

        send()
        put(chain, second[1])
        send()
        assert len(failures) == 1
        put(key, second[0])
        send()
        (handler if twin else sink).close()
        server.wait_until_idle()
    assert seen == ["one@example.org", "one@example.org", "two@example.org"]
    assert len(failures) == 1
    assert "renewed certificate" in str(failures[0])


@pytest.mark.parametrize("implicit", [False, True])
def test_a_client_certificate_that_the_server_refuses_is_the_set_up_s_fault(
    authority, certificate, client_context, implicit
):
    """With TLS 1.3 the refusal comes after the handshake, and the report says it all the same."""
    context = _asking_for_certificates(trustme.CA(), certificate)

    def serve():
        with listener.accept()[0] as connection:
            if not implicit:
                lines = connection.makefile("rb")
                for answer in (b"220 scripted\r\n", b"250-scripted\r\n250 STARTTLS\r\n", b"220 go on\r\n"):
                    connection.sendall(answer)
                    if not answer.startswith(b"220 go"):
                        lines.readline()
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        sink = SMTPSink(
            listener.getsockname(),
            *ADDRESSES,
            "x",
            ssl_context=client_context,
            implicit_tls=implicit,
            on_error="raise",
        )
        with sink, pytest.raises(PausedDeliveryError, match=r"(?i)certificate.required|handshake.failure") as caught:
            sink.handle({"event": "hello"})
        thread.join(60)
    assert "check secure, ssl_context" in str(caught.value)


def test_a_missing_key_file_is_found_at_construction(tmp_path):
    """Not at the first error that should be mailed."""
    with pytest.raises(FileNotFoundError):
        SMTPSink("localhost", *ADDRESSES, "x", secure=(str(tmp_path / "none.pem"),))


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_wrong_password_is_a_temporary_failure_that_does_not_tell_it(server_context, client_context, encrypted):
    """No mail is at fault; a batch must not be given up for it, nor the account be tried for each event."""
    with MailServer(server_context if encrypted else None, password="another") as server:
        failures = []
        sink = sink_for(
            server,
            credentials=("shop", PASSWORD),
            ssl_context=client_context if encrypted else None,
            on_error=failures.append,
        )
        with sink:
            sink.handle({"event": "hello"})
            assert_no_secret(sink, failures)
            assert sink.stats().dropped == {"error": 1}
        server.wait_until_idle()
        assert isinstance(failures[0].error, TemporaryDeliveryError)
        assert "refused AUTH: 535 5.7.8" in str(failures[0].error)
        assert server.mails == []


def assert_no_secret(sink, failures):
    """Look for the password in all that is shown."""
    shown = [repr(sink), str(sink.stats()), repr(sink._route())]
    for failure in failures:
        error = failure.error
        shown += [repr(failure), repr(error.args), *traceback.format_exception(error)]
        assert error.__context__ is None
        assert error.__cause__ is None
    assert PASSWORD not in "".join(shown)


def test_credentials_that_are_not_ascii_are_sent_as_utf_8(server):
    """smtplib would raise an error that holds the password."""
    with MailServer(password="пароль") as strict:
        with sink_for(strict, credentials=("jürgen", "пароль")) as sink:
            sink.handle({"event": "hello"})
            sink.password = "другой"
            with pytest.raises(TemporaryDeliveryError, match="535") as caught:
                sink.handle({"event": "hello"})
        strict.wait_until_idle()
        assert strict.handler.envelopes[0].login == "jürgen".encode()
        assert "другой" not in "".join(traceback.format_exception(caught.value))
    with (
        Script({"EHLO": b"250-scripted\r\n250 AUTH LOGIN\r\n"}) as other,
        sink_for(other, credentials=("jürgen", "пароль")) as sink,
        pytest.raises(DeliveryError, match="AUTH PLAIN"),
    ):
        sink.handle({"event": "hello"})


def test_a_server_without_login_gets_no_mail(server):
    """The server does not know who it is from."""
    with sink_for(server, credentials=("shop", PASSWORD)) as sink, pytest.raises(DeliveryError, match="offers no AUTH"):
        sink.handle({"event": "hello"})
    assert server.mails == []


def test_a_server_that_repeats_the_password_is_not_quoted():
    """Neither the answer to the login nor a later one is, if it holds the password."""
    auth = b"250-scripted\r\n250 AUTH PLAIN\r\n"
    for replies in (
        {"AUTH": f"535 5.7.8 no {PASSWORD}\r\n".encode()},
        {"AUTH": b"235 OK\r\n", "MAIL": f"550 no {PASSWORD}\r\n".encode()},
        {"AUTH": b"235 OK\r\n", ".": b"550 5.7.1 spam: secret words\r\n"},
    ):
        failures = []
        with Script({"EHLO": auth, **replies}) as server:
            with sink_for(server, credentials=("shop", PASSWORD), on_error=failures.append) as sink:
                sink.handle({"event": "secret words"})
                assert_no_secret(sink, failures)
            [failure] = failures
            assert "secret words" not in str(failure.error)
            assert str(failure.error).split(": ")[1][:3] in ("535", "550")


@pytest.mark.parametrize("host", ["mail.example.org", "192.0.2.1", "localhost.example.org", "::2"])
def test_a_password_does_not_cross_the_network_in_plain_text(host):
    """Refused at construction, unless it is said that this is wanted."""
    with pytest.raises(ValueError, match="allow_insecure") as caught:
        SMTPSink(host, *ADDRESSES, "x", ("shop", PASSWORD))
    assert PASSWORD not in str(caught.value)
    SMTPSink(host, *ADDRESSES, "x", ("shop", PASSWORD), allow_insecure=True).close()
    SMTPSink(host, *ADDRESSES, "x", ("shop", PASSWORD), ()).close()
    SMTPSink(host, *ADDRESSES, "x", ("shop", PASSWORD), implicit_tls=True).close()
    sink = SMTPSink("localhost", *ADDRESSES, "x", ("shop", PASSWORD), on_error="raise")
    sink.mailhost = host
    with pytest.raises(ValueError, match="allow_insecure"):
        sink.handle({"event": "hello"})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.2", "::1"])
def test_a_password_may_go_to_this_machine(host):
    """Nobody listens in between."""
    SMTPSink(host, *ADDRESSES, "x", ("shop", PASSWORD)).close()


# -- servers that refuse


def test_a_refused_recipient_is_told_and_the_others_get_the_mail(server):
    """The event is delivered; on_error hears of it with no event lost."""
    server.handler.recipient_replies = {"b@example.org": "550 5.1.1 no such user"}
    failures = []
    with SMTPSink(
        server.address, "a@example.org", ["b@example.org", "c@example.org"], "x", on_error=failures.append
    ) as sink:
        sink.handle({"event": "single"})
        assert sink.emit_batch([sink.encode({"event": "batch"}), sink.encode({"event": "batch"})]) is None
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (1, {})
    assert [envelope.rcpt_tos for envelope in server.handler.envelopes] == [["c@example.org"]] * 2
    assert [failure.events for failure in failures] == [0, 0]
    assert "not to b@example.org: 550 5.1.1 no such user" in str(failures[0].error)


def test_a_refused_recipient_is_raised_if_told_to(server, capfd):
    """The event counts as delivered all the same; in a batch it is reported, since raising would ask for a retry."""
    server.handler.recipient_replies = {"b@example.org": "550 5.1.1 no such user"}
    with SMTPSink(server.address, "a@example.org", ["b@example.org", "c@example.org"], "x", on_error="raise") as sink:
        with pytest.raises(DeliveryError, match="no such user"):
            sink.handle({"event": "single"})
        assert sink.emit_batch([sink.encode({"event": "batch"})]) is None
        stats = sink.stats()
    assert (stats.delivered, dict(stats.dropped)) == (1, {})
    assert_balanced(stats)
    assert "no such user" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        (("550 5.1.1 gone", "550 5.1.1 gone"), PausedDeliveryError),
        (("550 5.1.1 gone", "552 5.3.4 too big for this one"), OversizeDeliveryError),
        (("451 4.7.1 greylisted", "451 4.7.1 greylisted"), TemporaryDeliveryError),
        (("550 5.1.1 gone", "451 4.7.1 greylisted"), TemporaryDeliveryError),
    ],
)
def test_when_all_recipients_are_refused_the_mail_failed(server, replies, kind):
    """Until somebody changes the set-up, unless one of them may take it later, or a smaller one."""
    server.handler.recipient_replies = dict(zip(("b@example.org", "c@example.org"), replies, strict=True))
    with SMTPSink(server.address, "a@example.org", ["b@example.org", "c@example.org"], "x", on_error="raise") as sink:
        with pytest.raises(DeliveryError) as caught:
            sink.handle({"event": "hello"})
        assert sink.stats().dropped == {"error": 1}
    assert type(caught.value) is kind
    assert replies[0] in str(caught.value)


def test_a_greylisted_mail_is_taken_later(server):
    """The same sink, the same event, a little later."""
    server.handler.recipient_replies = {"ops@example.org": "450 4.2.0 try again in five minutes"}
    with sink_for(server) as sink:
        with pytest.raises(TemporaryDeliveryError, match="five minutes"):
            sink.deliver({"event": "hello"})
        server.handler.recipient_replies = {}
        sink.deliver({"event": "hello"})
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    ("verb", "reply", "kind"),
    [
        ("", b"554 5.3.2 no service\r\n", PausedDeliveryError),
        ("", b"521 takes no mail\r\n", PausedDeliveryError),
        ("", b"421 busy\r\n", TemporaryDeliveryError),
        ("", b"garbage\r\n", TemporaryDeliveryError),
        ("EHLO", b"550 5.7.1 not from your address\r\n", PausedDeliveryError),
        ("EHLO", b"450 later\r\n", TemporaryDeliveryError),
        ("MAIL", b"550 5.7.1 not from you\r\n", PausedDeliveryError),
        ("MAIL", b"501 5.1.7 bad sender\r\n", PausedDeliveryError),
        ("MAIL", b"530 5.7.0 authenticate first\r\n", PausedDeliveryError),
        ("MAIL", b"452 4.3.1 disk full\r\n", TemporaryDeliveryError),
        ("DATA", b"250 OK\r\n", TemporaryDeliveryError),
        ("MAIL", b"552 5.3.4 too big\r\n", OversizeDeliveryError),
        ("MAIL", b"554 5.3.4 too big\r\n", OversizeDeliveryError),
        ("MAIL", b"552 message size exceeds fixed maximum message size\r\n", OversizeDeliveryError),
        ("RCPT", b"554 5.7.1 relay access denied\r\n", PausedDeliveryError),
        ("RCPT", b"550 no such user\r\n", PausedDeliveryError),
        ("RCPT", b"552 5.2.2 mailbox full\r\n", PausedDeliveryError),
        ("RCPT", b"552 over quota\r\n", PausedDeliveryError),
        ("RCPT", b"550 5.2.3 message exceeds the limit of this mailbox\r\n", OversizeDeliveryError),
        ("RCPT", b"450 4.2.0 greylisted\r\n", TemporaryDeliveryError),
        ("RCPT", b"421 4.7.0 too many\r\n", TemporaryDeliveryError),
        ("DATA", b"554 5.5.1 no valid recipients\r\n", PausedDeliveryError),
        ("DATA", b"550 5.7.1 no\r\n", PausedDeliveryError),
        ("DATA", b"451 4.3.0 no\r\n", TemporaryDeliveryError),
        (".", b"550 5.7.1 spam\r\n", PermanentDeliveryError),
        (".", b"554 no, thank you\r\n", PermanentDeliveryError),
        (".", b"550 5.6.0 not well formed\r\n", PermanentDeliveryError),
        (".", b"552 sorry, that message size exceeds my databytes limit (#5.3.4)\r\n", OversizeDeliveryError),
        (".", b"552 5.3.4 too big\r\n", OversizeDeliveryError),
        (".", b"552 mailbox full\r\n", PermanentDeliveryError),
        (".", b"552 5.2.2 mailbox full\r\n", PausedDeliveryError),
        (".", b"554 5.1.1 nobody there\r\n", PausedDeliveryError),
        (".", b"550 5.4.5 daily limit exceeded\r\n", PausedDeliveryError),
        (".", b"550 5.7.26 unauthenticated sender\r\n", PausedDeliveryError),
        (".", b"530 5.7.0 authenticate first\r\n", PausedDeliveryError),
        (".", b"451 4.3.0 later\r\n", TemporaryDeliveryError),
        (".", b"2\r\n", TemporaryDeliveryError),
    ],
)
def test_what_refusals_mean(verb, reply, kind):
    """What the server says of a mail it has read is that mail's fault, all before the set-up's; the next mail goes."""
    with Script({verb: reply, "HELO": reply}) as server, sink_for(server) as sink:
        with pytest.raises(DeliveryError) as caught:
            sink.handle({"event": "hello"})
        assert type(caught.value) is kind
        assert caught.value.__context__ is None
        assert sink._open == []
        until(lambda: server.ended == 1)
        server.replies[verb] = Script.USUAL[verb]
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "."])
def test_any_reply_of_success_is_one(verb):
    """The first digit decides; a mail that was taken would come again and again."""
    with Script({verb: b"254 taken\r\n"}) as server, sink_for(server) as sink:
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1


@pytest.mark.parametrize(
    ("verb", "reply", "advice"),
    [
        ("", b"554 5.7.1 your address is listed\r\n", "mailhost"),
        ("EHLO", b"550 5.7.1 your name is listed\r\n", "mailhost"),
        ("MAIL", b"553 5.1.8 no such domain\r\n", "fromaddr"),
        ("RCPT", b"554 5.7.1 relay access denied\r\n", "toaddrs"),
        ("DATA", b"554 5.5.1 no valid recipients\r\n", "toaddrs"),
    ],
)
def test_a_set_up_that_the_server_refuses_costs_no_event_and_few_connections(verb, reply, advice):
    """A batch is offered as a whole, seldom, and kept; the report says what to look at; once it is mended all go."""
    failures = []
    told = threading.Event()

    def tell(failure):
        failures.append(failure)
        told.set()

    retry = RetryPolicy(pause_start_seconds=0.2, pause_max_seconds=0.2)
    with Script({verb: reply, "HELO": reply}) as server:
        sink = BackgroundSink(SMTPSink(server.address, *ADDRESSES, "x"), on_error=tell, retry=retry)
        with sink:
            for number in range(100):
                sink.handle({"event": "hello", "n": number})
            assert told.wait(60)
            assert (sink.stats().pending, dict(sink.stats().dropped)) == (100, {})
            server.replies[verb] = Script.USUAL[verb]
            assert sink.flush(60)
            assert sink.stats().delivered == 100
        # Each attempt is one connection, whatever the number of events.
        assert [failure.events for failure in failures] == [0] * len(failures)
        until(lambda: server.ended == len(failures) + _mails(server))
    assert advice in str(failures[0].error)
    assert reply.decode().strip() in str(failures[0].error)


def _mails(server):
    """Return how many messages a `Script` has been sent whole."""
    return server.heard.count(b".\r\n")


def test_a_mail_that_is_too_large_is_halved_until_it_fits():
    """By a server that says so to MAIL, without one event lost."""

    class Small(Script):
        def _answer(self, connection, verb):
            if verb == "MAIL":
                size = int(self.heard[-1].partition(b"SIZE=")[2].split()[0])
                self.replies["MAIL"] = b"552 5.3.4 too big\r\n" if size > 4000 else Script.USUAL["MAIL"]
            return super()._answer(connection, verb)

    with Small() as server:
        with BackgroundSink(SMTPSink(server.address, *ADDRESSES, "x"), on_error="raise") as sink:
            for number in range(40):
                sink.handle({"event": "hello", "n": number})
            assert sink.flush(60)
            assert (sink.stats().delivered, dict(sink.stats().dropped)) == (40, {})
        assert 2 <= _mails(server) < 40


def test_one_mail_that_the_server_will_not_have_costs_its_event_alone(server):
    """The others of its batch arrive."""

    async def refuse(server, session, envelope):
        if b"forbidden words" in envelope.content:
            return "554 5.7.1 spam"
        handler.envelopes.append(envelope)
        return "250 OK"

    handler = server.handler
    handler.handle_DATA = refuse
    failures = []
    with BackgroundSink(SMTPSink(server.address, *ADDRESSES, "x"), on_error=failures.append) as sink:
        for number in range(8):
            sink.handle({"event": "forbidden words" if number == 5 else "hello", "n": number})
        assert sink.flush(60)
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (7, {"rejected": 1})
    assert sum(failure.events for failure in failures) == 1


# -- servers that fail


@pytest.mark.parametrize("verb", ["", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_a_server_that_hangs_is_given_up(verb):
    """After the timeout, wherever it hangs; the connection is closed."""
    with Script({verb: None}) as server, sink_for(server, timeout=0.15) as sink:
        started = time.monotonic()
        with pytest.raises(TemporaryDeliveryError, match=r"no answer within 0\.15 s"):
            sink.handle({"event": "hello"})
        assert time.monotonic() - started < PATIENCE_SECONDS / 2
        until(lambda: server.ended == 1)


def test_a_server_that_drips_is_given_up():
    """A byte now and then is no answer: the whole reply has to be there in time."""
    with (
        Script({"": b"220-" + b"x" * 10_000 + b"\r\n"}, drip_seconds=0.02) as server,
        sink_for(server, timeout=0.15) as sink,
    ):
        started = time.monotonic()
        with pytest.raises(TemporaryDeliveryError, match=r"no answer within 0\.15 s"):
            sink.handle({"event": "hello"})
        assert time.monotonic() - started < PATIENCE_SECONDS / 2


def test_what_is_too_much_to_be_taken_in_time_is_sent_in_parts():
    """The server may take the mail after all: the same mail would come with each retry."""

    class Slow(Handler):
        async def handle_DATA(self, server, session, envelope):
            if envelope.content.count(b"payment") > 4:  # in the body, not in the base64 of the attachment
                await asyncio.sleep(PATIENCE_SECONDS)
            return await super().handle_DATA(server, session, envelope)

    retry = RetryPolicy(start_seconds=0.01, max_seconds=0.01)
    with MailServer(handler=Slow()) as server:
        mail = sink_for(server, timeout=0.5, subject="failed")
        with BackgroundSink(mail, linger=5, retry=retry, on_error=lambda _: None) as sink:
            for number in range(8):
                sink.handle({"event": f"payment {number}"})
            assert sink.flush(PATIENCE_SECONDS)
            assert sink.stats().delivered == 8
        assert len(server.mails) > 1


def test_a_server_that_never_stops_talking_is_given_up():
    """A reply has an end."""
    with (
        Script({"EHLO": b"250-more\r\n" * 20_000}) as server,
        sink_for(server) as sink,
        pytest.raises(TemporaryDeliveryError, match="more than 65536 bytes"),
    ):
        sink.handle({"event": "hello"})


def test_a_server_that_does_not_read_is_given_up():
    """A full pipe is waited for no longer than the timeout."""
    with Script({"DATA": None}) as server:
        # A server that says 354 and stops reading.
        server.replies["DATA"] = b"354 go on\r\n"
        server._take_message = lambda connection, lines: server._gone.wait(60) and False
        with sink_for(server, timeout=0.15) as sink, pytest.raises(TemporaryDeliveryError, match="DATA"):
            sink.handle({"event": "x" * 6_000_000})
        server._gone.set()


@pytest.mark.parametrize("verb", ["", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_a_server_that_hangs_up_costs_the_event_and_no_more(verb):
    """Also in the midst of the message; the next mail has a connection of its own."""
    with Script({verb: Script.HANG_UP}) as server, sink_for(server) as sink:
        with pytest.raises(TemporaryDeliveryError, match="was lost at"):
            sink.handle({"event": "x" * 1_000_000})
        assert sink.stats().dropped == {"error": 1}
        until(lambda: server.ended == 1)
        server.replies[verb] = Script.USUAL[verb]
        server.hung_up = False
        sink.handle({"event": "hello"})
        assert_balanced(sink.stats())
        assert sink.stats().delivered == 1


@pytest.mark.parametrize("reply", [None, Script.HANG_UP, b"500 no\r\n"])
def test_how_a_server_takes_leave_does_not_matter(reply, monkeypatch):
    """Once the message is taken it is delivered."""
    monkeypatch.setattr("outfall.sinks.mail.client._QUIT_SECONDS", 0.05)
    with Script({"QUIT": reply}) as server, sink_for(server) as sink:
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1
        until(lambda: server.ended == 1)


def test_a_server_that_is_not_there_is_told():
    """The message names host and port."""
    port = free_port()
    with (
        SMTPSink(("127.0.0.1", port), *ADDRESSES, "x", on_error="raise") as sink,
        pytest.raises(TemporaryDeliveryError, match=f"no connection to 127.0.0.1:{port}: ConnectionRefusedError"),
    ):
        sink.handle({"event": "hello"})


def test_an_interrupt_closes_the_connection(monkeypatch):
    """KeyboardInterrupt in the midst of a dialogue leaves nothing open."""
    from outfall.sinks.mail.client import Connection

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, "rcpt", interrupt)
    with Script() as server, sink_for(server) as sink:
        with pytest.raises(KeyboardInterrupt):
            sink.handle({"event": "hello"})
        until(lambda: server.ended == 1)
        assert sink.stats().dropped == {"interrupted": 1}


def test_close_does_not_wait_for_a_server_that_hangs():
    """It keeps its own time, and the mail in progress is settled when the server's is over."""
    with Script({"EHLO": None}) as server:
        sink = sink_for(server, timeout=PATIENCE_SECONDS, on_error=lambda _: None)
        thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
        thread.start()
        until(lambda: server.heard)
        started = time.monotonic()
        assert not sink.flush(0.05)
        assert not sink.close(0.05)
        assert time.monotonic() - started < PATIENCE_SECONDS / 2
        [connection] = sink._open
        connection.sock.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        assert_balanced(sink.stats())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_lets_go_of_the_parent_s_connection(server_context):
    """A mail in progress at the fork goes on in the parent; the child holds none of it, and mails by itself."""
    with Script({"MAIL": None}) as stuck, MailServer() as server:
        sink = sink_for(stuck, timeout=PATIENCE_SECONDS, on_error=lambda _: None)
        thread = threading.Thread(target=sink.handle, args=({"event": "parent"},))
        thread.start()
        until(lambda: len(stuck.heard) == 2)
        [connection] = sink._open
        assert connection.sock is not None
        descriptor = connection.sock.fileno()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                try:
                    os.fstat(descriptor)
                except OSError:
                    sink.mailhost, sink.mailport = server.address
                    sink.on_error = "raise"
                    sink.handle({"event": "child"})
                    status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        connection.sock.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        assert [json.loads(content)["event"] for _, _, content in attachments_of(server.mails[0])] == ["child"]
        server.wait_until_idle()


# -- construction


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"mailhost": ""}, ValueError, "mailhost=''"),
        ({"mailhost": "a\r\nb"}, ValueError, "mailhost="),
        ({"mailhost": 25}, TypeError, "mailhost=25"),
        ({"mailhost": "mail.example.org:25"}, ValueError, "write mailhost=('mail.example.org', 25)"),
        ({"mailhost": "[::1]:25"}, ValueError, "write mailhost=('::1', 25)"),
        ({"mailhost": ("localhost", 70_000)}, ValueError, "70000"),
        ({"mailhost": ("localhost", "25")}, ValueError, "'25'"),
        ({"fromaddr": None}, TypeError, "fromaddr=None"),
        ({"fromaddr": "a@b.c, d@e.f"}, ValueError, "more than one"),
        ({"toaddrs": []}, ValueError, "toaddrs="),
        ({"toaddrs": [1]}, TypeError, "toaddrs="),
        ({"toaddrs": 5}, TypeError, "toaddrs=5 is neither an address"),
        ({"toaddrs": None}, TypeError, "toaddrs=None is neither an address"),
        ({"toaddrs": b"ops@example.org"}, TypeError, "toaddrs=b'ops@example.org' is neither an address"),
        ({"subject": None}, TypeError, "subject=None"),
        ({"credentials": "shop"}, TypeError, "credentials"),
        ({"credentials": ("shop", None)}, TypeError, "credentials"),
        ({"secure": True}, TypeError, "secure=True"),
        ({"secure": ("a", "b", "c")}, TypeError, "secure="),
        ({"secure": ("a",), "ssl_context": ssl.create_default_context()}, ValueError, "secure="),
        ({"ssl_context": True}, TypeError, "ssl_context=True"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": "five"}, ValueError, "timeout='five'"),
        ({"timeout": float("inf")}, ValueError, "timeout=inf"),
        ({"renderer": 1}, TypeError, "renderer=1"),
    ],
)
def test_misconfiguration_is_refused(options, error, named):
    """Each argument is checked at construction, and named."""
    arguments = {"mailhost": "localhost", "fromaddr": "a@b.c", "toaddrs": "d@e.f", "subject": "x", **options}
    with pytest.raises(error) as caught:
        SMTPSink(**arguments)
    assert named in str(caught.value)


def test_default_ports_and_attributes():
    """Port 25, with implicit TLS 465; the handler's attributes are there."""
    plain = SMTPSink("localhost", "a@b.c", "d@e.f", "x", ("shop", PASSWORD), None, dt.timedelta(seconds=2))
    assert "via localhost:25" in repr(plain)
    assert (plain.mailhost, plain.mailport, plain.username, plain.password) == ("localhost", None, "shop", PASSWORD)
    assert (plain.fromaddr, plain.toaddrs, plain.subject, plain.secure, plain.timeout) == (
        "a@b.c",
        ["d@e.f"],
        "x",
        None,
        2,
    )
    assert PASSWORD not in repr(plain)
    assert "via localhost:465" in repr(SMTPSink("localhost", "a@b.c", "d@e.f", "x", implicit_tls=True))
    assert "via localhost:25" in repr(SMTPSink(("localhost", 0), "a@b.c", "d@e.f", "x"))
    assert repr(Route("h", 25, 1.0, None, False, ("shop", PASSWORD))).endswith("implicit=False)")


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6():
    """The name given to the server is an address literal of that kind, where the host has no full name."""
    with MailServer(host="::1") as server:
        with sink_for(server) as sink:
            sink.handle({"event": "hello"})
        server.wait_until_idle()
        helo = server.handler.envelopes[0].helo
        assert helo == "[IPv6:::1]" or "." in helo


def test_a_handler_leads_in(server):
    """A record of logging becomes a mail, its traceback included."""
    from outfall import SinkHandler

    logger = logging.getLogger("mailed")
    handler = SinkHandler(sink_for(server, "{logger}: {event}"), level="ERROR")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.info("not mailed")
        try:
            raise OSError("disk")
        except OSError:
            logger.exception("failed with %s", "ö")
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        handler.close()
    [message] = server.mails
    assert message["Subject"] == "mailed: failed with ö"
    assert "OSError: disk" in text_of(message)
