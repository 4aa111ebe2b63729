"""Events into Kafka and out of it, with librdkafka's mock cluster in the place of real brokers."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from confluent_kafka import KafkaError

from outfall import (
    BackgroundSink,
    CaptureSink,
    NullSink,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    RetryPolicy,
    SpoolSink,
    TemporaryDeliveryError,
    open_sink,
)
from outfall.adapters.brokers.kafka import KafkaSink
from outfall.adapters.brokers.kafkaclient import failure_of
from outfall.adapters.brokers.kafkalistener import KafkaListener
from outfall.adapters.brokers.listeners import open_listener
from outfall.sinks.core.item import Batch
from outfall.sinks.testing import SinkContract
from tests.adapters._kafka import CONFIG, MockProcess
from tests.adapters._proxy import Proxy
from tests.sinks._processes import PATIENCE_SECONDS, check, in_fork, start, until

QUICK = RetryPolicy(start_seconds=0.02, max_seconds=0.2, pause_start_seconds=0.02, pause_max_seconds=0.2, jitter=False)
LONG = PATIENCE_SECONDS


def _quiet(_failure):
    pass


def _numbers(messages):
    return sorted(json.loads(message.value())["n"] for message in messages)


def _bodies(*numbers):
    return [b'{"event":"a","n":%d}' % number for number in numbers]


@pytest.fixture(scope="module")
def mock():
    """A broker in a process of its own, for the module; each test has topics and groups of its own."""
    with MockProcess() as running:
        yield running


class TestKafkaSink(SinkContract):
    """A topic of its own for each sink."""

    @pytest.fixture(autouse=True)
    def _mock(self, mock):
        self.mock = mock

    def make_sink(self, **options):
        in_order = {"partitioner": "consistent"}  # messages without a key go to one partition
        return KafkaSink(self.mock.servers, f"contract-{os.urandom(8).hex()}", config=in_order, **options)

    def received(self, sink):
        return [json.loads(message.value()) for message in self.mock.take(sink._topic)]


# -- the sink


def test_a_message_is_the_events_json_and_nothing_else(mock):
    """Level and time are beside it where the JSON has none."""
    with KafkaSink(mock.servers, "plain") as sink:
        sink.handle({"event": "a", "level": "info", "timestamp": "2024-01-01T00:00:00Z"})
        sink.handle("text of somebody else")
    usual, other = sorted(mock.take("plain"), key=lambda message: len(message.value()), reverse=True)
    assert usual.value() == b'{"event":"a","level":"info","timestamp":"2024-01-01T00:00:00Z"}'
    assert not usual.headers()
    assert json.loads(other.value()) == {"event": "text of somebody else"}
    assert other.headers() == [("level", b"info")]
    assert abs(other.timestamp()[1] / 1000 - time.time()) < LONG


def test_an_event_that_is_too_large_is_refused_alone(mock):
    """The others of its batch are delivered."""
    sink = KafkaSink(mock.servers, "large")
    batch = [sink.encode({"event": "x" * size, "n": size}) for size in (1, 2_000_000, 2)]
    result = sink.emit_batch(batch)
    assert list(result.rejected) == [1]
    assert list(result.retry) == []
    with pytest.raises(PermanentDeliveryError):
        sink.deliver({"event": "x" * 2_000_000})
    sink.close()
    assert _numbers(mock.take("large")) == [1, 2]


def test_a_retry_waits_on_for_the_same_messages(mock):
    """While the broker is stopped a batch stays with the producer; once it goes on, each message is there once."""
    told = []
    with BackgroundSink(KafkaSink(mock.servers, "once", timeout=0.2), retry=QUICK, on_error=told.append) as sink:
        sink.handle({"event": "a", "n": 0})
        assert sink.flush(LONG)
        with mock.stopped():
            for number in range(1, 50):
                sink.handle({"event": "a", "n": number})
            until(lambda: len(told) > 2)
            assert isinstance(told[0].error, TemporaryDeliveryError)
        assert sink.flush(LONG)
    assert _numbers(mock.take("once")) == list(range(50))


def test_a_part_of_a_batch_waits_on_too(mock):
    """A retry with some of the items sends none of them again, and neither does the one with the others."""
    sink = KafkaSink(mock.servers, "parts", timeout=0.2)
    until(lambda: _taken(sink, Batch([sink.encode({"event": "a", "n": 0})], "first")))
    batch = Batch([sink.encode({"event": "a", "n": number}) for number in range(1, 5)])
    with mock.stopped(), pytest.raises(TemporaryDeliveryError):
        sink.emit_batch(batch)
    for part in (batch[:2], batch[2:]):
        until(lambda part=part: _taken(sink, part))
    sink.close()
    assert _numbers(mock.take("parts")) == [0, 1, 2, 3, 4]


def _taken(sink, batch):
    try:
        return sink.emit_batch(batch) is None
    except TemporaryDeliveryError:
        return False


def test_what_nobody_retries_is_taken_back(mock):
    """A synchronous sink counts its event as lost, so it is not sent later."""
    with KafkaSink("127.0.0.1:1", "alone", timeout=0.05, on_error=_quiet) as sink:
        sink.handle({"event": "a"})
        assert sink.stats().dropped == {"error": 1}
        until(lambda: len(sink._client._producer) == 0 or sink._client._producer.poll(0.01) is None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, PausedDeliveryError),
        (KafkaError._AUTHENTICATION, PausedDeliveryError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, PausedDeliveryError),
        (KafkaError.MSG_SIZE_TOO_LARGE, OversizeDeliveryError),
        (KafkaError.NOT_ENOUGH_REPLICAS, TemporaryDeliveryError),
        (KafkaError._ALL_BROKERS_DOWN, TemporaryDeliveryError),
    ],
)
def test_what_an_error_means(code, kind):
    """What somebody has to change pauses; what the message is to blame for is refused; the rest may pass."""
    assert type(failure_of(KafkaError(code))) is kind


def test_nothing_is_lost_behind_a_spool_while_brokers_are_away(mock, tmp_path):
    """And since the producer is idempotent, nothing comes twice."""
    target = KafkaSink(mock.servers, "burst", timeout=0.3)
    with SpoolSink(target, tmp_path / "spool", batch_size=500, retry=QUICK, on_error=_quiet) as sink:
        for number in range(20_000):
            sink.handle({"event": "a", "n": number})
            if number == 10_000:
                until(lambda: sink.stats().delivered > 0)
                with mock.stopped():
                    began = time.monotonic()
                    assert not sink.flush(0.2)
                    assert time.monotonic() - began < LONG / 2
        assert sink.flush(LONG)
    assert _numbers(mock.take("burst")) == list(range(20_000))


def test_close_gives_up_in_time_while_the_network_hangs(mock):
    """Whatever librdkafka waits for."""
    with Proxy(int(mock.servers.partition(":")[2])) as proxy:
        proxy.hang()
        sink = BackgroundSink(KafkaSink(f"127.0.0.1:{proxy.port}", "hanging", timeout=LONG), on_error=_quiet)
        sink.handle({"event": "a"})
        began = time.monotonic()
        assert not sink.close(0.3)
        assert time.monotonic() - began < LONG / 2
        assert sum(sink.stats().dropped.values()) == 1


def test_nothing_goes_to_stderr_but_reports(mock):
    """What librdkafka has to say goes to a logger."""
    script = """
        import logging, sys
        from outfall import KafkaSink
        said = []
        class Handler(logging.Handler):
            def emit(self, record): said.append(record.getMessage())
        logging.getLogger("librdkafka").addHandler(Handler())
        sink = KafkaSink("127.0.0.1:1", "x", timeout=0.3, on_error=lambda failure: None)
        sink.handle({"event": "a"})
        sink.close()
        assert any("Connect" in each for each in said), said
    """
    child = start(script, stderr=-1)
    assert child.communicate(timeout=LONG)[1] == b""
    assert child.returncode == 0


def test_a_forked_child_has_a_producer_of_its_own(mock):
    """Neither it nor its exit waits for the parent's."""
    with KafkaSink(mock.servers, "fork") as sink:
        sink.deliver({"event": "a", "n": 0})

        def child():
            sink.deliver({"event": "a", "n": 1})
            assert sink.close(5)

        in_fork(child)
        sink.deliver({"event": "a", "n": 2})
    assert _numbers(mock.take("fork")) == [0, 1, 2]


