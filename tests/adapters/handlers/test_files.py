"""The twins of the handlers for streams and files, beside their originals."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import time as _time
from pathlib import Path

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from outfall.adapters import handlers as twins
from tests.adapters._differential import (
    Call,
    Filter,
    Format,
    Log,
    Said,
    Set,
    attributes,
    formatters,
    messages,
    play,
    tree,
    watching,
)
from tests.sinks._processes import run

NOW = 1_700_000_000
ORIGINALS = {
    "StreamHandler": logging.StreamHandler,
    "FileHandler": logging.FileHandler,
    "WatchedFileHandler": logging.handlers.WatchedFileHandler,
    "RotatingFileHandler": logging.handlers.RotatingFileHandler,
    "TimedRotatingFileHandler": logging.handlers.TimedRotatingFileHandler,
}


@contextmanager
def both():
    """Give two empty directories."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        yield Path(one), Path(other)


def assert_same(name, make, script, look, before=None):
    """Run *script* by the original and by the twin, and compare."""
    with both() as directories:
        histories = []
        for kind, directory in zip((ORIGINALS[name], getattr(twins, name)), directories, strict=True):
            if before is not None:
                (directory / "app.log").write_bytes(before)
                os.utime(directory / "app.log", (NOW - 100, NOW - 100))
            with time_machine.travel(NOW, tick=False) as clock:
                made = watching(kind)

                def handler(made=made, directory=directory, clock=clock):
                    handler = make(made, directory / "app.log")
                    handler.clock = clock
                    return handler

                histories.append(play(handler, directory, script, look))
        assert histories[1] == histories[0]


# -- operations


@dataclass(frozen=True)
class Raw:
    """Write something to the handler's stream that is no record."""

    text: str

    def run(self, world):
        written = world.handler.stream.write(self.text)
        world.handler.stream.flush()
        return written


@dataclass(frozen=True)
class Append:
    """Be somebody else who appends to the file."""

    data: bytes

    def run(self, world):
        with (world.directory / "app.log").open("ab") as file:
            file.write(self.data)


@dataclass(frozen=True)
class Move:
    """Be somebody else who moves the file away, and makes it anew if *create*."""

    create: bool

    def run(self, world):
        path = world.directory / "app.log"
        number = world.seen["moves"] = world.seen.get("moves", 0) + 1
        if path.exists():
            path.rename(world.directory / f"moved.{number}")
            if self.create:
                path.touch()


class Delete:
    """Be somebody else who deletes the file."""

    def run(self, world):
        (world.directory / "app.log").unlink(missing_ok=True)


@dataclass(frozen=True)
class Tick:
    """Let time pass."""

    seconds: float

    def run(self, world):
        world.handler.clock.shift(self.seconds)


class Stamp:
    """Compare what the handler says of its name."""

    def run(self, world):
        stream = world.handler.stream
        return repr(world.handler).replace(str(world.directory), ""), stream is None or stream.closed


# -- streams


