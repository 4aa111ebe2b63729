"""Events over HTTP: what is sent, what becomes of it, and what nobody is told."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import threading
import time
import traceback

import pytest
import requests
import responses
from structlog import DropEvent

from outfall import (
    NDJSON,
    BatchResult,
    BodyFormat,
    Constant,
    FormURLEncoded,
    HTTPSink,
    JSONArray,
    JSONObject,
    LokiStreams,
    MissingDependencyError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    Projection,
    ReentrantEventError,
    SinkClosedError,
    SinkHandler,
    TemporaryDeliveryError,
)
from outfall.sinks.core.item import Batch
from outfall.sinks.testing import assert_balanced
from tests.sinks._http import Answer, Server

PASSWORD = "correct-horse-battery"


@pytest.fixture
def server():
    """Give a server that takes everything."""
    with Server() as made:
        yield made


def sink_for(server, path="/ingest", method="POST", **options):
    """Return a sink that raises, for *server*."""
    options.setdefault("on_error", "raise")
    return HTTPSink(f"{server.url}{path}", method, **options)


def batch_of(sink, count):
    """Return so many events as a batch of *sink*."""
    return Batch([sink.encode({"event": "hello", "number": number}) for number in range(count)], "key")


def numbers(request):
    """Return the numbers in the events that came."""
    return [event["number"] for event in request.json]


# -- what is sent


def test_an_event_is_a_json_object_in_a_post(server):
    """By default each event is one request with a JSON object."""
    with sink_for(server, "/in/gest?source=shop%20a") as sink:
        sink.handle({"event": "hello", "number": 1})
        sink.handle({"event": "hello", "number": 2})
    first, second = server.requests
    assert (first.method, first.target) == ("POST", "/in/gest?source=shop%20a")
    assert first.raw_body == b'{"event":"hello","number":1}'
    assert second.json == {"event": "hello", "number": 2}
    assert first.headers["content-type"] == "application/json"
    assert first.headers["user-agent"] == "outfall"
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert len(first.headers["idempotency-key"]) == 32
    # The answer is read to no purpose but to free the connection; compression would only cost.
    assert first.headers["accept-encoding"] == "identity"
    assert first.connection == second.connection == 1


@pytest.mark.parametrize("method", ["PUT", "PATCH", "post"])
def test_other_methods(server, method):
    """PUT and PATCH are there too; the case does not matter."""
    with sink_for(server, method=method) as sink:
        assert sink.method == method.upper()
        sink.handle({"event": "hello"})
    assert server.requests[0].method == method.upper()


def test_a_batch_is_one_request(server):
    """Formats of many events send a batch at once, under the batch's key."""
    with sink_for(server, body=NDJSON()) as sink:
        assert sink.emit_batch(batch_of(sink, 3)) is None
        assert sink.emit_batch([sink.encode({"event": "plain sequence"})]) is None
        assert sink.emit_batch([]) is None
    first, second = server.requests
    assert [event["number"] for event in first.lines] == [0, 1, 2]
    assert first.headers["idempotency-key"] == "key"
    assert first.headers["content-type"] == "application/x-ndjson"
    assert len(second.headers["idempotency-key"]) == 32


def test_a_form_in_the_query(server):
    """With GET the form is in the URL, after the query that is there, and there is no body."""
    with sink_for(server, "/log", "GET", body=FormURLEncoded()) as sink:
        sink.handle({"event": "a b", "n": 1})
        sink.url = f"{server.url}/log?key=1"
        sink.handle({"event": "a b"})
    first, second = server.requests
    assert (first.target, second.target) == ("/log?event=a+b&n=1", "/log?key=1&event=a+b")
    assert first.raw_body == b""
    assert "content-type" not in first.headers
    assert first.query == {"event": ["a b"], "n": ["1"]}


def test_fields_choose_what_is_sent(server):
    """A sequence of paths, a mapping, and a ready projection decide what an event looks like."""
    event = {"event": "hello", "level": "error", "user": {"id": 7, "name": "Ann"}, "timestamp": 1000}
    for fields in (["event", "user.id"], {"msg": "event", "app": Constant("shop")}, Projection({"m": "event"})):
        with sink_for(server, fields=fields) as sink:
            sink.handle(event)
            item = sink.encode(event)
            assert (item.level, item.time) == (40, 1000)
    assert [request.json for request in server.requests] == [
        {"event": "hello", "user": {"id": 7}},
        {"msg": "hello", "app": "shop"},
        {"m": "hello"},
    ]


def test_map_event_may_be_overridden(server):
    """A subclass decides what is sent, on top of fields if it likes; the level is that of the event."""

    class Sink(HTTPSink):
        def map_event(self, event):
            if event["event"] == "noise":
                raise DropEvent
            return {**super().map_event(event), "service": "shop"}

    with Sink(server.url, fields=["event"], on_error="raise") as sink:
        sink.handle({"event": "hello", "level": "error", "more": 1})
        sink.handle({"event": "noise"})
        assert sink.encode({"event": "hello", "level": "error"}).level == 40
        assert (sink.stats().delivered, sink.stats().filtered) == (1, 1)
    assert [request.json for request in server.requests] == [{"event": "hello", "service": "shop"}]


def test_map_event_has_to_return_a_dict(server):
    """What is no dict is an error that names the method."""

    class Sink(HTTPSink):
        def map_event(self, event):
            return [event]

    with Sink(server.url, on_error="raise") as sink, pytest.raises(TypeError, match="map_event returned list"):
        sink.handle({"event": "hello"})
    assert server.requests == []


def test_metadata_is_not_sent_and_exceptions_are_rendered(server):
    """What leaves is what the renderer makes of any event."""
    with sink_for(server) as sink:
        sink.handle({"event": "hello", "_record": 1, "exc_info": ValueError("broken"), "odd": {1}})
    assert server.requests[0].json == {
        "event": "hello",
        "exception_type": "ValueError",
        "exception_message": "broken",
        "exception": "ValueError: broken",
        "odd": [1],
    }


