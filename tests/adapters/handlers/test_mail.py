"""The drop-in handler that sends mails, beside its original.

What is asked with `module` is asked of both; what is asked of `outfall.adapters.handlers` alone is where it differs on
purpose.
"""

from __future__ import annotations

import email.utils
import gc
import importlib
import inspect
import logging
import logging.config
import logging.handlers
import smtplib
import ssl
import sys
import weakref

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outfall.adapters import handlers
from tests.adapters._records import Errors, closing, exc_info, formatters, records, twin_of
from tests.sinks._mail import MailServer, Script
from tests.sinks._wire import free_port

SENDER, RECIPIENT = "shop@example.org", "ops@example.org"
PASSWORD = "correct-horse-battery"
PATIENT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


@pytest.fixture(params=["logging.handlers", "outfall.adapters.handlers"])
def module(request):
    """Give the originals, then the twins."""
    return importlib.import_module(request.param)


@pytest.fixture(autouse=True)
def originals_connections(monkeypatch):
    """Close what the original leaves open when a mail fails, and spare it the search for the host's own name."""
    monkeypatch.setattr(smtplib.socket, "getfqdn", lambda: "client.test")
    made = []
    initialize = smtplib.SMTP.__init__

    def remember(self, *arguments, **options):
        made.append(self)
        initialize(self, *arguments, **options)

    monkeypatch.setattr(smtplib.SMTP, "__init__", remember)
    yield made
    for connection in made:
        connection.close()


@pytest.fixture(scope="module")
def server():
    """Give a server that takes every mail in plain text."""
    with MailServer() as made:
        yield made
        made.wait_until_idle()


@pytest.fixture(scope="module")
def authority():
    """Give a certificate authority."""
    return trustme.CA()


@pytest.fixture
def server_context(authority):
    """Give what a server encrypts with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority):
    """Give what a client needs to trust the server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def record(message="hello", level=logging.ERROR, **attributes):
    """Return a record."""
    return logging.makeLogRecord(
        {"msg": message, "levelno": level, "levelname": logging.getLevelName(level), **attributes}
    )


def handler_for(module, peer, *arguments, **options):
    """Return a handler that mails to *peer*, and what its handleError is told."""
    arguments = arguments or (SENDER, [RECIPIENT], "trouble")
    handler = module.SMTPHandler(peer.address, *arguments, **options)
    return handler, Errors(handler)


def said(server):
    """Return what both mails have in common, of the newest: envelope, headers, text."""
    envelope, mail = server.handler.envelopes[-1], server.mails[-1]
    headers = {
        name: [str(address) for address in mail[name].addresses] if name in ("From", "To") else mail[name]
        for name in ("From", "To", "Subject", "Content-Type", "MIME-Version")
    }
    return envelope.mail_from, envelope.rcpt_tos, headers, mail.get_content().replace("\r\n", "\n")


def test_same_names_order_and_defaults():
    """The constructor and the methods have the parameters of the original."""
    original, twin = logging.handlers.SMTPHandler, handlers.SMTPHandler
    assert issubclass(twin, original)
    for method, value in vars(original).items():
        if inspect.isfunction(value):
            ours = inspect.signature(getattr(twin, method)).parameters.values()
            theirs = inspect.signature(value).parameters.values()
            assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs], method


@PATIENT
@given(
    record=records(),
    formatter=formatters(),
    subject=st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc", "Zs"]), max_size=40),
)
def test_the_same_mail(server, record, formatter, subject):
    """The same envelope, headers and text come from both, or both tell of an error."""
    got = []
    for module in (logging.handlers, handlers):
        handler, errors = handler_for(module, server, f"Shop <{SENDER}>", [RECIPIENT, "b@example.org"], subject)
        with closing(handler):
            handler.setFormatter(formatter())
            handler.handle(twin_of(record))
        got.append("error" if errors else said(server))
    assert got[0] == got[1]


