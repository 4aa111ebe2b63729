"""Brokers that speak Kafka's protocol: librdkafka's own mock cluster, in this process or in one that can be stopped."""

from __future__ import annotations

import contextlib
import logging
import signal

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.sinks._processes import signalled, start

#: The mock lets a group begin after 3 s, within which no session may end, then waits for the sessions of who left it:
#: 45 s unless it is told otherwise.
CONFIG = {"session.timeout.ms": 4000, "heartbeat.interval.ms": 200}

LOGGER = logging.Logger("mock")
LOGGER.addHandler(logging.NullHandler())

_PROGRAM = """
    import sys, time
    from tests.adapters._kafka import Mock
    with Mock() as mock:
        print(mock.servers, flush=True)
        sys.stdin.read()
"""


class Mock:
    """One broker, whose topics have four partitions."""

    def __init__(self) -> None:
        settings = {"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1}
        self._client = Producer(settings, logger=LOGGER)
        (broker,) = self._client.list_topics(timeout=30).brokers.values()
        self.servers = f"{broker.host}:{broker.port}"

    def produce(self, topic, bodies, partition=-1):
        """Put messages into a topic."""
        producer = Producer({"bootstrap.servers": self.servers}, logger=LOGGER)
        for body in bodies:
            producer.produce(topic, body, partition=partition)
        assert producer.flush(30) == 0

    def take(self, topic):
        """Return all messages of a topic."""
        settings = {"bootstrap.servers": self.servers, "group.id": "look", "enable.partition.eof": True}
        consumer = Consumer({**settings, "auto.offset.reset": "earliest"}, logger=LOGGER)
        try:
            partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions  # none: it does not exist
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
            taken, ended = [], 0
            while ended < len(partitions):
                for message in consumer.consume(1000, 0.05):
                    if message.error() is None:
                        taken.append(message)
                    else:
                        ended += 1
            return taken
        finally:
            consumer.close()

    def committed(self, topic, group):
        """Return how many messages of a topic a group has done with."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group}, logger=LOGGER)
        try:
            places = consumer.committed([TopicPartition(topic, number) for number in range(4)], timeout=30)
            return sum(max(0, place.offset) for place in places)
        finally:
            consumer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client = None


class MockProcess(Mock):
    """The same in a process of its own, which can be stopped."""

    def __init__(self) -> None:
        self._child = start(_PROGRAM, stdin=-1, stdout=-1)
        self.servers = self._child.stdout.readline().decode().strip()

    @contextlib.contextmanager
    def stopped(self):
        """Let it do nothing for a while."""
        signalled(self._child, signal.SIGSTOP)
        try:
            yield
        finally:
            self._child.send_signal(signal.SIGCONT)

    def __exit__(self, *_):
        self._child.send_signal(signal.SIGCONT)
        self._child.kill()
        self._child.communicate()
