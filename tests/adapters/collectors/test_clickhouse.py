"""A real server that takes JSON over HTTP, end to end: ClickHouse."""

from __future__ import annotations

import itertools
import re

import pytest

from outfall import NDJSON, BackgroundSink, CaptureSink, HTTPSink, PermanentDeliveryError, RetryPolicy
from outfall.sinks.testing import assert_balanced
from tests.adapters._clickhouse import ClickHouse

pytestmark = pytest.mark.service

TABLES = itertools.count()
TIME = "2026-03-14T15:09:26.535897Z"


@pytest.fixture(scope="module")
def clickhouse(require_service, tmp_path_factory):
    """Give a server."""
    with ClickHouse(require_service("clickhouse-server"), tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@pytest.fixture
def table(clickhouse):
    """Give the name of a new table."""
    name = f"events_{next(TABLES)}"
    clickhouse.ask(
        f"CREATE TABLE {name} (timestamp String, level String, logger String, event String, number Int64, text String)"
        " ENGINE = MergeTree ORDER BY number"
    )
    return name


class ClickHouseRows(NDJSON):
    """Rows for ClickHouse, whose answer to a row that is wrong has the status of a server's fault, 500."""

    #: Of values that cannot be parsed, and types that do not match.
    codes = frozenset({6, 26, 27, 38, 41, 53, 72, 117})

    def refusal(self, response_status, response_headers, response_body):
        """Tell by the code in the answer's text."""
        match = re.match(rb"Code: (\d+)", response_body)
        if response_status == 500 and match and int(match[1]) in self.codes:
            return PermanentDeliveryError(f"ClickHouse: code {int(match[1])}")
        return None


def ship(sink, events):
    """Give *events* to *sink* and close it; return its ledger."""
    for event in events:
        sink.handle(event)
    assert sink.close(60), sink.stats()
    assert_balanced(sink.stats())
    return sink.stats()


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_event_is_in_the_table(clickhouse, table, compression):
    """Once, with the text and the numbers that it had."""
    texts = ["Grüße, 世界 🎉", "one\ntwo\r\n\0", '"\\', "", "\x7f\u2028", "x" * 100_000]
    events = [
        {"timestamp": TIME, "level": "info", "logger": "shop", "event": "order", "number": number, "text": text}
        for number, text in enumerate(texts * 500)
    ]
    events[7]["number"] = 2**63 - 1
    target = HTTPSink(clickhouse.insert(table), body=NDJSON(), auth=clickhouse.auth, compression=compression)
    sink = BackgroundSink(target, capacity_bytes=2**28, overflow="block", block_timeout=60)
    stats = ship(sink, events)
    assert (stats.delivered, stats.dropped, stats.last_error) == (3_000, {}, None)
    assert clickhouse.ask(f"SELECT count() AS n, uniq(number) AS u FROM {table}") == [{"n": 3_000, "u": 3_000}]
    found = clickhouse.ask(f"SELECT * FROM {table} WHERE length(text) < 100 ORDER BY number")
    assert found == sorted((event for event in events if len(event["text"]) < 100), key=lambda event: event["number"])


def test_an_event_that_is_wrong_costs_no_other(clickhouse, table):
    """It is found among a thousand, and goes to the dead letters with its reason."""
    dead, failures = CaptureSink(), []
    target = HTTPSink(clickhouse.insert(table), body=ClickHouseRows(), auth=clickhouse.auth)
    sink = BackgroundSink(target, dead_letter=dead, on_error=failures.append)
    stats = ship(sink, ({"event": "x", "number": "poison" if number == 617 else number} for number in range(1_000)))
    assert (stats.delivered, stats.dead_lettered) == (999, 1)
    assert [event["number"] for event in dead.events] == ["poison"]
    assert [str(failure.error) for failure in failures] == ["ClickHouse: code 27"]
    numbers = [row["number"] for row in clickhouse.ask(f"SELECT number FROM {table} ORDER BY number")]
    assert numbers == [number for number in range(1_000) if number != 617]


def test_unknown_fields_and_projection(clickhouse, table):
    """Fields that the table does not have are left out by the sink or by the server."""
    event = {"event": "x", "number": 1, "order": {"id": 17}, "secret": "s"}
    by_sink = HTTPSink(clickhouse.insert(table), body=NDJSON(), auth=clickhouse.auth, fields=["event", "number"])
    by_server = HTTPSink(
        clickhouse.insert(table, input_format_skip_unknown_fields=1), body=NDJSON(), auth=clickhouse.auth
    )
    for target in (by_sink, by_server):
        assert ship(BackgroundSink(target), [event]).delivered == 1
    assert clickhouse.ask(f"SELECT event, number FROM {table}") == [{"event": "x", "number": 1}] * 2


def test_a_server_that_is_killed_and_started_again(clickhouse, table):
    """Nothing is lost; what it had not answered for may be there twice."""
    retry = RetryPolicy(start_seconds=0.01, max_seconds=0.1)
    target = HTTPSink(clickhouse.insert(table), body=NDJSON(), auth=clickhouse.auth)
    sink = BackgroundSink(target, retry=retry, batch_size=100, on_error=lambda failure: None)
    for number in range(1_000):
        sink.handle({"timestamp": TIME, "event": "before", "number": number})
    assert sink.flush(60)
    clickhouse.stop()
    for number in range(1_000, 2_000):
        sink.handle({"timestamp": TIME, "event": "during", "number": number})
    clickhouse.start()
    stats = ship(sink, [{"timestamp": TIME, "event": "after", "number": 2_000}])
    assert (stats.delivered, stats.dropped) == (2_001, {})
    assert stats.retried > 0
    found = clickhouse.ask(f"SELECT DISTINCT number, event, timestamp FROM {table} ORDER BY number")
    assert [row["number"] for row in found] == list(range(2_001))
    assert {row["timestamp"] for row in found} == {TIME}


def test_a_password_that_is_wrong_is_no_fault_of_the_events(clickhouse, table):
    """They wait, and it is said nowhere."""
    failures = []
    target = HTTPSink(clickhouse.insert(table), body=ClickHouseRows(), auth=("default", "open barley"))
    sink = BackgroundSink(target, on_error=failures.append, retry=RetryPolicy(start_seconds=0.05))
    sink.handle({"event": "x"})
    assert not sink.flush(0.5)
    assert sink.stats().pending == 1
    sink.close(0.1)
    assert failures
    assert "barley" not in f"{failures} {sink.stats()}"
