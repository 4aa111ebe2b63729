"""The command line: what it shows, what it delivers, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from outfall import CaptureSink, FanoutSink, FileSink, SpoolSink, TemporaryDeliveryError
from outfall.adapters.commandline import main as commandline
from outfall.adapters.commandline import redelivery, terminal
from outfall.adapters.commandline.main import main
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
    """Nothing waits."""
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
    [store] = spool.iterdir()
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
    assert list(spool.iterdir()) == []
    assert server.requests[0].headers["content-type"] == "application/x-ndjson"
    assert _run(capsys, "spool", "drain", spool, "--to", server.url)[:2] == (0, "0 events delivered\n")


def test_drain_leaves_running_processes_alone(capsys, spool, server):
    """What they have is theirs to deliver, and that is said."""
    sink = SpoolSink(CaptureSink(), spool, linger=600)
    sink._adopt_due = float("inf")
    sink.handle(event(100))
    code, out, _ = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out) == (0, "3 events delivered\n1 event of running processes left to them\n")
    assert _numbers(server) == [0, 1, 2]
    sink.close()


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
    assert err.startswith("outfall: given up, since nothing more was taken; TemporaryDeliveryError: ")
    assert "503" in err
    server.default = 200
    assert _run(capsys, "spool", "drain", spool, "--to", server.url)[:2] == (0, "3 events delivered\n")


def test_drain_sets_refused_events_aside(capsys, spool, server, tmp_path):
    """With --dead-letters they are in that file; without it they are lost, and that is said."""
    server.default = lambda request: 400 if any(each["n"] == 1 for each in request.lines) else 200
    letters = tmp_path / "letters.jsonl"
    code, out, _ = _run(capsys, "spool", "drain", spool, "--to", server.url, "--dead-letters", letters)
    assert (code, out) == (1, "2 events delivered, 1 refused, and written to the dead letters\n")
    assert [json.loads(line) for line in letters.read_text().splitlines()] == [event(1)]
    _left_behind(spool, event(1))
    code, out, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert (code, out) == (1, "0 events delivered, 1 lost (rejected)\n")
    assert err.startswith("outfall: 1 event lost: PermanentDeliveryError")


def test_drain_tells_of_stores_of_a_later_version(capsys, spool, server):
    """They are left alone, and it ends with 1."""
    [store] = spool.iterdir()
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
    assert list(spool.iterdir())


# -- replay


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
    code, out, _ = _run(capsys, "replay", path, "--to", server.url)
    assert (code, out) == (1, "2 events delivered, 2 lost (no JSON object)\n")
    assert _numbers(server) == [1, 2]


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
    assert (code, out) == (1, "0 events delivered, 1 lost (rejected)\n")
    assert "1 event lost" in err


def test_replay_gives_up_when_nobody_answers(capsys, tmp_path, server):
    """What was not sent is counted as left; nothing is sent out of order after that."""
    server.default = 503
    path = tmp_path / "1.jsonl"
    path.write_text("".join(json.dumps(event(n)) + "\n" for n in range(5)))
    code, out, err = _run(capsys, "replay", path, "--to", server.url, "--patience", "0", "--batch-size", 2)
    assert (code, out) == (1, "0 events delivered, 5 left where they were\n")
    assert "given up" in err
    assert len(server.requests) == 1


def test_replay_of_a_file_that_is_not_there(capsys, tmp_path, server):
    """It ends with 2 before anything is sent."""
    (tmp_path / "there").write_text(json.dumps(event(1)) + "\n")
    code, _, err = _run(capsys, "replay", tmp_path / "there", tmp_path / "nowhere", "--to", server.url)
    assert code == 2
    assert f"outfall: '{tmp_path}/nowhere' cannot be read: No such file or directory" in err
    assert server.requests == []


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
    """And ends with 2."""
    code, _, err = _run(capsys)
    assert code == 2
    assert "COMMAND" in err


def test_an_interrupt_ends_it_in_order(capsys, spool, server, monkeypatch):
    """With 130, as shells expect, and the events are kept."""

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(redelivery.SpoolSink, "flush", interrupt)
    code, _, err = _run(capsys, "spool", "drain", spool, "--to", server.url)
    assert code == 130
    assert "interrupted; what was not delivered is where it was" in err


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
