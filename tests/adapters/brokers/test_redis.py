"""Events into a real redis-server: `RedisSink`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import trustme

from outfall import (
    BackgroundSink,
    MissingDependencyError,
    PausedDeliveryError,
    RetryPolicy,
    SpoolSink,
    TemporaryDeliveryError,
)
from outfall.adapters.brokers.redis import RedisSink
from outfall.sinks.core.item import Batch
from outfall.sinks.testing import SinkContract
from tests.adapters._proxy import Proxy
from tests.adapters._redis import RedisProcess
from tests.sinks._processes import PATIENCE_SECONDS, in_fork, run, until
from tests.sinks._wire import free_port

pytestmark = pytest.mark.service

QUICK = RetryPolicy(start_seconds=0.005, max_seconds=0.02, pause_start_seconds=0.005, pause_max_seconds=0.02)

#: A replica need not wait for others.
AT_ONCE = ("--repl-diskless-sync-delay", "0")


def _quiet(failure):
    pass


@pytest.fixture(scope="module")
def program(require_service):
    """The path of redis-server."""
    return require_service("redis-server")


@pytest.fixture(scope="module")
def server(program, tmp_path_factory):
    """One server for the module; each test has keys of its own."""
    with RedisProcess(program, tmp_path_factory.mktemp("redis"), *AT_ONCE) as running:
        yield running


class TestRedisSink(SinkContract):
    """A stream of its own for each sink."""

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server, self.keys = server, {}

    def make_sink(self, **options):
        sink = RedisSink(self.server.url, f"contract {os.urandom(8).hex()}", **options)
        self.keys[sink] = sink._key
        return sink

    def received(self, sink):
        return [json.loads(body) for body in self.server.events(self.keys[sink])]


def _numbers(server, key):
    return [json.loads(body)["n"] for body in server.events(key)]


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


@pytest.mark.parametrize("kind", ["stream", "list"])
def test_events_arrive_in_order_out_of_a_background(server, kind):
    """Each batch is one pipeline; Logstash and Vector read lists from their left end."""
    with BackgroundSink(RedisSink(server.url, f"order {kind}", kind)) as sink:
        for number in range(1_000):
            sink.handle({"event": "a", "level": "info", "n": number})
    key = f"order {kind}"
    bodies = server.events(key) if kind == "stream" else server.client.lrange(key, 0, -1)
    assert [json.loads(body)["n"] for body in bodies] == list(range(1_000))
    assert sink.stats().delivered == 1_000


def test_a_stream_is_bounded_by_max_events(server):
    """About so many are kept, the newest."""
    with BackgroundSink(RedisSink(server.url, "bounded", max_events=100)) as sink:
        for number in range(1_000):
            sink.handle({"event": "a", "n": number})
    kept = _numbers(server, "bounded")
    assert 100 <= len(kept) <= 300
    assert kept[-1] == 999


def test_a_full_server_refuses_event_by_event_and_takes_the_rest_later(server):
    """What found room is not sent again; what found none is, until there is some."""
    used = server.client.info("memory")["used_memory"]
    sink = RedisSink(server.url, "full", on_error=_quiet)
    items = [sink.make_item({"event": "x" * 1_000, "n": number}) for number in range(500)]
    try:
        server.client.config_set("maxmemory", used + 300_000)
        result = sink.emit_batch(Batch(items))
        # What the server needs itself varies, so there may be room again for one behind a refused one.
        taken = _numbers(server, "full")
        assert 0 < len(taken) < 500
        assert list(result.retry) == sorted({*range(500)} - {*taken})
        with BackgroundSink(sink, retry=QUICK, on_error=_quiet) as behind:
            for number in result.retry:
                behind.handle({"event": "x" * 1_000, "n": number})
            until(lambda: "memory" in str(behind.stats().last_error))
            server.client.config_set("maxmemory", 0)
            assert behind.flush(PATIENCE_SECONDS)
    finally:
        server.client.config_set("maxmemory", 0)
    assert sorted(_numbers(server, "full")) == list(range(500))
    server.client.delete("full")


def test_an_event_too_large_for_the_server_costs_no_other(server):
    """The server hangs up in the midst of the batch; it says why when the event comes alone."""
    told = []
    server.client.config_set("proto-max-bulk-len", 1 << 20)
    try:
        with BackgroundSink(RedisSink(server.url, "large"), linger=60, retry=QUICK, on_error=told.append) as sink:
            for number in range(9):
                sink.handle({"event": "x" * (2 << 20 if number == 4 else 10), "n": number})
            assert sink.flush(PATIENCE_SECONDS)
            assert sink.stats().dropped == {"rejected": 1}
    finally:
        server.client.config_set("proto-max-bulk-len", 512 << 20)
    assert sorted({*_numbers(server, "large")}) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert any("invalid bulk length" in str(failure.error) for failure in told)
    server.client.delete("large")


def test_a_refused_login_pauses_until_it_is_mended(server):
    """The events are kept, and nothing that is told holds the password."""
    server.client.acl_setuser("shop", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    told = []
    url = server.url.replace("://", "://shop:wr0ng@")
    with BackgroundSink(RedisSink(url, "login"), retry=QUICK, on_error=told.append) as sink:
        sink.handle({"event": "a"})
        until(lambda: told)
        server.client.acl_setuser("shop", enabled=True, passwords=["+wr0ng"], keys=["*"], commands=["+@all"])
        assert sink.flush(PATIENCE_SECONDS)
    assert {type(failure.error).__name__ for failure in told} == {"PausedDeliveryError"}
    assert "wr0ng" not in f"{told} {sink!r} {sink.target!r} {sink.stats()}"
    assert server.client.xlen("login") == 1


def test_a_user_and_password_may_be_arguments(server):
    """As they are where a secret comes from elsewhere."""
    server.client.acl_setuser("other", enabled=True, passwords=["+p@ss/word"], keys=["*"], commands=["+@all"])
    with RedisSink(server.url, "arguments", username="other", password="p@ss/word") as sink:
        sink.handle({"event": "a"})
    assert sink.stats().delivered == 1
    assert "p@ss" not in repr(sink)


def test_a_key_of_another_kind_pauses(server):
    """Somebody has to change something before anything is taken."""
    server.client.set("other kind", "text")
    told = []
    sink = RedisSink(server.url, "other kind", on_error=told.append)
    sink.handle({"event": "s3cret"})
    assert type(told[0].error).__name__ == "PausedDeliveryError"
    assert "s3cret" not in repr(told)


@pytest.mark.parametrize("fault", ["stopped", "hanging network", "gone"])
def test_flush_and_close_keep_their_deadline_whatever_the_server_does(server, fault):
    """A stopped server, a network that swallows everything, and a port that nobody listens at."""
    with Proxy(server.port) as proxy:
        sink = BackgroundSink(
            RedisSink(f"redis://127.0.0.1:{proxy.port}", fault, timeout=30), retry=QUICK, on_error=_quiet
        )
        sink.handle({"event": "before"})
        assert sink.flush(PATIENCE_SECONDS)
        if fault == "stopped":
            server.send(signal.SIGSTOP)
        else:
            proxy.hang()
            if fault == "gone":
                proxy.__exit__()
        try:
            sink.handle({"event": "after"})
            for end in (sink.flush, sink.close):
                begin = time.monotonic()
                assert end(0.2) is False
                assert time.monotonic() - begin < 5
        finally:
            server.send(signal.SIGCONT)
    stats = sink.stats()
    assert stats.pending == 0
    assert stats.accepted == stats.delivered + sum(stats.dropped.values()) == 2


def test_alone_it_tries_once_and_no_longer_than_its_timeout(server):
    """The client's own retries, which would take a minute, are off."""
    told = []
    with Proxy(server.port) as proxy:
        proxy.hang()
        sink = RedisSink(f"redis://127.0.0.1:{proxy.port}", "alone", timeout=0.1, on_error=told.append)
        begin = time.monotonic()
        sink.handle({"event": "a"})
        assert time.monotonic() - begin < 10
    assert type(told[0].error).__name__ == "TemporaryDeliveryError"


