"""The command line: what it shows, what it delivers, and how it ends."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from outfall import CaptureSink, FanoutSink, FileSink, SpoolSink, TemporaryDeliveryError
from outfall.adapters.commandline import main as commandline
from outfall.adapters.commandline import redelivery, sending, terminal
from outfall.adapters.commandline.main import main
from outfall.sinks.spool.store import stores_in
from outfall.sinks.spool.stores import Depot
from outfall.sinks.testing import FailingSink
from tests.sinks._http import Answer, Server
from tests.sinks._processes import ROOT, in_fork

STAMP = "2026-11-22T14:16:24.500000Z"


def event(number, **fields):
    """Return an event that tells its time."""
    return {"event": f"event {number}", "level": "warning", "timestamp": STAMP, "n": number, **fields}


def _away():
    return FailingSink(TemporaryDeliveryError("away"))


def _left_behind(directory, *events, target=None):
    sink = SpoolSink(_away() if target is None else target, directory, on_error=lambda _: None)
    for each in events:
        sink.handle(each)
    sink.close(0)


@pytest.fixture
def server():
    """Give a server that takes everything."""
    with Server() as made:
        yield made


@pytest.fixture
def spool(tmp_path):
    """A spool in which a dead process has left three events."""
    _left_behind(tmp_path / "spool", *map(event, range(3)))
    return tmp_path / "spool"


def _run(capsys, *arguments):
    """Run the command line; return its exit code, stdout and stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def _numbers(server):
    return [each["n"] for request in server.requests for each in request.lines]


# -- status


def test_status_says_what_waits(capsys, spool):
    """How many events, since when, and whose."""
    code, out, err = _run(capsys, "spool", "status", spool)
    assert (code, err) == (0, "")
    assert f"{spool}: 3 events in " in out
    assert "wait, the oldest of 2026-11-22 14:16:24Z" in out
    assert f"process {os.getpid()}: 3 events; left, for `outfall spool drain` or the next start" in out


def test_status_of_an_empty_spool(capsys, tmp_path):
    """Nothing waits, and it is a spool's directory all the same."""
    SpoolSink(CaptureSink(), tmp_path).close()
    assert _run(capsys, "spool", "status", tmp_path) == (0, f"{tmp_path}: 0 events in 0 bytes wait\n", "")


def test_status_of_a_running_process(capsys, tmp_path):
    """Its account and its last error are shown."""
    sink = SpoolSink(CaptureSink(), tmp_path, linger=0)
    sink.handle(event(1))
    assert sink.flush(60)
    sink._ledger.last_error = "OSError: something"
    sink.handle(event(2))
    assert sink.flush(60)
    code, out, _ = _run(capsys, "spool", "status", tmp_path)
    sink.close()
    assert code == 0
    assert "0 events; a running process delivers them" in out
    assert "2 accepted, 0 adopted, 2 delivered, 0 dead lettered; at " in out
    assert "last error: OSError: something" in out


def test_status_as_json(capsys, spool):
    """For programs: one object."""
    code, out, _ = _run(capsys, "spool", "status", spool, "--json")
    fields = json.loads(out)
    assert code == 0
    assert (fields["events"], fields["oldest"], len(fields["stores"])) == (3, 1795356984.5, 1)
    assert fields["stores"][0]["alive"] is False


def test_status_tells_what_it_cannot_read(capsys, spool):
    """A later version's files make it end with 1."""
    [store] = map(Path, stores_in(str(spool)))
    (store / "00000009.v2.ndjson").touch()
    code, out, _ = _run(capsys, "spool", "status", spool)
    assert code == 1
    assert "cannot be read: 00000009.v2.ndjson has format 2" in out