def test_a_forked_child_may_exit_as_any_program(mock):
    """The interpreter takes everything apart there, but not what belongs to the parent."""
    script = """
        import os, sys
        from outfall import KafkaListener, KafkaSink, NullSink
        sink, listener = KafkaSink(sys.argv[1], "exit"), KafkaListener(sys.argv[1], "exit", NullSink())
        sink.deliver({"event": "a"})
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """
    check(script, mock.servers)


def test_a_script_that_ends_at_once_has_its_events_delivered(mock):
    """Nothing is imported or begun while the process ends."""
    script = """
        import sys
        from outfall import BackgroundSink, KafkaSink
        sink = BackgroundSink(KafkaSink(sys.argv[1], "short"), linger=60)
        sink.handle({"event": "a", "n": 1})
    """
    check(script, mock.servers)
    assert _numbers(mock.take("short")) == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"servers": ""}, "servers"),
        ({"topic": ""}, "topic"),
        ({"timeout": 0}, "timeout"),
        ({"config": {"no.such": 1}}, "no.such"),
        ({"config": {"bootstrap.servers": "x"}}, "bootstrap.servers"),
        ({"config": {"sasl.mechanism": "PLAIN", "security.protocol": "nope", "sasl.password": "secret"}}, "nope"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_at_construction(options, said):
    """Those of librdkafka too, without a secret."""
    arguments = {"servers": "127.0.0.1:1", "topic": "x", **options}
    with pytest.raises(ValueError, match=said) as raised:
        KafkaSink(**arguments)
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match=said):
        KafkaListener(arguments.pop("servers"), arguments.pop("topic"), NullSink(), **arguments)