def test_a_batch_is_given_up_in_time_however_slowly_its_answers_come(server):
    """Each byte of them would begin redis-py's own time-out anew."""
    with Proxy(server.port) as proxy:
        sink = RedisSink(f"redis://127.0.0.1:{proxy.port}", "dripping", timeout=1)
        until(lambda: _taken(sink, [sink.encode({"event": "a"})]))
        proxy.drip(PATIENCE_SECONDS / 100)
        begin = time.monotonic()
        with pytest.raises(TemporaryDeliveryError):
            sink.emit_batch([sink.encode({"event": "a"}) for _ in range(10)])
        assert time.monotonic() - begin < PATIENCE_SECONDS
        sink.close()


def _taken(sink, batch):
    try:
        return sink.emit_batch(batch) is None
    except TemporaryDeliveryError:
        return False


def test_nothing_is_lost_when_the_server_is_killed_in_a_burst_behind_a_spool(program, tmp_path):
    """All arrive; what comes twice was not confirmed: of each connection that broke, a batch at most."""
    told = []
    with RedisProcess(program, tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        target = RedisSink(server.url, "burst", on_error=_quiet)
        with SpoolSink(target, tmp_path / "spool", batch_size=500, retry=QUICK, on_error=told.append) as sink:

            def log():
                for number in range(20_000):
                    sink.handle({"event": "a", "level": "info", "n": number})

            writer = threading.Thread(target=log)
            writer.start()
            until(lambda: server.client.xlen("burst") > 3_000)
            server.stop(signal.SIGKILL)
            server.start()
            writer.join()
            assert sink.flush(PATIENCE_SECONDS)
            stats = sink.stats()
        numbers = _numbers(server, "burst")
    assert set(numbers) == set(range(20_000))
    assert len(numbers) - 20_000 <= 500 * (1 + sum(isinstance(each.error, TemporaryDeliveryError) for each in told))
    assert (stats.accepted, stats.delivered) == (20_000, 20_000)


def test_a_forked_child_has_a_connection_of_its_own(server):
    """The parent's goes on as if nothing had happened."""
    sink = RedisSink(server.url, "fork", on_error="raise")
    sink.handle({"event": "parent", "n": 0})

    def child():
        sink.handle({"event": "child", "n": 1})
        assert sink.stats().delivered == 1
        sink.close()

    in_fork(child)
    sink.handle({"event": "parent", "n": 2})
    assert _numbers(server, "fork") == [0, 1, 2]
    sink.close()


def test_an_event_counts_only_once_replicas_have_it(server, program, tmp_path):
    """With wait_replicas what the server alone has is sent again."""
    told = []
    sink = RedisSink(server.url, "replicated", wait_replicas=1, timeout=0.3, on_error=told.append)
    sink.handle({"event": "a"})
    assert told[0].events == 1, told
    assert sink.stats().delivered == 0
    with RedisProcess(program, tmp_path, "--replicaof", "127.0.0.1", str(server.port)) as replica:
        until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        with RedisSink(server.url, "replicated", wait_replicas=1) as patient:
            patient.handle({"event": "b"})
        assert patient.stats().delivered == 1
        assert replica.client.xlen("replicated") == 2
        # A replica takes nothing, and says so: the other host of the URL is tried.
        hosts = f"redis://127.0.0.1:{replica.port},127.0.0.1:{server.port}"
        with BackgroundSink(RedisSink(hosts, "replicated"), retry=QUICK, on_error=_quiet) as sink:
            sink.handle({"event": "c"})
        assert sink.stats().delivered == 1
    sink.close()


def test_sentinels_say_where_the_master_is(server, program, tmp_path):
    """The URL names them, and the master by its name."""
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"sentinel monitor shop 127.0.0.1 {server.port} 1\n")
    with RedisProcess(program, tmp_path, sentinel=conf) as watcher:
        with RedisSink(watcher.url, "by sentinel", sentinel="shop") as sink:
            sink.handle({"event": "a"})
        assert sink.stats().delivered == 1
        unknown = RedisSink(watcher.url, "by sentinel", sentinel="other", on_error=_quiet)
        unknown.handle({"event": "a"})
        assert "TemporaryDeliveryError" in unknown.stats().last_error
    assert server.client.xlen("by sentinel") == 1