def test_the_attributes(module):
    """Each argument is an attribute; one recipient becomes a list; without credentials there is no user."""
    handler = module.SMTPHandler("mail.test", SENDER, RECIPIENT, "trouble")
    assert (handler.mailhost, handler.mailport, handler.username) == ("mail.test", None, None)
    assert (handler.fromaddr, handler.toaddrs, handler.subject) == (SENDER, [RECIPIENT], "trouble")
    assert (handler.secure, handler.timeout) == (None, 5.0)
    assert not hasattr(handler, "password")
    handler = module.SMTPHandler(("mail.test", 587), SENDER, (RECIPIENT,), "", ("me", "word"), ("k", "c"), 2.5)
    assert (handler.mailhost, handler.mailport) == ("mail.test", 587)
    assert (handler.username, handler.password) == ("me", "word")
    assert (handler.toaddrs, handler.secure, handler.timeout) == ((RECIPIENT,), ("k", "c"), 2.5)


def test_the_attributes_act_at_the_next_mail(module, server):
    """What is set after construction counts, recipients added to the list too."""
    handler, errors = handler_for(module, server)
    with closing(handler):
        handler.mailhost, handler.mailport = "nowhere.invalid", 1
        handler.handle(record())
        assert len(errors) == 1
        handler.mailhost, handler.mailport = server.address
        handler.fromaddr = "other@example.org"
        handler.toaddrs.append("more@example.org")
        handler.subject = "another {level}"
        handler.handle(record("text"))
    assert len(errors) == 1
    sender, recipients, headers, text = said(server)
    assert (sender, recipients, headers["Subject"], text) == (
        "other@example.org",
        [RECIPIENT, "more@example.org"],
        "another {level}",
        "text\n",
    )


def test_the_subject_may_depend_on_the_record(module, server):
    """getSubject can be overridden, in a subclass or on the instance."""

    class Handler(module.SMTPHandler):
        def getSubject(self, record):
            return f"{super().getSubject(record)}: {record.levelname}"

    with closing(Handler(server.address, SENDER, RECIPIENT, "shop")) as (handler,):
        handler.handle(record())
        assert said(server)[2]["Subject"] == "shop: ERROR"
        handler.getSubject = lambda record: record.name
        handler.handle(record(name="orders"))
        assert said(server)[2]["Subject"] == "orders"


def test_the_text_is_what_the_formatter_makes(module, server):
    """With the traceback in it, whatever the characters."""
    handler, errors = handler_for(module, server)
    with closing(handler):
        handler.setFormatter(logging.Formatter("{levelname}: {message}", style="{"))
        handler.handle(record("größer als 日本", exc_info=exc_info()))
    assert errors == []
    text = said(server)[3]
    assert text.startswith("ERROR: größer als 日本\nTraceback")
    assert text.endswith("ValueError: bad value\n")


def test_it_logs_in(module):
    """With credentials it logs in; it sends them in plain text if that is what is asked for."""
    with MailServer(password=PASSWORD) as server:
        handler, errors = handler_for(module, server, SENDER, RECIPIENT, "s", ("me", PASSWORD))
        with closing(handler):
            handler.handle(record())
            assert errors == []
            assert server.passwords == [PASSWORD.encode()]
            handler.password = "wrong"
            handler.handle(record())
            assert len(errors) == 1
            tried = len(server.passwords)
            handler.username = None
            handler.handle(record())
            assert len(errors) == 1
            assert len(server.passwords) == tried


def test_it_sends_credentials_to_any_host():
    """That the password crosses the network in plain text is no error, as it is none for the original."""
    handler = handlers.SMTPHandler("mail.example.org", SENDER, RECIPIENT, "s", ("me", PASSWORD))
    handler.sink.follow(handler)
    assert handler.sink._route().credentials == ("me", PASSWORD)


def test_credentials_go_over_tls_if_asked_to(module, server_context, client_context):
    """With secure it starts TLS before it logs in."""
    with MailServer(server_context, password=PASSWORD) as server:
        handler, errors = handler_for(module, server, SENDER, RECIPIENT, "s", ("me", PASSWORD), ())
        handler.ssl_context = client_context
        with closing(handler):
            handler.handle(record())
        assert errors == []
        assert server.handler.envelopes[-1].encrypted
        assert server.passwords == [PASSWORD.encode()]


