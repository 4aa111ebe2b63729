"""``outfall tail``: events of files for people."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import structlog
import zstandard

import outfall
from outfall.adapters.commandline import where
from outfall.adapters.commandline.main import main
from outfall.adapters.commandline.reading import Followed
from tests.sinks._processes import PATIENCE_SECONDS, ROOT


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Neither variable is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def event(number, **fields):
    """Return an event of the second *number*."""
    stamp = dt.datetime.fromtimestamp(1_800_000_000 + number, tz=dt.timezone.utc).isoformat().replace("+00:00", "Z")
    return {"event": f"event {number}", "level": "info", "timestamp": stamp, **fields}


def lines(*events):
    """Return the lines of a file, events as JSON and text as it is."""
    return "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in events)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Give a function that runs the command among the test's files; it returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main(["tail", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def shown(out):
    """Return the numbers of the events in the output for people."""
    return [int(found) for found in re.findall(r"event (\d+)", out)]


def test_the_last_events_are_shown_for_people(run, tmp_path):
    """Ten of them unless -n says otherwise: time, level, message, logger, fields, side by side."""
    (tmp_path / "a.jsonl").write_text(lines(*(event(n, logger="shop", status=200 + n) for n in range(30))))
    code, out, err = run("a.jsonl")
    assert (code, err) == (0, "")
    assert shown(out) == list(range(20, 30))
    assert out.splitlines()[0] == "2027-01-15 08:00:20.000Z info     event 20                       [shop] status=220"
    assert len({line.index("[shop]") for line in out.splitlines()}) == 1
    assert shown(run("-n", 3, "a.jsonl")[1]) == [27, 28, 29]
    assert run("-n", 0, "a.jsonl")[1] == ""
    assert shown(run("-n", "all", "a.jsonl")[1]) == list(range(30))


def test_a_file_longer_than_a_block_is_read_from_its_end(run, tmp_path):
    """Lines that stand across the blocks are whole; the last one may lack its end."""
    text = lines(*(event(n, filler="x" * (n % 700)) for n in range(500)), event(500, filler="y" * 200_000))
    (tmp_path / "a.jsonl").write_text(text.rstrip("\n"))
    assert shown(run("-n", "480", "--json", "a.jsonl")[1]) == list(range(21, 501))
    assert [json.loads(line)["event"] for line in run("-n", 2, "--json", "a.jsonl")[1].splitlines()] == [
        "event 499",
        "event 500",
    ]


def test_levels_are_coloured_where_a_terminal_shows_it(run, tmp_path, monkeypatch):
    """Not into a pipe; NO_COLOR, FORCE_COLOR and --color count."""
    (tmp_path / "a.jsonl").write_text(lines(*(event(n, level=level) for n, level in enumerate(("info", "error")))))
    assert "\x1b[" not in run("a.jsonl")[1]
    out = run("--color", "always", "a.jsonl")[1]
    assert "\x1b[32minfo " in out
    assert "\x1b[31merror " in out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run("a.jsonl")[1]
    assert "\x1b[" not in run("--color", "never", "a.jsonl")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run("a.jsonl")[1]


def test_exceptions_can_be_read(run, tmp_path):
    """A traceback in text, and structlog's as dicts, stand below the event in lines of their own."""
    path = tmp_path / "a.jsonl"
    sink = outfall.FileSink(path, processors=[structlog.processors.format_exc_info])
    dicts = outfall.FileSink(path, processors=[structlog.processors.dict_tracebacks])
    try:
        raise ValueError("bad")
    except ValueError:
        sink.handle(event(1, level="error", exc_info=True))
        dicts.handle(event(2, level="error", exc_info=True))
    out = run(path)[1]
    assert shown(out) == [1, 2]
    assert out.count("\n    Traceback (most recent call last):\n") == 2
    assert out.count("\n    ValueError: bad\n") == 2
    assert out.count("test_exceptions_can_be_read") >= 2
    assert "\\n" not in out


def test_what_is_no_json_is_shown_as_it_is(run, tmp_path):
    """But for what commands a terminal."""
    (tmp_path / "a.jsonl").write_text(lines("Starting\tup", event(1), "[1, 2]", "{half", "\x1b[2Jgone", "grüße"))
    out = run("a.jsonl")[1].splitlines()
    assert [out[0], *out[2:]] == ["Starting\tup", "[1, 2]", "{half", "\\x1b[2Jgone", "grüße"]
    assert shown(out[1]) == [1]
    as_json = [json.loads(line)["event"] for line in run("--json", "a.jsonl")[1].splitlines()]
    assert as_json == ["Starting\tup", "event 1", "[1, 2]", "{half", "\x1b[2Jgone", "grüße"]