class Watched(io.StringIO):
    """A stream that keeps the calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def write(self, text):
        self.calls.append(text)
        return super().write(text)

    def flush(self):
        self.calls.append(None)


@dataclass(frozen=True)
class Exchange:
    """Go on with another stream."""

    by_method: bool

    def run(self, world):
        streams = world.seen["streams"]
        other = streams[world.handler.stream is streams[0]]
        if self.by_method:
            return world.handler.setStream(other) is not None
        world.handler.stream = other
        return world.handler.setStream(other) is None


def _look_at_streams(world):
    streams = world.seen.setdefault("streams", [world.handler.stream, Watched()])
    return [stream.calls[:] for stream in streams], attributes(world.handler, "terminator", "level", "failures")


ANY_TEXT = st.text(max_size=20)


@given(
    st.lists(
        st.one_of(
            messages(ANY_TEXT).map(Log),
            messages(ANY_TEXT).map(Log),
            formatters().map(Format),
            st.sampled_from(["\n", "", "\r\n", "\0", " | "]).map(lambda value: Set("terminator", value)),
            st.booleans().map(Exchange),
            st.sampled_from([Call("flush"), Call("close"), Call("setLevel", ("ERROR",)), Filter(None)]),
            st.sampled_from([Filter(lambda record: record.levelno > 20), Filter(logging.Filter("app"))]),
        ),
        max_size=12,
    )
)
def test_streams_get_the_same_calls(script):
    """Whatever is done to a StreamHandler, its stream gets the same writes and flushes from the twin."""
    assert_same("StreamHandler", lambda kind, path: kind(Watched()), script, _look_at_streams)


# -- files

FILE_ATTRIBUTES = ("mode", "encoding", "errors", "delay", "terminator", "level", "_closed", "failures")


def _look_at_files(*more):
    def look(world):
        handler = world.handler
        return (
            tree(world.directory),
            attributes(handler, *FILE_ATTRIBUTES, *more),
            handler.stream is None,
            Path(handler.baseFilename).relative_to(world.directory),
        )

    return look


#: Encodings and error handlers, with texts that can be written so, or whose failure is the same.
WRITABLE = st.one_of(
    st.tuples(st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]), st.none(), st.just(st.text(max_size=20))),
    st.tuples(st.just("latin-1"), st.none(), st.just(st.text(st.characters(max_codepoint=255), max_size=20))),
    st.tuples(st.none(), st.none(), st.just(st.text(st.characters(max_codepoint=127), max_size=20))),
    st.tuples(
        st.sampled_from(["ascii", "latin-1", "cp1252"]),
        st.sampled_from(["strict", "replace", "ignore", "backslashreplace", "xmlcharrefreplace"]),
        st.just(st.text(max_size=20)),
    ),
    st.tuples(st.just("utf-8"), st.sampled_from(["surrogatepass", "surrogateescape", "strict"]), st.just(ANY_TEXT)),
)


@st.composite
def file_scripts(draw, *more, modes=("a", "a", "w", "x")):
    """Give what a handler is made with, and what is then done."""
    encoding, errors, text = draw(WRITABLE)
    mode = draw(st.sampled_from(modes))
    operations = [
        messages(text).map(Log),
        messages(text).map(Log),
        formatters().map(Format),
        st.sampled_from(["\n", "\r\n", ";\n"]).map(lambda value: Set("terminator", value)),
        st.sampled_from([Call("flush"), Call("setLevel", (30,)), Stamp(), Filter(None)]),
        st.just(Raw("by hand\n")),
    ]
    if mode == "a":
        # What the other modes do after close() is a row of the table.
        operations += [st.just(Call("close")), *more]
        if encoding not in {"utf-16", "utf-8-sig"}:
            operations.append(st.just(Append(b"from elsewhere\n")))
    script = draw(st.lists(st.one_of(operations), max_size=12))
    arguments = {"mode": mode, "encoding": encoding, "errors": errors, "delay": draw(st.booleans())}
    before = draw(st.sampled_from([None, b"", "before\n".encode(encoding or "ascii")])) if mode != "x" else None
    return arguments, script, before


@given(file_scripts())
@settings(max_examples=60)
def test_files_get_the_same_bytes(given):
    """Whatever is done to a FileHandler and its file, the twin leaves the same bytes and attributes behind."""
    arguments, script, before = given
    assert_same("FileHandler", lambda kind, path: kind(path, **arguments), script, _look_at_files(), before)


@given(file_scripts(st.booleans().map(Move), st.just(Delete()), modes=("a",)))
@settings(max_examples=50)
def test_watched_files_get_the_same_bytes(given):
    """Whatever is done to a WatchedFileHandler and its file, moved or deleted, the twin leaves the same behind."""
    arguments, script, before = given
    assert_same("WatchedFileHandler", lambda kind, path: kind(path, **arguments), script, _look_at_files(), before)


# -- files that roll over by size


def _dotted(name):
    return f"{name}.old"


def _inside(name):
    stem, _, number = name.rpartition(".")
    return f"{stem.removesuffix('.log')}-{number}.log"


def _moving(source, dest):
    shutil.move(source, dest)


def _packing(source, dest):
    Path(dest).write_bytes(Path(source).read_bytes()[::-1])
    Path(source).unlink()


@dataclass(frozen=True)
class RollOver:
    """Have the handler roll over by hand, which for an empty file is a row of the table, and write a record."""

    after_seconds: float = 0

    def run(self, world):
        path = world.directory / "app.log"
        world.handler.clock.shift(self.after_seconds)
        if path.exists() and path.stat().st_size:
            world.handler.doRollover()
            world.handler.handle(Said("x" * 7).record())


#: All lines are multiples of 4 bytes long, and no limit is, so that no line fits exactly: that is a row of the table.
LINES = st.integers(0, 9).map(lambda count: Said("x" * (4 * count + 3)))
NAMER = st.sampled_from([None, _dotted, _inside]).map(lambda value: Set("namer", value))
HOOKS = [
    st.sampled_from([None, _moving, _packing]).map(lambda value: Set("rotator", value)),
    st.booleans().map(lambda value: Set("delay", value)),
]


@given(
    st.fixed_dictionaries(
        {
            "mode": st.just("a"),
            "maxBytes": st.sampled_from([0, 42, 62]),
            "backupCount": st.integers(0, 3),
            "delay": st.booleans(),
            "encoding": st.sampled_from([None, "utf-8"]),
        }
    ),
    st.lists(
        st.one_of(
            LINES.map(Log),
            LINES.map(Log),
            LINES.map(Log),
            NAMER,
            *HOOKS,
            st.sampled_from([0, 42, 82]).map(lambda value: Set("maxBytes", value)),
            st.sampled_from([RollOver(), Call("close"), Call("flush"), Stamp()]),
        ),
        max_size=20,
    ),
    st.sampled_from([None, b"", b"xxx\n", b"x" * 47 + b"\n"]),
)
@settings(max_examples=50)
def test_files_that_roll_over_by_size_get_the_same_bytes(arguments, script, before):
    """Whatever is done to a RotatingFileHandler, the twin leaves the same files and attributes behind."""
    look = _look_at_files("maxBytes", "backupCount", "namer", "rotator")
    assert_same("RotatingFileHandler", lambda kind, path: kind(path, **arguments), script, look, before)


# -- files that roll over by time


@pytest.fixture(scope="module", autouse=True)
def _zone():
    """Be in a zone without daylight saving time, which is a row of the table."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kolkata"
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@dataclass(frozen=True)
class Rename:
    """Have rotated files named in another way from now on."""

    suffix: str
    pattern: str

    def run(self, world):
        world.handler.suffix = self.suffix
        world.handler.extMatch = re.compile(self.pattern)


