"""The threat model: the tests that it names are there, and those that it needs besides are here."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import stat
import sys
from functools import cache
from pathlib import Path

import pytest

from outfall import (
    DatagramSink,
    FileSink,
    SpoolSink,
    StreamSink,
    SysLogSink,
    TemporaryDeliveryError,
)
from outfall.sinks.testing import FailingSink

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
SOURCES = sorted(path for folder in ("sinks", "adapters", "outfall") for path in (ROOT / folder).rglob("*.py"))

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None


def claims():
    """Return each claim of the page with the tests that it names."""
    found = re.split(r"\n- \*\*", PAGE)[1:]
    return [(claim.partition("**")[0], re.findall(r"`([\w/]+\.py)::(\w+)`", claim)) for claim in found]


@pytest.mark.parametrize(("claim", "tests"), claims(), ids=lambda part: part[:40] if isinstance(part, str) else "")
def test_each_claim_names_tests_that_exist(claim, tests):
    """A claim without a test is a hope; a test that was renamed is none."""
    assert tests, claim
    for path, name in tests:
        text = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_there_are_claims():
    """The page is read as it is written."""
    assert len(claims()) >= 12


# -- what is in the sources


@cache
def _calls():
    """Return the name of each call in the sources, as it is written, with where it is."""
    return [
        (path.name, ast.unparse(node.func), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_nothing_here_runs_text_as_code():
    """No eval, no exec, no shell, no import of a name that comes from somewhere."""
    never = {"eval", "exec", "compile", "os.system", "os.popen", "__import__", "subprocess.run", "subprocess.Popen"}
    assert [(path, name) for path, name, _ in _calls() if name in never] == []


def test_pickles_are_loaded_in_one_place():
    """By `PickleFrames.decode`, which says what it does."""
    loads = {"pickle.loads", "pickle.load", "pickle.Unpickler", "marshal.loads", "shelve.open"}
    assert {path for path, name, _ in _calls() if name in loads} == {"frames.py"}


def test_nothing_here_turns_verification_off():
    """No context without verification is made, and no argument that turns it off is given."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for word in ("CERT_NONE", "_create_unverified_context", "_create_stdlib_context", "disable_warnings"):
            assert word not in text, f"{path.name}: {word}"
    for path, name, call in _calls():
        off = [
            keyword.arg
            for keyword in call.keywords
            if keyword.arg in ("verify", "check_hostname") and ast.unparse(keyword.value) == "False"
        ]
        assert not off, f"{path}: {name}"


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_there_are_three_dependencies():
    """structlog, orjson, requests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w-]+", each)[0] for each in project["dependencies"]}
    assert names == {"structlog", "orjson", "requests"}


# -- values


HOSTILE = ["a\n<0>1 forged", "a\r\nb", "a\x00b", "a\u2028b\u2029c\x85d", '"}\n{"event":"forged"}', "\ud800\n"]


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_makes_a_second_line(tmp_path, value):
    """Whatever is in a name or a value, one event is one line of JSON."""
    path = tmp_path / "events.jsonl"
    with FileSink(path) as sink:
        sink.handle({"event": value, value: {value: [value]}, "exception": value})
        sink.handle({"event": "next", "level": value, "logger": value})
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == 2
    assert all(isinstance(json.loads(line), dict) for line in lines)


def _redact(_logger, _name, event):
    event.pop("password", None)
    return event


def _content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["spool", "target"])
def test_a_redacted_secret_is_in_no_file_of_a_spool(tmp_path, where):
    """Neither while it waits nor when it is given up, whichever chain removes it."""
    target = FailingSink(TemporaryDeliveryError("away"))
    chains = {"spool": [], "target": [], where: [_redact]}
    target._processors = tuple(chains["target"])
    with SpoolSink(target, tmp_path, processors=chains["spool"], on_error=lambda failure: None) as sink:
        sink.drain_timeout = 0.0
        sink.handle({"event": "login", "user": "ann", "password": "correct horse"})
        found = b"".join(_content(tmp_path).values())
        assert b"ann" in found
        assert b"correct horse" not in found
    assert b"correct horse" not in b"".join(_content(tmp_path).values())


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="permissions are those of POSIX")
def test_nobody_else_can_read_a_spool_under_a_strict_umask(tmp_path):
    """Directories and files alike."""
    directory = tmp_path / "spool"
    before = os.umask(0o077)
    try:
        with SpoolSink(FailingSink(TemporaryDeliveryError("away")), directory, on_error=lambda failure: None) as sink:
            sink.drain_timeout = 0.0
            sink.handle({"event": "x"})
            made = [directory, *directory.rglob("*")]
            assert len(made) > 2
            modes = {}
            for path in made:
                with contextlib.suppress(FileNotFoundError):  # a temporary file that has taken its place meanwhile
                    modes[path] = stat.S_IMODE(path.stat().st_mode)
            assert len(modes) > 2
            assert {path: mode for path, mode in modes.items() if mode & 0o077} == {}
    finally:
        os.umask(before)


# -- what is shown


def test_a_repr_of_a_sink_shows_no_value(tmp_path):
    """Neither of what it has written nor of what it keeps."""
    sinks = [
        FileSink(tmp_path / "a", buffer_bytes=1000),
        StreamSink((tmp_path / "b").open("wb")),
        DatagramSink("127.0.0.1", 9),
        SysLogSink(("127.0.0.1", 9)),
    ]
    for sink in sinks:
        sink.handle({"event": "correct horse"})
        assert "correct" not in f"{sink!r} {sink.stats()!r}"
        sink.close()
    sinks[1].stream.close()
