"""Events over HTTP behind a background sink: each status and fault, from the application to the server's disk."""

from __future__ import annotations

import gc
import json
import time

import pytest

from outfall import (
    NDJSON,
    BackgroundSink,
    BatchResult,
    BodyFormat,
    CaptureSink,
    FallbackSink,
    HTTPSink,
    JSONArray,
    JSONObject,
    PausedDeliveryError,
    Projection,
    RetryPolicy,
)
from outfall.sinks.core.item import Batch
from outfall.sinks.delivery.delivery import Delivery
from outfall.sinks.testing import assert_balanced
from tests.sinks._http import Answer, Server
from tests.sinks._processes import until

#: Waits too short to be noticed, where it is not the wait that is tested.
QUICK = RetryPolicy(start_seconds=0.001, max_seconds=0.001, pause_start_seconds=0.001, pause_max_seconds=0.001)

PATIENCE_SECONDS = 60


@pytest.fixture
def server():
    """Give a server that takes everything."""
    with Server() as made:
        yield made


@pytest.fixture
def told():
    """Give a list for what on_error is told."""
    return []


def shipping(server, told, body=None, **options):
    """Return a background sink that ships to *server*."""
    http = {name: options.pop(name) for name in list(options) if name in HTTP_OPTIONS}
    options.setdefault("retry", QUICK)
    options.setdefault("linger", 0.01)
    target = HTTPSink(f"{server.url}/ingest", body=NDJSON() if body is None else body, **http)
    return BackgroundSink(target, on_error=told.append, **options)


HTTP_OPTIONS = ("fields", "processors", "token", "timeout", "level", "max_body_bytes", "compression")


def log(sink, count):
    """Log so many events."""
    for number in range(count):
        sink.handle({"event": "hello", "level": "info", "number": number})


def taken(server, status=200):
    """Return the numbers of the events that the server took."""
    return [event["number"] for request, said in server.said if said == status for event in request.lines]


@pytest.fixture
def judging():
    """Give a server whose answers a function of the request decides; it keeps them in ``said``."""
    with Server() as made:
        made.said = []
        made.judge = lambda request: 200

        def decide(request):
            status = made.judge(request)
            made.said.append((request, status))
            return status

        made.default = decide
        yield made


# -- what passes


@pytest.mark.parametrize(
    "fault",
    [
        *[Answer(status) for status in (425, 429, 500, 502, 503)],
        Answer(500, "<html>oops</html>", {"Content-Type": "text/html"}),
        Answer(503, headers={"Retry-After": "0"}),
        Answer(reset=True),
        Answer(send_only=0),
        Answer(send_only=10),
        Answer(raw=b"garbage\r\n\r\n"),
        *[Answer(status) for status in (401, 403, 404)],
        *[Answer(status, headers={"Location": "/elsewhere"}) for status in (301, 302, 303, 307, 308)],
    ],
    ids=lambda fault: f"{fault.status} {fault.body!r:.5} {fault.send_only} {fault.reset} {fault.raw}",
)
def test_what_passes_costs_no_event(server, told, fault):
    """A batch that cannot be taken is tried again, as it was and under its key, until it is taken; order is kept."""
    server.answers += [fault, fault, fault]
    with shipping(server, told, batch_size=10) as sink:
        log(sink, 30)
        assert sink.flush(PATIENCE_SECONDS)
        stats = sink.stats()
    assert (stats.accepted, stats.delivered, dict(stats.dropped)) == (30, 30, {})
    assert stats.retried >= 2
    assert_balanced(stats)
    assert all(failure.events == 0 for failure in told)
    attempts = {}
    for request in server.requests:
        assert request.target == "/ingest"
        attempts.setdefault(request.headers["idempotency-key"], set()).add(request.raw_body)
    # Each key stands for one body, however often it was sent.
    assert [len(bodies) for bodies in attempts.values()] == [1] * len(attempts)
    first = server.requests[0].headers["idempotency-key"]
    assert sum(request.headers["idempotency-key"] == first for request in server.requests) == 4
    arrived = [event["number"] for (body,) in attempts.values() for event in map(json.loads, body.splitlines())]
    assert arrived == list(range(30))


