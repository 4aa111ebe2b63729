"""Events into a real RabbitMQ and out of it."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time

import pytest
import trustme

from outfall import (
    BackgroundSink,
    CaptureSink,
    NullSink,
    OversizeDeliveryError,
    PausedDeliveryError,
    RetryPolicy,
    SpoolSink,
    TemporaryDeliveryError,
    open_sink,
)
from outfall.adapters.brokers import amqplink
from outfall.adapters.brokers.amqp import AMQPSink
from outfall.adapters.brokers.amqplistener import AMQPListener
from outfall.adapters.brokers.listeners import open_listener
from outfall.sinks.testing import SinkContract
from tests.adapters._proxy import Proxy
from tests.adapters._rabbitmq import RabbitMQ
from tests.sinks._processes import PATIENCE_SECONDS, in_fork, start, until

# Slow, since RabbitMQ takes ten seconds of two processors to start.
pytestmark = [pytest.mark.service, pytest.mark.slow]

QUICK = RetryPolicy(start_seconds=0.02, max_seconds=0.2, pause_start_seconds=0.02, pause_max_seconds=0.2, jitter=False)
#: Nothing takes that long unless it is broken.
LONG = PATIENCE_SECONDS


def _quiet(_failure):
    pass


def _numbers(taken):
    return [json.loads(body)["n"] for body, _ in taken]


@pytest.fixture(scope="module")
def authority():
    """The authority that has issued the broker's certificate."""
    return trustme.CA()


@pytest.fixture(scope="module")
def broker(require_service, tmp_path_factory, authority):
    """One broker for the module; each test has queues of its own."""
    require_service("rabbitmq-server")
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), authority.issue_cert("127.0.0.1"), authority) as running:
        yield running


class TestAMQPSink(SinkContract):
    """A queue of its own for each sink."""

    @pytest.fixture(autouse=True)
    def _broker(self, broker):
        self.broker, self.queues, self.taken = broker, {}, {}

    def make_sink(self, **options):
        queue = f"contract {os.urandom(8).hex()}"
        self.broker.declare(queue)
        sink = AMQPSink(self.broker.url, routing_key=queue, **options)
        self.queues[sink] = queue
        return sink

    def received(self, sink):
        taken = self.taken.setdefault(sink, [])
        taken += [json.loads(body) for body, _ in self.broker.take(self.queues[sink])]
        return taken


# -- the sink


def test_a_message_is_the_events_json_and_nothing_else(broker):
    """Level and time are beside it where the JSON has none."""
    broker.declare("plain")
    with AMQPSink(broker.url, routing_key="plain") as sink:
        sink.handle({"event": "a", "level": "info", "timestamp": "2024-01-01T00:00:00Z"})
        sink.handle("text of somebody else")
    (first, usual), (second, other) = broker.take("plain")
    assert first == b'{"event":"a","level":"info","timestamp":"2024-01-01T00:00:00Z"}'
    assert (usual.timestamp, usual.delivery_mode, usual.content_type) == (None, 2, "application/json")
    assert not usual.headers
    assert json.loads(second) == {"event": "text of somebody else"}
    assert other.headers["level"] == "info"
    assert int(float(other.headers["time"])) == other.timestamp > 1e9


def test_a_message_without_a_queue_is_no_delivery_but_a_pause(broker):
    """It waits until somebody has bound one, and is told of."""
    told = []
    with BackgroundSink(AMQPSink(broker.url, routing_key="later"), retry=QUICK, on_error=told.append) as sink:
        for number in range(3):
            sink.handle({"event": "a", "n": number})
        until(lambda: told)
        assert isinstance(told[0].error, PausedDeliveryError)
        assert "no queue" in str(told[0].error)
        assert sink.stats().delivered == 0
        broker.declare("later")
        assert sink.flush(LONG)
    assert _numbers(broker.take("later")) == [0, 1, 2]


def test_what_a_full_queue_refuses_is_tried_again_event_by_event(broker):
    """The others of the batch are delivered, and none of them comes twice."""
    broker.declare("full", x_max_length=3, x_overflow="reject-publish")
    sink = AMQPSink(broker.url, routing_key="full")
    batch = [sink.encode({"event": "a", "n": number}) for number in range(5)]
    result = sink.emit_batch(batch)
    assert list(result.retry) == [3, 4]
    with pytest.raises(TemporaryDeliveryError, match="full"):
        sink.emit_batch(batch[3:])
    assert _numbers(broker.take("full")) == [0, 1, 2]
    assert sink.emit_batch(batch[3:]) is None
    assert _numbers(broker.take("full")) == [3, 4]
    sink.close()


