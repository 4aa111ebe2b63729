"""The usual set-up in one call."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import structlog

import outfall
from outfall.sinks.core import lifecycle
from tests.sinks._processes import PATIENCE_SECONDS, check

pytestmark = pytest.mark.usefixtures("own_logging")


def read(path):
    """Return the events in the file at *path*."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_structlog_and_logging_write_the_same_shape(tmp_path):
    """Level, logger, time, context and exception are there either way."""
    path = tmp_path / "app.jsonl"
    with outfall.configure(path, console=False):
        structlog.contextvars.bind_contextvars(request_id="r1")
        try:
            raise ValueError("bad")
        except ValueError:
            outfall.get_logger("shop").error("failed", order=17, exc_info=True)
            logging.getLogger("shop").exception("failed", extra={"order": 17})
    one, other = read(path)
    assert one.keys() == other.keys()
    for event in (one, other):
        assert (event["event"], event["level"], event["logger"], event["order"]) == ("failed", "error", "shop", 17)
        assert event["request_id"] == "r1"
        assert "ValueError: bad" in event["exception"]
        assert event["timestamp"].endswith("Z")


def test_a_stack_that_is_asked_for_comes_either_way(tmp_path):
    """It ends where the application called."""
    path = tmp_path / "app.jsonl"
    with outfall.configure(path, console=False):
        outfall.get_logger("shop").info("here", stack_info=True)
        logging.getLogger("shop").info("here", stack_info=True)
    one, other = read(path)
    assert one.keys() == other.keys()
    for event in (one, other):
        assert "stack_info=True)" in event["stack"].splitlines()[-1]


def test_a_logger_is_to_be_had_at_the_very_end(tmp_path):
    """Once nothing can be imported any more, by what was used before."""
    path = tmp_path / "app.jsonl"
    check(
        """
        import builtins, sys, outfall
        outfall.configure(sys.argv[1], console=False)
        class Late:
            def __del__(self):
                outfall.get_logger("shop").info("over")
        builtins.kept = Late()
        """,
        path,
    )
    assert [event["event"] for event in read(path)] == ["over"]


def test_a_scheme_that_is_misspelt_makes_no_file(tmp_path, monkeypatch):
    """Nor by the environment; a file of such a name is to be had with a path."""
    monkeypatch.chdir(tmp_path)
    for arguments, variable in ((("flie:app.jsonl",), ""), ((), "flie:app.jsonl")):
        monkeypatch.setenv("OUTFALL_SINKS", variable)
        with pytest.raises(ValueError, match=r"'flie:app.jsonl': did you mean file:…\? The path"):
            outfall.configure(*arguments, env=True)
    assert list(tmp_path.iterdir()) == []
    with outfall.configure("./flie:app.jsonl", console=False):
        outfall.get_logger().info("x")
    assert len(read(tmp_path / "flie:app.jsonl")) == 1


def test_a_logger_without_a_name_has_its_module(tmp_path):
    """outfall.get_logger() and structlog.get_logger() alike."""
    path = tmp_path / "app.jsonl"
    with outfall.configure(path, console=False):
        outfall.get_logger().info("one")
        structlog.get_logger().info("two")
    assert {event["logger"] for event in read(path)} == {__name__}


def test_levels_hold_for_loggers_of_both_kinds(tmp_path):
    """The level of the set-up, and by logger for it and those below it; what is filtered is counted."""
    path = tmp_path / "app.jsonl"
    with outfall.configure(path, console=False, levels={"noisy": "warning", "noisy.chatty": "debug"}) as setup:
        for name in ("quiet", "noisy", "noisy.deep", "noisy.chatty", "noisyother"):
            for log in (outfall.get_logger(name), logging.getLogger(name)):
                log.debug("debug")
                log.info("info")
                log.warning("warning")
        stats = setup.stats()
    found = {name: [event["event"] for event in read(path) if event["logger"] == name] for name in ("quiet", "noisy")}
    assert found == {"quiet": ["info", "warning"] * 2, "noisy": ["warning", "warning"]}
    assert [event["event"] for event in read(path) if event["logger"] == "noisy.chatty"] == [
        *("debug", "info", "warning"),
    ] * 2
    assert stats.filtered > 0
    assert stats.targets[0].delivered == len(read(path))