@pytest.mark.parametrize("command", [["status"], ["show"], ["drain", "--to", "http://127.0.0.1:9/"]])
def test_a_directory_that_is_not_there(capsys, tmp_path, command):
    """It ends with 2 and says what to do."""
    code, out, err = _run(capsys, "spool", *command, tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err == f"outfall: there is no directory '{tmp_path}/nowhere'; give the one that SpoolSink was made with\n"
    (tmp_path / "file").touch()
    assert _run(capsys, "spool", *command, tmp_path / "file")[::2] == (
        2,
        f"outfall: '{tmp_path}/file' cannot be read: Not a directory\n",
    )


# -- show


def test_show_prints_events_for_people(capsys, tmp_path):
    """Time, level, message and fields; nothing in them can command the terminal."""
    _left_behind(tmp_path, event(1, user="ann", text="two words", empty="", deep={"a": [1]}), event("\x1b[2J"))
    code, out, _ = _run(capsys, "spool", "show", tmp_path)
    first, second = out.splitlines()
    assert code == 0
    assert first == '2026-11-22 14:16:24Z warning  event 1  n=1 user=ann text="two words" empty="" deep={"a":[1]}'
    assert "event \\x1b[2J" in second


def test_show_knows_all_kinds_of_lines(capsys, tmp_path):
    """Text, events without a time, and levels nobody knows."""
    _left_behind(tmp_path / "1", "some text", target=_away())
    _left_behind(tmp_path / "1", {"event": "x", "level": "odd"})
    code, out, _ = _run(capsys, "spool", "show", tmp_path / "1")
    assert code == 0
    assert re.search(r"Z info     some text$", out, re.MULTILINE)
    assert re.search(r"Z odd      x$", out, re.MULTILINE)


def test_show_a_few_and_as_json(capsys, spool):
    """-n bounds the number; --json gives what jq reads."""
    code, out, _ = _run(capsys, "spool", "show", "-n", 2, "--json", spool)
    assert code == 0
    assert [json.loads(line)["n"] for line in out.splitlines()] == [0, 1]


def test_show_shows_what_is_not_delivered_yet(capsys, tmp_path):
    """From the cursor on, and nothing is changed by it."""
    sink = SpoolSink(CaptureSink(), tmp_path, linger=0)
    sink.handle(event(1))
    assert sink.flush(60)
    assert _run(capsys, "spool", "show", tmp_path)[:2] == (0, "")
    sink.close()


def test_show_tells_of_what_it_cannot_show(capsys, spool):
    """Corrupt lines and later versions make it end with 1."""
    [path] = spool.rglob("*.ndjson")
    with path.open("ab") as file:
        file.write(b"garbage\n")
    code, out, err = _run(capsys, "spool", "show", spool)
    assert (code, len(out.splitlines())) == (1, 3)
    assert "outfall: 1 line cannot be read as an event" in err
    (path.parent / "00000009.v2.ndjson").touch()
    code, out, err = _run(capsys, "spool", "show", spool)
    assert (code, out) == (1, "")
    assert "cannot be read: 00000009.v2.ndjson has format 2" in err


# -- drain


def test_drain_delivers_what_was_left(capsys, spool, server):
    """In order, and nothing stays on disk."""
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out, err) == (0, "3 events delivered\n", "")
    assert _numbers(server) == [0, 1, 2]
    assert stores_in(str(spool)) == []
    assert server.requests[0].headers["content-type"] == "application/x-ndjson"
    assert _run(capsys, "spool", "drain", spool, "--to", server.url)[:2] == (0, "0 events delivered\n")


def test_drain_leaves_running_processes_alone(capsys, spool, server, monkeypatch):
    """What they have is theirs to deliver, and that is said."""
    with monkeypatch.context() as patch:
        # Or its thread would adopt what is there, before anything else.
        patch.setattr(Depot, "find_dead", lambda _depot: False)
        sink = SpoolSink(CaptureSink(), spool, linger=600)
    sink._worker.adopt_due = time.monotonic() + 3600
    sink.handle(event(100))
    code, out, _ = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out) == (0, "3 events delivered\n1 event of running processes left to them\n")
    assert _numbers(server) == [0, 1, 2]
    sink.close(0)


def test_drain_sends_events_whatever_they_were_stored_for(capsys, tmp_path, server):
    """Text for a file becomes an event, and what a router had stored is what its first sink would have got."""
    directory = tmp_path / "s"

    def live_and_die():
        for target, events in (
            (_away(), ["plain text"]),
            (FileSink(tmp_path / "out", terminator="\r\n"), ["text for a file", event(1)]),
            (FanoutSink(_away(), CaptureSink()), [event(2)]),
            (FanoutSink(FileSink(tmp_path / "out", renderer=lambda *_: "rendered")), [event(3)]),
        ):
            sink = SpoolSink(target, directory, linger=600)
            for each in events:
                sink.handle(each)

    in_fork(live_and_die)
    code, _, err = _run(capsys, "spool", "drain", directory, "--to", server.url)
    assert code == 0, err
    sent = [each for request in server.requests for each in request.lines]
    assert sent == [{"event": "plain text"}, {"event": "text for a file"}, event(1), event(2), {"event": "rendered"}]