@pytest.mark.parametrize(
    ("change", "target", "said"),
    [
        pytest.param((":guest@", ":wrong-secret@"), {"routing_key": "x"}, "login", id="login"),
        pytest.param(("", "/nowhere"), {"routing_key": "x"}, "virtual host", id="virtual host"),
        pytest.param(("", ""), {"exchange": "nowhere"}, "NOT_FOUND", id="exchange"),
    ],
)
def test_what_somebody_has_to_change_pauses(broker, change, target, said):
    """No message holds the password."""
    url = broker.url.replace(*change) if change[0] else broker.url + change[1]
    with AMQPSink(url, **target) as sink, pytest.raises(PausedDeliveryError, match=said) as raised:
        sink.deliver({"event": "a"})
    assert "secret" not in f"{raised.value} {sink!r}"
    assert raised.value.__cause__ is None


def test_several_hosts_and_a_quorum_queue(broker):
    """A host that is away costs nothing but the attempt."""
    broker.declare("quorum", x_queue_type="quorum")
    for _ in range(4):  # in a random order
        url = broker.url.replace("@", "@127.0.0.1:1,")
        with AMQPSink(url, routing_key="quorum") as sink:
            sink.deliver({"event": "a", "n": 1})
    assert _numbers(broker.take("quorum")) == [1, 1, 1, 1]


def test_a_connection_may_be_encrypted(broker, authority):
    """A certificate that nobody trusts is a pause: no retry makes it good."""
    broker.declare("tls")
    url = f"amqps://guest:guest@127.0.0.1:{broker.tls_port}"
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with AMQPSink(url, routing_key="tls", ssl_context=trusting) as sink:
        sink.deliver({"event": "a", "n": 1})
    assert _numbers(broker.take("tls")) == [1]
    with AMQPSink(url, routing_key="tls") as sink, pytest.raises(PausedDeliveryError, match="not trusted"):
        sink.deliver({"event": "a"})


def test_timeouts_hold_while_the_broker_is_stopped(broker):
    """Nothing is lost: what was not confirmed is sent again."""
    broker.declare("stopped")
    told = []
    with (
        BackgroundSink(
            AMQPSink(broker.url, routing_key="stopped", timeout=0.3), retry=QUICK, on_error=told.append
        ) as sink,
        AMQPSink(broker.url, routing_key="stopped", timeout=0.3, on_error=_quiet) as alone,
    ):
        sink.handle({"event": "a", "n": 0})
        assert sink.flush(LONG)
        with broker.stopped():
            began = time.monotonic()
            alone.handle({"event": "a", "n": 1})
            alone.close(1)
            sink.handle({"event": "a", "n": 2})
            assert not sink.flush(0.2)
            assert time.monotonic() - began < 10
            assert alone.stats().dropped == {"error": 1}
            # What could not be confirmed in time is halved.
            until(lambda: any(failure.error.halve_after == 1 for failure in told))
        assert sink.flush(LONG)
    assert {0, 2} <= set(_numbers(broker.take("stopped"))) <= {0, 1, 2}


def test_close_gives_up_in_time_while_the_network_hangs(broker):
    """What waits for a confirmation is broken off."""
    broker.declare("hanging")
    with Proxy(broker.port) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}"
        sink = BackgroundSink(AMQPSink(url, routing_key="hanging", timeout=LONG), on_error=_quiet)
        sink.handle({"event": "a"})
        assert sink.flush(LONG)
        proxy.hang()
        sink.handle({"event": "b"})
        began = time.monotonic()
        assert not sink.close(0.3)
        assert time.monotonic() - began < LONG / 2
        assert sink.stats().dropped == {"unconfirmed": 1}
        until(lambda: not sink._worker.thread or not sink._worker.thread.is_alive()) if hasattr(
            sink, "_worker"
        ) else None


