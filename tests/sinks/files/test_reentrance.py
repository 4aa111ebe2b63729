"""Signal handlers that log while the sink rolls over: nothing is lost, nothing comes twice, and nobody is blamed."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from outfall import RotatingFileSink, TimedRotatingFileSink
from outfall.sinks.testing import assert_balanced

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

    Make = Callable[..., Any]


def _by_size(path: Path, **options: Any) -> RotatingFileSink:
    return RotatingFileSink(path, **{"max_bytes": 100, "backup_count": 1000, **options})


def _by_time(path: Path, **options: Any) -> TimedRotatingFileSink:
    return TimedRotatingFileSink(path, when="midnight", **{"max_bytes": 100, **options})


SINKS: dict[str, tuple[Make, dict[str, Any]]] = {
    "size": (_by_size, {}),
    "size, processes": (_by_size, {"multiprocess": True}),
    "size, pipeline": (_by_size, {"terminator": "\r\n"}),
    "size, buffered": (_by_size, {"buffer_bytes": 90}),
    "time": (_by_time, {}),
    "time, processes": (_by_time, {"multiprocess": True}),
}
EACH = pytest.mark.parametrize(("make", "options"), SINKS.values(), ids=SINKS.keys())


def _numbers(directory: Path) -> list[int]:
    lines = [line for file in directory.iterdir() for line in file.read_bytes().splitlines()]
    return sorted(json.loads(line)["n"] for line in lines)


class _Injection:
    """Has *function* called once, at the *step*-th place from here on where the interpreter looks for signals."""

    def __init__(self, step: int, function: Callable[[], object]) -> None:
        self.steps = 0
        self._step = step
        self._function = function

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        # At the start of a function, and when one written in C has returned.
        if event not in ("call", "c_return") or argument is sys.setprofile:
            return
        self.steps += 1
        if self.steps == self._step:
            self._function()


@EACH
@pytest.mark.parametrize(
    ("nested", "stride"),
    [
        pytest.param(1, 31, id="one event"),
        pytest.param(3, 37, id="a rollover"),
        pytest.param(1, 3, id="one event, each step", marks=pytest.mark.slow),
        pytest.param(3, 11, id="a rollover, each step", marks=pytest.mark.slow),
    ],
)
def test_an_event_at_each_step_of_a_rollover_is_written_once(tmp_path, make, options, nested, stride):
    """A handler may run between any two steps; what it logs is in a file, as is all that came before and after."""
    if make is _by_time:
        stride *= 5  # it takes five times as many steps, most of them with names
    step, steps = 1 - stride, 2
    while step < steps:
        step += stride
        directory = tmp_path / str(step)
        directory.mkdir()
        told: list[Any] = []
        sink = make(directory / "app.log", on_error=told.append, **options)
        for number in range(3):
            sink.handle({"n": number, "level": "info", "event": "x" * 20})

        def interrupt(sink: Any = sink) -> None:
            for number in range(nested):
                sink.handle({"n": 100 + number, "level": "error", "event": "x" * 20})

        with _Injection(step, interrupt) as injection:
            for number in (3, 4):
                sink.handle({"n": number, "level": "info", "event": "x" * 20})
        for number in (5, 6, 7):
            sink.handle({"n": number, "level": "info", "event": "x" * 20})
        assert sink.close()
        expected = [*range(8), *range(100, 100 + nested)] if injection.steps >= step else list(range(8))
        assert (told, _numbers(directory)) == ([], expected), step
        assert sink.stats().delivered == len(expected), step
        assert_balanced(sink.stats())
        assert not sink._place.rolling
        # How many steps there are is known after the first round; an event in between makes more of them.
        steps = max(steps, injection.steps) if step == 1 else steps
        shutil.rmtree(directory)
    assert steps > 200


@EACH
def test_a_timer_that_logs_all_the_time_costs_nothing(tmp_path, make, options):
    """Every half millisecond, wherever the sink is just then."""
    told: list[Any] = []
    # Not more files than a rollover can shift between two ticks.
    sink = make(tmp_path / "app.log", on_error=told.append, **{**options, "max_bytes": 1500})
    count = depth = 0

    def interrupt(*_: object) -> None:
        nonlocal count, depth
        if depth < 2:  # where a handler takes longer than the timer's interval they pile up without end
            depth += 1
            count += 1
            sink.handle({"n": 1_000_000 + count, "level": "info"})
            depth -= 1

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.000_5, 0.000_5)
    number = 0
    try:
        while count < 60 and number < 5000:
            sink.handle({"n": number, "level": "info", "event": "x" * 20})
            number += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sink.close()
    if sys.version_info < (3, 11):
        # It hears signals between any two steps, also between a count and its write: a line more in the file than
        # counted is then taken for another process's, and told. Nothing is lost.
        told = [failure for failure in told if failure.events or not isinstance(failure.error, RuntimeWarning)]
    assert told == []
    assert _numbers(tmp_path) == [*range(number), *range(1_000_001, 1_000_001 + count)]
    assert sink.stats().delivered == number + count
    assert count