def test_nobody_there_is_told(module, capsys):
    """A server that cannot be reached costs the mail, and handleError is told, which prints."""
    handler = module.SMTPHandler(("127.0.0.1", free_port()), SENDER, RECIPIENT, "s")
    handler.handle(record())
    assert "Logging error" in capsys.readouterr().err


def test_a_server_that_says_nothing_is_given_up(module):
    """After the timeout handleError is told."""
    with Script({"": None}) as server:
        handler, errors = handler_for(module, server, SENDER, RECIPIENT, "s", None, None, 0.2)
        handler.handle(record())
        assert len(errors) == 1
        if module is handlers:
            assert handler.sink.timeout == 0.2
            assert "no answer within 0.2 s" in handler.sink.stats().last_error


def test_a_refused_mail_is_told(module, originals_connections):
    """So is a mail that the server does not take."""
    with Script({".": b"554 no\r\n"}) as server:
        handler, errors = handler_for(module, server)
        handler.handle(record())
        assert len(errors) == 1
        originals_connections[-1].close()


def test_an_address_that_is_none_is_told(module):
    """It is an error of the mail, and not of the constructor."""
    with MailServer() as server:
        handler, errors = handler_for(module, server, "two\nlines@example.org", RECIPIENT, "s")
        handler.handle(record())
        assert len(errors) == 1
        handler.close()


def test_dict_config_takes_a_list_as_the_host(module, server):
    """As JSON has pairs."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "mail": {
                    "class": f"{module.__name__}.SMTPHandler",
                    "mailhost": list(server.address),
                    "fromaddr": SENDER,
                    "toaddrs": [RECIPIENT],
                    "subject": "configured",
                }
            },
            "loggers": {"twins.mail": {"handlers": ["mail"], "propagate": False}},
        }
    )
    log = logging.getLogger("twins.mail")
    log.error("by mail")
    assert said(server)[2]["Subject"] == "configured"
    log.handlers[0].close()
    log.handlers.clear()


# -- where the twin differs


def test_tls_is_used_without_credentials_too(server_context, client_context):
    """Where TLS is asked for nothing is sent without it; the original sends in plain text."""
    with MailServer(server_context) as server:
        handler, errors = handler_for(handlers, server, SENDER, RECIPIENT, "s", None, ())
        handler.ssl_context = client_context
        handler.handle(record())
        assert errors == []
        assert server.handler.envelopes[-1].encrypted
        original, _ = handler_for(logging.handlers, server, SENDER, RECIPIENT, "s", None, ())
        original.handle(record())
        assert not server.handler.envelopes[-1].encrypted


def test_the_servers_certificate_is_verified(server_context):
    """The original encrypts for whoever answers."""
    with MailServer(server_context, password=PASSWORD) as server:
        handler, errors = handler_for(handlers, server, SENDER, RECIPIENT, "s", ("me", PASSWORD), ())
        handler.handle(record())
        assert len(errors) == 1
        assert server.passwords == []
        original, errors = handler_for(logging.handlers, server, SENDER, RECIPIENT, "s", ("me", PASSWORD), ())
        original.handle(record())
        assert errors == []
        assert server.passwords == [PASSWORD.encode()]


def test_secure_takes_files_on_every_version(server_context, authority, tmp_path):
    """A key and a certificate are used; the original cannot hand them on since Python 3.12."""
    own = authority.issue_cert("shop.example.org")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    own.private_key_pem.write_to_path(key)
    own.cert_chain_pems[0].write_to_path(certificate)
    handler = handlers.SMTPHandler("localhost", SENDER, RECIPIENT, "s", None, (str(key), str(certificate)))
    handler.sink.follow(handler)
    assert handler.sink._route().context is not None
    handler.secure = (str(key), str(tmp_path / "missing.pem"))
    with pytest.raises(OSError):  # noqa: PT011 - of whichever kind
        handler.sink.follow(handler)
    if sys.version_info >= (3, 12):
        with MailServer(server_context, password=PASSWORD) as server:
            files = (str(key), str(certificate))
            original, errors = handler_for(logging.handlers, server, SENDER, RECIPIENT, "s", ("me", PASSWORD), files)
            original.handle(record())
            assert len(errors) == 1


def test_no_subject_costs_a_mail(server):
    """Line breaks in a subject become spaces; to the original they are an error."""
    handler, errors = handler_for(handlers, server, SENDER, RECIPIENT, "two\r\nBcc: all@example.org")
    handler.handle(record())
    assert errors == []
    _, recipients, headers, _ = said(server)
    assert headers["Subject"] == "two Bcc: all@example.org"
    assert recipients == [RECIPIENT]
    handler.subject = "long " * 100
    handler.handle(record())
    assert errors == []
    assert len(said(server)[2]["Subject"]) <= 250
    original, errors = handler_for(logging.handlers, server, SENDER, RECIPIENT, "two\nlines")
    original.handle(record())
    assert len(errors) == 1


def test_the_date_is_that_of_the_record(server):
    """And there are a Message-ID and a word to robots, which the original's mails lack."""
    handler, _ = handler_for(handlers, server)
    handler.handle(record(created=1_700_000_000.5))
    mail = server.mails[-1]
    assert email.utils.parsedate_to_datetime(mail["Date"]).timestamp() == 1_700_000_000
    assert mail["Message-ID"].endswith("@example.org>")
    assert mail["Auto-Submitted"] == "auto-generated"