def test_an_answer_that_never_comes_is_a_failure_that_passes(server, told):
    """After its time a request that hangs is given up, and the event is sent again."""
    server.answers += [Answer(hang=True), Answer(drip=0.05)]
    with shipping(server, told, timeout=(20, 0.2)) as sink:
        log(sink, 1)
        assert sink.flush(PATIENCE_SECONDS)
        assert sink.stats().delivered == 1
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert len(told) >= 2
    assert all("did not answer within 0.2 s" in str(failure.error) for failure in told)


def test_an_outage_costs_no_event(server, told):
    """While the server is away events wait, and when it is back they arrive in order, with the time they had."""

    class Timed(BodyFormat):
        def encode(self, batch):
            return json.dumps([[item.event["number"], item.time, item.level] for item in batch]).encode()

    server.stop()
    before = time.time()
    with shipping(server, told, body=Timed(), batch_size=7) as sink:
        for number in range(20):
            sink.handle({"event": "hello", "number": number, "level": "error", "timestamp": "2024-02-29T12:00:00Z"})
        for number in range(20, 25):
            sink.handle({"event": "hello", "number": number})
        after = time.time()
        until(lambda: told)
        assert sink.stats().pending == 25
        server.start()
        assert sink.flush(PATIENCE_SECONDS)
        assert sink.stats().delivered == 25
    arrived = [row for request in server.requests for row in request.json]
    assert [number for number, _, _ in arrived] == list(range(25))
    assert [(when, level) for _, when, level in arrived[:20]] == [(1709208000.0, 40)] * 20
    assert all(before <= when <= after for _, when, _ in arrived[20:])


def test_keep_alive_that_ends_between_requests_is_not_even_told(server, told):
    """A server that hangs up after each answer, or resets the next request, costs no event and no report."""
    server.answers += [Answer(hang_up=True), 200, Answer(reset=True), Answer(hang_up=True)]
    with shipping(server, told) as sink:
        for number in range(5):
            sink.handle({"event": "hello", "number": number})
            assert sink.flush(PATIENCE_SECONDS)
        stats = sink.stats()
    assert (stats.delivered, stats.retried, told) == (5, 0, [])
    assert server.connections == 4


def test_the_connection_made_after_one_that_broke_during_the_send_is_kept(server, monkeypatch):
    """What broke is the connection before it; the next request has it already open."""
    monkeypatch.setattr("urllib3.connectionpool.is_connection_dropped", lambda connection: False)
    with HTTPSink(f"{server.url}/ingest", on_error="raise") as sink:
        sink.handle({"event": "hello"})
        server.hang_up()
        for _ in range(3):
            sink.handle({"event": "hello"})
        assert sink.stats().delivered == 4
    assert server.connections == 2


# -- how long is waited


class Waits(list):
    """A delivery's waits, without waiting."""

    def __call__(self, seconds):
        self.append(seconds)
        return True


def deliver(sink, events=3, **options):
    """Deliver a batch and return the waits that took; jitter is at its most."""
    waits, outcomes = Waits(), []
    delivery = Delivery(
        sink, settle=outcomes.append, tell=lambda error, lost: None, pause=waits, random=lambda: 1.0, **options
    )
    batch = Batch([sink.encode({"event": "hello", "number": number}) for number in range(events)])
    assert delivery.deliver(batch) == []
    assert sum(outcome.delivered for outcome in outcomes) == events
    return waits


def test_retry_after_is_obeyed(server):
    """The server's own wait, in seconds or until a date, lengthens the policy's; one of nothing does not end it."""
    now = 1_700_000_000.0  # 22:13:20
    server.answers += [
        Answer(503, headers={"Retry-After": "7"}),
        Answer(429, headers={"Retry-After": "Tue, 14 Nov 2023 22:15:20 GMT"}),
        Answer(401, headers={"Retry-After": "90"}),
        Answer(503, headers={"Retry-After": "soon"}),
        Answer(503),
        Answer(503, headers={"Retry-After": "0"}),
        Answer(429, headers={"Retry-After": "Tue, 14 Nov 2023 22:12:20 GMT"}),
        Answer(401, headers={"Retry-After": "0"}),
    ]
    with HTTPSink(server.url, body=NDJSON(), clock=lambda: now) as sink:
        # The last five are the policy's, from the third failure that was no pause on.
        assert deliver(sink) == [7, 120, 90, 2.0, 4.0, 8.0, 16.0, 2.0]