def test_any_member_of_a_cluster_will_do(program, tmp_path):
    """It tells which one has the key, and events go there."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = RedisProcess(program, tmp_path / "a", "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    bus = free_port()
    second = RedisProcess(program, tmp_path / "b", "--cluster-enabled", "yes", "--cluster-port", str(bus))
    with first, second:
        first.client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        second.client.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        first.client.execute_command("CLUSTER MEET", "127.0.0.1", second.port, bus)
        for each in (first, second):
            until(lambda each=each: each.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        for key in ("a", "b"):  # of slots 15495 and 3300
            with RedisSink(first.url, key) as sink:
                sink.handle({"event": "a", "n": 1})
                sink.handle({"event": "a", "n": 2})
            assert sink.stats().delivered == 2
        assert _numbers(second, "a") == _numbers(first, "b") == [1, 2]


def test_tls_checks_the_certificate(program, tmp_path):
    """An authority that is not trusted is refused, and no retry changes that; one named in verify is not."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with RedisProcess(program, tmp_path, tls=tmp_path) as server:
        url = f"rediss://localhost:{server.tls_port}"
        told = []
        RedisSink(url, "tls", on_error=told.append).handle({"event": "a"})
        assert isinstance(told[0].error, PausedDeliveryError)
        assert "CERTIFICATE_VERIFY_FAILED" in str(told[0].error)
        with RedisSink(url, "tls", verify=tmp_path / "ca.pem") as sink:
            sink.handle({"event": "a"})
        assert sink.stats().delivered == 1
        other = url.replace("localhost", "127.0.0.1")
        RedisSink(other, "tls", verify=tmp_path / "ca.pem", on_error=told.append).handle({"event": "a"})
        assert len(told) == 2
        with RedisSink(other, "tls", verify=False) as sink:
            sink.handle({"event": "a"})
        assert server.client.xlen("tls") == 2
        server.client.config_set("tls-auth-clients", "yes")
        RedisSink(url, "tls", verify=tmp_path / "ca.pem", on_error=told.append).handle({"event": "a"})
        assert isinstance(told[2].error, PausedDeliveryError)
        assert "CERTIFICATE_REQUIRED" in str(told[2].error)


def test_the_last_events_of_a_short_script_arrive(server):
    """Nothing has to be imported while the process ends."""
    script = f"""
        from outfall import BackgroundSink
        from outfall.adapters.brokers.redis import RedisSink
        BackgroundSink(RedisSink({server.url!r}, "script")).handle({{"event": "last", "n": 1}})
    """
    result = run(script)
    assert (result.returncode, result.stderr) == (0, "")
    assert _numbers(server, "script") == [1]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"url": "http://127.0.0.1"}, "url"),
        ({"url": "redis://host:0"}, "host or port"),
        ({"url": "redis://host?key=a"}, "url"),
        ({"key": ""}, "key"),
        ({"kind": "set"}, "kind"),
        ({"max_events": 0}, "max_events"),
        ({"max_events": 5, "kind": "list"}, "max_events"),
        ({"wait_replicas": -1}, "wait_replicas"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(given, named):
    """Each names itself."""
    with pytest.raises(ValueError, match=named):
        RedisSink(**{"url": "redis://127.0.0.1", "key": "k", **given})


def test_a_missing_client_names_the_extra(monkeypatch):
    """It is found out at construction."""
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(MissingDependencyError, match=r"outfall\[redis\]"):
        RedisSink("redis://127.0.0.1", "k")
