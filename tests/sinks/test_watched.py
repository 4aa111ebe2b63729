"""A file that others move, delete and truncate."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from outfall import FileSink, Sink, SinkFailure, WatchedFileSink
from outfall.sinks import truncation, watched
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._processes import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TestWatchedFileSink(SinkContract):
    """A file that is watched."""

    options: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole by subclasses

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "events.jsonl"

    def make_sink(self, **options: Any) -> Sink:
        return WatchedFileSink(self.path, **self.options, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class TestBufferedWatchedFileSink(TestWatchedFileSink):
    """A file that is watched, with a buffer."""

    options = {"buffer_bytes": 4096}  # noqa: RUF012


class Watching:
    """A sink on ``app.log``, what it reported, and what it is made for."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.path = directory / "app.log"
        self.failures: list[SinkFailure] = []
        self.sink = WatchedFileSink(self.path, **{"on_error": self.failures.append, **options})

    def log(self, *numbers: int) -> None:
        for number in numbers:
            self.sink.handle({"event": "counted", "level": "info", "number": number})

    def rotate(
        self,
        *between: int,
        copy: str = "app.log.1",
        opener: Callable[..., Any] = open,
        cut: int = 0,
        log: Callable[..., None] | None = None,
    ) -> Path:
        """Copy, all but *cut* bytes, and truncate, as ``copytruncate`` does, while the numbers *between* are logged."""
        target = self.path.with_name(copy)
        content = self.path.read_bytes()
        with opener(target, "wb") as file:
            file.write(content[: len(content) - cut])
        (log or self.log)(*between)
        os.truncate(self.path, 0)
        return target


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    """Give a sink on ``app.log`` in a directory of its own."""
    made = Watching(tmp_path)
    yield made
    made.sink.close()
    assert_balanced(made.sink.stats())


def numbers(path: Path, opener: Callable[..., Any] = open) -> list[int]:
    """Return the numbers of the events in a file, each of which is whole."""
    with opener(path, "rb") as file:
        content = file.read()
    assert not content or content.endswith(b"\n")
    return [json.loads(line)["number"] for line in content.splitlines()]


# -- the real rotator

_SECONDS_OF_ROTATION = 1.0


def _rotate_for_a_while(
    sink: Sink, logrotate: str, directory: Path, directives: str, seconds: float = _SECONDS_OF_ROTATION
) -> tuple[int, int]:
    """Have four threads write while logrotate is forced again and again; return how many events, how many rotations."""
    configuration, state = directory / "logrotate.conf", directory / "state"
    own = "" if os.geteuid() else "su root root\n"
    configuration.write_text(f'"{directory}/logs/app.log" {{\n{own}rotate 100\nmissingok\n{directives}\n}}\n')
    configuration.chmod(0o644)
    stop = threading.Event()
    counts = [0] * 4

    def write(thread: int) -> None:
        while not stop.is_set():
            sink.handle({"event": "x" * (counts[thread] % 200), "thread": thread, "number": counts[thread]})
            counts[thread] += 1

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    rotations = 0
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            subprocess.run([logrotate, "-f", "-s", state, configuration], check=True, timeout=30)
            rotations += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return sum(counts), rotations


def _events_in(directory: Path) -> tuple[Counter[tuple[int, int]], int]:
    """Return the events in the files of *directory* by how often, and how many lines are torn."""
    found: Counter[tuple[int, int]] = Counter()
    torn = 0
    for path in directory.iterdir():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                event = json.loads(line)
                found[event["thread"], event["number"]] += 1
                torn += not line.endswith(b"\n")
            except ValueError:
                torn += 1
    return found, torn


@pytest.mark.service
@pytest.mark.parametrize("directives", ["create", "create 0640", "nocreate", "copytruncate"])
def test_logrotate_costs_no_event(directives, tmp_path, require_service):
    """While logrotate is forced again and again each event of four threads comes to stand in exactly one file."""
    logrotate = require_service("logrotate")
    (tmp_path / "logs").mkdir(mode=0o755)
    failures: list[SinkFailure] = []
    with WatchedFileSink(tmp_path / "logs" / "app.log", on_error=failures.append) as sink:
        events, rotations = _rotate_for_a_while(sink, logrotate, tmp_path, directives)
    found, torn = _events_in(tmp_path / "logs")
    assert rotations >= 5
    assert failures == []
    assert len(found) == events == sink.stats().delivered
    assert set(found.values()) == {1}
    assert torn == 0