@pytest.mark.parametrize("fault", [Answer(408), Answer(504), Answer(hang=True)])
def test_after_an_answer_that_was_late_half_as_much_is_sent(server, fault):
    """A request that is too much for the time there is, is not sent the same way again."""
    server.answers += [fault, fault]
    with HTTPSink(server.url, body=NDJSON(), timeout=(20, 1.5 if fault.hang else 60)) as sink:
        deliver(sink, events=16)
    assert [len(request.lines) for request in server.requests] == [16, 8, 4, 4, 4, 4]


@pytest.mark.parametrize("status", [401, 403, 404, 301, 302, 303, 307, 308])
def test_what_has_to_be_changed_first_pauses(server, status):
    """Attempts are a second apart, then two, four, up to a minute; the events are kept meanwhile."""
    server.answers += [status] * 9
    with HTTPSink(server.url, body=NDJSON()) as sink:
        assert deliver(sink) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_a_new_token_ends_the_pause(server, told):
    """The token's callable is asked at each attempt, so the first one with a good token succeeds."""
    tokens = iter(["old", "still old", "new", "new"])
    asked = []

    def token():
        asked.append(next(tokens))
        return asked[-1]

    server.default = lambda request: 200 if request.headers["authorization"] == "Bearer new" else 401
    with shipping(server, told, token=token) as sink:
        log(sink, 3)
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (3, {})
    assert asked == ["old", "still old", "new"]
    assert "old" not in "".join(str(failure.error) for failure in told)


# -- what does not pass


GATEWAYS = {
    "page": Answer(400, "<html><title>400 No client certificate</title>", {"Content-Type": "text/html"}),
    "text": Answer(400, "Client sent an HTTP request to an HTTPS server.\n"),
    "json": Answer(400, {"message": "No required SSL certificate was sent"}),
    "empty": Answer(400),
    "422": Answer(422, "<html><title>Not now</title>", {"Content-Type": "text/html"}),
    **{str(status): Answer(status) for status in (411, 421, 426, 431)},
}


@pytest.mark.parametrize("body", [NDJSON(), JSONObject()], ids=["many", "single"])
@pytest.mark.parametrize("answer", GATEWAYS.values(), ids=GATEWAYS)
def test_what_refuses_everything_is_no_verdict_on_events(server, told, answer, body):
    """A gateway that lets nothing through costs no event: few requests are made, and all arrive once it does."""
    server.answers += [answer] * 9
    with shipping(server, told, body=body, linger=0.2) as sink:
        log(sink, 40)
        assert sink.flush(PATIENCE_SECONDS)
        stats = sink.stats()
    assert (stats.delivered, dict(stats.dropped)) == (40, {})
    assert_balanced(stats)
    assert {failure.events for failure in told} == {0}
    assert all(isinstance(failure.error, PausedDeliveryError) for failure in told)
    taken = [event["number"] for request in server.requests[9:] for event in map(json.loads, request.body.splitlines())]
    assert sorted(taken) == list(range(40))


def test_a_422_to_everything_is_a_verdict_on_each_event(judging, told):
    """No gateway says so: the server has read the events, and all of them go to the dead letters."""
    judging.judge = lambda request: 422
    dead = CaptureSink()
    with shipping(judging, told, dead_letter=dead) as sink:
        log(sink, 4)
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, sink.stats().dead_lettered) == (0, 4)
    assert [event["number"] for event in dead.events] == [0, 1, 2, 3]


