"""Events out of a real redis-server: `RedisListener`."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time

import pytest

from outfall import BackgroundSink, CaptureSink, FileSink, NullSink, RetryPolicy, TemporaryDeliveryError
from outfall.adapters.brokers.redis import RedisSink
from outfall.adapters.brokers.redislistener import RedisListener
from outfall.sinks.core.clock import now
from tests.adapters._proxy import Proxy
from tests.adapters._redis import RedisProcess
from tests.sinks._processes import PATIENCE_SECONDS, start, until

pytestmark = pytest.mark.service

QUICK = RetryPolicy(start_seconds=0.005, max_seconds=0.02, pause_start_seconds=0.005, pause_max_seconds=0.02)
KINDS = pytest.mark.parametrize("kind", ["stream", "list"])


def _quiet(failure):
    pass


QUIET = {"on_error": _quiet}


@pytest.fixture(scope="module")
def server(require_service, tmp_path_factory):
    """One server for the module; each test has keys of its own."""
    with RedisProcess(require_service("redis-server"), tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def key(request, server):
    """A key of the test's own."""
    return request.node.name.replace("[", "-").rstrip("]")  # which mean something in patterns


def _fill(server, key, number, kind="stream"):
    with BackgroundSink(RedisSink(server.url, key, kind)) as sink:
        for n in range(number):
            sink.handle({"event": "a", "level": "info", "n": n})


def _left(server, key, kind):
    """Return how many events a group, or the list and those beside it, still has."""
    if kind == "stream":
        return server.client.xpending(key, "outfall")["pending"]
    beside = [name for name in server.client.keys(f"*{{{key}}}:*") if b":processing:" in name]
    return server.client.llen(key) + sum(map(server.client.llen, beside))


def _held(server, key, kind):
    """Return the numbers of the events that consumers have read and not acknowledged."""
    if kind == "list":
        names = server.client.keys(f"*{{{key}}}:processing:*")
        bodies = [body for name in names for body in server.client.lrange(name, 0, -1)]
    else:
        held = {each["message_id"] for each in server.client.xpending_range(key, "outfall", "-", "+", 1_000)}
        bodies = [fields[b"event"] for number, fields in server.client.xrange(key) if number in held]
    return [json.loads(body)["n"] for body in bodies]