def test_headers_of_the_user_win(server):
    """Given headers are sent, in the place of ours whatever their case, and a format may bring its own."""

    class Format(JSONObject):
        headers = {"X-Format": "1", "X-Both": "format"}  # noqa: RUF012

    with sink_for(server, body=Format(), headers={"x-both": "user", "CONTENT-TYPE": "a/b", "User-agent": "me"}) as sink:
        sink.handle({"event": "hello"})
    headers = server.requests[0].headers
    assert headers["content-type"] == "a/b"
    assert headers["user-agent"] == "me"
    assert headers["x-format"] == "1"
    assert headers["x-both"] == "user"


# -- credentials


def test_a_user_and_a_password(server):
    """Basic authentication, given as a tuple or in the URL, of which it does not stay a part."""
    with sink_for(server, auth=("shop", "pass:wörd")) as sink:
        sink.handle({"event": "hello"})
    url = server.url.replace("://", "://shop:pass%3Aw%C3%B6rd@")
    with HTTPSink(url, on_error="raise") as sink:
        sink.handle({"event": "hello"})
        assert "shop" not in sink.url
    first, second = (request.headers["authorization"] for request in server.requests)
    assert first == second == "Basic c2hvcDpwYXNzOnfDtnJk"


def test_a_token(server):
    """A text is sent as a bearer token, or in another scheme."""
    with sink_for(server, token="abc") as sink:
        sink.handle({"event": "hello"})
    with sink_for(server, token="abc", token_scheme="Splunk") as sink:
        sink.handle({"event": "hello"})
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer abc", "Splunk abc"]


def test_a_callable_is_asked_for_a_token_each_time(server):
    """After a 401 the next attempt has the token of the day, since every attempt asks for it."""
    tokens = iter(["old", "new"])
    server.answers += [lambda request: 200 if request.headers["authorization"] == "Bearer new" else 401] * 2
    with sink_for(server, token=lambda: next(tokens)) as sink:
        with pytest.raises(PausedDeliveryError, match="answered 401"):
            sink.handle({"event": "hello"})
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1
        # Neither may what it raises be seen.
        with pytest.raises(PausedDeliveryError, match=r"token\(\) raised StopIteration$"):
            sink.handle({"event": "hello"})
    assert len(server.requests) == 2


@pytest.mark.parametrize("token", ["", "a\nb", None, 7, "a ", "ключ"])
def test_a_callable_without_a_usable_token_pauses(server, token):
    """What cannot be sent in a header keeps the events, and is in no message."""
    with sink_for(server, token=lambda: token) as sink:
        with pytest.raises(PausedDeliveryError) as caught:
            sink.handle({"event": "hello"})
        assert str(caught.value) == "token() returned nothing that can be sent"
        assert caught.value.__context__ is None
    assert server.requests == []


def test_the_token_is_asked_for_without_the_lock(server):
    """A callable may take as long as it likes, and hold up neither flush nor other threads."""
    entered, free = threading.Event(), threading.Event()

    def token():
        entered.set()
        free.wait(60)
        return "abc"

    with sink_for(server, token=token) as sink:
        thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
        thread.start()
        entered.wait(60)
        assert sink.flush(0)
        free.set()
        thread.join(60)
    assert len(server.requests) == 1


