"""The command ``python -m benchmarks.brokers``: events into and out of Redis, RabbitMQ and Kafka, next to bare clients.

It measures the CPU time of this process; the brokers are other processes. A floor renders or parses the same JSON and
calls the broker's client as directly as possible, 500 messages at a time. Redis and RabbitMQ are real; for Kafka it
uses the mock cluster of librdkafka.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import TYPE_CHECKING, Any

import orjson
import trustme

from benchmarks.__main__ import _print_table
from benchmarks.events import drive
from benchmarks.harness import Group, Row, measure, nothing_written
from outfall import (
    AMQPListener,
    AMQPSink,
    BackgroundSink,
    KafkaListener,
    KafkaSink,
    NullSink,
    RedisListener,
    RedisSink,
)
from outfall.adapters.brokers.amqplink import Addresses, Link
from tests.adapters._kafka import CONFIG, LOGGER, MockProcess
from tests.adapters._rabbitmq import RabbitMQ
from tests.adapters._redis import RedisProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness import Run, SetUp
    from outfall import Sink

BATCH = 500
PATIENCE_SECONDS = 60.0
QUEUE, TOPIC = "benchmark", "benchmark"


def _batches(take: Callable[[list[bytes]], object]) -> Run:
    """Return a function that renders a number of events and passes the JSON to *take*, 500 at a time."""
    waiting: list[bytes] = []

    def handle(event: dict[str, Any]) -> None:
        waiting.append(orjson.dumps(event))
        if len(waiting) == BATCH:
            take(waiting)
            waiting.clear()

    def rest() -> None:
        take(waiting)
        waiting.clear()

    return drive(handle, rest)


def _sink(sink: Sink) -> SetUp:
    @contextmanager
    def setup(_directory: Path) -> Iterator[Run]:
        with BackgroundSink(sink, on_error="raise") as around:

            def settle() -> None:
                assert around.flush(PATIENCE_SECONDS), around.stats()

            yield drive(around.handle, settle)

    return setup


def _amqp_floor(broker: RabbitMQ) -> SetUp:
    @contextmanager
    def setup(_directory: Path) -> Iterator[Run]:
        from pika import BasicProperties

        link = Link(Addresses(broker.url), 10, lambda _: None)
        confirmed, published = [0], [0]
        properties = BasicProperties(content_type="application/json", delivery_mode=2)

        def confirm(frame: Any) -> None:
            confirmed[0] = max(confirmed[0], frame.method.delivery_tag)

        link.channel.confirm_delivery(confirm, lambda _: None)

        def take(bodies: list[bytes]) -> None:
            publish = link.channel.basic_publish
            for body in bodies:
                publish("", QUEUE, body, properties, mandatory=True)
            published[0] += len(bodies)
            link.run(lambda: confirmed[0] == published[0], monotonic() + PATIENCE_SECONDS)

        yield _batches(take)
        link.close(1)

    return setup


def _kafka_floor(mock: MockProcess) -> SetUp:
    @contextmanager
    def setup(_directory: Path) -> Iterator[Run]:
        from confluent_kafka import Producer

        settings = {"bootstrap.servers": mock.servers, "acks": "all", "enable.idempotence": True}
        producer = Producer(settings, logger=LOGGER)
        failed: list[Any] = []

        def report(error: Any, _message: Any) -> None:
            if error is not None:
                failed.append(error)

        def take(bodies: list[bytes]) -> None:
            for body in bodies:
                producer.produce(TOPIC, body, on_delivery=report)
            assert producer.flush(PATIENCE_SECONDS) == 0
            assert not failed

        yield _batches(take)

    return setup


def _filled(fill: Callable[[int], object], empty: Callable[[int], float]) -> SetUp:
    """Return a set-up that fills a broker with messages, and then takes them out, which is timed."""

    @contextmanager
    def setup(_directory: Path) -> Iterator[Run]:
        def run(events: int) -> float:
            fill(events)
            began = empty(events)
            return process_time() - began

        yield run

    return setup


def _bodies(events: int) -> list[bytes]:
    made: list[bytes] = []
    drive(lambda event: made.append(orjson.dumps(event)))(events)
    return made


def _listened(made: Callable[[], Any]) -> Callable[[int], float]:
    def empty(events: int) -> float:
        with made() as listener:
            # A group of Kafka takes seconds to start. Timing begins at the first batch.
            while not listener.stats().delivered:
                sleep(0.001)
            began = process_time()
            while True:
                assert listener.flush(PATIENCE_SECONDS), listener.stats()
                if listener.stats().delivered >= events:
                    break
        return began

    return empty


def _amqp_rows(broker: RabbitMQ) -> tuple[Row, ...]:
    def fill(events: int) -> None:
        with broker.channel() as channel:
            channel.confirm_delivery()
            for body in _bodies(events):
                channel.basic_publish("", "to read", body)

    def bare(events: int) -> float:
        began = process_time()
        link = Link(Addresses(broker.url), 10, lambda _: None)
        taken = [0]

        def on_message(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            orjson.loads(body)
            taken[0] += 1
            if taken[0] % BATCH == 0 or taken[0] == events:
                channel.basic_ack(method.delivery_tag, multiple=True)

        link.channel.basic_qos(prefetch_count=2 * BATCH)
        link.channel.basic_consume("to read", on_message)
        link.run(lambda: taken[0] == events, monotonic() + PATIENCE_SECONDS)
        link.close(5)
        return began

    floor, reading = "pika: 500 messages, then their confirms", "pika: parse, acknowledge every 500"
    listened = _listened(lambda: AMQPListener(broker.url, "to read", NullSink()))
    target = AMQPSink(broker.url, routing_key=QUEUE)
    return (
        Row(floor, _amqp_floor(broker), proof=nothing_written),
        # 0.7 of the floor's events a second.
        Row("BackgroundSink(AMQPSink)", _sink(target), floor=floor, budget=1.43, proof=nothing_written),
        Row(reading, _filled(fill, bare), proof=nothing_written),
        Row("AMQPListener → NullSink", _filled(fill, listened), floor=reading, budget=1.25, proof=nothing_written),
    )


def _redis_rows(server: RedisProcess) -> tuple[Row, ...]:
    client: Any = server.client

    @contextmanager
    def pipelines(_directory: Path) -> Iterator[Run]:
        pipe = client.pipeline(transaction=False)

        def take(bodies: list[bytes]) -> None:
            for body in bodies:
                pipe.xadd("floor", {"event": body}, maxlen=100_000)
            pipe.execute()

        yield _batches(take)

    def fill(events: int) -> None:
        client.delete("to read")
        for body in _bodies(events):
            client.xadd("to read", {"event": body})

    def bare(events: int) -> float:
        began = process_time()
        client.xgroup_create("to read", "bare", "0")
        taken = 0
        while taken < events:
            entries: Any = client.xreadgroup("bare", "me", {"to read": ">"}, count=BATCH)[0][1]
            for _, fields in entries:
                orjson.loads(fields[b"event"])
            client.xack("to read", "bare", *[number for number, _ in entries])
            taken += len(entries)
        return began

    listened = _listened(lambda: RedisListener(server.url, "to read", NullSink()))
    floor, reading = "redis-py: a pipeline of 500", "redis-py: parse, acknowledge every 500"
    target = RedisSink(server.url, "benchmark", max_events=100_000)
    return (
        Row(floor, pipelines, proof=nothing_written),
        # 0.8 of the floor's events a second.
        Row("BackgroundSink(RedisSink)", _sink(target), floor=floor, budget=1.25, proof=nothing_written),
        Row(reading, _filled(fill, bare), proof=nothing_written),
        Row("RedisListener → NullSink", _filled(fill, listened), floor=reading, budget=1.25, proof=nothing_written),
    )


def _kafka_rows(mock: MockProcess) -> tuple[Row, ...]:
    def bare(events: int) -> float:
        from confluent_kafka import Consumer

        settings = {"bootstrap.servers": mock.servers, "group.id": "bare", "enable.auto.commit": False, **CONFIG}
        consumer = Consumer({**settings, "auto.offset.reset": "earliest"}, logger=LOGGER)
        consumer.subscribe(["to-read-bare"])
        began: float | None = None
        taken = 0
        while taken < events:
            messages = consumer.consume(BATCH, 0.05)
            if messages and began is None:
                began = process_time()
            for message in messages:
                orjson.loads(message.value())
            taken += len(messages)
            if messages:
                consumer.commit(asynchronous=False)
        consumer.close()
        return process_time() if began is None else began

    # A topic for each: a listener takes all that its topic has before its flush returns.
    def filling(topic: str) -> Callable[[int], object]:
        return lambda events: mock.produce(topic, _bodies(events))

    listened = _listened(lambda: KafkaListener(mock.servers, "to-read", NullSink(), config=CONFIG))
    floor, reading = "confluent-kafka: 500 messages, then a flush", "confluent-kafka: parse, commit every 500"
    return (
        Row(floor, _kafka_floor(mock), proof=nothing_written),
        # 0.6 of the floor's events a second.
        Row(
            "BackgroundSink(KafkaSink)",
            _sink(KafkaSink(mock.servers, TOPIC)),
            floor=floor,
            budget=1.67,
            proof=nothing_written,
        ),
        Row(reading, _filled(filling("to-read-bare"), bare), proof=nothing_written),
        Row(
            "KafkaListener → NullSink",
            _filled(filling("to-read"), listened),
            floor=reading,
            budget=1.25,
            proof=nothing_written,
        ),
    )


def main() -> None:
    """Start the brokers, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brokers", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=10_000)
    options = parser.parse_args()
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for each in ("rabbitmq", "redis", "rows"):
            (directory / each).mkdir()
        with (
            RabbitMQ(directory / "rabbitmq", authority.issue_cert("127.0.0.1"), authority) as broker,
            MockProcess() as mock,
            RedisProcess("redis-server", directory / "redis") as server,
        ):
            for queue in (QUEUE, "to read"):
                broker.declare(queue, x_max_length=1_000_000)
            parts = (("redis", _redis_rows(server)), ("rabbitmq", _amqp_rows(broker)), ("kafka", _kafka_rows(mock)))
            for name, rows in parts:
                group = Group(
                    name, "CPU time an event, beside the same client alone", rows, options.rounds, clock="process"
                )
                _print_table(group, measure(group, directory / "rows", events=options.events))


if __name__ == "__main__":
    main()