@pytest.mark.parametrize("status", [400, 422])
def test_one_bad_event_in_ten_thousand(judging, told, status):
    """Exactly the poisonous event is dead-lettered; all others arrive, once each and in order."""
    judging.judge = lambda request: status if b"poison" in request.body else 200
    dead = CaptureSink()
    with shipping(judging, told, dead_letter=dead) as sink:
        for number in range(10_000):
            sink.handle({"event": "poison" if number == 6_283 else "hello", "level": "info", "number": number})
        assert sink.flush(PATIENCE_SECONDS)
        stats = sink.stats()
    assert taken(judging) == [number for number in range(10_000) if number != 6_283]
    assert [event["number"] for event in dead.events] == [6_283]
    assert (stats.delivered, stats.dead_lettered, dict(stats.dropped)) == (9_999, 1, {})
    assert_balanced(stats)
    [failure] = [failure for failure in told if "answered" in str(failure.error)]
    assert failure.events == 0
    assert "poison" not in repr(failure)


def test_a_second_collector_that_gets_only_bad_events_holds_up_nothing():
    """It never takes an event that would show that the events are to blame; the primary has shown it."""

    def answer(request):
        return 400 if b"bad" in request.body else 200

    dead = CaptureSink()
    with Server(answer) as first, Server(answer) as second:
        fallback = FallbackSink(
            *(HTTPSink(server.url, body=NDJSON(), on_error=lambda _: None) for server in (first, second)),
            on_error=lambda _: None,
        )
        with BackgroundSink(fallback, retry=QUICK, dead_letter=dead, on_error=lambda _: None) as sink:
            for event in ("good", *["bad"] * 5, "good"):
                sink.handle({"event": event})
                assert sink.flush(PATIENCE_SECONDS)
            assert sink.stats().delivered == 2
    assert len(dead.events) == 5


def test_one_bad_event_among_single_requests(server, told):
    """A format of single events refuses it at once; the others are not sent twice."""
    server.default = lambda request: 400 if b"poison" in request.body else 200
    dead = CaptureSink()
    with shipping(server, told, body=JSONObject(), dead_letter=dead) as sink:
        for number in range(20):
            sink.handle({"event": "poison" if number == 7 else "hello", "number": number})
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, sink.stats().dead_lettered) == (19, 1)
    assert [request.json["number"] for request in server.requests] == list(range(20))
    assert [event["number"] for event in dead.events] == [7]


def test_too_large_a_batch_is_halved(judging, told):
    """A 413 halves until it fits, all arrive in order; an event that never fits is dead-lettered."""
    judging.judge = lambda request: 413 if len(request.body) > 2_000 else 200
    dead = CaptureSink()
    with shipping(judging, told, dead_letter=dead, batch_size=500, linger=0.2) as sink:
        for number in range(1_000):
            sink.handle({"event": "x" * 3_000 if number == 300 else "hello", "level": "info", "number": number})
        assert sink.flush(PATIENCE_SECONDS)
        stats = sink.stats()
    assert taken(judging) == [number for number in range(1_000) if number != 300]
    assert [event["number"] for event in dead.events] == [300]
    assert (stats.delivered, stats.dead_lettered, dict(stats.dropped)) == (999, 1, {})


def test_too_large_a_batch_is_split_where_the_limit_is_told(server, told):
    """A server that tells its limit with the 413 gets no larger body again."""
    server.default = lambda request: (
        Answer(413, headers={"Upload-Limit": "max-size=2000"}) if len(request.body) > 2_000 else 200
    )
    with shipping(server, told, batch_size=500, linger=0.2) as sink:
        log(sink, 1_000)
        assert sink.flush(PATIENCE_SECONDS)
        assert sink.stats().delivered == 1_000
    large = [request for request in server.requests if len(request.body) > 2_000]
    assert len(large) == 1
    arrived = [event["number"] for request in server.requests if request not in large for event in request.lines]
    assert arrived == list(range(1_000))


def test_a_batch_is_split_before_it_is_too_large(server, told):
    """With max_body_bytes nothing is refused, and a poisonous event is found among the parts."""
    server.default = lambda request: 400 if b'"number":77,' in request.body.replace(b"}", b",") else 200
    with shipping(server, told, max_body_bytes=500, batch_size=100, linger=0.2) as sink:
        log(sink, 100)
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, dict(sink.stats().dropped)) == (99, {"rejected": 1})
    assert max(len(request.body) for request in server.requests) <= 500