def test_processors_see_both_kinds_and_what_they_drop_is_filtered(tmp_path):
    """They come after level, logger, time and context."""
    path = tmp_path / "app.jsonl"
    seen = []

    def processor(_logger, _name, event):
        seen.append(sorted(event))
        if event["event"] == "no":
            raise structlog.DropEvent
        event["more"] = 1
        return event

    with outfall.configure(path, console=False, processors=[processor]) as setup:
        structlog.contextvars.bind_contextvars(request_id="r1")
        outfall.get_logger("a").info("yes")
        logging.getLogger("a").info("no")
        assert setup.stats().filtered == 1
    assert [event["more"] for event in read(path)] == [1]
    assert all({"event", "level", "logger", "request_id", "timestamp"} <= set(keys) for keys in seen)


def test_loggers_bound_before_follow_the_next_call(tmp_path):
    """Called again, the new set-up takes what the old loggers say; the old one's files are closed."""
    first = outfall.configure(tmp_path / "1.jsonl", console=False)
    log = outfall.get_logger("a").bind(n=1)
    log.info("one")
    [old] = first.sinks
    second = outfall.configure(tmp_path / "2.jsonl", console=False, level="debug")
    log.debug("two")
    logging.getLogger("a").info("three")
    assert old.closed
    assert [event["event"] for event in read(tmp_path / "1.jsonl")] == ["one"]
    assert [event["event"] for event in read(tmp_path / "2.jsonl")] == ["two", "three"]
    assert first.close() is True  # replaced: does nothing
    assert not second.sinks[0].closed


@pytest.mark.parametrize("same", [True, False])
def test_a_second_call_under_load_loses_nothing(tmp_path, same):
    """Four threads log all the while, also where both set-ups write to one path; no descriptor is left."""
    outfall.configure(tmp_path / "0.jsonl", console=False)
    log = outfall.get_logger("load").bind()
    stop = threading.Event()
    counts = [0] * 4

    def work(place):
        while not stop.is_set():
            log.info("x", n=counts[place], thread=place)
            counts[place] += 1

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for number in range(8):
        outfall.configure(tmp_path / f"{0 if same else number}.jsonl", console=False)
    stop.set()
    for thread in threads:
        thread.join()
    assert not before or len(os.listdir("/proc/self/fd")) == before
    events = [(e["thread"], e["n"]) for path in tmp_path.glob("*.jsonl") for e in read(path)]
    assert len(events) == len(set(events)) == sum(counts)


def test_a_wrong_argument_changes_nothing(tmp_path):
    """It raises, and the set-up before stays in force."""
    with outfall.configure(tmp_path / "a.jsonl", console=False) as setup:
        before = structlog.get_config(), logging.getLogger().handlers[:], outfall.open_sinks()
        for arguments, options in (
            (("b.jsonl",), {"level": "loud"}),
            ((7,), {}),
            ((outfall.FileSink,), {}),
            (("flie://x",), {}),
            ((tmp_path / "b.jsonl", "nothing+http://x"), {}),
            ((tmp_path / "b.jsonl",), {"console": "maybe"}),
            ((tmp_path / "b.jsonl",), {"levels": ["a"]}),
            ((tmp_path / "b.jsonl",), {"levels": {"a": "loud"}}),
            ((tmp_path / "b.jsonl",), {"processors": [7]}),
            ((), {"console": False}),
        ):
            with pytest.raises((TypeError, ValueError)):
                outfall.configure(*arguments, **options)
        assert (structlog.get_config(), logging.getLogger().handlers[:], outfall.open_sinks()) == before
        outfall.get_logger("a").info("still")
        assert setup.stats().delivered == 1


