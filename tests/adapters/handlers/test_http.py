"""The drop-in handler for web servers, beside its original.

What is asked with `module` is asked of both; what is asked of `outfall.adapters.handlers` alone is where it differs on
purpose.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import inspect
import logging
import logging.config
import logging.handlers
import ssl
from contextlib import contextmanager

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outfall.adapters import handlers
from tests.adapters._records import Errors, closing, formatters, records, twin_of
from tests.sinks._http import Answer, Server
from tests.sinks._processes import until
from tests.sinks._wire import free_port

PATIENT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture(params=["logging.handlers", "outfall.adapters.handlers"])
def module(request):
    """Give the originals, then the twins."""
    return importlib.import_module(request.param)


@pytest.fixture
def server():
    """Give a server that answers 200."""
    with Server() as made:
        yield made


@pytest.fixture(autouse=True)
def _originals_connections(monkeypatch):
    """Close what the original leaves open."""
    made = []
    initialize = http.client.HTTPConnection.__init__

    def remember(self, *arguments, **options):
        made.append(self)
        initialize(self, *arguments, **options)

    monkeypatch.setattr(http.client.HTTPConnection, "__init__", remember)
    yield
    for connection in made:
        connection.close()


def record(message="hello", **attributes):
    """Return a record."""
    return logging.makeLogRecord({"msg": message, "levelno": 20, "levelname": "INFO", **attributes})


def handler_for(module, server, url="/log", *arguments, **options):
    """Return a handler for *server*, and what its handleError is told."""
    handler = module.HTTPHandler(f"{server.host}:{server.port}", url, *arguments, **options)
    return handler, Errors(handler)


def asked(request):
    """Return what both requests have in common."""
    names = ("host", "content-type", "content-length", "authorization", "accept-encoding")
    return request.method, request.target, {name: request.headers.get(name) for name in names}, request.raw_body


def test_same_names_order_and_defaults():
    """The constructor and the methods have the parameters of the original."""
    original, twin = logging.handlers.HTTPHandler, handlers.HTTPHandler
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
    method=st.sampled_from(["GET", "POST", "get", "Post"]),
    url=st.sampled_from(["/", "/log", "/log?a=b", "/log?a=b&c=%20", "/a%20b/ü".encode("ascii", "ignore").decode()]),
    credentials=st.sampled_from([None, ("user", "pass word"), ("ü", "ß:")]),
)
def test_the_same_request(server, record, formatter, method, url, credentials):
    """The same request line, headers that matter and body come from both; the formatter has no say."""
    got = []
    for module in (logging.handlers, handlers):
        handler, errors = handler_for(module, server, url, method, False, credentials)
        with closing(handler):
            handler.setFormatter(formatter())
            handler.handle(twin_of(record))
        got.append("error" if errors else asked(server.requests[-1]))
    assert got[0] == got[1]
    assert got[0] != "error"


def test_the_attributes(module):
    """Each argument is an attribute, the method in capitals."""
    context = ssl.create_default_context()
    handler = module.HTTPHandler("log.test", "/log", "post", True, ("me", "word"), context)
    assert (handler.host, handler.url, handler.method, handler.secure) == ("log.test", "/log", "POST", True)
    assert (handler.credentials, handler.context) == (("me", "word"), context)
    handler = module.HTTPHandler("log.test", "/log")
    assert (handler.method, handler.secure, handler.credentials, handler.context) == ("GET", False, None, None)


def test_what_does_not_fit_together_is_refused(module):
    """Another method, and a context where nothing is encrypted, are a ValueError."""
    with pytest.raises(ValueError, match="GET"):
        module.HTTPHandler("log.test", "/", "PUT")
    with pytest.raises(ValueError, match="context"):
        module.HTTPHandler("log.test", "/", context=ssl.create_default_context())


def test_a_get_has_the_record_in_its_query(module, server):
    """After ? or, when there is one, after &; with all attributes of the record, and no body."""
    handler, _ = handler_for(module, server, "/log?app=shop")
    with closing(handler):
        handler.handle(record("a&b", user="bob"))
        handler.url = "/plain"
        handler.handle(record())
    first, second = server.requests
    assert first.target.startswith("/log?app=shop&")
    assert first.query["app"] == ["shop"]
    assert (first.query["msg"], first.query["user"], first.query["levelno"]) == (["a&b"], ["bob"], ["20"])
    assert second.target.startswith("/plain?")
    assert first.raw_body == b""


def test_a_post_has_the_record_in_its_body(module, server):
    """As a form, whose length and type are said."""
    handler, _ = handler_for(module, server, method="POST")
    with closing(handler):
        handler.handle(record("größer", user="bob smith"))
    [request] = server.requests
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["content-length"] == str(len(request.raw_body))
    assert request.form["msg"] == ["größer"]
    assert request.form["user"] == ["bob smith"]
    assert request.target == "/log"


def test_a_record_of_megabytes_is_posted(module, server):
    """There is no limit."""
    handler, errors = handler_for(module, server, method="POST")
    with closing(handler):
        handler.handle(record("x" * 3_000_000))
    assert errors == []
    assert len(server.requests[0].form["msg"][0]) == 3_000_000


def test_credentials_are_basic_authentication(module, server):
    """In UTF-8."""
    handler, _ = handler_for(module, server, credentials=("user", "pässword"))
    with closing(handler):
        handler.handle(record())
        handler.credentials = None
        handler.handle(record())
    expected = "Basic " + base64.b64encode("user:pässword".encode()).decode()
    assert [request.headers.get("authorization") for request in server.requests] == [expected, None]


def test_what_is_sent_of_a_record_can_be_overridden(module, server):
    """mapLogRecord, in a subclass or on the instance, returns the fields of the form."""

    class Handler(module.HTTPHandler):
        def mapLogRecord(self, record):
            return {"message": super().mapLogRecord(record)["msg"], "n": 1}

    handler = Handler(f"{server.host}:{server.port}", "/", "POST")
    with closing(handler):
        handler.handle(record("short"))
        handler.mapLogRecord = lambda record: [("a", "1"), ("a", "2")]
        handler.handle(record())
    assert [request.raw_body for request in server.requests] == [b"message=short&n=1", b"a=1&a=2"]
    # By default they are the record's own attributes.
    plain = module.HTTPHandler("log.test", "/")
    sent = record()
    assert plain.mapLogRecord(sent) is vars(sent)


def test_the_connection_can_be_overridden(module, server):
    """What getConnection returns is used, with method, query, body and headers as ever."""
    made = []

    class Handler(module.HTTPHandler):
        def getConnection(self, host, secure):
            made.append((host, secure))
            return http.client.HTTPConnection(server.host, server.port)

    handler = Handler("elsewhere.test", "/log?x=1", "GET", False, ("me", "word"))
    with closing(handler):
        handler.handle(record("one"))
        handler.method = "POST"
        handler.handle(record("two"))
    assert made == [("elsewhere.test", False)] * 2
    first, second = server.requests
    assert first.query["msg"] == ["one"]
    assert first.query["x"] == ["1"]
    assert first.headers["authorization"].startswith("Basic ")
    assert second.form["msg"] == ["two"]


def test_the_default_connection(module):
    """getConnection returns one of http.client's, not connected, with the context."""
    context = ssl.create_default_context()
    handler = module.HTTPHandler("log.test", "/", secure=True, context=context)
    connection = handler.getConnection("other.test:8443", True)
    assert isinstance(connection, http.client.HTTPSConnection)
    assert (connection.host, connection.port, connection._context) == ("other.test", 8443, context)
    assert type(handler.getConnection("other.test", False)) is http.client.HTTPConnection