def test_a_url_names_servers_topic_and_configuration():
    """The same for sink and listener."""
    url = "kafka://127.0.0.1:1,127.0.0.1:2/logs?config.client.id=shop"
    with open_sink(f"{url}&background=false") as sink:
        assert repr(sink) == "<KafkaSink to 'logs' at 127.0.0.1:1,127.0.0.1:2>"
        assert sink._config == {"client.id": "shop"}
    listener = open_listener(f"{url}&group=archive", NullSink())
    assert listener._describe() == "'logs' of 'archive' at 127.0.0.1:1,127.0.0.1:2"
    assert listener._settings["client.id"] == "shop"
    assert not listener.connected


# -- the listener


class _Gate(CaptureSink):
    """A sink that takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def emit_batch(self, batch):
        self.entered.set()
        self.gate.wait(LONG)
        return super().emit_batch(batch)


def test_a_listener_takes_what_is_there_and_commits_it(mock):
    """While its sink is slow its group hears of it; garbage goes to the dead letters."""
    with BackgroundSink(KafkaSink(mock.servers, "there")) as sink:
        for number in range(1200):
            sink.handle({"event": "a", "n": number})
        sink.handle("text")
        assert sink.flush(LONG)
    mock.produce("there", [b"no JSON"])
    taken, letters = _Gate(), CaptureSink()
    options = {"config": {**CONFIG, "max.poll.interval.ms": 4000}, "dead_letter": letters, "on_error": _quiet}
    with KafkaListener(mock.servers, "there", taken, batch_size=100, **options) as listener:
        assert taken.entered.wait(LONG)
        until(lambda: len(listener._run.tickets) == 2)
        polled = listener._polled
        until(lambda: listener._polled > polled)
        assert listener._paused
        taken.gate.set()
        assert listener.flush(LONG)
        assert listener.stats().dead_lettered == 1
        assert listener.stats().delivered == 1201
    assert sorted(event["n"] for event in taken.events if "n" in event) == list(range(1200))
    assert [event["event"] for event in letters.events] == ["no JSON"]
    assert mock.committed("there", "outfall") == 1202


@pytest.mark.slow
def test_what_was_not_delivered_when_a_listener_was_killed_comes_to_another(mock):
    """Once its session is over, its group gives its partitions to who is left."""
    mock.produce("killed", _bodies(*range(100)))
    script = """
        import sys, time
        from outfall import KafkaListener, CaptureSink
        from tests.adapters._kafka import CONFIG
        class Slow(CaptureSink):
            def emit_batch(self, batch):
                print(len(batch), flush=True)
                time.sleep(600)
        KafkaListener(sys.argv[1], "killed", Slow(), config=CONFIG).start()
        time.sleep(600)
    """
    taken = CaptureSink()
    with (
        start(script, mock.servers, stdout=-1) as child,
        KafkaListener(mock.servers, "killed", taken, config=CONFIG) as listener,
    ):
        until(lambda: listener._joined)
        mock.produce("killed", _bodies(*range(100, 200)))
        assert int(child.stdout.readline()) > 0
        child.kill()
        until(lambda: {event["n"] for event in taken.events} == set(range(200)))


@pytest.mark.slow
def test_a_partition_that_is_taken_away_is_kept_until_what_was_read_is_delivered(mock):
    """Two listeners of a group lose nothing; until it knows its share again, a listener does not say that it has all.

    What one of them gets back it reads, though it had paused when the group took it.
    """

    class Watched(KafkaListener):
        def _on_revoke(self, consumer, places):
            revoked.set()
            super()._on_revoke(consumer, places)
            left.append(len(self._run.tickets) + len(self._run.settled))
            knows.append(self.connected or self._end_of(consumer))

    revoked, left, knows = threading.Event(), [], []
    mock.produce("shared", _bodies(*range(100)))
    one, other = _Gate(), CaptureSink()
    with Watched(mock.servers, "shared", one, config=CONFIG, batch_size=10, timeout=LONG) as first:
        assert one.entered.wait(LONG)
        until(lambda: first._paused)
        with KafkaListener(mock.servers, "shared", other, config=CONFIG) as second:
            assert revoked.wait(LONG)
            one.gate.set()
            until(lambda: first._partitions and second._partitions)
            until(lambda: len(one.events) + len(other.events) >= 100)
            mock.produce("shared", _bodies(*range(100, 200)))
            until(lambda: len({event["n"] for event in (*one.events, *other.events)}) == 200)
    assert left[0] == 0
    assert knows[0] is None


def test_a_listener_stops_in_time_while_brokers_are_stopped(mock):
    """Whatever it waits for."""
    with mock.stopped(), KafkaListener(mock.servers, "x", NullSink(), on_error=_quiet) as listener:
        began = time.monotonic()
        listener.stop(0.5)
        assert time.monotonic() - began < LONG / 2
        assert not listener.running