DAY = 86_400
#: Until Python 3.13 the original takes files for its own that its namer would not have made.
NAMERS = [None, _dotted, *([_inside] if sys.version_info >= (3, 13) else [])]


@given(
    st.fixed_dictionaries(
        {
            "when": st.sampled_from(["s", "M", "h", "D", "midnight", "W0", "W3", "w6"]),
            "backupCount": st.integers(0, 3),
            "delay": st.booleans(),
            "utc": st.booleans(),
            "atTime": st.sampled_from([None, None, _time(12, 30), _time(0), _time(23, 59, 59)]),
        }
    ),
    st.lists(
        st.one_of(
            LINES.map(Log),
            LINES.map(Log),
            st.sampled_from([0.5, 1, 59, 60, 1800, 3600, 5000, 40_000, DAY, 3 * DAY, 8 * DAY]).map(Tick),
            *HOOKS,
            st.sampled_from([RollOver(9 * DAY), Call("close"), Call("flush"), Stamp()]),
            st.just(Rename("%Y%m%d_%H%M%S", r"\d{8}_\d{6}")),
            st.integers(0, 3).map(lambda value: Set("backupCount", value)),
        ),
        max_size=20,
    ),
    st.sampled_from(NAMERS),
    st.sampled_from([b"xxx\n", b"x" * 47 + b"\n"]),
)
@settings(max_examples=50)
def test_files_that_roll_over_by_time_get_the_same_bytes(arguments, script, namer, before):
    """Whatever is done to a TimedRotatingFileHandler as time passes, the twin leaves the same files behind."""
    look = _look_at_files(
        "when", "interval", "backupCount", "suffix", "utc", "atTime", "rolloverAt", "dayOfWeek", "namer", "rotator"
    )

    def make(kind, path):
        handler = kind(path, **arguments)
        handler.namer = namer
        return handler

    assert_same("TimedRotatingFileHandler", make, script, look, before)


@pytest.mark.parametrize(
    "name", ["FileHandler", "RotatingFileHandler", "TimedRotatingFileHandler", "WatchedFileHandler"]
)
def test_a_record_is_written_when_the_interpreter_ends(name, tmp_path):
    """logging.shutdown has closed the file by then; it is opened again though the name `open` is gone."""
    script = f"""
        import builtins, logging, sys
        from outfall.adapters.handlers import {name}
        class Last:
            def __init__(self):
                self.handler = {name}(sys.argv[1], encoding="utf-8")
                self.record = logging.makeLogRecord({{"msg": "last words"}})
            def __del__(self):
                self.handler.handle(self.record)
        builtins.last = Last()
        """
    result = run(script, tmp_path / "log")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == "last words\n"