def test_leaving_puts_back_what_was_there(tmp_path):
    """structlog's configuration, handlers, levels, hooks, warnings; and the set-up that it replaced, opened again."""
    root = logging.getLogger()
    own, plain = logging.NullHandler(), logging.StreamHandler()
    root.handlers[:] = [own, plain]
    root.setLevel("ERROR")
    noisy = logging.getLogger("test_setup.noisy")
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    before = structlog.get_config(), sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    with outfall.configure(tmp_path / "1.jsonl", console=False, excepthook=True, levels={noisy.name: "error"}) as first:
        assert own in root.handlers
        assert plain not in root.handlers
        with outfall.configure(tmp_path / "2.jsonl", console=False):
            outfall.get_logger("a").info("two")
            assert first.sinks[0].closed
        outfall.get_logger("a").info("one")
        assert not first.sinks[0].closed
    after = structlog.get_config(), sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    assert after == before
    assert root.handlers == [own, plain]
    assert (root.level, noisy.level) == (logging.ERROR, logging.NOTSET)
    assert [event["event"] for event in read(tmp_path / "1.jsonl")] == ["one"]


def test_each_hook_for_what_nobody_catches_makes_an_event_and_calls_the_hook_before_it(tmp_path, monkeypatch):
    """Called here as the interpreter calls them; after the set-up they only call the hooks before them."""
    called = []
    monkeypatch.setattr(sys, "excepthook", lambda *given: called.append("main"))
    monkeypatch.setattr(threading, "excepthook", lambda given: called.append("thread"))
    monkeypatch.setattr(sys, "unraisablehook", lambda given: called.append("unraisable"))
    error = ValueError("no number")
    in_thread = threading.ExceptHookArgs((ValueError, error, None, threading.current_thread()))
    ignored = SimpleNamespace(
        exc_type=ValueError, exc_value=error, exc_traceback=None, err_msg="exception ignored in", object=called
    )
    with outfall.configure(tmp_path / "app.jsonl", console=False, excepthook=True):
        hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        for hook, arguments in zip(hooks, ((ValueError, error, None), (in_thread,), (ignored,)), strict=True):
            hook(*arguments)
        hooks[0](KeyboardInterrupt, KeyboardInterrupt(), None)
        hooks[1](threading.ExceptHookArgs((SystemExit, SystemExit(), None, None)))
    assert called == ["main", "thread", "unraisable", "main", "thread"]
    for hook, arguments in zip(hooks, ((ValueError, error, None), (in_thread,), (ignored,)), strict=True):
        hook(*arguments)
    assert called[5:] == ["main", "thread", "unraisable"]
    events = read(tmp_path / "app.jsonl")
    assert [event["event"] for event in events] == [
        "uncaught exception",
        "uncaught exception in a thread",
        "unraisable exception",
    ]
    assert {event["exception_message"] for event in events} == {"no number"}
    assert events[1]["thread_name"] == "MainThread"
    assert events[2]["where"] == "exception ignored in list"


def test_sinks_that_were_given_stay_open(tmp_path):
    """They are the application's; what is a path or a URL is the set-up's."""
    sink = outfall.CaptureSink()
    with outfall.configure(sink, f"file:{tmp_path}/a.jsonl", console=False) as setup:
        outfall.get_logger("a").info("x")
        _, file = setup.sinks
    assert file.closed
    assert not sink.closed
    assert [event["event"] for event in sink.events] == ["x"]