def test_partial_success_is_honoured(server, told):
    """What the answer names is tried again, or dead-lettered; the rest is delivered and not sent again."""

    class Telling(JSONArray):
        def read(self, response_status, response_headers, response_body, batch):
            answer = json.loads(response_body)
            return BatchResult(answer["retry"], dict.fromkeys(answer["rejected"], "refused"))

    first = Answer(body={"retry": [1, 3], "rejected": [2]})
    server.answers += [first, Answer(body={"retry": [], "rejected": []})]
    dead = CaptureSink()
    with shipping(server, told, body=Telling(), dead_letter=dead, batch_size=5, linger=5) as sink:
        log(sink, 5)
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, sink.stats().dead_lettered) == (4, 1)
    assert [[event["number"] for event in request.json] for request in server.requests] == [[0, 1, 2, 3, 4], [1, 3]]
    assert [event["number"] for event in dead.events] == [2]
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(keys) == 2


# -- what is stored


def reachable_bytes(root):
    """Return all bytes and texts that can be got at from *root*, modules and code apart."""
    seen, stack, found = set(), [root], []
    while stack:
        thing = stack.pop()
        if (
            id(thing) in seen
            or isinstance(thing, type)
            or type(thing).__name__ in ("module", "function", "code", "frame")
        ):
            continue
        seen.add(id(thing))
        if isinstance(thing, (str, bytes)):
            found.append(thing if isinstance(thing, bytes) else thing.encode("utf-8", "backslashreplace"))
        stack += gc.get_referents(thing)
    return found


def test_a_redacted_secret_is_nowhere_in_memory(server, told):
    """The target's processors, fields and level are applied before an event is stored, once, in the caller."""
    calls = []

    def redact(_logger, _name, event):
        calls.append(event["number"])
        event["card"] = "***"
        return event

    server.default = Answer(hang=True)
    options = {"processors": [redact], "fields": Projection(["card", "number", "user.id"]), "level": "info"}
    with shipping(server, told, **options, batch_size=2, timeout=60) as sink:
        for number in range(6):
            user = {"id": 7, "password": "hunter2-secret"}
            sink.handle({"event": "paid", "level": "info", "card": "4111-1111", "number": number, "user": user})
        sink.handle({"event": "noise", "level": "debug", "card": "4111-1111"})
        server.wait(1)
        assert sink.stats().pending == 6
        held = reachable_bytes(sink)
        assert any(b'"card":"***"' in data for data in held)
        assert [data for data in held if b"4111-1111" in data or b"hunter2" in data] == []
        server.default = 200
        server.release()
        assert sink.flush(PATIENCE_SECONDS)
        assert (sink.stats().delivered, sink.stats().filtered) == (6, 1)
    assert calls == list(range(6))
    events = [event for request in server.requests for event in request.lines]
    assert events == [{"card": "***", "number": number, "user": {"id": 7}} for number in range(6)]


# -- the end


@pytest.mark.parametrize(
    "answer",
    [Answer(hang=True), Answer(drip=1.0), Answer(hang=True, read_body=False)],
    ids=["hang", "drip", "unread"],
)
def test_flush_and_close_keep_their_time(server, told, answer):
    """Against a black hole both return when their time is up, and each event is accounted for."""
    server.default = answer
    sink = shipping(server, told, timeout=120, batch_size=10)
    log(sink, 35)
    server.wait(1)
    started = time.monotonic()
    assert not sink.flush(0.2)
    assert not sink.close(0.2)
    # The promise is a quarter of a second more; the machine may have other things to do.
    assert time.monotonic() - started < 30
    stats = sink.stats()
    assert stats.accepted == 35
    assert sum(stats.dropped.values()) == 35
    assert stats.dropped["unconfirmed"] >= 1
    assert_balanced(stats)


def test_two_lines_are_the_whole_set_up(server):
    """BackgroundSink(HTTPSink(url)) ships."""
    sink = BackgroundSink(HTTPSink(server.url))
    sink.handle({"event": "hello"})
    assert sink.close()
    assert [request.json for request in server.requests] == [{"event": "hello"}]
