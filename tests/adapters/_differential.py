"""The same script of operations, run by a handler of the standard library and by its twin, with what each left behind.

A script is a list of operations. An operation is anything with ``run(world)``; what it returns or raises is compared,
and after each the world is looked at by the script's ``look``. The two worlds have a directory each.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: When records are made, in epoch seconds.
CREATED = 1_700_000_000.25


class Trouble(Exception):
    """What a hook raises here on purpose."""


def _exc_info():
    try:
        raise Trouble("on purpose")
    except Trouble:
        return sys.exc_info()


_EXC_INFO = _exc_info()


@dataclass(frozen=True)
class Said:
    """What is logged; a fresh record is made of it for each handler, since formatters write into records."""

    message: Any
    args: tuple[Any, ...] = ()
    level: int = logging.INFO
    name: str = "app"
    extra: tuple[tuple[str, Any], ...] = ()
    failed: bool = False
    stack: str | None = None

    def record(self) -> logging.LogRecord:
        """Return it as a record."""
        record = logging.LogRecord(
            self.name, self.level, "/app/main.py", 7, self.message, self.args, _EXC_INFO if self.failed else None
        )
        record.created, record.msecs, record.stack_info = CREATED, 250.0, self.stack
        record.__dict__.update(self.extra)
        return record


def messages(text: st.SearchStrategy[str]) -> st.SearchStrategy[Said]:
    """Give things to log whose texts are from *text*; a few cannot be formatted."""
    fields = st.lists(st.tuples(st.sampled_from(["user", "request", "colour"]), text), max_size=2, unique_by=min)
    plain = st.builds(
        Said,
        message=text.map(lambda value: value.replace("%", "")),
        level=st.sampled_from([5, 10, 20, 25, 30, 40, 50]),
        name=st.sampled_from(["app", "app.db", "root"]),
        extra=fields.map(tuple),
        failed=st.booleans(),
        stack=st.sampled_from([None, None, "Stack (most recent call last):\n  here"]),
    )
    with_args = st.builds(lambda value, number: Said("%s has %d", (value, number)), text, st.integers(-9, 9))
    wrong = st.sampled_from([Said("%d", ("no number",)), Said("%s %s", ("one",))])
    return st.one_of(plain, plain, with_args, wrong)


def formatters() -> st.SearchStrategy[Callable[[], logging.Formatter | None]]:
    """Give makers of formatters, of each style and kind."""
    return st.sampled_from(
        [
            _none,
            _percent,
            _brace,
            _dollar,
            _timed,
            _structlog_json,
            _structlog_console,
        ]
    )


def _none():
    return None


def _percent():
    return logging.Formatter("%(levelname)s %(name)s:%(lineno)d %(message)s")


def _brace():
    return logging.Formatter("{levelno:>3} {message}", style="{")


def _dollar():
    return logging.Formatter("$name says ${message}", style="$", defaults={"user": "nobody"})


def _timed():
    return logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")


def _structlog_json():
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
    )


def _structlog_console():
    # Not rich's traceback, which is the default where rich is installed: it shows what locals are, addresses included.
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    return structlog.stdlib.ProcessorFormatter(processor=console)


def watching(kind: type[logging.Handler]) -> Any:
    """Return a subclass of *kind* that keeps what comes to ``handleError`` in ``failures``."""

    def handle_error(self, record):
        self.__dict__.setdefault("failures", []).append(type(sys.exc_info()[1]).__name__)

    return type(kind)(kind.__name__, (kind,), {"handleError": handle_error})


@dataclass
class World:
    """Where a script runs: a handler and a directory."""

    handler: Any
    directory: Path
    seen: dict[str, Any] = field(default_factory=dict)


def play(
    handler: Callable[[], Any],
    directory: Path,
    script: Sequence[Any],
    look: Callable[[World], Any],
) -> list[Any]:
    """Run *script* and return the name of each operation with what came of it, and what the world looked like then."""
    world = World(handler(), directory)
    history: list[Any] = [("made", None, look(world))]
    try:
        for operation in script:
            try:
                outcome: Any = operation.run(world)
            except Exception as error:
                outcome = type(error).__name__
            history.append((operation, outcome, look(world)))
    finally:
        world.handler.close()
    history.append(("closed", None, look(world)))
    return history


def tree(directory: Path) -> dict[str, bytes]:
    """Return what is in *directory*: names and contents."""
    return {entry.name: (directory / entry.name).read_bytes() for entry in os.scandir(directory)}


def attributes(handler: Any, *names: str) -> dict[str, Any]:
    """Return the attributes of *handler* that have *names*, in a form that can be compared between worlds."""
    return {name: _comparable(getattr(handler, name, "(none)")) for name in names}


def _comparable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, tuple)):
        return value
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    if hasattr(value, "pattern"):
        return value.pattern
    return type(value).__name__ if callable(value) else "(some)"


# -- operations of every handler


@dataclass(frozen=True)
class Log:
    """Have the handler handle a record."""

    said: Said

    def run(self, world):
        return bool(world.handler.handle(self.said.record()))


@dataclass(frozen=True)
class Format:
    """Set the formatter."""

    make: Callable[[], logging.Formatter | None]

    def run(self, world):
        world.handler.setFormatter(self.make())


@dataclass(frozen=True)
class Filter:
    """Set the filters to one that lets pass what *accepts* says."""

    accepts: Callable[[logging.LogRecord], Any] | None

    def run(self, world):
        world.handler.filters[:] = [] if self.accepts is None else [self.accepts]


@dataclass(frozen=True)
class Set:
    """Set an attribute."""

    name: str
    value: Any

    def run(self, world):
        setattr(world.handler, self.name, self.value)


@dataclass(frozen=True)
class Call:
    """Call a method; what it returns is not compared, what it raises is."""

    name: str
    args: tuple[Any, ...] = ()

    def run(self, world):
        getattr(world.handler, self.name)(*self.args)