@pytest.mark.parametrize(
    ("environment", "options", "expected"),
    [
        ({}, {}, "json"),
        ({"FORCE_COLOR": "1"}, {}, "colour"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, {}, "json"),
        ({}, {"console": True}, "text"),
        ({"FORCE_COLOR": "1"}, {"console": True}, "colour"),
    ],
)
def test_the_console_shows_what_fits_it(environment, options, expected, tmp_path, monkeypatch, capsys):
    """JSON where nobody looks, colours where they are forced, text where it is asked for; the file is JSON always."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with outfall.configure(tmp_path / "a.jsonl", **options):
        outfall.get_logger("a").warning("stock is low", left=3)
    shown = capsys.readouterr().err
    assert read(tmp_path / "a.jsonl")[0]["left"] == 3
    assert ("\x1b[" in shown) == (expected == "colour")
    assert shown.startswith("{") == (expected == "json")


def test_no_console_where_there_is_none(tmp_path, monkeypatch):
    """A program of Windows without a window for text has no sys.stderr."""
    monkeypatch.setattr(sys, "stderr", None)
    with outfall.configure(tmp_path / "app.jsonl") as setup:
        outfall.get_logger().info("x")
        assert len(setup.sinks) == 1
    assert len(read(tmp_path / "app.jsonl")) == 1


def test_no_console_beside_a_sink_that_writes_there(capsys):
    """Nothing is shown twice, whatever is around that sink."""
    with outfall.configure("stderr:"):
        outfall.get_logger("a").info("one")
    assert len(capsys.readouterr().err.splitlines()) == 1
    with outfall.configure(outfall.FanoutSink(outfall.StreamSink(sys.stdout), outfall.NullSink())):
        outfall.get_logger("a").info("two")
    shown = capsys.readouterr()
    assert (len(shown.out.splitlines()), shown.err) == (1, "")


def test_an_exception_costs_the_console_no_event(capsys):
    """Whatever is in the event, and without the local variables of a traceback."""

    class Hostile:
        def __repr__(self):
            raise RuntimeError

    password = "hunter2"
    with outfall.configure(console=True):
        try:
            raise ValueError(Hostile())
        except ValueError:
            outfall.get_logger("a").exception("bad", thing=Hostile())
        outfall.get_logger("a").info(7)
    shown = capsys.readouterr().err
    assert "bad" in shown
    assert "hunter2" not in shown


def test_warnings_come_as_events(tmp_path):
    """By logging's own logger for them."""
    with outfall.configure(tmp_path / "a.jsonl", console=False), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    [event] = read(tmp_path / "a.jsonl")
    assert event["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in event["event"]


_UNCAUGHT = """
import threading, sys, outfall
outfall.configure(sys.argv[1], console=False, excepthook=True)
class Bad:
    def __del__(self):
        raise KeyError("in del")
bad = Bad()
del bad
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise ValueError("main")
"""


def test_what_nobody_catches_is_an_event_and_the_exit_status_stays(tmp_path):
    """In the main thread, in another, and where Python cannot raise."""
    done = subprocess.run(
        [sys.executable, "-c", _UNCAUGHT, tmp_path / "a.jsonl"], capture_output=True, check=False, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    events = read(tmp_path / "a.jsonl")
    assert [event["level"] for event in events] == ["error", "critical", "critical"]
    assert ["KeyError" in events[0]["exception"], "ZeroDivisionError" in events[1]["exception"]] == [True, True]
    assert "ValueError: main" in events[2]["exception"]


@pytest.mark.parametrize(("second", "expected"), [(True, 1), (False, 0)])
def test_the_set_up_in_force_decides_about_what_nobody_catches(second, expected, tmp_path):
    """A second one makes no second event; one without the option leaves it to Python."""
    script = f"outfall.configure(sys.argv[1], console=False, excepthook={second})\nclass Bad"
    done = subprocess.run(
        [sys.executable, "-c", _UNCAUGHT.replace("class Bad", script), tmp_path / "a.jsonl"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert len(read(tmp_path / "a.jsonl")) == 3 * expected
    errors = ("KeyError: 'in del'", "ZeroDivisionError: division by zero", "ValueError: main")
    assert [done.stderr.count(error) for error in errors] == [1 - expected] * 3


def test_a_later_dictconfig_ends_nothing(tmp_path):
    """Frameworks configure logging for themselves; sinks are not closed by a handler's close."""
    with outfall.configure(tmp_path / "a.jsonl", console=False):
        logging.config.dictConfig(
            {"version": 1, "disable_existing_loggers": True, "loggers": {"web": {"level": "INFO"}}}
        )
        outfall.get_logger("a").info("one")
        logging.getLogger("web").info("two")
    assert [event["event"] for event in read(tmp_path / "a.jsonl")] == ["one", "two"]


def test_the_environment_adds_sinks_and_sets_the_level(tmp_path, monkeypatch):
    """Where env=True asks for it."""
    monkeypatch.setenv("OUTFALL_SINKS", f"file:{tmp_path}/a%20b.jsonl {tmp_path}/c.jsonl")
    monkeypatch.setenv("OUTFALL_LEVEL", "WARNING")
    with outfall.configure(console=False, env=True):
        outfall.get_logger("a").info("no")
        outfall.get_logger("a").warning("yes")
    assert [event["event"] for name in ("a b", "c") for event in read(tmp_path / f"{name}.jsonl")] == ["yes", "yes"]


def test_after_the_end_an_event_is_told_and_counted(tmp_path, capfd):
    """Nothing is lost in silence."""
    with outfall.configure(tmp_path / "a.jsonl", console=False):
        log = outfall.get_logger("a").bind()
    log.info("late")
    assert "outfall.configure() again" in capfd.readouterr().err


@pytest.fixture
def alone():
    """Hide the sinks that other tests have left, or still use."""
    others = lifecycle._participants.copy()
    lifecycle._participants.clear()
    yield
    lifecycle._participants.update(others)


@pytest.mark.usefixtures("alone")
def test_open_sinks_and_close_all(tmp_path):
    """The outermost ones; all are closed under one deadline."""
    sink = outfall.BackgroundSink(outfall.FileSink(tmp_path / "a.jsonl"))
    assert sink in outfall.open_sinks()
    assert sink.target not in outfall.open_sinks()
    sink.handle({"event": "x"})
    assert outfall.close_all(5)
    assert sink.closed
    assert outfall.open_sinks() == ()
    assert read(tmp_path / "a.jsonl") == [{"event": "x"}]


@pytest.mark.usefixtures("alone")
def test_the_ends_of_set_ups_keep_their_time_where_the_clock_stands_still(monkeypatch):
    """Tests freeze time: one deadline for all sinks, whatever each of them waits by."""
    opened = threading.Event()

    class Stuck(outfall.Sink):
        def emit(self, event):
            opened.wait(PATIENCE_SECONDS)

    sinks = [outfall.BackgroundSink(Stuck(), on_error=lambda _: None) for _ in range(40)]
    setup = outfall.configure(*sinks, console=False)
    outfall.get_logger().info("x")
    instant, real = time.monotonic(), time.perf_counter
    for module in [module for name, module in sys.modules.items() if name.startswith("outfall")]:
        if hasattr(module, "monotonic"):
            monkeypatch.setattr(module, "monotonic", lambda: instant)
    monkeypatch.setattr(time, "monotonic", lambda: instant)
    begin = real()
    assert not setup.close(0.5)
    assert not outfall.close_all(0.5)
    # Each sink by itself would take 20 seconds and more.
    assert real() - begin < 15
    opened.set()


def test_a_forked_child_logs_on(tmp_path):
    """By the set-up that it inherited."""
    with outfall.configure(tmp_path / "a.jsonl", console=False):
        outfall.get_logger("a").info("parent")
        child = os.fork()
        if child == 0:
            try:
                outfall.get_logger("a").info("child")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert [event["event"] for event in read(tmp_path / "a.jsonl")] == ["parent", "child"]


@pytest.mark.usefixtures("own_logging", "alone")
def test_open_sinks_has_those_of_a_set_up(tmp_path):
    """Those that it opened and those that it was given, and `close_all` delivers what they hold."""
    given = outfall.BackgroundSink(outfall.CaptureSink(), linger=60)
    with outfall.configure(tmp_path / "app.jsonl", given, console=False) as setup:
        assert set(setup.sinks) <= set(outfall.open_sinks())
        outfall.get_logger().info("order placed")
        assert outfall.close_all(5)
        assert outfall.open_sinks() == ()
        assert given.stats().delivered == 1