def test_drain_with_options(capsys, spool, server, monkeypatch):
    """Headers, a token from the environment, an array, and small batches."""
    monkeypatch.setenv("COLLECTOR_TOKEN", "tok-123")
    options = ["--body", "array", "--header", "X-Team: shop", "--token-env", "COLLECTOR_TOKEN", "--batch-size", 2]
    code, out, _ = _run(capsys, "spool", "drain", spool, "--to", server.url, *options)
    assert (code, out) == (0, "3 events delivered\n")
    assert [len(request.json) for request in server.requests] == [2, 1]
    headers = server.requests[0].headers
    assert (headers["x-team"], headers["authorization"]) == ("shop", "Bearer tok-123")


def test_drain_gives_up_when_nobody_answers(capsys, spool, server):
    """After the patience it ends with 1; the events are where they were, for another time."""
    server.default = 503
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url, "--patience", "0")
    assert (code, out) == (1, "0 events delivered, 3 left where they were\n")
    assert err.startswith("outfall: stopped: TemporaryDeliveryError: ")
    assert "503" in err
    server.default = 200
    assert _run(capsys, "spool", "drain", spool, "--to", server.url)[:2] == (0, "3 events delivered\n")


def test_drain_sets_refused_events_aside(capsys, spool, server, tmp_path):
    """With --dead-letters they are in that file, with --discard-refused nowhere; without they stay, and stop it."""
    server.default = lambda request: 400 if any(each["n"] == 1 for each in request.lines) else 200
    letters = tmp_path / "letters.jsonl"
    code, out, _ = _run(capsys, "spool", "drain", spool, "--to", server.url, "--dead-letters", letters)
    assert (code, out) == (1, "2 events delivered, 1 refused, and written to the dead letters\n")
    assert [json.loads(line) for line in letters.read_text().splitlines()] == [event(1)]
    _left_behind(spool, event(1))
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out) == (1, "0 events delivered, 1 left where they were\n")
    [line] = err.splitlines()
    assert line.startswith("outfall: stopped: 1 event refused: 127.0.0.1:")
    assert line.endswith("answered 400; say where such events go: --dead-letters FILE or --discard-refused")
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url, "--discard-refused")
    assert (code, out, err) == (1, "0 events delivered, 1 refused, and discarded\n", "")
    assert stores_in(str(spool)) == []


