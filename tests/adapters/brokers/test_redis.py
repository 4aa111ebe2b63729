"""Events into a real redis-server and out of it."""

from __future__ import annotations

import json

import pytest

from outfall import BackgroundSink
from outfall.adapters.brokers.redis import RedisSink
from tests.adapters._redis import RedisProcess

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def server(require_service, tmp_path_factory):
    """One server for the module; each test has keys of its own."""
    with RedisProcess(require_service("redis-server"), tmp_path_factory.mktemp("redis")) as running:
        yield running


def test_an_entry_of_a_stream_is_the_events_json_and_nothing_else(server):
    """Level and time are beside it where the JSON has none."""
    with RedisSink(server.url, "plain") as sink:
        sink.handle({"event": "a", "level": "info", "timestamp": "2024-01-01T00:00:00Z"})
        sink.handle("text of somebody else")
    first, second = (fields for _, fields in server.client.xrange("plain"))
    assert first == {b"event": b'{"event":"a","level":"info","timestamp":"2024-01-01T00:00:00Z"}'}
    assert json.loads(second[b"event"]) == {"event": "text of somebody else"}
    assert second[b"level"] == b"info"
    assert float(second[b"time"]) > 1e9


def test_an_item_of_a_list_is_the_json(server):
    """Logstash and Vector read lists from their left end."""
    with BackgroundSink(RedisSink(server.url, "list", kind="list")) as sink:
        for number in range(3):
            sink.handle({"event": "a", "n": number})
    assert [json.loads(item)["n"] for item in server.client.lrange("list", 0, -1)] == [0, 1, 2]