def test_an_authentication_object_of_requests(server):
    """Anything that requests takes for auth works, digest's second round included."""
    challenge = {"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'}
    server.answers += [Answer(401, headers=challenge), 200]
    with sink_for(server, auth=requests.auth.HTTPDigestAuth("shop", PASSWORD)) as sink:
        sink.handle({"event": "hello"})
        assert sink.stats().delivered == 1
    first, second = server.requests
    assert "authorization" not in first.headers
    assert second.headers["authorization"].startswith('Digest username="shop"')
    assert first.json == second.json == {"event": "hello"}


def test_netrc_is_not_read(server, tmp_path, monkeypatch):
    """Credentials in .netrc are not taken, so they replace no token and cross no network unasked."""
    (tmp_path / "netrc").write_text(f"default login thief password {PASSWORD}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with sink_for(server) as sink, sink_for(server, token="abc") as second:
        sink.handle({"event": "hello"})
        second.handle({"event": "hello"})
    with requests.Session() as session:
        for token in (None, "abc"):
            with sink_for(server, session=session, token=token) as sink:
                sink.handle({"event": "hello"})
    found = [request.headers.get("authorization") for request in server.requests]
    assert found == [None, "Bearer abc", None, "Bearer abc"]


CREDENTIALS = [
    {"token": "abc"},
    {"token": lambda: "abc"},
    {"auth": ("shop", PASSWORD)},
    {"auth": requests.auth.HTTPDigestAuth("shop", PASSWORD)},
    {"headers": {"authorization": "Basic abc"}},
    {"headers": {"DD-API-KEY": "abc"}},
    {"headers": {"X-Auth-Token": "abc"}},
]


@pytest.mark.parametrize("options", CREDENTIALS)
def test_credentials_in_plain_text_are_refused(options):
    """They do not cross a network unencrypted unless that is asked for; on this machine they may."""
    with pytest.raises(ValueError, match=r"logs\.test:80 in plain text.*allow_insecure=True") as caught:
        HTTPSink("http://logs.test/ingest", **options)
    assert PASSWORD not in str(caught.value)
    HTTPSink("http://logs.test/ingest", allow_insecure=True, **options).close()
    HTTPSink("https://logs.test/ingest", **options).close()
    for host in ("localhost", "127.0.0.1", "127.8.8.8", "[::1]"):
        HTTPSink(f"http://{host}/ingest", **options).close()


def test_credentials_elsewhere_are_refused_too():
    """Those in the URL, in a format's headers and in a session of the user's count."""

    class Format(JSONObject):
        headers = {"X-Api-Key": "abc"}  # noqa: RUF012

    session = requests.Session()
    session.auth = ("shop", PASSWORD)
    keyed = requests.Session()
    keyed.headers["X-API-Key"] = "abc"
    for url, options in (
        (f"http://shop:{PASSWORD}@logs.test/", {}),
        ("http://shop@logs.test/", {}),
        ("http://logs.test/", {"body": Format()}),
        ("http://logs.test/", {"session": session}),
        ("http://logs.test/", {"session": keyed}),
    ):
        with pytest.raises(ValueError, match="plain text") as caught:
            HTTPSink(url, **options)
        assert PASSWORD not in str(caught.value)
    HTTPSink("http://logs.test/", headers={"X-Source": "shop"}).close()
    with HTTPSink("https://logs.test/", token="abc") as sink:
        with pytest.raises(ValueError, match="plain text"):
            sink.url = "http://logs.test/"
        assert sink.url == "https://logs.test/"


SECRETS = {
    "url": "https://shop:url-pass-1@{host}/in/path-token-2?key=query-key-3",
    "headers": {"X-Api-Key": "header-key-4"},
    "proxies": {"https": "http://proxy:proxy-pass-5@127.0.0.1:1"},
}


@pytest.mark.parametrize(
    "status_or_fault", [400, 401, 413, 503, 301, "refused", "proxy", "timeout", "tls", "garbage", "reset"]
)
def test_no_secret_is_told(server, status_or_fault, free_port):
    """Neither credentials, path and query, nor the event are in what a failure says or holds, nor in the repr."""
    told = []
    event = {"event": "login of ann", "card": "4111-1111"}
    url = SECRETS["url"].format(host=f"{server.host}:{server.port}").replace("https", "http")
    options = {"headers": SECRETS["headers"], "timeout": 0.5, "on_error": told.append}
    if isinstance(status_or_fault, int):
        server.default = Answer(
            status_or_fault,
            "login of ann with 4111-1111 and header-key-4 by url-pass-1: query-key-3",
            {"Location": url, "Retry-After": "1"},
        )
    elif status_or_fault == "refused":
        url = SECRETS["url"].format(host=f"127.0.0.1:{free_port}")
    elif status_or_fault == "proxy":
        url = SECRETS["url"].format(host="logs.test")
        options["proxies"] = SECRETS["proxies"]
    elif status_or_fault == "timeout":
        server.default = Answer(hang=True)
    elif status_or_fault == "tls":
        url = url.replace("http:", "https:")  # to a server that does not speak TLS
    elif status_or_fault == "garbage":
        server.default = Answer(raw=b"query-key-3 url-pass-1 4111-1111\r\n\r\n")
    else:
        server.default = Answer(reset=True)
    with HTTPSink(url, **options) as sink:
        sink.handle(event)
        stats = sink.stats()
        [failure] = told
        error = failure.error
        assert error.__cause__ is None
        assert error.__context__ is None
        shown = [repr(sink), repr(stats), repr(failure), str(error), repr(error), repr(vars(error))]
        seen = "\n".join([*shown, *traceback.format_exception(error)])
    parts = ("url-pass", "path-token", "query-key", "header-key", "proxy-pass", "4111-1111", "login of", "shop:")
    assert [part for part in parts if part in seen] == []
    assert isinstance(error, (TemporaryDeliveryError, PermanentDeliveryError))
    assert sink.url.split("://")[1].split("/")[0] in str(error)


@pytest.fixture
def free_port():
    """Give a port on which nobody listens."""
    from tests.sinks._wire import free_port

    return free_port()


def test_the_repr_tells_host_and_format(server):
    """A sink is told from others by its format and its peer."""
    with sink_for(server, "/secret?x=1", body=NDJSON(), token=PASSWORD, name="ship") as sink:
        assert repr(sink) == f"<HTTPSink POST NDJSON to http://127.0.0.1:{server.port} name='ship'>"


# -- what an answer means


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, PermanentDeliveryError),
        (401, PausedDeliveryError),
        (403, PausedDeliveryError),
        (404, PausedDeliveryError),
        (408, TemporaryDeliveryError),
        (413, OversizeDeliveryError),
        (422, PermanentDeliveryError),
        (425, TemporaryDeliveryError),
        (429, TemporaryDeliveryError),
        (500, TemporaryDeliveryError),
        (503, TemporaryDeliveryError),
        *[(status, PausedDeliveryError) for status in (301, 302, 303, 307, 308)],
    ],
)
@pytest.mark.parametrize("own_session", [True, False])
def test_a_status_is_classified(status, kind, own_session):
    """Each status raises its own failure, and one request is all there is of it, redirects included."""
    with responses.RequestsMock() as mock, requests.Session() as session:
        mock.add("POST", "https://logs.test/in", status=status, headers={"Location": "https://logs.test/other"})
        mock.add("GET", "https://logs.test/other")
        mock.add("POST", "https://logs.test/other")
        mock.assert_all_requests_are_fired = False
        with HTTPSink("https://logs.test/in", session=None if own_session else session, on_error="raise") as sink:
            with pytest.raises(kind, match=f"logs.test:443 answered {status}") as caught:
                sink.handle({"event": "hello"})
            assert type(caught.value) is kind
            assert sink.stats().dropped == {"error": 1}
        assert len(mock.calls) == 1


@pytest.mark.parametrize("value", ["7", "Tue, 14 Nov 2023 22:13:27 GMT"])
def test_retry_after_is_told(server, value):
    """A busy server's wait is in the failure, seconds and dates alike."""
    server.answers.append(Answer(503, "busy", {"Retry-After": value}))
    with sink_for(server, clock=lambda: 1_700_000_000.0) as sink, pytest.raises(TemporaryDeliveryError) as caught:
        sink.handle({"event": "hello"})
    assert caught.value.retry_after == 7


def test_the_words_of_a_refusal_are_told(server):
    """A 400 says why, without what it repeats of the event; of a page of HTML the title is told."""
    server.answers += [
        Answer(400, {"error": "field 'when' is no date: yesterday-ish"}),
        Answer(422, "x" * 100_000),
        Answer(400, "<html><title>yesterday-ish is bad</title></html>", {"Content-Type": "text/html"}),
    ]
    with sink_for(server) as sink:
        messages = []
        for kind in (PermanentDeliveryError, PermanentDeliveryError, PausedDeliveryError):
            with pytest.raises(kind) as caught:
                sink.handle({"event": "hello", "when": "yesterday-ish"})
            assert type(caught.value) is kind
            messages.append(str(caught.value).partition(" answered ")[2])
    assert messages[0] == '400: {"error": "field \'when\' is no date: …"}'
    assert len(messages[1]) < 300
    assert messages[2].startswith("400: a page, “… is bad”; this is not about single events")