def test_nothing_in_an_event_commands_the_terminal(run, tmp_path):
    """Neither its message nor a field, a name of a field, a logger or a traceback."""
    evil = "\x1b]0;x\x07\r\n\x9b2J"
    (tmp_path / "a.jsonl").write_text(
        lines({**event(1), "event": evil, "logger": evil, "level": evil, evil: evil, "exception": evil, "n": [evil]})
    )
    for option in ((), ("--json",), ("--color", "always")):
        out = run(*option, "a.jsonl")[1]
        assert not re.search("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]", out)
        assert "\x1b]" not in out


def test_a_level_leaves_out_what_is_below(run, tmp_path):
    """A name or a number; no level counts as info."""
    events = [event(n, level=level) for n, level in enumerate(("debug", "INFO", "warn", "error", 35))]
    (tmp_path / "a.jsonl").write_text(lines(*events, {"event": "event 9"}, "event 10"))
    assert shown(run("--level", "warning", "a.jsonl")[1]) == [2, 3, 4]
    assert shown(run("--level", "info", "a.jsonl")[1]) == [1, 2, 3, 4, 9, 10]
    code, _, err = run("--level", "loud", "a.jsonl")
    assert (code, "--level='loud'" in err) == (2, True)


FIELDS = {
    "status": 500,
    "path": "/a b/c",
    "ok": True,
    "nothing": None,
    "took": 0.5,
    "level": "warning",
    "user": {"name": "ann", "role.id": 7},
    "http.status": 404,
    "big": 2**70,
    "odd name": "x",
    "timestamp": "2027-01-15T08:00:00Z",
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("status>=500", True),
        ("status > 500", False),
        ("status=500.0", True),
        ("status==500", True),
        ("status!=404", True),
        ('status="500"', False),
        ('status!="500"', False),
        ("missing!=1", False),
        ("missing=null", False),
        ("not missing=1", True),
        ("nothing=null", True),
        ("nothing<1", False),
        ("nothing<null", False),
        ("ok=true", True),
        ("ok=1", False),
        ("ok>0", False),
        ("took<1", True),
        ("took<=.5", True),
        ("status=-500", False),
        ("big>1e20", True),
        ('path~"a b"', True),
        ("path~/c", True),
        ("status~5", False),
        ('path="/a b/c"', True),
        ("path='/a b/c'", True),
        ("path<z", True),
        ("user.name=ann", True),
        ("user.role.id=7", True),
        ("http.status=404", True),
        ("user.name.first=a", False),
        ("user=ann", False),
        ("'odd name'=x", True),
        ("level>=warning", True),
        ("level>info and level<error", True),
        ("level=WARN", True),
        ("timestamp>=2027-01-15T07:59:59Z", True),
        ("timestamp<2027-01-15", False),
        ("status=404 or status=500", True),
        ("status=404 or status=500 and ok=false", False),
        ("(status=404 or status=500) and not ok=false", True),
        ("NOT (status=500)", False),
    ],
)
def test_a_condition_is_about_fields_and_their_types(condition, holds):
    """A missing field or another type is no match, whatever the operator."""
    assert where.parse(condition)(FIELDS) is holds


@pytest.mark.parametrize(
    "condition", ["", "status", "status>", ">5", "status>>5", "(status=5", "status=5)", "status=5 ok=1", '"a', "a=b or"]
)
def test_what_is_no_condition_is_refused(run, tmp_path, condition):
    """With 2, and where it goes wrong."""
    (tmp_path / "a.jsonl").write_text("")
    code, _, err = run("--where", condition, "a.jsonl")
    assert (code, f"{condition!r} is not a condition" in err) == (2, True)


def test_conditions_choose_and_all_have_to_hold(run, tmp_path):
    """The last N are those of the events that match; lines that are no JSON match nothing."""
    (tmp_path / "a.jsonl").write_text(lines(*(event(n, status=n % 4, ok=n > 50) for n in range(100)), "event 100"))
    out = run("-n", 2, "--where", "status=3", "--where", "ok=true", "a.jsonl")[1]
    assert shown(out) == [95, 99]


def test_the_grammar_is_in_the_help(run):
    """With the rule for missing fields and other types."""
    out = run("--help")[1]
    assert where.GRAMMAR in out
    for condition in re.findall(r"^  (\S.*?)  ", where.GRAMMAR, re.MULTILINE):
        for each in condition.split(", "):
            where.parse(each)