@contextmanager
def encrypted():
    """Give a server with TLS, and a context that trusts it."""
    authority = trustme.CA()
    own, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(own)
    authority.configure_trust(trusting)
    with Server(context=own) as server:
        yield server, trusting


def test_https(module):
    """With secure it is encrypted, by the context's rules; without a context a stranger's certificate is an error."""
    with encrypted() as (server, context):
        handler, errors = handler_for(module, server, "/log", "POST", True, None, context)
        with closing(handler):
            handler.handle(record("secret"))
            assert errors == []
            assert server.requests[-1].form["msg"] == ["secret"]
            handler.context = None
            handler.handle(record())
            assert len(errors) == 1
            assert len(server.requests) == 1


def test_attributes_act_at_the_next_record(module, server):
    """The host, the path, the method."""
    handler = module.HTTPHandler(f"127.0.0.1:{free_port()}", "/")
    errors = Errors(handler)
    with closing(handler):
        handler.handle(record())
        assert len(errors) == 1
        handler.host = f"{server.host}:{server.port}"
        handler.url, handler.method = "/other", "POST"
        handler.handle(record())
    assert len(errors) == 1
    assert (server.requests[-1].method, server.requests[-1].target) == ("POST", "/other")


def test_nobody_there_is_told(module, capsys):
    """handleError is told, which prints."""
    handler = module.HTTPHandler(f"127.0.0.1:{free_port()}", "/")
    with closing(handler):
        handler.handle(record())
    assert "Logging error" in capsys.readouterr().err