def test_an_answer_is_not_read_without_end(server):
    """Of an endless answer a part is read, and the connection is given up; the event was taken."""
    server.default = Answer(200, b"x" * 20_000_000)
    with sink_for(server) as sink:
        sink.handle({"event": "hello", "number": 1})
        sink.handle({"event": "hello", "number": 2})
        assert sink.stats().delivered == 2
    assert [request.connection for request in server.requests] == [1, 2]


def test_an_answer_that_breaks_off_was_an_answer(server):
    """The status says that the event was taken, whatever becomes of the rest."""
    server.answers += [Answer(200, "x" * 1000, send_only=200), Answer(200, "x" * 1000, send_only=200, reset=True)]
    with sink_for(server) as sink:
        for _ in range(3):
            sink.handle({"event": "hello"})
        assert sink.stats().delivered == 3


def test_continue_is_no_answer(server):
    """100 Continue comes before the answer and stands for nothing."""
    server.answers += [Answer(200, say_continue=True), Answer(503, say_continue=True)]
    with sink_for(server) as sink:
        sink.handle({"event": "hello"})
        with pytest.raises(TemporaryDeliveryError, match="503"):
            sink.handle({"event": "hello"})
    assert [request.connection for request in server.requests] == [1, 1]


@pytest.mark.parametrize(
    "raw", [b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x16\x03\x01", b"HTTP/1.1 42 x\r\n\r\n"]
)
def test_what_is_no_http_is_temporary(server, raw):
    """A malformed answer is none, and what it says is not repeated."""
    server.default = Answer(raw=raw)
    with sink_for(server) as sink:
        with pytest.raises(TemporaryDeliveryError) as caught:
            sink.handle({"event": "hello"})
        assert str(caught.value) in {
            f"127.0.0.1:{server.port} was lost: no answer that is HTTP (BadStatusLine)",
            f"127.0.0.1:{server.port} was lost: no answer that is HTTP (RemoteDisconnected)",
            f"127.0.0.1:{server.port} was lost: it hung up without an answer",
        }


# -- batches in several requests


def test_a_format_of_single_events_sends_a_batch_one_by_one(server):
    """Each event is a request with a key of its own, the same at each attempt; a refused one costs no other."""
    server.answers += [200, 400, 200]
    with sink_for(server) as sink:
        batch = batch_of(sink, 3)
        result = sink.emit_batch(batch)
        assert sink.emit_batch(batch) is None
    assert list(result.retry) == []
    assert list(result.rejected) == [1]
    assert "answered 400" in result.rejected[1]
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys[:3] == keys[3:] == ["key.0", "key.1", "key.2"]
    assert [request.json["number"] for request in server.requests] == [0, 1, 2, 0, 1, 2]


def test_single_events_after_a_temporary_failure_are_left(server):
    """What cannot be taken now, and all after it, is left for a retry; the first failure is raised."""
    with sink_for(server) as sink:
        server.answers += [200, 400, Answer(503, headers={"Retry-After": "3"})]
        result = sink.emit_batch(batch_of(sink, 5))
        assert (list(result.retry), list(result.rejected), result.retry_after) == ([2, 3, 4], [1], 3)
        assert len(server.requests) == 3
        server.answers += [401]
        with pytest.raises(PausedDeliveryError):
            sink.emit_batch(batch_of(sink, 5))
        # The one event of a batch is refused by an exception, so that a delivery sees which.
        server.answers += [413]
        with pytest.raises(OversizeDeliveryError):
            sink.emit_batch(batch_of(sink, 1))


def test_a_large_batch_is_several_requests(server):
    """No body is larger than max_body_bytes, as many events as fit are in each, and each has a key of its own."""
    with sink_for(server, body=NDJSON(), max_body_bytes=100) as sink:
        batch = batch_of(sink, 7)
        assert len(batch[0].data) == 28
        assert sink.emit_batch(batch) is None
        assert sink.emit_batch(batch[:3]) is None
    sent = [[event["number"] for event in request.lines] for request in server.requests]
    assert sent == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2]]
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys == ["key.0-2", "key.3-5", "key.6-6", "key.0-2"]
    assert max(len(request.raw_body) for request in server.requests) <= 100


def test_formats_that_add_much_are_split_as_well(server):
    """Where a format adds more than a line break to each event, fewer are in a request."""

    class Wide(JSONArray):
        def encode(self, batch):
            return b"[" + b",".join(b'{"wrapped":%b}' % item.data for item in batch) + b"]"

    with sink_for(server, body=Wide(), max_body_bytes=100) as sink:
        assert sink.emit_batch(batch_of(sink, 5)) is None
    assert [[event["wrapped"]["number"] for event in request.json] for request in server.requests] == [
        [0, 1],
        [2, 3],
        [4],
    ]


@pytest.mark.parametrize("status", [400, 413])
def test_a_part_that_is_refused_is_divided_at_once(server, status):
    """Where something was taken before, the parts of what is refused are sent without a wait, in order."""
    server.answers += [200, status]
    with sink_for(server, body=JSONArray(), max_body_bytes=100) as sink:
        assert sink.emit_batch(batch_of(sink, 7)) is None
    sent = [[event["number"] for event in request.json] for request in server.requests]
    assert sent == [[0, 1, 2], [3, 4, 5], [3], [4, 5], [6]]


@pytest.mark.parametrize(("status", "wait"), [(503, None), (401, None)])
def test_a_part_that_fails_leaves_the_rest(server, status, wait):
    """What was taken before a failing part is not named; the part and all after it are to be tried again."""
    server.answers += [200, status]
    with sink_for(server, body=JSONArray(), max_body_bytes=100) as sink:
        result = sink.emit_batch(batch_of(sink, 7))
        assert (list(result.retry), dict(result.rejected), result.retry_after) == ([3, 4, 5, 6], {}, wait)
        assert len(server.requests) == 2
        server.answers += [status]
        with pytest.raises((TemporaryDeliveryError, PermanentDeliveryError), match=str(status)):
            sink.emit_batch(batch_of(sink, 7))