def test_a_connection_that_broke_while_it_was_idle_is_replaced_before_a_batch(broker):
    """No event is lost to it, or counted as retried."""
    broker.declare("idle")
    proxy = Proxy(broker.port)
    with AMQPSink(f"amqp://guest:guest@127.0.0.1:{proxy.port},127.0.0.1:{broker.port}", routing_key="idle") as sink:
        for number in range(3):
            sink.deliver({"event": "a", "n": number})
            if number == 0:
                proxy.__exit__()
    assert _numbers(broker.take("idle")) == [0, 1, 2]


def test_a_connection_that_missed_its_heartbeats_is_not_trusted(broker, monkeypatch):
    """A network may have forgotten it, and say nothing."""
    broker.declare("heartbeat")
    with AMQPSink(f"{broker.url}/?heartbeat=30", routing_key="heartbeat") as sink:
        sink.deliver({"event": "a", "n": 0})
        link = sink._client._link
        assert link.usable()
        monkeypatch.setattr(amqplink, "now", lambda: time.monotonic() + 61)
        assert not link.usable()
        monkeypatch.undo()
        sink.deliver({"event": "a", "n": 1})
    assert _numbers(broker.take("heartbeat")) == [0, 1]


def test_a_forked_child_has_a_connection_of_its_own(broker):
    """What the parent sends afterwards goes over its own, which the child has left alone."""
    broker.declare("fork")
    with AMQPSink(broker.url, routing_key="fork") as sink:
        sink.deliver({"event": "a", "n": 0})
        link = sink._client._link

        def child():
            sink.deliver({"event": "a", "n": 1})
            assert sink.close(5)

        in_fork(child)
        sink.deliver({"event": "a", "n": 2})
        assert sink._client._link is link
    assert _numbers(broker.take("fork")) == [0, 1, 2]


def test_a_script_that_ends_at_once_has_its_events_delivered(broker):
    """The connection is made while the process ends, when no thread can be started any more."""
    broker.declare("short")
    script = """
        import sys
        from outfall import AMQPSink, BackgroundSink
        sink = BackgroundSink(AMQPSink(sys.argv[1].replace("127.0.0.1", "localhost"), routing_key="short"), linger=60)
        sink.handle({"event": "a", "n": 1})
    """
    with start(script, broker.url) as child:
        assert child.wait(LONG) == 0
    assert _numbers(broker.take("short")) == [1]


@pytest.mark.parametrize("said", ["PRECONDITION_FAILED - message size 9 is larger than configured max size 8"])
def test_a_message_that_is_too_large_is_refused_for_good(said):
    """Others of its batch may be taken, so it is told as too large."""
    error = amqplink.exceptions.ChannelClosedByBroker(406, said)
    assert isinstance(amqplink.failure_of(error, "peer"), OversizeDeliveryError)


def test_a_refused_client_certificate_pauses():
    """With TLS 1.3 it is refused after the handshake, and pika has the text of it alone."""
    told = "StreamLostError: ('Stream connection lost: SSLError(1, \\'[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13')"
    failure = amqplink.failure_of(amqplink.exceptions.IncompatibleProtocolError(told), "peer")
    assert isinstance(failure, PausedDeliveryError)
    assert "CERTIFICATE_REQUIRED" in str(failure)
    ended = told.replace("TLSV13_ALERT_CERTIFICATE_REQUIRED", "UNEXPECTED_EOF_WHILE_READING")
    assert not isinstance(amqplink.failure_of(amqplink.exceptions.StreamLostError(ended), "peer"), PausedDeliveryError)


@pytest.mark.parametrize("url", ["redis://host", "amqp://u:secret@host:no/", "", "amqp://u:secret@host?nonsense=1"])
def test_a_url_that_is_not_usable_is_refused_without_telling_it(url):
    """It may hold a password."""
    with pytest.raises(ValueError, match="url") as raised:
        AMQPSink(url, routing_key="x")
    assert "secret" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_behind_a_spool_when_the_broker_is_killed_in_a_burst(broker, tmp_path):
    """What comes twice was not confirmed: of each connection that broke, a batch at most."""
    broker.declare("burst")
    told = []
    batch = 2000
    target = AMQPSink(broker.url, routing_key="burst", timeout=LONG)  # the broker waits for its disk
    with SpoolSink(target, tmp_path / "spool", batch_size=batch, retry=QUICK, on_error=told.append) as sink:
        for number in range(20_000):
            sink.handle({"event": "a", "n": number})
            if number == 10_000:
                until(lambda: sink.stats().delivered > 0)
                broker.kill()
        broker.start()
        broker.declare("burst")  # what was declared shortly before a kill may be gone
        assert sink.flush(6 * LONG), (sink.stats(), told[-1:])
    numbers = _numbers(broker.take("burst"))
    assert set(numbers) == set(range(20_000))
    assert len(numbers) - 20_000 <= batch * (1 + sum(isinstance(each.error, TemporaryDeliveryError) for each in told))