def test_text_that_is_not_ascii_is_base64(server):
    """It arrives the same; the original sends 8 bits."""
    encodings = []
    for module in (logging.handlers, handlers):
        handler, _ = handler_for(module, server)
        handler.handle(record("größer"))
        assert said(server)[3] == "größer\n"
        encodings.append(server.mails[-1]["Content-Transfer-Encoding"])
    assert encodings == ["8bit", "base64"]


def test_a_refused_recipient_is_told(server):
    """The others get the mail, and handleError is told whom it did not reach, where the original is silent."""
    server.handler.recipient_replies["gone@example.org"] = "550 gone"
    told = []
    for module in (logging.handlers, handlers):
        handler, errors = handler_for(module, server, SENDER, [RECIPIENT, "gone@example.org"], "s")
        handler.handle(record())
        assert said(server)[1] == [RECIPIENT]
        told.append(len(errors))
    assert told == [0, 1]
    assert handler.sink.stats().delivered == 1


def test_lone_surrogates_cost_no_mail(server):
    """Half a character is escaped; to the original it is an error."""
    told = []
    for module in (logging.handlers, handlers):
        handler, errors = handler_for(module, server)
        handler.handle(record("half \ud83d"))
        told.append(len(errors))
    assert told == [1, 0]
    assert said(server)[3] == "half \\ud83d\n"


def test_without_a_timeout_it_is_the_default():
    """None waits five seconds and not for ever."""
    handler = handlers.SMTPHandler("localhost", SENDER, RECIPIENT, "s", timeout=None)
    handler.sink.follow(handler)
    assert handler.sink.timeout == 5.0


def test_a_failed_mail_leaves_no_connection_open(originals_connections):
    """The original leaves its open."""
    left = []
    for module in (logging.handlers, handlers):
        with Script({".": b"554 no\r\n"}) as server:
            handler, errors = handler_for(module, server)
            handler.handle(record())
            assert len(errors) == 1
            left.append(originals_connections[-1].sock)
            originals_connections[-1].close()
    assert left[0] is not None
    assert left[1] is None


def test_a_handler_dies_with_its_last_reference():
    """After a failure too: what was raised holds nothing."""
    handler, errors = handler_for(handlers, MailHost("127.0.0.1", free_port()))
    handler.handle(record())
    assert len(errors) == 1
    gone = weakref.ref(handler)
    gc.disable()
    try:
        del handler
        assert gone() is None
    finally:
        gc.enable()


class MailHost:
    """Where there is no server."""

    def __init__(self, host, port):
        self.address = host, port