def test_an_event_that_is_too_large_alone_is_refused(server):
    """It is sent nowhere; the others of its batch are."""
    with sink_for(server, body=JSONArray(), max_body_bytes=100) as sink:
        large = sink.encode({"event": "x" * 200})
        small = sink.encode({"event": "hello", "number": 1})
        with pytest.raises(OversizeDeliveryError, match="body of 214 bytes, of 100 at most"):
            sink.emit_batch([large])
        for place, events in enumerate([[large, small, small], [small, large, small]]):
            result = sink.emit_batch(events)
            assert list(result.rejected) == [place]
            assert "214 bytes" in result.rejected[place]
            assert list(result.retry) == []
    with sink_for(server, max_body_bytes=100) as sink:
        with pytest.raises(OversizeDeliveryError):
            sink.handle({"event": "x" * 200})
        assert list(sink.emit_batch([large, small]).rejected) == [0]
    hello = {"event": "hello", "number": 1}
    assert [request.json for request in server.requests] == [[hello, hello], [hello], [hello], hello]


def test_a_part_of_one_event_that_is_refused_costs_no_other(server):
    """Where an event is alone in its part, it is known to be the one; it is asked for again once another is taken."""
    server.answers += [400, 200, 400, 400]
    with sink_for(server, body=JSONArray(), max_body_bytes=40) as sink:
        result = sink.emit_batch(batch_of(sink, 4))
    assert list(result.rejected) == [0, 2]
    assert list(result.retry) == []
    assert [numbers(request) for request in server.requests] == [[0], [1], [0], [2], [3]]


def test_what_was_refused_before_the_server_let_anything_through_is_sent_again(server):
    """A gateway that is set right meanwhile costs no event."""
    server.answers += [400, 400, 200]
    with sink_for(server, body=JSONArray()) as sink:
        assert sink.emit_batch(batch_of(sink, 4)) is None
    assert [numbers(request) for request in server.requests][:2] == [[0, 1, 2, 3], [0]]
    assert sorted(n for request in server.requests[2:] for n in numbers(request)) == [0, 1, 2, 3]


@pytest.mark.parametrize("single", [True, False])
def test_a_format_that_fails_sends_nothing_twice(server, single):
    """What raises in a format is told of its event, or leaves the rest of the batch for a retry."""

    class Failing(JSONArray):
        def encode(self, batch):
            if any(item.event["number"] == 4 for item in batch) and (self.single or len(server.requests) == 1):
                raise LookupError("no place for hello-ann")
            return super().encode(batch)

    Failing.single = single
    with sink_for(server, body=Failing(), max_body_bytes=100) as sink:
        items = [sink.encode({"event": "hello-ann", "number": number}) for number in range(6)]
        if single:
            result = sink.emit_batch(items)
            assert list(result.rejected) == [4]
            assert "LookupError" in result.rejected[4]
            assert "hello-ann" not in result.rejected[4]
            with pytest.raises(LookupError):
                sink.emit_batch([items[4]])
        else:
            result = sink.emit_batch(items)
            assert (list(result.retry), dict(result.rejected)) == ([3, 4, 5], {})
    sent = [number for request in server.requests for number in numbers(request)]
    assert sent == ([0, 1, 2, 3, 5] if single else [0, 1, 2])


def test_a_sink_that_is_closed_meanwhile_leaves_the_rest(server):
    """A batch of single events that meets the end of its sink was taken in part."""
    sink = sink_for(server)

    def close(request):
        sink.close(0)
        return 200

    server.answers += [200, close]
    items = batch_of(sink, 4)
    result = sink.emit_batch(items)
    assert list(result.retry) in ([1, 2, 3], [2, 3])
    assert len(server.requests) == 2


def test_a_limit_that_is_told_is_kept(server):
    """After a 413 that says what is taken, no larger body is sent; one that does not say changes nothing."""
    server.answers += [413, Answer(413, headers={"Upload-Limit": "max-size=100"})]
    with sink_for(server, body=JSONArray()) as sink:
        batch = batch_of(sink, 7)
        for _ in range(2):
            with pytest.raises(OversizeDeliveryError, match="answered 413"):
                sink.emit_batch(batch)
        assert sink.emit_batch(batch) is None
        # One event is the server's to refuse: it may have meant something else.
        sink.emit_batch([sink.encode({"event": "x" * 200})])
    assert [len(request.json) for request in server.requests] == [7, 7, 3, 3, 1, 1]


# -- formats that read the answer


class Telling(JSONArray):
    """A format whose server says which events it did not take."""

    max_response_bytes = 1000

    def read(self, response_status, response_headers, response_body, batch):
        """Return what the answer says."""
        assert response_status == 200
        assert response_headers["content-TYPE"] == "application/json"
        answer = json.loads(response_body)
        assert answer["count"] == len(batch)
        return BatchResult(
            answer.get("retry", []),
            {int(index): reason for index, reason in answer.get("rejected", {}).items()},
            answer.get("unknown", 0),
            answer.get("wait"),
        )


def test_partial_success_is_told(server):
    """What a format reads in an answer is the result; its reasons repeat no event."""
    server.answers.append(
        Answer(body={"count": 3, "retry": [0], "rejected": {"2": "no date: yesterday-ish"}, "unknown": 1, "wait": 2})
    )
    with sink_for(server, body=Telling()) as sink:
        items = [sink.encode({"event": "hello", "when": when}) for when in ("now", "then", "yesterday-ish")]
        result = sink.emit_batch(items)
    assert result == BatchResult([0], {2: "no date: …"}, 1, 2)