def test_since_a_time_or_for_a_span(run, tmp_path):
    """All of them, not the last ten; what has no time goes with the line before it."""
    now = time.time() - 1_800_000_000
    old, new = [event(now - 3600 + n) for n in range(3)], [event(now - 60 + n, n=n) for n in range(12)]
    (tmp_path / "a.jsonl").write_text(lines(*old, "old text", *new, "new text"))
    out = run("--since", "10m", "--json", "a.jsonl")[1]
    assert len(out.splitlines()) == 13
    assert "old text" not in out
    assert len(run("--since", "2 hours", "a.jsonl")[1].splitlines()) == 17
    assert len(run("--since", "10m", "-n", 2, "a.jsonl")[1].splitlines()) == 2
    moment = dt.datetime.fromtimestamp(1_800_000_000 + now - 600, tz=dt.timezone.utc).isoformat()
    assert run("--since", moment, "--json", "a.jsonl")[1] == out
    code, _, err = run("--since", "yesterday", "a.jsonl")
    assert (code, "neither a span such as 10m nor a time" in err) == (2, True)


def test_files_are_merged_by_time(run, tmp_path):
    """Each keeps its order, compressed ones are read as well, and text stays behind the event it follows."""
    (tmp_path / "a.jsonl").write_text(lines(event(1), event(4), "text of event 4", event(7)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(event(2), event(5)).encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines(event(3), event(6)).encode()))
    for options in (("-n", "all"), ()):
        assert shown(run(*options, "a.jsonl", "b.jsonl.gz", "c.jsonl.zst")[1]) == [1, 2, 3, 4, 4, 5, 6, 7]


def test_a_compressed_file_that_is_cut_off_is_shown_as_far_as_it_goes(run, tmp_path):
    """As one is that a sink writes just now."""
    import random

    filler = random.Random(1)
    data = lines(*(event(n, filler=f"{filler.getrandbits(4000):x}") for n in range(400))).encode()
    for name, compressed in (("a.gz", gzip.compress(data)), ("a.zst", zstandard.compress(data))):
        (tmp_path / name).write_bytes(compressed[: len(compressed) // 2])
        _code, out, err = run("-n", "all", name)
        if name.endswith(".gz"):
            assert len(shown(out)) > 100
            assert "cut off" in err
        assert shown(out) == list(range(len(shown(out))))


def test_without_zstandard_it_says_what_to_install(run, tmp_path, monkeypatch):
    """And shows the other files."""
    (tmp_path / "a.zst").write_bytes(zstandard.compress(lines(event(1)).encode()))
    (tmp_path / "b").write_text(lines(event(2)))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    code, out, err = run("a.zst", "b")
    assert (code, shown(out)) == (1, [2])
    assert "pip install 'outfall[zstd]'" in err


def test_a_file_that_is_missing_is_told(run, tmp_path):
    """With 1, after the others."""
    (tmp_path / "b").write_text(lines(event(2)))
    code, out, err = run("nothing", "b", tmp_path)
    assert (code, shown(out)) == (1, [2])
    assert "'nothing': No such file or directory" in err


def test_stdin_is_a_dash(run, monkeypatch):
    """It is read to its end."""
    for options in ((), ("-n", "all")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(event(1), event(2)).encode())))
        assert shown(run(*options, "-")[1]) == [1, 2]


# -- following


def read(followed):
    """Return what is new, as text."""
    return [line.data.decode() for line in followed.read()]


@pytest.fixture
def followed(tmp_path):
    """A file with two lines that is followed from its end, and its path."""
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\n")
    made = Followed(str(path), at_end=True)
    yield made, path
    made.close()


def append(path, text):
    """Write as a sink does."""
    with path.open("a") as file:
        file.write(text)


def test_half_a_line_is_waited_for(followed):
    """It is given once it is whole, also the half that was there at the beginning."""
    made, path = followed
    assert read(made) == []
    append(path, "thr")
    assert read(made) == []
    append(path, "ee\nfour\nfi")
    assert read(made) == ["three", "four"]
    again = Followed(str(path), at_end=True)
    append(path, "ve\n")
    assert read(again) == ["five"]
    again.close()


def test_a_file_that_is_moved_away_is_followed_by_its_name(followed):
    """The rest of the old one first, half lines too; also when it rolled over more than once in between."""
    made, path = followed
    append(path, "three\nha")
    path.rename(path.with_suffix(".log.1"))
    append(path.with_suffix(".log.1"), "lf")
    assert read(made) == ["three"]
    path.write_text("four\n")
    assert read(made) == ["half", "four"]
    append(path, "five\n")
    for number, text in ((2, "six\n"), (1, "seven\n")):
        path.rename(path.with_suffix(f".log.{number}"))
        path.write_text(text)
    os.utime(path.with_suffix(".log.1"), ns=(2_000_000_000 * 10**9,) * 2)
    assert read(made) == ["five", "six", "seven"]


