"""Several handlers of one process on one file, as a configuration that is loaded again leaves them."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from outfall.adapters.handlers import RotatingFileHandler, TimedRotatingFileHandler
from tests.sinks._processes import PATIENCE_SECONDS


def _record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text})


def _by_time(path):
    handler = TimedRotatingFileHandler(path, when="S", interval=3600)
    handler.shouldRollover = lambda record: bool(handler.stream) and handler.stream.tell() > 3000
    return handler


@pytest.mark.parametrize(
    "make", [lambda path: RotatingFileHandler(path, maxBytes=3000, backupCount=1000), _by_time], ids=["size", "time"]
)
def test_handlers_on_one_file_lose_nothing(tmp_path, make):
    """From several threads, through many rollovers by each, all lines are there."""
    handlers = [make(tmp_path / "app.log") for _ in range(5)]
    barrier = threading.Barrier(len(handlers))

    def work(index: int) -> None:
        barrier.wait(PATIENCE_SECONDS)
        for number in range(300):
            handlers[index].handle(_record(f"{index} {number} " + "x" * 30))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(handlers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    for handler in handlers:
        handler.close()
    lines = [line.split()[:2] for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert sorted(lines) == sorted([str(index), str(number)] for index in range(5) for number in range(300))
    assert len(list(tmp_path.iterdir())) > 5


def test_a_rollover_is_not_come_between_by_another_handler(tmp_path):
    """Who would roll over as well waits until the file has been moved: no backup is written over."""
    first, second = (RotatingFileHandler(tmp_path / "app.log", maxBytes=100, backupCount=1000) for _ in range(2))
    rolling, done = threading.Event(), threading.Event()

    def rotator(source: str, dest: str) -> None:
        rolling.set()
        done.wait(0.2)
        if os.path.exists(source):
            os.replace(source, dest)

    def work() -> None:
        rolling.wait(PATIENCE_SECONDS)
        for number in (2, 3):
            second.handle(_record(f"{number} " + "x" * 80))
        done.set()

    first.handle(_record("0 " + "x" * 80))
    first.rotator = rotator
    thread = threading.Thread(target=work)
    thread.start()
    first.handle(_record("1 " + "x" * 80))
    thread.join(PATIENCE_SECONDS)
    first.close()
    second.close()
    assert sorted(file.read_text()[0] for file in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_a_namer_that_logs_by_the_other_handler_on_the_file_stops_nobody(tmp_path):
    """Neither waits for ever for the turn that the other has."""
    handlers = [RotatingFileHandler(tmp_path / "app.log", maxBytes=200, backupCount=1000) for _ in range(2)]

    def namer_of(other):
        def namer(name: str) -> str:
            if not name.endswith(".2"):
                other.handle(_record("named"))
            return name

        return namer

    handlers[0].namer = namer_of(handlers[1])
    for number in range(50):
        handlers[number % 2].handle(_record(f"line {number:030d}"))
    for handler in handlers:
        handler.close()
    text = "".join(file.read_text() for file in tmp_path.iterdir())
    assert sorted(line for line in text.splitlines() if line != "named") == [f"line {n:030d}" for n in range(50)]