class Gate(CaptureSink):
    """A sink that takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def emit_batch(self, batch):
        self.entered.set()
        self.gate.wait(PATIENCE_SECONDS)
        return super().emit_batch(batch)


@KINDS
def test_each_event_arrives_once_and_in_order(server, key, kind):
    """What was delivered is acknowledged, and nothing but the stream is left behind."""
    _fill(server, key, 1_200, kind)
    sink = CaptureSink()
    with RedisListener(server.url, key, sink, kind=kind) as listener:
        assert listener.flush(PATIENCE_SECONDS)
        assert [event["n"] for event in sink.events] == list(range(1_200))
        assert _left(server, key, kind) == 0
    assert listener.stats().delivered == 1_200
    assert server.client.keys(f"{{{key}}}*") == []
    if kind == "stream":
        assert server.client.xinfo_consumers(key, "outfall") == []


@KINDS
def test_two_consumers_share_the_work(server, key, kind):
    """Each event goes to one of them; what one does not read, the other does."""
    slow, quick = Gate(), CaptureSink()
    options = {"kind": kind, "batch_size": 50}
    with RedisListener(server.url, key, slow, **options) as first:
        _fill(server, key, 500, kind)
        assert slow.entered.wait(PATIENCE_SECONDS)
        with RedisListener(server.url, key, quick, **options):
            until(lambda: len(quick.events) >= 400)
            slow.gate.set()
            assert first.flush(PATIENCE_SECONDS)
    numbers = [event["n"] for event in (*slow.events, *quick.events)]
    assert sorted(numbers) == list(range(500))


@KINDS
def test_what_a_killed_consumer_held_is_taken_over(server, key, kind, tmp_path):
    """Every event arrives; no more than its two batches come twice."""
    _fill(server, key, 500, kind)
    script = """
        import sys, time
        from outfall import FileSink
        from outfall.adapters.brokers.redislistener import RedisListener

        class Stuck(FileSink):
            def emit_batch(self, batch):
                if b'"n":100' in batch.data[0]:
                    super().emit_batch(batch[:30])
                    print("stuck", flush=True)
                    time.sleep(600)
                return super().emit_batch(batch)

        url, key, kind, path = sys.argv[1:]
        RedisListener(url, key, Stuck(path), kind=kind, batch_size=100, claim_after=0.1).start()
        time.sleep(600)
    """
    path = tmp_path / "killed.jsonl"
    victim = start(script, server.url, key, kind, path, stdout=subprocess.PIPE)
    try:
        assert victim.stdout.readline() == b"stuck\n"
        until(lambda: _held(server, key, kind) == list(range(100, 300)))
    finally:
        victim.kill()
        victim.communicate()
    sink = CaptureSink()
    with RedisListener(server.url, key, sink, kind=kind, claim_after=0.1, batch_size=100) as heir:
        until(lambda: len(sink.events) >= 400)
        assert heir.flush(PATIENCE_SECONDS)
        assert _left(server, key, kind) == 0
    before = [json.loads(line)["n"] for line in path.read_bytes().splitlines()]
    after = [event["n"] for event in sink.events]
    assert before == list(range(130))
    assert sorted(after) == list(range(100, 500))
    if kind == "stream":
        assert heir.stats().retried == 200


@KINDS
def test_a_slow_consumer_that_lives_is_not_robbed(server, key, kind):
    """It says so three times in claim_after, however long its sink takes."""

    def age():
        if kind == "list":
            return 60_000 - server.client.pttl(f"{{{key}}}:alive:{busy.consumer}")
        pending = server.client.xpending_range(key, "outfall", "-", "+", 10)
        assert all(each["times_delivered"] == 1 for each in pending)
        return max(each["time_since_delivered"] for each in pending)

    _fill(server, key, 10, kind)
    slow = Gate()
    with RedisListener(server.url, key, slow, kind=kind, claim_after=60) as busy:
        assert slow.entered.wait(PATIENCE_SECONDS)
        until(lambda: busy._renewed)
        for _ in range(2):
            assert busy._renewed - now() <= 20
            until(lambda: age() > 30)
            before = age()
            busy._renewed = 0.0  # as it is when the third has passed
            until(lambda before=before: age() < before)
        slow.gate.set()
        assert busy.flush(PATIENCE_SECONDS)
    assert len(slow.events) == 10


@KINDS
def test_a_target_that_is_away_costs_nothing(server, key, kind):
    """Nothing is acknowledged meanwhile, and a listener that is stopped leaves all to the next at once."""

    class Away(CaptureSink):
        def emit_batch(self, batch):
            raise TemporaryDeliveryError("away")

    _fill(server, key, 20, kind)
    told = []
    listener = RedisListener(server.url, key, Away(), kind=kind, retry=QUICK, on_error=told.append).start()
    until(lambda: told)
    assert listener.flush(0) is False
    assert listener.stop(0.05) is False
    assert listener.stats().accepted == 0
    assert _left(server, key, kind) == 20
    sink = CaptureSink()
    with RedisListener(server.url, key, sink, kind=kind) as next_one:
        assert next_one.flush(PATIENCE_SECONDS)
    assert [event["n"] for event in sink.events] == list(range(20))


def test_what_a_listener_held_before_and_has_not_read_again_is_left_to_others(server, key):
    """It gave up, was started again, and was stopped before it had come to all of it."""
    _fill(server, key, 20)
    held = Gate()
    listener = RedisListener(server.url, key, held, on_error=_quiet).start()
    assert held.entered.wait(PATIENCE_SECONDS)
    assert listener.stop(0) is False
    held.gate.set()
    listener._last_reader.join(PATIENCE_SECONDS)
    again, after = Gate(), CaptureSink()
    listener.sinks, listener._batch_size = (again,), 2
    listener.start()
    assert again.entered.wait(PATIENCE_SECONDS)
    stopping = threading.Thread(target=listener.stop, args=(PATIENCE_SECONDS,))
    stopping.start()
    until(lambda: listener._run is None or listener._run.stopping)
    again.gate.set()
    stopping.join(PATIENCE_SECONDS)
    assert 0 < len(again.events) < 20
    with RedisListener(server.url, key, after) as heir:
        assert heir.flush(PATIENCE_SECONDS)
    assert sorted(event["n"] for event in (*again.events, *after.events)) == list(range(20))


@KINDS
def test_poison_goes_to_the_dead_letter_key_and_blocks_nothing(server, key, kind):
    """It is what is no JSON object; what is left of it can be looked at."""
    with RedisListener(
        server.url, key, sink := CaptureSink(), kind=kind, dead_letter_key=f"{key} dead", **QUIET
    ) as listener:
        for body in (b"garbage", b'{"event":"good"}', b"[1]"):
            if kind == "stream":
                server.client.xadd(key, {"event": body})
            else:
                server.client.rpush(key, body)
        until(lambda: sink.events)
        assert listener.flush(PATIENCE_SECONDS)
    dead = server.events(f"{key} dead") if kind == "stream" else server.client.lrange(f"{key} dead", 0, -1)
    assert [json.loads(body)["event"] for body in dead] == ["garbage", "[1]"]
    assert [event["event"] for event in sink.events] == ["good"]
    assert listener.stats().dead_lettered == 2


def test_fields_beside_the_json_and_entries_of_others_are_understood(server, key):
    """Level and time are the event's; an entry without the field is an event of its fields."""
    server.client.xadd(key, {"event": '{"event":"e"}', "level": "error", "time": "5.5"})
    server.client.xadd(key, {"msg": "of somebody else", "n": "1"})
    server.client.xadd(key, {"event": '{"event":"e"}'}, id=f"{2**41}-0")
    seen = []

    class Looker(CaptureSink):
        def emit_batch(self, batch):
            seen.extend((item.level, item.time, item.event) for item in batch)

    with RedisListener(server.url, key, Looker()) as listener:
        assert listener.flush(PATIENCE_SECONDS)
    assert seen[0] == (40, 5.5, {"event": "e"})
    assert seen[1][2] == {"msg": "of somebody else", "n": "1"}
    assert seen[2][:2] == (20, 2**41 / 1000)