def test_files_that_were_compressed_between_two_looks_are_read_once(tmp_path):
    """Those that were not seen plain, in order. What was seen is not shown again, and half a file is not read."""
    path = tmp_path / "a.log"
    for number, text in ((0, "zero\n"), (1, "one\n")):
        (tmp_path / f"a.log.{number}").write_text(text)
    path.write_text("two\n")
    made = Followed(str(path), at_end=True)

    def compress(name, compressed, number):
        plain = tmp_path / name
        packed = tmp_path / f"{name}{compressed}"
        packed.write_bytes((gzip if compressed == ".gz" else zstandard).compress(plain.read_bytes()))
        os.utime(packed, ns=(number * 10**9,) * 2)
        plain.unlink()

    append(path, "three\n")
    path.rename(tmp_path / "a.log.2")
    for number, text in ((3, "four\n"), (4, "five\n")):
        (tmp_path / f"a.log.{number}").write_text(text)
    for number, compressed in enumerate((".gz", ".zst", ".gz", ".gz", ".zst")):
        compress(f"a.log.{number}", compressed, number)
    (tmp_path / "a.log.5.gz").write_bytes(gzip.compress(b"half\n")[:-9])
    (tmp_path / "a.log.5.gz.outfall-tmp").write_bytes(b"no line")
    path.write_text("six\n")
    assert read(made) == ["three", "four", "five", "six"]
    (tmp_path / "a.log.5.gz").unlink()
    path.rename(tmp_path / "a.log.6")
    path.write_text("seven\n")
    compress("a.log.6", ".gz", 6)
    assert read(made) == ["seven"]
    made.close()


def test_a_file_that_is_cut_off_is_read_from_its_beginning(followed):
    """Also if it is longer by now than it was."""
    made, path = followed
    path.write_text("1\n")
    assert read(made) == ["1"]
    with path.open("r+") as file:
        file.truncate()
        file.write("first\nsecond\nthird\n")
    assert read(made) == ["first", "second", "third"]


def test_a_file_may_come_later_and_go(tmp_path):
    """It is read from its beginning then."""
    path = tmp_path / "later.log"
    made = Followed(str(path), at_end=True)
    assert read(made) == []
    path.write_text("one\n")
    assert read(made) == ["one"]
    path.unlink()
    assert read(made) == []
    path.write_text("two\n")
    assert read(made) == ["two"]
    made.close()


class _Lines:
    """The output of a process, line by line, with a deadline."""

    def __init__(self, *arguments, cwd):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "outfall", "tail", "-f", *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = b""

    def until(self, word):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while word.encode() not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None, self.process.stderr.read()
            self.text += self.process.stdout.read() or b""
            time.sleep(0.01)
        return self.text.decode()


def test_it_follows_sinks_that_roll_over(tmp_path):
    """Several files, no event lost or shown twice; an interrupt ends it with 130 and no word."""
    sinks = [outfall.RotatingFileSink(tmp_path / f"{name}.jsonl", max_bytes=1000, backup_count=50) for name in "ab"]
    sinks[0].handle(event(0))
    tail = _Lines("a.jsonl", "b.jsonl", "--level", "info", cwd=tmp_path)
    try:
        tail.until("event 0 ".strip())
        for number in range(1, 200):
            sinks[number % 2].handle(event(number))
            sinks[0].handle(event(number + 1000, level="debug"))
        tail.until("event 198")  # the last of the one file
        text = tail.until("event 199")  # and of the other
        tail.process.send_signal(2)
        _, err = tail.process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        tail.process.kill()
        tail.process.wait()
    assert sorted(shown(text)) == list(range(200))
    assert (tail.process.returncode, err) == (130, b"")
    for sink in sinks:
        sink.close()


def test_a_reader_that_has_seen_enough_ends_it(tmp_path):
    """As with `| head -1`."""
    (tmp_path / "a.jsonl").write_text(lines(*(event(n, filler="x" * 1000) for n in range(500))))
    command = f"{sys.executable} -m outfall tail -n all a.jsonl | head -1"
    done = subprocess.run(
        [shutil.which("bash"), "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, shown(done.stdout), done.stderr) == (0, [0], "")


@pytest.mark.parametrize(("number", "expected"), [(["-n", "1"], [2, 7, 3]), (["-n", "all"], [1, 2, 7, 3])])
def test_what_comes_between_two_looks_is_shown_by_time_until_an_interrupt(run, tmp_path, monkeypatch, number, expected):
    """Of a file that is not there yet, too; the exit code is that of the signal."""
    (tmp_path / "a.jsonl").write_text(lines(event(1), event(2)))

    def sleep(seconds):
        if (tmp_path / "b.jsonl").exists():
            raise KeyboardInterrupt
        append(tmp_path / "a.jsonl", lines(event(7)))
        append(tmp_path / "b.jsonl", lines(event(3)))

    monkeypatch.setattr("outfall.adapters.commandline.tail.time.sleep", sleep)
    code, out, err = run("-f", *number, "a.jsonl", "b.jsonl")
    assert code == 130
    assert sorted(shown(out)) == sorted(expected)
    assert "b.jsonl' is not there yet" in err