def test_partial_success_of_parts_is_put_together(server):
    """Indexes count in the whole batch, also where it was sent in parts."""
    server.answers += [
        Answer(body={"count": 3, "retry": [1], "wait": 2}),
        Answer(body={"count": 3, "rejected": {"0": "bad"}, "unknown": 1, "wait": 1}),
        Answer(body={"count": 1}),
    ]
    with sink_for(server, body=Telling(), max_body_bytes=100) as sink:
        assert sink.emit_batch(batch_of(sink, 7)) == BatchResult([1], {3: "bad"}, 1, 2)


def test_partial_success_of_one_event_is_a_failure(server):
    """Alone there is no result to return: the event is lost to a retry or a refusal, and its reason is told."""

    class One(Telling):
        single = True

    for format_ in (Telling(), One()):
        with sink_for(server, body=format_) as sink:
            server.answers.append(Answer(body={"count": 1, "retry": [0], "wait": 2}))
            with pytest.raises(TemporaryDeliveryError, match="asked for the event again") as caught:
                sink.handle({"event": "hello"})
            assert caught.value.retry_after == 2
            server.answers.append(Answer(body={"count": 1, "rejected": {"0": "too old"}}))
            with pytest.raises(PermanentDeliveryError, match="too old"):
                sink.handle({"event": "hello"})
            server.answers.append(Answer(body={"count": 1, "unknown": 1}))
            with pytest.raises(PermanentDeliveryError, match="refused the event"):
                sink.handle({"event": "hello"})
    with sink_for(server, body=One()) as sink:
        server.answers += [
            Answer(body={"count": 1, "rejected": {"0": "too old"}}),
            Answer(body={"count": 1, "unknown": 1}),
            Answer(body={"count": 1, "retry": [0], "wait": 2}),
        ]
        result = sink.emit_batch(batch_of(sink, 4))
        assert (list(result.retry), list(result.rejected), result.retry_after) == ([2, 3], [0, 1], 2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(body="no JSON", headers={"Content-Type": "application/json"}), r"cannot be read \(JSONDecodeError\)"),
        (Answer(body={"count": 2}, send_only=-1), "not all of the answer came"),
        (Answer(body={"count": 2, "more": "x" * 2000}), "not all of the answer came"),
        (Answer(body={"count": 2, "more": "x" * 977}), "not all of the answer came"),
    ],
)
def test_an_answer_that_cannot_be_read_counts_as_none(server, answer, words):
    """An answer that is cut, too long, or not what the format knows leaves the batch for a retry."""
    server.answers.append(answer)
    with sink_for(server, body=Telling()) as sink:
        with pytest.raises(TemporaryDeliveryError, match=f"answered 200, but .*{words}") as caught:
            sink.emit_batch(batch_of(sink, 2))
        assert caught.value.__context__ is None


def test_an_answer_may_be_as_long_as_the_format_says(server):
    """The longest answer that is allowed is read to its end."""
    server.answers.append(Answer(body={"count": 2, "unknown": 1, "more": "x" * 962}))
    with sink_for(server, body=Telling()) as sink:
        assert sink.emit_batch(batch_of(sink, 2)).rejected_unknown == 1


@pytest.mark.parametrize(
    "error",
    [
        TemporaryDeliveryError("later, says hello-ann", 3),
        PausedDeliveryError("wait, says hello-ann", 3),
        PermanentDeliveryError("no, says hello-ann"),
        OversizeDeliveryError("large, says hello-ann"),
    ],
)
def test_a_format_may_refuse_the_batch(server, error):
    """What a format raises is raised as such, without what it repeats."""

    class Refusing(JSONArray):
        def read(self, *_):
            raise error

    with sink_for(server, body=Refusing()) as sink:
        with pytest.raises(type(error)) as caught:
            sink.emit_batch([sink.encode({"event": "hello-ann"})])
        assert type(caught.value) is type(error)
        assert str(caught.value).endswith(", says …")
        assert getattr(caught.value, "retry_after", 3) == 3
        assert caught.value.__context__ is None


def test_a_format_may_know_what_a_refusal_means(server):
    """A collector's own codes come before the status; None, or a failure to read them, leaves the status."""

    class Knowing(JSONArray):
        def refusal(self, response_status, response_headers, response_body):
            code = json.loads(response_body)["code"]
            return PausedDeliveryError(f"code {code} for hello-ann") if code == 9 else None

    server.answers += [
        Answer(400, {"code": 9}),
        Answer(400, {"code": 8}),
        Answer(503, "no JSON"),
    ]
    with sink_for(server, body=Knowing()) as sink:
        for words in ("^code 9 for …$", 'answered 400: {"code": 8}$', "answered 503$"):
            with pytest.raises((TemporaryDeliveryError, PermanentDeliveryError), match=words):
                sink.handle({"event": "hello-ann"})


def test_a_token_that_is_repeated_is_not_told(server):
    """A server that quotes the token in its refusal does not bring it into a message."""
    server.default = lambda request: Answer(400, f"bad {request.headers['authorization']}")
    for options in ({"token": "Tk-abcd-1234"}, {"auth": ("shop", PASSWORD)}):
        with sink_for(server, **options) as sink:
            with pytest.raises(PermanentDeliveryError) as caught:
                sink.handle({"event": "hello"})
            assert str(caught.value).endswith(("400: bad Bearer …", "400: bad …"))


# -- compression


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bodies_are_compressed(server, compression):
    """The body arrives as it was, in fewer bytes, and says how; the limit is that of the plain body."""
    with sink_for(server, body=NDJSON(), compression=compression, max_body_bytes=29_000) as sink:
        assert sink.emit_batch(batch_of(sink, 1000)) is None
    assert [request.headers["content-encoding"] for request in server.requests] == [compression] * 2
    assert sum(len(request.lines) for request in server.requests) == 1000
    for request in server.requests:
        assert len(request.raw_body) < len(request.body) / 3
        assert len(request.body) <= 29_000