def test_what_was_trimmed_unread_is_counted_once_for_the_group(server, key):
    """One of its listeners tells it; another group has its own count."""
    _fill(server, key, 10)
    told = []
    options = {"on_error": told.append}
    with RedisListener(server.url, key, NullSink(), **options) as first:
        assert first.flush(PATIENCE_SECONDS)
    _fill(server, key, 1_000)
    server.client.xtrim(key, maxlen=50, approximate=False)
    with (
        RedisListener(server.url, key, NullSink(), **options) as second,
        RedisListener(server.url, key, NullSink(), **options) as third,
        RedisListener(server.url, key, NullSink(), group="new", **options) as other,
    ):
        for each in (second, third, other):
            assert each.flush(PATIENCE_SECONDS)
    counts = [each.stats().dropped.get("trimmed", 0) for each in (second, third)]
    assert sorted(counts) == [0, 950]
    assert sum(each.stats().delivered for each in (second, third)) == 50
    assert other.stats().dropped == {}
    assert [failure.events for failure in told] == [950]


def test_entries_that_were_trimmed_while_they_were_held_block_nobody(server, key):
    """Whoever takes over what a dead consumer held finds that they are gone."""
    _fill(server, key, 10)
    server.client.xgroup_create(key, "outfall", "0")
    server.client.xreadgroup("outfall", "dead", {key: ">"})
    server.client.xtrim(key, maxlen=4, approximate=False)
    sink = CaptureSink()
    with RedisListener(server.url, key, sink, claim_after=0.05) as listener:
        until(lambda: len(sink.events) == 4)
        until(lambda: server.client.xpending(key, "outfall")["pending"] == 0)
        assert listener.flush(PATIENCE_SECONDS)


def test_a_stream_that_is_deleted_is_read_again_when_it_is_made_anew(server, key):
    """The group goes with the stream, and is made again."""
    sink = CaptureSink()
    with RedisListener(server.url, key, sink, retry=QUICK, on_error=_quiet) as listener:
        _fill(server, key, 1)
        until(lambda: len(sink.events) == 1)
        server.client.delete(key)
        _fill(server, key, 1)
        until(lambda: len(sink.events) == 2)
        assert listener.flush(PATIENCE_SECONDS)


def test_of_several_hosts_the_one_that_takes_writes_is_read(server, key, require_service, tmp_path):
    """A replica says that it is one, and the next host of the URL is tried."""
    _fill(server, key, 1)
    options = ("--replicaof", "127.0.0.1", str(server.port))
    with RedisProcess(require_service("redis-server"), tmp_path, *options) as replica:
        sink = CaptureSink()
        url = f"redis://127.0.0.1:{replica.port},127.0.0.1:{server.port}"
        with RedisListener(url, key, sink, retry=QUICK, on_error=_quiet) as listener:
            until(lambda: sink.events)
            assert listener.flush(PATIENCE_SECONDS)
    assert server.client.xpending(key, "outfall")["pending"] == 0