# -- the listener


def test_a_relay_between_two_queues_is_two_urls(broker):
    """Several hosts, and what else a URL may have, included."""
    broker.declare("by url")
    _publish(broker, "by url", _bodies(1))
    place = broker.url.replace("@", "@127.0.0.1:1,")
    taken = CaptureSink()
    with open_listener(f"{place}/?queue=by%20url&batch_size=10", taken) as listener:
        assert isinstance(listener, AMQPListener)
        assert listener.flush(LONG)
    with open_sink(f"{place}?routing_key=by%20url&timeout=5s&batch_size=10") as sink:
        sink.handle(taken.events[0])
    assert _numbers(broker.take("by url")) == [1]


def _publish(broker, queue, bodies):
    with broker.channel() as channel:
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish("", queue, body)


def _bodies(*numbers):
    return [b'{"event":"a","n":%d}' % number for number in numbers]


def test_what_a_listener_was_given_is_gone_from_the_queue_once_each_sink_has_it(broker):
    """Level and time come back where they stood beside the JSON."""
    broker.declare("there")
    with BackgroundSink(AMQPSink(broker.url, routing_key="there")) as sink:
        for number in range(1200):
            sink.handle({"event": "a", "n": number})
        sink.handle("text")
        assert sink.flush(LONG)
    one, other = CaptureSink(), CaptureSink(level="error")
    with AMQPListener(broker.url, "there", one, other, respect_sink_level=True) as listener:
        assert listener.flush(LONG)
        assert listener.stats().delivered == 1201
    assert [event.get("n") for event in one.events] == [*range(1200), None]
    assert other.events == []
    assert broker.take("there") == []


def test_messages_of_a_listener_that_was_killed_come_to_another(broker):
    """They come again, counted as such, and none is lost."""
    broker.declare("killed")
    _publish(broker, "killed", _bodies(*range(10)))
    script = """
        import sys, time
        from outfall import AMQPListener, CaptureSink
        class Slow(CaptureSink):
            def emit_batch(self, batch):
                print(len(batch), flush=True)
                time.sleep(600)
        AMQPListener(sys.argv[1], "killed", Slow()).start()
        time.sleep(600)
    """
    with start(script, broker.url, stdout=-1) as child:
        assert int(child.stdout.readline()) > 0
        child.kill()
    taken = CaptureSink()
    with AMQPListener(broker.url, "killed", taken) as listener:
        until(lambda: len(taken.events) == 10)
        assert listener.redelivered > 0
    assert sorted(event["n"] for event in taken.events) == list(range(10))


def test_a_slow_listener_leaves_what_it_has_not_fetched_to_others(broker):
    """It holds ``prefetch`` messages and no more."""
    broker.declare("shared")
    slow, quick = _Gate(), CaptureSink()
    with AMQPListener(broker.url, "shared", slow, batch_size=5, prefetch=5, retry=QUICK) as first:
        _publish(broker, "shared", _bodies(0))
        assert slow.entered.wait(LONG)
        with AMQPListener(broker.url, "shared", quick, batch_size=5) as second:
            _publish(broker, "shared", _bodies(*range(1, 40)))
            until(lambda: len(quick.events) >= 35)
            slow.gate.set()
            assert first.flush(LONG)
            assert second.flush(LONG)
    assert sorted(event["n"] for event in (*slow.events, *quick.events)) == list(range(40))