def test_zstd_needs_its_extra(monkeypatch):
    """Without zstandard the error names the extra to install."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"outfall\[zstd\]"):
        HTTPSink("http://localhost/", compression="zstd")


# -- sessions of the user's


def test_a_session_of_the_user_is_used_and_left_open(server):
    """Its headers, hooks, cookies and authentication are in force, ours come on top, and it stays open."""
    seen = []

    class Session(requests.Session):
        def close(self):
            seen.append("closed")
            super().close()

    def hook(response, **_):
        seen.append(response.status_code)
        assert response.content == b"taken"

    server.default = Answer(200, "taken", {"Set-Cookie": "node=7"})
    with Session() as session:
        session.headers["X-Mine"] = "1"
        session.hooks["response"].append(hook)
        session.auth = ("shop", PASSWORD)
        with sink_for(server, session=session) as sink:
            sink.handle({"event": "hello"})
            sink.handle({"event": "hello"})
        assert seen == [200, 200]
        assert session.get(server.url).text == "taken"
    first, second, _ = server.requests
    assert first.headers["x-mine"] == "1"
    assert first.headers["user-agent"].startswith("python-requests/")
    assert first.headers["authorization"].startswith("Basic ")
    assert "idempotency-key" in first.headers
    assert second.headers["cookie"] == "node=7"
    assert first.connection == second.connection


def test_a_hook_may_put_another_answer_in_the_place_of_one(server):
    """What the session returns is what counts."""
    server.answers += [503, 200]
    with requests.Session() as session:
        session.hooks["response"] = lambda response, **_: None if response.ok else session.post(server.url)
        with sink_for(server, session=session) as sink:
            sink.handle({"event": "hello"})
            assert sink.stats().delivered == 1


def test_the_answer_to_a_session_of_the_user_is_bounded(server):
    """Neither an endless answer nor that of a redirect is read to its end."""
    read = []
    server.answers += [
        Answer(200, b"x" * 20_000_000),
        Answer(307, b"x" * 20_000_000, {"Location": f"{server.url}/other"}),
    ]
    with requests.Session() as session:
        session.hooks["response"] = lambda response, **_: read.append(response)
        with sink_for(server, session=session) as sink:
            sink.handle({"event": "hello"})
            with pytest.raises(PausedDeliveryError, match="307"):
                sink.handle({"event": "hello"})
    assert [len(response.content) for response in read] == [65_536, 65_536]
    assert len(server.requests) == 2


def test_a_stale_connection_of_a_users_session_is_no_failure(server):
    """A connection that has ended is noticed there too, and the event sent once more under its key."""
    with requests.Session() as session, sink_for(server, session=session) as sink:
        server.answers += [200, Answer(reset=True), 200]
        sink.handle({"event": "hello", "number": 1})
        sink.handle({"event": "hello", "number": 2})
        assert sink.stats().delivered == 2
    assert [request.json["number"] for request in server.requests] == [1, 2, 2]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


# -- the life of a sink


def test_attributes_act_at_once(server):
    """URL, method and timeout may be set at any time; what is wrong is refused and changes nothing."""
    with sink_for(server, "/a", body=FormURLEncoded()) as sink:
        sink.handle({"event": "1"})
        sink.url = server.url.replace("://", "://shop:pw@") + "/b#fragment"
        sink.method = "get"
        sink.timeout = dt.timedelta(seconds=5)
        assert (sink.url, sink.method, sink.timeout) == (f"{server.url}/b", "GET", (5.0, 5.0))
        assert isinstance(sink.body, FormURLEncoded)
        sink.handle({"event": "2"})
        for name, value in (("url", "ftp://x/"), ("method", "DELETE"), ("timeout", 0)):
            with pytest.raises(ValueError, match=f"{name}="):
                setattr(sink, name, value)
        assert (sink.url, sink.method, sink.timeout) == (f"{server.url}/b", "GET", (5.0, 5.0))
    first, second = server.requests
    assert (first.method, first.target) == ("POST", "/a")
    assert (second.method, second.target) == ("GET", "/b?event=2")
    assert second.headers["authorization"] == "Basic c2hvcDpwdw=="


def test_a_closed_sink_sends_nothing(server):
    """Batches that come too late are refused, and open no connection."""
    sink = sink_for(server)
    batch = batch_of(sink, 1)
    sink.handle({"event": "hello"})
    assert sink.close()
    with pytest.raises(SinkClosedError):
        sink.emit_batch(batch)
    assert len(server.requests) == 1
    assert sink._transport is None


def test_flush_and_close_keep_their_time_while_a_request_hangs(server):
    """They give up in time, and close breaks the request off, which is then no success."""
    server.default = Answer(hang=True)
    told = []
    sink = sink_for(server, timeout=120, on_error=told.append)
    thread = threading.Thread(target=sink.handle, args=({"event": "hello"},))
    thread.start()
    server.wait(1)
    started = time.monotonic()
    assert not sink.flush(0.05)
    assert not sink.close(0.05)
    assert time.monotonic() - started < 60
    thread.join(60)
    assert not thread.is_alive()
    assert [type(failure.error) for failure in told] == [TemporaryDeliveryError]
    assert len(server.requests) == 1
    assert_balanced(sink.stats())
    assert sink.stats().dropped == {"error": 1}
    assert sink._transport is None


@pytest.mark.usefixtures("own_logging")
def test_what_the_http_library_logs_does_not_come_back(server):
    """With a DEBUG root logger the libraries' own events are dropped as reentrant, also from emit_batch itself."""
    root = logging.getLogger()
    with sink_for(server, on_error=lambda failure: None) as sink:
        root.addHandler(SinkHandler(sink))
        root.setLevel(logging.DEBUG)
        logging.getLogger("shop").info("hello")
        server.hang_up()
        sink.emit_batch(batch_of(sink, 1))
        root.handlers.pop()
        stats = sink.stats()
        with pytest.raises(ReentrantEventError):
            _deliver_while_delivering(sink)
    assert [request.json["event"] for request in server.requests] == ["hello", "hello"]
    assert stats.delivered == 1
    assert stats.dropped["reentrant"] >= 3


def _deliver_while_delivering(sink):
    from outfall.sinks.core.reentrancy import delivering

    with delivering():
        sink.deliver({"event": "hello"})