@KINDS
def test_reading_goes_on_when_the_server_was_killed_and_restarted(require_service, tmp_path, kind):
    """Everything arrives; what had not been acknowledged comes twice at most."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with RedisProcess(require_service("redis-server"), tmp_path, *options) as server:
        _fill(server, "k", 2_000, kind)
        gate = Gate()
        listener = RedisListener(server.url, "k", gate, kind=kind, retry=QUICK, batch_size=100, on_error=_quiet)
        with listener:
            assert gate.entered.wait(PATIENCE_SECONDS)
            server.stop(signal.SIGKILL)
            gate.gate.set()
            server.start()
            until(lambda: len({event["n"] for event in gate.events}) == 2_000)
            assert listener.flush(PATIENCE_SECONDS)
        assert len(gate.events) <= 2_200
        assert _left(server, "k", kind) == 0


@pytest.mark.parametrize("fault", ["stopped", "hanging network"])
def test_flush_and_stop_keep_their_deadline_whatever_the_server_does(server, key, fault):
    """A stopped server, and a network that swallows everything."""
    with Proxy(server.port) as proxy:
        listener = RedisListener(
            f"redis://127.0.0.1:{proxy.port}", key, CaptureSink(), timeout=10, retry=QUICK, on_error=_quiet
        ).start()
        assert listener.flush(PATIENCE_SECONDS)
        server.send(signal.SIGSTOP) if fault == "stopped" else proxy.hang()
        try:
            for end in (listener.flush, listener.stop):
                begin = time.monotonic()
                assert end(0.2) is False
                assert time.monotonic() - begin < 5
        finally:
            server.send(signal.SIGCONT)
            proxy.go_on()
        listener._last_reader.join(PATIENCE_SECONDS)


def test_a_refused_login_pauses_until_it_is_mended(server, key):
    """What is told holds no password."""
    _fill(server, key, 1)
    told, sink = [], CaptureSink()
    url = server.url.replace("://", "://reader:wr0ng@")
    with RedisListener(url, key, sink, retry=QUICK, on_error=told.append) as listener:
        until(lambda: told)
        server.client.acl_setuser("reader", enabled=True, passwords=["+wr0ng"], keys=["*"], commands=["+@all"])
        until(lambda: sink.events)
        assert listener.flush(PATIENCE_SECONDS)
    assert {type(failure.error).__name__ for failure in told} == {"PausedDeliveryError"}
    assert "wr0ng" not in f"{told} {listener!r} {listener.stats()}"


def test_a_user_who_may_run_no_scripts_can_read(server, key):
    """What was trimmed is not counted then."""
    _fill(server, key, 1)
    server.client.acl_setuser("careful", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-@scripting"])
    sink, told = CaptureSink(), []
    url = server.url.replace("://", "://careful:any@")
    with RedisListener(url, key, sink, on_error=told.append) as listener:
        assert listener.flush(PATIENCE_SECONDS)
    assert (len(sink.events), told) == (1, [])


def test_lines_reach_a_file_as_they_were_sent(server, key, tmp_path):
    """Where the sink would make the same line, the event is not encoded again."""
    bodies = [b'{"event":"a",  "n":1.50}', b'{"event":"a",  "timestamp":1.50}']
    for body in bodies:
        server.client.xadd(key, {"event": body})
    path = tmp_path / "out.jsonl"
    with FileSink(path) as sink, RedisListener(server.url, key, sink) as listener:
        assert listener.flush(PATIENCE_SECONDS)
    assert path.read_bytes().splitlines() == bodies


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"url": "http://127.0.0.1"}, "url"),
        ({"key": ""}, "key"),
        ({"kind": "set"}, "kind"),
        ({"group": ""}, "group"),
        ({"claim_after": 0}, "claim_after"),
        ({"timeout": 0}, "timeout"),
        ({"dead_letter_key": "d", "dead_letter": NullSink()}, "dead_letter_key"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(given, named):
    """Each names itself."""
    arguments = {"url": "redis://127.0.0.1", "key": "k", **given}
    with pytest.raises(ValueError, match=named):
        RedisListener(arguments.pop("url"), arguments.pop("key"), NullSink(), **arguments)
