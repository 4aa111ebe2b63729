"""Brokers that speak Kafka's protocol: librdkafka's own mock cluster, in a process that can be stopped."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
from pathlib import Path

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.sinks._processes import signalled, start

#: The mock waits for the sessions of who left a group: 45 s unless it is told otherwise. A question about a partition
#: waits behind the request for its messages.
CONFIG = {"session.timeout.ms": 4000, "heartbeat.interval.ms": 200, "fetch.wait.max.ms": 50}

LOGGER = logging.Logger("mock")
LOGGER.addHandler(logging.NullHandler())

_PROGRAM = """
    import sys
    from tests.adapters._kafka import Mock
    mock = Mock()
    print(mock.servers, flush=True)
    sys.stdin.read()
"""


class Mock:
    """One broker, whose topics have four partitions."""

    def __init__(self) -> None:
        library = ctypes.CDLL(
            str(next(Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*")))
        )
        for name in ("conf_new", "new", "mock_cluster_new", "mock_cluster_bootstraps"):
            getattr(library, f"rd_kafka_{name}").restype = ctypes.c_void_p
        configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(configuration, b"log_level", b"0", None, 0)
        client = ctypes.c_void_p(library.rd_kafka_new(0, configuration, None, 0))
        cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(client, 1))
        # A group waits 3 s for its first members otherwise.
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 100)
        self.servers = ctypes.string_at(library.rd_kafka_mock_cluster_bootstraps(cluster)).decode()

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


class MockProcess(Mock):
    """The same in a process of its own, which can be stopped."""

    def __init__(self) -> None:
        self._child = start(_PROGRAM, stdin=-1, stdout=-1)
        self.servers = self._child.stdout.readline().decode().strip()

    def __enter__(self):
        return self

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