def test_a_closed_handler_sends_again(module, server):
    """A record after close makes another connection."""
    handler, errors = handler_for(module, server)
    with closing(handler):
        handler.handle(record())
        handler.close()
        handler.handle(record())
    assert errors == []
    assert len(server.requests) == 2


def test_the_proxies_of_the_environment_are_not_used(module, server, monkeypatch):
    """An overridden getConnection is the documented way to a proxy."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    handler, errors = handler_for(module, server)
    with closing(handler):
        handler.handle(record())
    assert errors == []
    assert len(server.requests) == 1


def test_dict_config(module, server):
    """dictConfig makes it."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "http": {
                    "class": f"{module.__name__}.HTTPHandler",
                    "host": f"{server.host}:{server.port}",
                    "url": "/log",
                    "method": "POST",
                }
            },
            "loggers": {"twins.http": {"level": "INFO", "handlers": ["http"], "propagate": False}},
        }
    )
    log = logging.getLogger("twins.http")
    log.info("configured %d", 1)
    assert server.requests[-1].form["msg"] == ["configured %d"]
    log.handlers[0].close()
    log.handlers.clear()


# -- where the twin differs


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
@pytest.mark.parametrize("own_connection", [False, True])
def test_a_refused_record_is_told(server, status, own_connection):
    """An answer other than 2xx goes to handleError, where the original takes it for delivered."""
    server.default = status
    told = []
    for module in (logging.handlers, handlers):
        handler, errors = handler_for(module, server)
        if own_connection:
            handler.getConnection = lambda host, secure: http.client.HTTPConnection(host)
        with closing(handler):
            handler.handle(record())
        told.append(len(errors))
    assert told == [0, 1]
    assert handler.sink.stats().dropped == {"error": 1}


def test_a_server_that_does_not_answer_is_given_up(server, monkeypatch):
    """After a time, where the original waits for ever."""
    monkeypatch.setattr("outfall.adapters.handlers.http._TIMEOUT", (0.2, 0.2))
    server.default = Answer(hang=True)
    handler, errors = handler_for(handlers, server)
    with closing(handler):
        handler.handle(record())
    assert len(errors) == 1


def test_the_connection_is_kept(server):
    """The original makes one for each record."""
    for module in (logging.handlers, handlers):
        before = server.connections
        handler, _ = handler_for(module, server)
        with closing(handler):
            for _ in range(3):
                handler.handle(record())
        assert server.connections - before == (1 if module is handlers else 3)


def test_close_ends_the_connection(server):
    """The server sees it."""
    handler, _ = handler_for(handlers, server)
    handler.handle(record())
    assert server._open
    handler.close()
    until(lambda: not server._open)


def test_what_is_logged_while_a_record_is_sent_is_not_sent(server):
    """The records of the libraries that send would be sent for ever; they are counted."""
    handler, errors = handler_for(handlers, server)
    log = logging.Logger("shop")
    log.addHandler(handler)

    def connect(host, secure):
        log.info("connecting")
        return http.client.HTTPConnection(host)

    handler.getConnection = connect
    with closing(handler):
        log.info("one")
    assert errors == []
    assert [request.query["msg"] for request in server.requests] == [["one"]]
    stats = handler.sink.stats()
    assert (stats.delivered, stats.dropped) == (1, {"reentrant": 1})


def test_requests_have_a_key(server):
    """So that a server can tell a repeated request from another."""
    handler, _ = handler_for(handlers, server)
    with closing(handler):
        handler.handle(record())
        handler.handle(record())
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2