def test_one_call_of_orjson_is_enough_for_a_plain_sink():
    """Sinks around it may take the short cut unless something changes the event on its way."""

    class Mapping(HTTPSink):
        def map_event(self, event):
            return event

    assert HTTPSink("http://localhost/", body=NDJSON()).plain is True
    patched = HTTPSink("http://localhost/")
    patched.map_event = lambda event: {"x": 1}
    for sink in (
        Mapping("http://localhost/"),
        HTTPSink("http://localhost/", fields=["event"]),
        HTTPSink("http://localhost/", body=FormURLEncoded()),
        HTTPSink("http://localhost/", processors=[lambda logger, name, event: event]),
        patched,
    ):
        assert sink.plain is False


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"url": 7}, TypeError, "url: text is needed, not int"),
        ({"url": "logs.test/in"}, ValueError, "url='logs.test/in…'"),
        ({"url": "ftp://shop:hunter2@logs.test/"}, ValueError, "url='ftp…'"),
        ({"url": "https://"}, ValueError, "url='https…'"),
        ({"url": "https://[::1/"}, ValueError, "url='https…'"),
        ({"url": "https://logs.test:99999/"}, ValueError, "url='https…'"),
        ({"url": "https://logs.test/a b"}, ValueError, "url='https…'"),
        ({"url": "https://logs.test/a\nb"}, ValueError, "url='https…'"),
        ({"method": "DELETE"}, ValueError, "method='DELETE'"),
        ({"method": 7}, ValueError, "method=7"),
        ({"method": "GET"}, ValueError, "method='GET'"),
        ({"method": "GET", "body": FormURLEncoded(), "compression": "gzip"}, ValueError, "method='GET'"),
        ({"body": "json"}, TypeError, "body='json'"),
        ({"body": NDJSON}, TypeError, "body="),
        ({"fields": 7}, TypeError, "fields:"),
        ({"headers": ["a"]}, TypeError, "headers: a mapping"),
        ({"headers": {"a b": "c"}}, ValueError, "headers: 'a b'"),
        ({"headers": {"a:": "c"}}, ValueError, "headers: 'a:'"),
        ({"headers": {"ä": "c"}}, ValueError, "headers: 'ä'"),
        ({"headers": {7: "c"}}, ValueError, "headers: 7"),
        ({"headers": {"X-A": "hunter2\n"}}, ValueError, "the value of 'X-A'"),
        ({"headers": {"X-A": 7}}, ValueError, "the value of 'X-A'"),
        ({"auth": "hunter2"}, TypeError, "auth=… is not"),
        ({"auth": ("a", "b", "c")}, TypeError, "auth=… is not"),
        ({"auth": ("a", 7)}, TypeError, "auth=… is not"),
        ({"token": 7}, TypeError, "token: text or a callable is needed, not int"),
        ({"token": "hunter2\n"}, ValueError, "token=… is not text"),
        ({"token": ""}, ValueError, "token=… is not text"),
        ({"token": "a", "token_scheme": "a b"}, ValueError, "token_scheme='a b'"),
        ({"token": "a", "auth": ("b", "c")}, ValueError, "more than one"),
        ({"token": "a", "headers": {"authorization": "b"}}, ValueError, "more than one"),
        ({"auth": ("a", "b"), "headers": {"authorization": "b"}}, ValueError, "more than one"),
        ({"auth": ("a", "b"), "url": "https://u:hunter2@logs.test/"}, ValueError, "auth=…: the URL"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": (1, 0)}, ValueError, "timeout=(1, 0)"),
        ({"timeout": (1, 2, 3)}, ValueError, "timeout=(1, 2, 3)"),
        ({"timeout": float("inf")}, ValueError, "timeout=inf"),
        ({"timeout": None}, ValueError, "timeout=None"),
        ({"verify": 7}, TypeError, "verify=7"),
        ({"verify": "/no/such/file"}, ValueError, "verify='/no/such/file'"),
        ({"cert": 7}, TypeError, "cert=7"),
        ({"cert": ("/no/such", 7)}, TypeError, "cert=('/no/such', 7)"),
        ({"cert": ("/no/such",)}, TypeError, "cert=('/no/such',)"),
        ({"cert": "/no/such/file"}, ValueError, "cert='/no/such/file'"),
        ({"ssl_context": 7}, TypeError, "ssl_context=7"),
        ({"proxies": "http://proxy:hunter2@x"}, TypeError, "proxies: a mapping"),
        ({"proxies": {7: "x"}}, TypeError, "proxies: a mapping"),
        ({"compression": "br"}, ValueError, "compression='br'"),
        ({"max_body_bytes": 0}, ValueError, "max_body_bytes=0"),
        ({"max_body_bytes": -1}, ValueError, "max_body_bytes=-1"),
        ({"session": 7}, TypeError, "session=7"),
    ],
)
def test_misconfiguration_is_told_at_once(options, error, words):
    """A wrong argument raises at construction, names the argument and the value, and no secret."""
    with pytest.raises(error) as caught:
        HTTPSink(**{"url": "https://logs.test/", **options})
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_format_is_not_a_sink_of_its_own():
    """Sinks may share a format."""
    shared = NDJSON()
    first, second = (HTTPSink("http://localhost/", body=shared) for _ in range(2))
    assert first.body is second.body is shared
    assert isinstance(HTTPSink("http://localhost/").body, JSONObject)
    assert isinstance(shared, BodyFormat)


def test_a_sink_around_it_finds_out_time_and_level_only_for_formats_that_look_at_them():
    """A format of one's own may look at them, unless it is marked; so may an ``emit_batch`` of one's own."""

    class Own(NDJSON):
        def encode(self, batch):
            return super().encode(batch)

    class OwnSink(HTTPSink):
        def emit_batch(self, batch):
            return super().emit_batch(batch)

    made = [
        HTTPSink("http://127.0.0.1:9/", body=body)
        for body in (NDJSON(), JSONArray(), JSONObject(), FormURLEncoded(), Own(), LokiStreams({"app": "x"}))
    ]
    made.append(OwnSink("http://127.0.0.1:9/", body=NDJSON()))
    assert [sink.needs_moment for sink in made] == [False, False, False, False, True, True, True]
