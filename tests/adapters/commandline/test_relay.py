"""``outfall relay``: a process between a broker and its targets."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from outfall import BackgroundSink, CaptureSink, RedisSink
from outfall.adapters.brokers.listeners import open_listener
from outfall.adapters.commandline.main import main
from tests.adapters._redis import RedisProcess
from tests.sinks._processes import PATIENCE_SECONDS, ROOT, until
from tests.sinks._wire import free_port


@pytest.fixture(scope="module")
def server(require_service, tmp_path_factory):
    """One server for the module; each test has keys of its own."""
    with RedisProcess(require_service("redis-server"), tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def relay():
    """Start relays, which are ended when the test ends."""
    running = []

    def begin(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "outfall", "relay", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        if not process.stdout.closed:
            process.communicate()


def _fill(server, key, number, start=0):
    with BackgroundSink(RedisSink(server.url, key), block_timeout=PATIENCE_SECONDS) as sink:
        for n in range(start, start + number):
            sink.handle({"event": "a", "level": "error" if n % 2 else "info", "n": n})


def _numbers(path):
    # What is being written may not have its end yet.
    return [json.loads(line)["n"] for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


@pytest.mark.service
def test_what_it_takes_is_delivered_and_sigterm_ends_it_in_order(server, relay, tmp_path):
    """Each target has everything from its own level on; nothing is left unacknowledged; the exit code is 0."""
    every, errors = tmp_path / "every.jsonl", tmp_path / "errors.jsonl"
    process = relay(f"{server.url}?key=term", f"file:{every}", f"file:{errors}?level=error")
    _fill(server, "term", 1_000)
    until(lambda: len(_numbers(every)) == 1_000)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=PATIENCE_SECONDS)[0].decode()
    assert process.returncode == 0, output
    assert "ended, 1,000 events delivered, 0 under way" in output
    assert _numbers(every) == list(range(1_000))
    assert _numbers(errors) == list(range(1, 1_000, 2))
    assert server.client.xpending("term", "outfall")["pending"] == 0


@pytest.mark.service
def test_sighup_reads_the_file_again_and_systemd_hears_of_all(server, tmp_path, monkeypatch, capsys, request):
    """In this process: a second file takes over from the first, an invalid one is left alone, and SIGTERM ends it."""
    first, second, config = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "relay.toml"
    plan = f'[relay]\nfrom = "{server.url}?key=again"\n[sinks.file]\nurl = "file:%s"\n'
    config.write_text(plan % first)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(PATIENCE_SECONDS)
    request.addfinalizer(listening.close)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    heard = []

    def hear():
        while "STOPPING=1" not in heard:
            heard.append(listening.recv(4096).decode())

    def drive():
        until(lambda: "READY=1" in heard)  # from now on signals do not end the process
        try:
            _fill(server, "again", 100)
            until(lambda: len(_numbers(first)) == 100)
            config.write_text(plan % second)
            os.kill(os.getpid(), signal.SIGHUP)
            until(lambda: heard.count("READY=1") == 2)
            _fill(server, "again", 100, 100)
            until(lambda: len(_numbers(second)) == 100)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS) as answer:
                assert b"outfall" in answer.read()
            until(lambda: heard[-1].startswith("STATUS=100 events delivered"))
            config.write_text("[relay]\n")
            os.kill(os.getpid(), signal.SIGHUP)
        except BaseException as error:
            heard.append(repr(error))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    port = free_port()
    threads = [threading.Thread(target=hear), threading.Thread(target=drive)]
    for thread in threads:
        thread.start()
    arguments = ["relay", "--config", str(config), "--status", "50ms", "--metrics", f"127.0.0.1:{port}"]
    assert main(arguments) == 0
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    told = capsys.readouterr()
    output = told.out + told.err
    assert "RELOADING=1" in "".join(heard)
    assert f"read {config} again" in output
    assert "it goes on as before" in output
    assert "ended, 100 events delivered, 0 under way" in output
    assert (_numbers(first), _numbers(second)) == (list(range(100)), list(range(100, 200)))


@pytest.mark.service
def test_a_relay_that_is_killed_loses_nothing_that_it_has_acknowledged(server, relay, tmp_path):
    """Every event reaches the file, from the one or from the other; at most one line is cut, by the kill."""
    path = tmp_path / "out.jsonl"
    source = f"{server.url}?key=kill&claim_after=0.2&batch_size=100"
    _fill(server, "kill", 20_000)
    victim = relay(source, f"file:{path}?spool={tmp_path}/spool")
    until(lambda: path.exists() and path.stat().st_size)
    victim.kill()
    victim.communicate()
    heir = relay(source, f"file:{path}?spool={tmp_path}/spool")
    assert heir.stdout.readline().startswith(b"relay: ")  # from now on it hears signals
    # The kill may fall into a write: the file then has half a line, and that event again behind it.
    whole, others = set(), []

    def arrived():
        whole.clear()
        others.clear()
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                whole.add(json.loads(line)["n"])
            except ValueError:
                others.append(line)
        return len(whole) == 20_000

    until(arrived)
    assert len(others) <= 1
    heir.send_signal(signal.SIGINT)
    assert heir.wait(PATIENCE_SECONDS) == 0


@pytest.mark.service
def test_it_gives_up_at_its_timeout_and_says_so(server, relay):
    """What its target does not take stays with the broker; the exit code is 1."""
    _fill(server, "give-up", 3)
    process = relay(f"{server.url}?key=give-up", f"tcp://127.0.0.1:{free_port()}", "--timeout", "0.2")
    until(lambda: server.client.exists("give-up") and _pending(server, "give-up") == 3)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=PATIENCE_SECONDS)[0].decode()
    assert process.returncode == 1, output
    assert "the rest is left to the broker" in output
    assert _pending(server, "give-up") == 3


def _pending(server, key):
    import redis

    try:
        return server.client.xpending(key, "outfall")["pending"]
    except redis.ResponseError:
        return 0


@pytest.mark.service
def test_sighup_reads_the_file_again_and_a_wrong_file_changes_nothing(server, relay, tmp_path):
    """Events go where the file says now; no event is lost on the way."""
    first, second, config = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "relay.toml"
    table = f'[relay]\nfrom = "{server.url}?key=hup"\n[sinks.one]\nurl = "file:{{}}"\n'
    config.write_text(table.format(first))
    process = relay("--config", config)
    _fill(server, "hup", 10)
    until(lambda: len(_numbers(first)) == 10)
    config.write_text("[relay]\nfrm = 1\n")
    process.send_signal(signal.SIGHUP)
    assert any(b"did you mean 'from'?; it goes on as before" in line for line in process.stdout)
    _fill(server, "hup", 10, 10)
    until(lambda: len(_numbers(first)) == 20)
    config.write_text(table.format(second))
    process.send_signal(signal.SIGHUP)
    more = itertools.count(20)
    until(lambda: _fill(server, "hup", 1, next(more)) or _numbers(second))
    sent = next(more)
    until(lambda: len(_numbers(first)) + len(_numbers(second)) == sent)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=PATIENCE_SECONDS)[0].decode()
    assert process.returncode == 0, output
    assert sorted(_numbers(first) + _numbers(second)) == list(range(sent))


@pytest.mark.service
def test_systemd_is_told_when_it_is_ready_and_prometheus_gets_numbers(server, relay, tmp_path):
    """READY=1 comes once the broker was reached; the status line is told too."""
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE_SECONDS)
        _fill(server, "ready", 5)
        path = tmp_path / "out.jsonl"
        options = ("--metrics", f"127.0.0.1:{port}", "--status", "0.1")
        process = relay(
            f"{server.url}?key=ready", f"file:{path}?name=archive", *options, NOTIFY_SOCKET=str(tmp_path / "notify")
        )
        until(lambda: notified.recv(1_000) == b"READY=1")
        until(lambda: len(_numbers(path)) == 5)
        until(lambda: notified.recv(1_000).startswith(b"STATUS=5 events delivered, 0 under way"))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS) as reply:
            text = reply.read().decode()
        process.send_signal(signal.SIGTERM)
        until(lambda: notified.recv(1_000) == b"STOPPING=1")
        assert process.wait(PATIENCE_SECONDS) == 0
    assert 'outfall_events_delivered_total{sink="RedisListener/archive"' in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "FROM TO"),
        (["redis://127.0.0.1?key=k"], "at least one target"),
        (["redis://127.0.0.1", "null:"], "'key' is missing"),
        (["redis://127.0.0.1?key=k&gruop=a", "null:"], "did you mean 'group'?"),
        (["redos://127.0.0.1?key=k", "null:"], "did you mean 'redis'?"),
        (["redis://127.0.0.1?key=k&spool=x", "null:"], "spool="),
        (["redis://127.0.0.1?key=k", "nul:"], "did you mean 'null'?"),
        (["redis://127.0.0.1?key=k", "http://127.0.0.1?background=true"], "a relay has no background"),
        (["redis://127.0.0.1?key=k", "file:x?buffer_bytes=10kB"], "keeps events in memory"),
        (["--config", "no-such-file.toml", "redis://127.0.0.1?key=k", "null:"], "give one of them"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_taken(arguments, told, capsys, tmp_path, monkeypatch):
    """The exit code is 2."""
    monkeypatch.chdir(tmp_path)
    assert main(["relay", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "relay.toml"),
        ("[relay]\n", "[relay] from"),
        ('[relay]\nfrom = "redis://127.0.0.1?key=k"\n', "no target"),
        ('[relay]\nfrom = "redis://127.0.0.1?key=k"\n[sinks.a]\nul = 1\n', "[sinks.a] has no url"),
        ('[relay]\nfrom = "redis://127.0.0.1?key=k"\ntimeout = "soon"\n[sinks.a]\nurl = "null:"\n', "timeout"),
        ('[outfall]\nlevel = "info"\n', "there is no table 'outfall'"),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads TOML with the extra toml alone")
def test_a_file_that_cannot_be_used_names_itself_and_the_key(text, told, capsys, tmp_path):
    """The exit code is 2."""
    (tmp_path / "relay.toml").write_text(text)
    assert main(["relay", "--config", str(tmp_path / "relay.toml")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "relay.toml" in error


def test_a_listener_by_url_has_the_options_of_its_class():
    """Spans as text, and sinks as encoded URLs."""
    listener = open_listener(
        "redis://shop:s3cret@127.0.0.1:7/2?key=k&group=g&claim_after=5m&kind=list&dead_letter=null%3A", CaptureSink()
    )
    assert "s3cret" not in repr(listener)
    assert repr(listener) == "<RedisListener of list k at redis://127.0.0.1:7/2 to CaptureSink stopped>"
    assert (listener._group, listener._claim_seconds) == ("g", 300)