def test_drain_tells_of_stores_of_a_later_version(capsys, spool, server):
    """They are left alone, and it ends with 1."""
    [store] = map(Path, stores_in(str(spool)))
    (store / "00000009.v2.ndjson").touch()
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out) == (1, "0 events delivered\n")
    assert f"outfall: {store.name} was left alone: 00000009.v2.ndjson has format 2" in err
    assert store.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "ftp://host/"], "--to: "),
        (["--to", "http://example.com/", "--header", "Authorization: secret"], "allow_insecure"),
        (["--to", "http://127.0.0.1:9/", "--header", "no colon here"], "has no colon; it is 'NAME: VALUE'"),
        (["--to", "http://127.0.0.1:9/", "--token-env", "NOT_THERE"], "no such environment variable"),
        (["--to", "http://127.0.0.1:9/", "--dead-letters", "/nowhere/x"], "cannot be written: No such file"),
        (["--to", "http://127.0.0.1:9/", "--batch-size", "0"], "'0' is not a whole number from 1 up"),
        (["--to", "http://127.0.0.1:9/", "--batch-size", "x"], "'x' is not a whole number from 1 up"),
        (["--to", "http://127.0.0.1:9/", "--patience", "-1"], "'-1' is not a number of seconds from 0 up"),
        (["--to", "http://127.0.0.1:9/", "--patience", "x"], "'x' is not a number of seconds from 0 up"),
        ([], "--to"),
    ],
)
def test_arguments_that_cannot_be_used(capsys, spool, options, message):
    """They end with 2, say which, and change nothing."""
    code, out, err = _run(capsys, "spool", "drain", spool, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "secret" not in err
    assert stores_in(str(spool))


REFUSALS = {
    "page": Answer(400, "<html><title>No client certificate</title>", {"Content-Type": "text/html"}),
    "json": Answer(400, {"message": "unexpected format"}),
    **{str(status): Answer(status) for status in (401, 403, 404, 405, 411, 413, 415, 422, 431)},
}


@pytest.mark.parametrize(
    ("answer", "where"),
    [
        *((answer, []) for answer in REFUSALS.values()),
        *((REFUSALS[name], ["--dead-letters", "letters.jsonl"]) for name in ("page", "403", "413")),
        *((REFUSALS[name], ["--discard-refused"]) for name in ("json", "404", "413")),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else getattr(value, "status", None),
)
def test_a_server_that_refuses_everything_costs_no_event(capsys, tmp_path, monkeypatch, server, answer, where):
    """It stops after a few requests, says once what the server said, and all is where it was."""
    monkeypatch.chdir(tmp_path)
    _left_behind(tmp_path / "spool", *map(event, range(200)))
    server.default = answer
    code, out, err = _run(capsys, "spool", "drain", tmp_path / "spool", "--to", server.url, *where)
    assert code == 1
    assert ", 200 left where they were" in out or (where and "left where they were" in out)
    [line] = err.splitlines()
    assert str(answer.status) in line
    assert len(server.requests) < 20
    assert _run(capsys, "spool", "status", tmp_path / "spool")[1].startswith(f"{tmp_path}/spool: 200 events")
    server.default = 200
    assert _run(capsys, "spool", "drain", tmp_path / "spool", "--to", server.url)[0] == 0


def test_dead_letters_that_cannot_be_written_stop_it(capsys, spool, server):
    """A full disk is no reason to lose what was to be saved."""
    server.default = lambda request: 400 if any(each["n"] == 1 for each in request.lines) else 200
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url, "--dead-letters", "/dev/full")
    assert (code, "refused" in out) == (1, False)
    assert "the dead letters cannot be written: No space left on device" in err
    assert json.dumps(event(1), separators=(",", ":")) in _run(capsys, "spool", "show", spool, "--json")[1]


COLLECTORS = {
    "loki": (["--option", "labels.app=shop"], "/loki/api/v1/push", 204, ""),
    "otlp": (["--option", "resource.service.name=shop"], "/v1/logs", 200, {}),
    "elasticsearch": (
        ["--option", "index=logs"],
        "/logs/_bulk?filter_path=errors,items.*.status,items.*.error.type",
        200,
        {"errors": False, "items": [{"create": {"status": 201}}] * 3},
    ),
    "splunk": (["--token-env", "TOKEN"], "/services/collector/event", 200, {"text": "Success", "code": 0}),
    "datadog": (["--token-env", "TOKEN", "--option", "tags=env:a,team:b"], "/api/v2/logs", 202, {}),
    "gelf": (["--option", "host=web-1"], "/gelf", 202, ""),
}


@pytest.mark.parametrize("kind", COLLECTORS)
@pytest.mark.parametrize("command", ["drain", "replay"])
def test_each_collector_gets_its_own_format(capsys, spool, tmp_path, server, monkeypatch, kind, command):
    """At its usual path, with its own options and its own way to show a token."""
    monkeypatch.setenv("TOKEN", "tok-123")
    options, path, status, said = COLLECTORS[kind]
    server.default = Answer(status, said, {"Content-Type": "application/json"})
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(event(n)) + "\n" for n in range(3)))
    source = ["spool", "drain", spool] if command == "drain" else ["replay", file]
    code, out, err = _run(capsys, *source, "--to", f"{kind}+{server.url}", *options)
    assert (code, out, err) == (0, "3 events delivered\n", "")
    assert {request.target for request in server.requests} == {path}
    bodies = b"".join(request.body for request in server.requests)
    assert all(f"event {n}".encode() in bodies for n in range(3))
    shown = {"splunk": "Splunk tok-123", "datadog": None}.get(kind)
    assert server.requests[0].headers.get("authorization") == shown
    if kind == "datadog":
        assert server.requests[0].headers["dd-api-key"] == "tok-123"
    if kind == "loki":
        assert b'"app":"shop"' in bodies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "elasticsearch+http://127.0.0.1:9"], "the option 'index' is missing"),
        (
            ["--to", "loki+http://127.0.0.1:9", "--option", "lables.app=x"],
            "there is no option 'lables.app': did you mean 'labels'?",
        ),
        (["--to", "http://127.0.0.1:9/", "--option", "labels.app=x"], "http: there is no option 'labels.app'"),
        (
            ["--to", "loki+http://127.0.0.1:9", "--body", "gelf"],
            "the scheme 'gelf+loki+http' is not known: did you mean 'loki+http'?",
        ),
        (["--to", "splunk+http://127.0.0.1:9"], "token"),
        (["--to", "loki+http://127.0.0.1:9", "--option", "tenant"], "'tenant' has no '='; it is NAME=VALUE"),
        (["--to", "http://127.0.0.1:9/?spool=x"], "spool"),
        (["--to", "http://127.0.0.1:9/", "--discard-refused", "--dead-letters", "x"], "not allowed with"),
    ],
)
def test_options_of_a_collector_that_cannot_be_used(capsys, spool, options, message):
    """They end with 2 and say what is missing."""
    code, out, err = _run(capsys, "spool", "drain", spool, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_a_spool_may_be_drained_into_a_file(capsys, spool, tmp_path):
    """Any URL will do, if what it names delivers by itself."""
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", f"file:{tmp_path}/rescued.jsonl")
    assert (code, out, err) == (0, "3 events delivered\n", "")
    assert [json.loads(line)["n"] for line in (tmp_path / "rescued.jsonl").read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize("command", [["status"], ["show"], ["drain", "--to", "http://127.0.0.1:9/"]])
def test_a_directory_without_a_spool(capsys, tmp_path, command):
    """A typo in a path is no empty spool, be something in that directory or nothing."""
    for _ in range(2):
        code, out, err = _run(capsys, "spool", *command, tmp_path)
        assert (code, out) == (2, "")
        assert err == (f"outfall: there is no spool in '{tmp_path}'; give the directory that SpoolSink was made with\n")
        (tmp_path / "letter.txt").touch()


# -- replay


LINES = {
    "long": b'{"event":"e","value":1' + b"0" * 400 + b"}",
    "beyond 64 bits": b'{"event":"e","value":[18446744073709551616,-18446744073709551616]}',
    "not a number": b'{"event": "e", "value": NaN, "other": [Infinity, -Infinity]}',
    "surrogates": b'{"event": "e", "value": "\\ud800"}',
    "deep": b'{"event":"e","value":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "twice": b'{"event":"e","value":1,"value":2}',
    "digits": b'{"event":"e","value":1.00000000000000000001e-400}',
    "own key": b'{"event":"e","$outfall":2}',
    "a router's name": b'{"fanout":[1]}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_replay_sends_what_a_renderer_wrote_as_it_stands(capsys, tmp_path, server, line):
    """Byte for byte, though orjson may not read it."""
    path = tmp_path / "1.jsonl"
    path.write_bytes(line + b"\n" + json.dumps(event(1)).encode() + b"\n")
    assert _run(capsys, "replay", path, "--to", server.url) == (0, "2 events delivered\n", "")
    assert b"".join(request.body for request in server.requests).splitlines()[0] == line


def test_replay_sends_what_is_in_files(capsys, tmp_path, server):
    """One after the other, blank lines left out; lines of a spool's segments are understood, too."""
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text("".join(json.dumps(event(n)) + "\n" for n in range(3)) + "\n")
    second.write_text(
        json.dumps({"$outfall": 1, "time": 1.5, "level": 20, "event": {"n": 3}}) + "\n" + json.dumps(event(4))
    )
    code, out, err = _run(capsys, "replay", first, second, "--to", server.url, "--batch-size", 2)
    assert (code, out, err) == (0, "5 events delivered\n", "")
    assert _numbers(server) == [0, 1, 2, 3, 4]
    assert first.read_text().startswith("{")


def test_replay_reads_compressed_files(capsys, tmp_path, server):
    """As rotation leaves them; what is cut off is told, and what can be read of it is sent."""
    lines = b"".join(json.dumps(event(n)).encode() + b"\n" for n in range(3_000))
    whole, cut, zipped = (tmp_path / name for name in ("whole.gz", "cut.gz", "whole.zst"))
    whole.write_bytes(gzip.compress(lines))
    cut.write_bytes(gzip.compress(lines)[:-9])
    zipped.write_bytes(zstandard.compress(lines))
    code, out, err = _run(capsys, "replay", whole, zipped, "--to", server.url)
    assert (code, out, err) == (0, "6,000 events delivered\n", "")
    assert _numbers(server) == [*range(3_000)] * 2
    code, out, err = _run(capsys, "replay", cut, "--to", server.url)
    assert code == 1
    assert "cut.gz' is cut off" in err
    assert _numbers(server)[6_000:] == [*range(len(_numbers(server)) - 6_000)]


def test_replay_has_the_same_keys_each_time(capsys, tmp_path, server):
    """So that a server that heeds them takes nothing twice; other events have other keys."""
    path = tmp_path / "1.jsonl"
    path.write_text("".join(json.dumps(event(n)) + "\n" for n in range(4)))
    for _ in range(2):
        assert _run(capsys, "replay", path, "--to", server.url, "--batch-size", 2)[0] == 0
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


def test_replay_from_stdin(capsys, server, monkeypatch):
    """A dash stands for it."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(event(7)).encode() + b"\n")))
    assert _run(capsys, "replay", "-", "--to", server.url)[:2] == (0, "1 event delivered\n")
    assert _numbers(server) == [7]


def test_replay_tells_of_lines_that_are_no_events(capsys, tmp_path, server):
    """They are counted, the others sent, and it ends with 1."""
    path = tmp_path / "1.jsonl"
    path.write_text(json.dumps(event(1)) + "\ngarbage\n[1]\n" + json.dumps(event(2)) + "\n")
    code, out, err = _run(capsys, "replay", path, "--to", server.url)
    assert (code, out) == (1, "2 events delivered, 2 lines left out\n")
    assert err == (
        f"outfall: '{path}': lines 2 to 3 hold no JSON object and were left out; "
        "--text sends such a line as an event's text\n"
    )
    assert _numbers(server) == [1, 2]
    server.requests.clear()
    assert _run(capsys, "replay", path, "--to", server.url, "--text") == (0, "4 events delivered\n", "")
    assert [each for request in server.requests for each in request.lines][1:3] == [
        {"event": "garbage"},
        {"event": "[1]"},
    ]


def test_replay_tries_again_and_sets_aside(capsys, tmp_path, server):
    """As a spool would: temporary failures are retried, refused events go to the dead letters."""
    path, letters = tmp_path / "1.jsonl", tmp_path / "letters.jsonl"
    path.write_text("".join(json.dumps(event(n)) + "\n" for n in range(3)))
    server.answers.append(Answer(503, headers={"Retry-After": "0"}))
    server.default = lambda request: 422 if any(each["n"] == 1 for each in request.lines) else 200
    code, out, _ = _run(capsys, "replay", path, "--to", server.url, "--dead-letters", letters)
    assert (code, out) == (1, "2 events delivered, 1 refused, and written to the dead letters\n")
    assert [json.loads(line)["n"] for line in letters.read_text().splitlines()] == [1]
    code, out, err = _run(capsys, "replay", letters, "--to", server.url)
    assert (code, out) == (
        1,
        f"0 events delivered, 1 left where they were, stopped at line 1 of '{letters}'\n",
    )
    assert "1 event refused" in err


def test_replay_gives_up_when_nobody_answers(capsys, tmp_path, server):
    """What was not sent is counted as left; nothing is sent out of order after that."""
    server.default = 503
    path = tmp_path / "1.jsonl"
    path.write_text("".join(json.dumps(event(n)) + "\n" for n in range(5)))
    code, out, err = _run(capsys, "replay", path, "--to", server.url, "--patience", "0", "--batch-size", 2)
    assert (code, out) == (
        1,
        f"0 events delivered, 5 left where they were, stopped at line 1 of '{path}'\n",
    )
    assert "answered 503" in err
    assert len(server.requests) == 1


def test_replay_of_a_file_that_is_not_there(capsys, tmp_path, server):
    """It ends with 2 before anything is sent."""
    (tmp_path / "there").write_text(json.dumps(event(1)) + "\n")
    code, _, err = _run(capsys, "replay", tmp_path / "there", tmp_path / "nowhere", "--to", server.url)
    assert code == 2
    assert f"outfall: '{tmp_path}/nowhere' cannot be read: No such file or directory" in err
    assert server.requests == []


# -- how it writes, and how it ends


def _command(*arguments, **options):
    """Run the command line as a process of its own."""
    environment = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, "-m", "outfall", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False, **options)


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_json_is_utf_8_whatever_the_terminal(tmp_path, env):
    """For people what cannot be written is escaped; JSON is UTF-8."""
    _left_behind(tmp_path / "spoöl", event(1, user="Zoë", sign="\x9b2J"))
    done = _command("spool", "show", tmp_path / "spoöl", "--json", capture_output=True, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Zoë".encode() in done.stdout
    assert b"\\u009b2J" in done.stdout
    assert json.loads(done.stdout) == event(1, user="Zoë", sign="\x9b2J")
    done = _command("spool", "status", tmp_path / "spoöl", "--json", capture_output=True, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["directory"] == f"{tmp_path}/spoöl"
    for action in ("show", "status"):
        done = _command("spool", action, tmp_path / "spoöl", capture_output=True, env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"spo" in done.stdout or b"Zo" in done.stdout


def test_text_is_shown_as_json_too(capsys, tmp_path):
    """What a renderer made is an event with that text, as it is sent."""
    _left_behind(tmp_path / "s", "plain \x1b[2J text")
    code, out, _ = _run(capsys, "spool", "show", tmp_path / "s", "--json")
    assert (code, json.loads(out)) == (0, {"event": "plain \x1b[2J text"})


def test_nothing_shown_to_people_commands_the_terminal(capsys, tmp_path):
    """Neither a key, nor a level, a file's name or an error in an account."""
    directory = tmp_path / "\x1b[2J"
    sink = SpoolSink(CaptureSink(), directory, linger=0)
    sink.handle(event(1))
    assert sink.flush(60)
    sink._ledger.last_error = "OSError: \x1b[2J"
    sink.handle({**event(2, **{"\x1b]0;k": "\x07"}), "level": "\x1b[1m"})
    assert sink.flush(60)
    _left_behind(directory, {**event(2, **{"\x1b]0;k": "\x07"}), "level": "\x1b[1m"})
    for action in ("status", "show"):
        code, out, err = _run(capsys, "spool", action, directory)
        assert code == 0
        assert not set(out + err) & {"\x1b", "\x07"}
    _, _, err = _run(capsys, "replay", tmp_path / "\x1b[2Jx", "--to", "http://127.0.0.1:9/")
    assert "\x1b" not in err
    sink.close()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_cannot_be_written_is_one_line_and_an_exit_code(spool, stream):
    """A full disk behind stdout is told; one behind stderr changes nothing."""
    with open("/dev/full", "wb") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = _command("spool", "status", spool, **streams)
    if stream == "stdout":
        assert (done.returncode, done.stderr) == (1, b"outfall: No space left on device\n")
    else:
        assert (done.returncode, b"3 events" in done.stdout) == (0, True)


def test_a_reader_of_the_output_that_is_gone_stops_no_delivery(spool, server):
    """What is delivered is delivered, and the exit code is that of the work."""
    reader, writer = os.pipe()
    os.close(reader)
    done = _command("spool", "drain", spool, "--to", server.url, "-q", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert _numbers(server) == [0, 1, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_one_line(capsys, spool):
    """As any other user finds it."""
    [path] = spool.rglob("*.ndjson")
    path.chmod(0)
    code, _, err = _run(capsys, "spool", "show", spool)
    assert (code, len(err.splitlines())) == (1, 1)


def test_an_error_of_the_system_is_one_line(capsys, spool, server, monkeypatch):
    """With the file it is about, wherever it comes from."""

    def fail(*_args, **_kwargs):
        raise OSError(errno.EIO, "Input/output error", "/dev/sdz")

    monkeypatch.setattr(redelivery, "drain", fail)
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out, err) == (1, "", "outfall: '/dev/sdz': Input/output error\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["drain", "replay"])
def test_a_signal_ends_it_and_it_says_how_far_it_came(spool, tmp_path, command, number):
    """The exit code is the shell's for that signal; what was delivered is told, and for files where to go on."""
    hangs = threading.Event()

    def answer(request):
        if request.lines[0]["n"] == 2:
            hangs.set()
            return Answer(503)
        return 200

    path = tmp_path / "1.jsonl"
    path.write_text("".join(json.dumps(event(n)) + "\n" for n in range(3)))
    source = ["spool", "drain", spool] if command == "drain" else ["replay", path]
    with Server() as made:
        made.default = answer
        arguments = [sys.executable, "-m", "outfall", *map(str, source), "--to", made.url, "--batch-size", "1", "-q"]
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert hangs.wait(60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    left = ", 1 left where they were" if command == "drain" else f", stopped at line 3 of '{path}'"
    assert err == f"outfall: interrupted: 2 events delivered{left}\n"


# -- the rest


@pytest.mark.parametrize(
    "command", [[], ["spool"], ["spool", "status"], ["spool", "show"], ["spool", "drain"], ["replay"]]
)
def test_help_says_what_each_command_does(capsys, command):
    """It ends with 0."""
    code, out, _ = _run(capsys, *command, "--help")
    assert code == 0
    assert out.startswith("usage: outfall")
    assert max(map(len, out.splitlines())) < 100


def test_the_version(capsys):
    """That of the distribution."""
    code, out, _ = _run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"outfall \d+\.\d+\.\d+\n", out)


def test_without_a_command_it_says_which_there_are(capsys):
    """As with --help."""
    assert _run(capsys) == _run(capsys, "--help")
    code, out, _ = _run(capsys)
    assert (code, "replay" in out) == (0, True)


def _commands(parser=None, path=()):
    """Give each command with its parser, those of `spool` too."""
    for action in (parser or commandline._parser())._actions:
        for name, inner in action.choices.items() if isinstance(action.choices, dict) else ():
            yield (*path, name), inner
            yield from _commands(inner, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in _commands()], ids=" ".join)
def test_each_help_has_an_example_that_can_be_parsed(path):
    """It is shown as it is typed, and all that it names is an argument of the command."""
    shown = dict(_commands())[path].format_help().partition("example:\n")[2].partition("\n\n")[0]
    examples = [shlex.split(line.partition(" | ")[0]) for line in shown.splitlines()]
    assert examples
    for words in examples:
        assert words[: len(path) + 1] == ["outfall", *path]
        commandline._parser().parse_args(words[1:])


@pytest.mark.parametrize("body", sending._BODIES)
def test_a_request_may_have_each_body(capsys, spool, server, body):
    """Those that a URL's body= has."""
    code, out, _ = _run(capsys, "spool", "drain", spool, "--to", server.url, "--body", body)
    assert (code, out) == (0, "3 events delivered\n")


def test_an_interrupt_ends_it_in_order(capsys, spool, server, monkeypatch):
    """With 130, as shells expect, and it says how far it came."""

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(redelivery.SpoolSink, "flush", interrupt)
    code, _, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert code == 130
    assert err == "outfall: interrupted: 3 events delivered\n"


def test_a_reader_that_has_seen_enough_is_no_error(spool):
    """As with `outfall spool show DIR | head -1`."""
    for number in range(3000):
        _left_behind_line(spool, number)
    command = f"{sys.executable} -m outfall spool show {spool} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "event 0" in done.stdout


def _left_behind_line(spool, number):
    [path] = spool.rglob("*.ndjson")
    with path.open("a") as file:
        file.write(json.dumps(event(number)) + "\n")


def test_it_is_a_module_and_a_script(spool):
    """python -m outfall runs it, and the distribution's script leads to the same function."""
    command = [sys.executable, "-m", "outfall", "spool", "status", str(spool)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "3 events" in done.stdout
    assert 'outfall = "outfall.adapters.commandline.main:main"' in Path(ROOT / "pyproject.toml").read_text(
        encoding="utf-8"
    )
    assert commandline.main is main


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    """By rich, on stderr."""
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.progress(10, quiet=False) as show:
        show(4, 10)
    assert "delivering" in stream.getvalue()


def test_progress_is_lines_elsewhere(monkeypatch):
    """Without rich, or when it is no terminal: one line every few seconds; none if asked for none."""
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0)
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with terminal.progress(10, quiet=False) as show:
        show(4, 10)
    assert stream.getvalue() == "4 of 10 events\n"
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    with terminal.progress(10, quiet=True) as show:
        show(4, 10)
    assert other.getvalue() == ""
    with terminal.progress(10, quiet=False, unit="bytes") as show:
        show(4, 10)
    assert other.getvalue() == "4 of 10 bytes\n"


def test_sizes_and_moments_are_for_people():
    """Units that suit the number, and times in UTC."""
    assert [terminal.size(number) for number in (0, 1023, 1536, 3 * 2**20, 5 * 2**30)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert terminal.moment(1795356984.5) == "2026-11-22 14:16:24Z"
    assert terminal.moment(1e300) == "an unknown time"
    assert terminal.counted(1, "event") == "1 event"
    assert terminal.counted(12345, "event") == "12,345 events"


def test_lines_are_named_in_ranges():
    """So many at most."""
    assert terminal.line_ranges([7]) == "line 7"
    assert terminal.line_ranges([1, 2, 3, 9]) == "lines 1 to 3 and 9"
    assert terminal.line_ranges([1, 3, 5, 6, 8], most=2) == "lines 1, 3 and 3 more"
