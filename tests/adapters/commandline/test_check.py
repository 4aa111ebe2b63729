"""``outfall check``: whether a file for configure_from() can be used."""

from __future__ import annotations

import json
import os
import socket

import pytest

import outfall
from outfall.adapters.commandline.main import main
from tests.sinks._http import Server


@pytest.fixture
def check(capsys, tmp_path, monkeypatch):
    """Give a function that checks a file of a text; it returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def check(text, *options):
        (tmp_path / "l.toml").write_text(text)
        return main(["check", "l.toml", "--timeout", "5s", *options]), *capsys.readouterr()

    return check


@pytest.fixture
def closed_port():
    """A port on loopback that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_sinks_that_can_be_opened(check, tmp_path):
    """Each is named, and nothing is sent."""
    with Server() as server:
        text = f'[sinks.file]\nurl = "file:a.jsonl?max_bytes=5MB"\n[sinks.http]\nurl = "{server.url}"\n'
        code, out, err = check(text)
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == ["NAME", "file", "http"]
        assert out.count("can be opened") == 2
        assert server.requests == []
    assert (tmp_path / "a.jsonl").read_text() == ""


def test_a_file_that_cannot_be_made_says_why(check, tmp_path, monkeypatch):
    """The reason is the directory's that is not there or not writable, or that a directory has the name."""
    (tmp_path / "logs").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path / "logs") and access(path, mode))
    for url, reason in (
        ("logs/a.jsonl?delay=true", "Permission denied"),
        ("logs?delay=true", "Is a directory"),
        ("none/a.jsonl?delay=true", "No such file or directory"),
    ):
        code, out, err = check(f'[sinks.file]\nurl = "file:{url}"\n')
        assert (code, reason in err) == (1, True), err
        assert "cannot be reached" in out


def test_one_event_is_sent_if_asked_for(check, tmp_path):
    """Of a level that the sink takes, and it has to arrive."""
    with Server() as server:
        text = f'[sinks.file]\nurl = "file:a.jsonl?level=error"\n[sinks.http]\nurl = "{server.url}"\nlinger = 0\n'
        code, out, _ = check(text, "--send")
        assert (code, out.count("delivered an event")) == (0, 2)
        assert len(server.requests) == 1
        server.default = 503
        code, out, err = check(f'[sinks.http]\nurl = "{server.url}"', "--send", "--timeout", "0.2s")
        assert (code, "did not deliver" in out) == (1, True)
        assert "l.toml: [sinks.http] did not deliver" in err
    [event] = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert (event["event"], event["level"]) == ("outfall check", "error")


@pytest.mark.parametrize(
    "url",
    [
        "file:nowhere/a.jsonl",
        "file:nowhere/a.jsonl?delay=true",
        "file:nowhere/a.jsonl?max_bytes=5MB",
        "tcp://127.0.0.1:{port}",
        "tls://127.0.0.1:{port}",
        "unix:nowhere",
        "http://127.0.0.1:{port}/x",
        "http+unix:///nowhere",
        "loki+http://ann:sesame@127.0.0.1:{port}",
        "syslog:///nowhere",
        "syslog+tcp://127.0.0.1:{port}",
        "smtp://127.0.0.1:{port}?fromaddr=a@example.org&toaddrs=b@example.org&subject=x",
        "http://127.0.0.1:{port}?spool=spool",
        "file:a.jsonl?max_byte=3",
        "flie:a.jsonl",
        "splunk+http://127.0.0.1:{port}?token_env=NO_SUCH_VARIABLE",
    ],
)
def test_a_sink_that_cannot_be_opened_is_exit_1(check, closed_port, url):
    """It is named, with the reason and no secret; the others are tried all the same."""
    url = url.format(port=closed_port)
    code, out, err = check(f'[sinks.bad]\nurl = "{url}"\n[sinks.good]\nurl = "null:"\n')
    assert code == 1
    assert err.startswith("outfall: l.toml: [sinks.bad] ")
    assert err.count("\n") == 1
    assert "sesame" not in out + err
    assert "can be opened" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[outfal]", "l.toml: there is no table 'outfal'"),
        ("[outfall]\nlevel = 'loud'", "l.toml: level='loud'"),
        ("x = ", "l.toml: "),
        ("[sinks.file]\nmax_bytes = 3", "l.toml: [sinks.file] has no url"),
    ],
)
def test_a_file_that_cannot_be_used_is_exit_2(check, text, message):
    """With file and key."""
    code, out, err = check(text)
    assert (code, out) == (2, "")
    assert err.startswith(f"outfall: {message}")


def test_a_file_that_is_missing_is_exit_2(capsys, tmp_path):
    """By its name."""
    assert main(["check", str(tmp_path / "nothing.toml")]) == 2
    assert "nothing.toml' cannot be read: No such file" in capsys.readouterr().err


def test_nothing_stays_open(check):
    """Neither a sink nor a thread."""
    before = set(outfall.open_sinks())
    check('[sinks.a]\nurl = "file:a.jsonl"\n[sinks.b]\nurl = "file:nowhere/b.jsonl"\n')
    assert set(outfall.open_sinks()) <= before
