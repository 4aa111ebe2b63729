"""The facade: what `outfall` exports, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import logging
import os
import queue
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import outfall

# Imported on first use by the sinks that need them; most programs never do.
HEAVY = ["requests", "smtplib", "multiprocessing"]


def _literal_all() -> list[str]:
    tree = ast.parse(Path(outfall.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            assert isinstance(names, list)
            return names
    pytest.fail("outfall/__init__.py assigns no __all__")


def test_all_is_a_literal_that_names_every_public_name_once():
    """What `__all__` lists and what the facade has are the same, so that no name is public by accident."""
    names = _literal_all()
    # Submodules become attributes when they are imported; `annotations` is what a __future__ import leaves.
    public = [
        name
        for name in dir(outfall)
        if not name.startswith("_") and name != "annotations" and not isinstance(getattr(outfall, name), ModuleType)
    ]
    assert sorted(names) == sorted(public)


def test_every_name_in_all_can_be_imported():
    """A star import gives exactly what `__all__` promises."""
    namespace: dict[str, object] = {}
    exec("from outfall import *", namespace)
    assert sorted(namespace.keys() - {"__builtins__"}) == sorted(_literal_all())


def test_what_is_imported_is_what_type_checkers_read():
    """Each name comes from the module that the imports for type checkers name, and no name is missing in either."""
    tree = ast.parse(Path(outfall.__file__).read_text(encoding="utf-8"))
    [branch] = [node for node in tree.body if isinstance(node, ast.If)]
    read = {alias.name: node.module for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert read == {name: f"outfall.{module}" for name, module in outfall._MODULES.items()}
    assert sorted(read) == sorted(_literal_all())


def test_a_name_that_is_not_there_raises():
    """A misspelt name is an AttributeError, not a surprise later."""
    with pytest.raises(AttributeError, match="FileSnk"):
        _ = outfall.FileSnk


def test_the_version_is_the_distribution_s_only_one():
    """No module repeats the version: the metadata is the one place that has it."""
    assert not hasattr(outfall, "__version__")


def _modules_after(code: str) -> set[str]:
    # Coverage measures children by importing itself, and multiprocessing with it, into each of them.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_importing_a_file_sink_imports_nothing_heavy():
    """`from outfall import FileSink` brings no HTTP client, no SMTP client and no multiprocessing."""
    modules = _modules_after("from outfall import FileSink")
    assert "outfall" in modules
    assert [name for name in HEAVY if name in modules] == []


# -- the names, and how they are called

SNAPSHOT = Path(__file__).with_name("names.txt")


def test_the_public_names_are_those_that_were_agreed():
    """A name comes or goes on purpose: by a change of ``names.txt``, and a line in the changelog."""
    assert sorted(_literal_all()) == SNAPSHOT.read_text(encoding="utf-8").split()


SINKS = [
    getattr(outfall, name)
    for name in outfall.__all__
    if isinstance(getattr(outfall, name), type) and issubclass(getattr(outfall, name), outfall.Sink)
]

#: Where one name has several defaults, and why.
DEFAULTS_THAT_DIFFER = {
    "target": "BackgroundSink and SpoolSink are nothing without one; MemoryHandler has None",
    "capacity": "that of MemoryHandler is to be given",
    "terminator": "ByteSink's writers may need none; whoever writes lines ends them",
    "timeout": "each protocol has its own; HTTPSink has one for connecting and one for the rest",
    "clock": "HTTPSink reads dates by it, the others wait by it",
    "max_connection_age": "GELFDatagramSink resolves a name again once a minute; connections last",
    "port": "Graylog and Fluentd have a usual one",
    "nodelay": "FluentSink waits for the answer to each message",
    "compression": "messages of GELF are compressed, by a way of their own; requests and files are not",
    "backup_count": "RotatingFileSink keeps five files where max_bytes alone is given; the others keep all",
    "max_bytes": "of a file that rolls over, where 0 is never, as in the handlers; of a spool, all it may keep",
}


def _parameters(sink):
    given = inspect.signature(sink).parameters.items()
    return {name: each for name, each in given if name != "self" and each.kind is not each.VAR_KEYWORD}


@pytest.mark.parametrize("sink", SINKS, ids=lambda sink: sink.__name__)
def test_what_every_sink_takes_comes_last_and_is_the_same(sink):
    """Level, processors, on_error and name, in this order, by keyword alone, with the defaults of `Sink`."""
    own, base = _parameters(sink), _parameters(outfall.Sink)
    last = list(own)[-len(base) :]
    assert last == list(base) == ["level", "processors", "on_error", "name"]
    for name in last:
        assert own[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert own[name].default == base[name].default


def test_a_parameter_means_the_same_everywhere():
    """Parameters of one name have one default, those apart that are listed with a reason."""
    defaults = {}
    for sink in SINKS:
        for name, each in _parameters(sink).items():
            if each.kind is not inspect.Parameter.VAR_POSITIONAL:
                defaults.setdefault(name, set()).add(repr(each.default))
    assert {name for name, found in defaults.items() if len(found) > 1} == DEFAULTS_THAT_DIFFER.keys()


def test_keywords_come_in_the_same_order_everywhere():
    """What two sinks both take by keyword, both list in one order, but for those that are named here."""
    # The base class for writers ends with what few of them need; a syslog is reached within a time first.
    apart = {("ByteSink",), ("SocketSink", "SysLogSink"), ("FluentSink", "SysLogSink")}
    # The compression and the time-out of requests and of files are things of their own.
    for rotating in ("BaseRotatingFileSink", "RotatingFileSink", "TimedRotatingFileSink"):
        for other in ("HTTPSink", "GELFDatagramSink"):
            apart |= {(other, rotating), (rotating, other)}
    orders = {
        sink.__name__: [name for name, each in _parameters(sink).items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
        for sink in SINKS
        if (sink.__name__,) not in apart
    }
    for one, other in itertools.combinations(orders, 2):
        if (one, other) in apart:
            continue
        shared = set(orders[one]) & set(orders[other])
        assert [name for name in orders[one] if name in shared] == [name for name in orders[other] if name in shared], (
            f"{one}, {other}"
        )


@pytest.mark.parametrize("sink", SINKS, ids=lambda sink: sink.__name__)
def test_each_parameter_is_described(sink):
    """Its name stands in the ``Args:`` of the class, or of the class that it leads to."""
    described = set()
    for line in inspect.cleandoc(sink.__doc__ or "").splitlines():
        head, colon, _ = line.partition(":")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            described |= {name.strip("* ") for name in head.split(",")}
    assert _parameters(sink).keys() <= described


#: How to make each sink that may be made.
EXAMPLES = {
    "BackgroundSink": lambda path: outfall.BackgroundSink(outfall.NullSink()),
    "BufferingSink": lambda path: outfall.BufferingSink(10),
    "CaptureSink": lambda path: outfall.CaptureSink(),
    "DatagramSink": lambda path: outfall.DatagramSink("127.0.0.1", 9),
    "FallbackSink": lambda path: outfall.FallbackSink(outfall.NullSink(), outfall.NullSink()),
    "FanoutSink": lambda path: outfall.FanoutSink(outfall.NullSink(), outfall.NullSink()),
    "FileSink": outfall.FileSink,
    "FluentSink": lambda path: outfall.FluentSink("127.0.0.1", tag="shop"),
    "GELFDatagramSink": lambda path: outfall.GELFDatagramSink("127.0.0.1", 9),
    "HTTPSink": lambda path: outfall.HTTPSink("http://127.0.0.1:9/path"),
    "HandlerSink": lambda path: outfall.HandlerSink(logging.NullHandler()),
    "MemorySink": lambda path: outfall.MemorySink(10, target=outfall.NullSink()),
    "NullSink": lambda path: outfall.NullSink(),
    "QueueSink": lambda path: outfall.QueueSink(queue.SimpleQueue()),
    "RotatingFileSink": outfall.RotatingFileSink,
    "SMTPSink": lambda path: outfall.SMTPSink("127.0.0.1", "a@example.org", "b@example.org", "s"),
    "SocketSink": lambda path: outfall.SocketSink("127.0.0.1", 9),
    "SpoolSink": lambda path: outfall.SpoolSink(outfall.NullSink(), path.with_name("spool")),
    "StreamSink": lambda path: outfall.StreamSink(io.StringIO()),
    "SysLogSink": lambda path: outfall.SysLogSink(("127.0.0.1", 9)),
    "JournaldSink": outfall.JournaldSink,
    "RedisSink": lambda path: outfall.RedisSink("redis://127.0.0.1", "logs"),
    "AMQPSink": lambda path: outfall.AMQPSink("amqp://127.0.0.1", routing_key="logs"),
    "KafkaSink": lambda path: outfall.KafkaSink("127.0.0.1:1", "logs"),
    "TimedRotatingFileSink": outfall.TimedRotatingFileSink,
    "WatchedFileSink": outfall.WatchedFileSink,
}
#: Classes to derive from, and one that needs Windows.
NO_EXAMPLE = {"Sink", "ByteSink", "BaseRotatingFileSink", "NTEventLogSink"}


@pytest.mark.parametrize("sink", SINKS, ids=lambda sink: sink.__name__)
def test_each_sink_shows_what_it_is(sink, tmp_path):
    """Its class, its name where it has one of its own, and nobody's address in memory."""
    if sink.__name__ in NO_EXAMPLE:
        pytest.skip("nothing to make one of here")
    with EXAMPLES[sink.__name__](tmp_path / "events.jsonl") as made:
        shown = repr(made)
        assert shown.startswith(f"<{sink.__name__}")
        assert shown.endswith(">")
        assert " at 0x" not in shown
    assert "closed" in repr(made)