class _Gate(CaptureSink):
    """A sink that takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def emit_batch(self, batch):
        self.entered.set()
        self.gate.wait(LONG)
        return super().emit_batch(batch)


@pytest.mark.parametrize("where", ["dead letter sink", "dead letter exchange", "nowhere"])
def test_what_is_no_event_blocks_nothing(broker, where):
    """It goes where the application says, or is counted as dropped."""
    queue, buried = f"poison {where}", f"buried {where}"
    broker.declare(buried)
    broker.declare(queue, x_dead_letter_exchange="", x_dead_letter_routing_key=buried)
    _publish(broker, queue, [b"\xff no JSON", *_bodies(1), b"[1]"])
    taken, letters = CaptureSink(), CaptureSink()
    options = {"dead letter sink": {"dead_letter": letters}, "dead letter exchange": {"reject": True}}.get(where, {})
    with AMQPListener(broker.url, queue, taken, on_error=_quiet, **options) as listener:
        assert listener.flush(LONG)
        stats = listener.stats()
    assert [event["n"] for event in taken.events] == [1]
    assert len(letters.events) == (2 if where == "dead letter sink" else 0)
    assert [body for body, _ in broker.take(buried)] == ([b"\xff no JSON", b"[1]"] if "exchange" in where else [])
    assert (stats.dead_lettered, stats.dropped) == ((0, {"garbage": 2}) if where == "nowhere" else (2, {}))
    assert broker.take(queue) == []


def test_while_a_target_is_away_the_broker_keeps_the_messages(broker):
    """A listener that is stopped then gives them back."""
    broker.declare("away")
    _publish(broker, "away", _bodies(0, 1))

    class Away(NullSink):
        tried = 0

        def emit_batch(self, batch):
            self.tried += 1
            raise TemporaryDeliveryError("away")

    away = Away()
    listener = AMQPListener(broker.url, "away", away, retry=QUICK, on_error=_quiet).start()
    until(lambda: away.tried > 1)
    assert not listener.stop(0.2)
    found = []
    until(lambda: found.extend(_numbers(broker.take("away"))) or len(found) == 2)
    assert sorted(found) == [0, 1]


def test_a_listener_waits_for_a_queue_that_does_not_exist_yet(broker):
    """It is told of, as a pause."""
    told, taken = [], CaptureSink()
    with AMQPListener(broker.url, "some day", taken, retry=QUICK, on_error=told.append):
        until(lambda: told)
        assert isinstance(told[0].error, PausedDeliveryError)
        broker.declare("some day")
        _publish(broker, "some day", _bodies(1))
        until(lambda: taken.events)


def test_a_listener_comes_back_when_its_connection_breaks(broker):
    """What it had not acknowledged comes again."""
    broker.declare("broken")
    taken, told = _Gate(), []
    proxy = Proxy(broker.port)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port},127.0.0.1:{broker.port}"
    _publish(broker, "broken", _bodies(0))
    with AMQPListener(url, "broken", taken, retry=QUICK, on_error=told.append) as listener:
        assert taken.entered.wait(LONG)
        proxy.__exit__()
        _publish(broker, "broken", _bodies(1))
        taken.gate.set()
        until(lambda: {event["n"] for event in taken.events} == {0, 1})
        assert listener.flush(LONG)
    assert broker.take("broken") == []


def test_a_listener_stops_in_time_while_the_broker_is_stopped(broker):
    """What is not acknowledged comes again."""
    broker.declare("stopping")
    with AMQPListener(broker.url, "stopping", NullSink(), on_error=_quiet) as listener:
        assert listener.flush(LONG)
        with broker.stopped():
            began = time.monotonic()
            listener.stop(0.3)
            assert time.monotonic() - began < LONG / 2


def test_a_child_of_a_process_that_listens_does_not_listen(broker):
    """What the parent has not acknowledged stays the parent's."""
    broker.declare("parent")
    taken = CaptureSink()
    with AMQPListener(broker.url, "parent", taken) as listener:
        assert listener.flush(LONG)

        def child():
            assert not listener.running
            assert listener.stop(1)

        in_fork(child)
        _publish(broker, "parent", _bodies(1))
        until(lambda: taken.events)


@pytest.mark.parametrize(
    "options",
    [{"reject": True, "dead_letter": NullSink()}, {"prefetch": 0}, {"prefetch": 70_000}, {"queue": ""}],
    ids=str,
)
def test_wrong_arguments_are_refused_at_construction(options):
    """Each by its name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        AMQPListener("amqp://127.0.0.1", **{"queue": "x", **options})
