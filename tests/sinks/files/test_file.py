"""FileSink on a healthy file."""

from __future__ import annotations

import datetime as dt
import gc
import inspect
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import structlog

from outfall import BaseRotatingFileSink, RotatingFileSink, StreamSink, TimedRotatingFileSink, WatchedFileSink
from outfall.sinks.core.item import Encoded
from outfall.sinks.errors import SinkClosedError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.files import buffer, output
from outfall.sinks.files import file as file_module
from outfall.sinks.files.file import FileOptions, FileSink
from outfall.sinks.files.rotating import RotationOptions
from tests.sinks._processes import PATIENCE_SECONDS, events_of, in_fork, run


@pytest.fixture
def path(tmp_path):
    """Give the path of a log file that is not there yet."""
    return tmp_path / "app.jsonl"


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock that flush_interval goes by; add to its one item to let time pass."""
    now = [1000.0]
    for module in (file_module, buffer, output):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def _text(logger, name, event):
    return event["event"]


def _numbers(path):
    return [event["n"] for event in events_of(path)]


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- writing


def test_an_event_is_in_the_file_when_handle_returns(path):
    """Without a buffer each event reaches the system at once, one line each."""
    sink = FileSink(path)
    sink.handle({"event": "a", "n": 1})
    assert path.read_bytes() == b'{"event":"a","n":1}\n'
    sink.handle({"event": "b", "n": 2})
    assert _numbers(path) == [1, 2]
    assert sink.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"level": "debug"},
        {"processors": [lambda logger, name, event: event]},
        {"renderer": OrjsonRenderer(sort_keys=True)},
        {"buffer_bytes": 100},
    ],
    ids=["express", "with a level", "with a processor", "with another renderer", "buffered"],
)
@pytest.mark.parametrize(
    "extra",
    [{}, {"level": "info"}, {"level": "nobody knows"}, {"level_number": 30}, {"_logger": None, "_name": "x"}],
    ids=["bare", "level", "unknown level", "level number", "metadata"],
)
def test_every_way_through_the_sink_writes_the_same(path, options, extra):
    """The short cut, the pipeline and the buffer write the same bytes and keep the same account."""
    sink = FileSink(path, **options)
    event = {"event": "e", **extra, "n": 1}
    given = dict(event)
    for _ in range(3):
        sink.handle(event)
    assert event == given
    assert sink.close()
    shown = {key: value for key, value in event.items() if not key.startswith("_")}
    assert events_of(path) == [shown] * 3
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped, stats.pending) == (3, 3, {}, 0)


@pytest.mark.parametrize("buffer_bytes", [0, 10_000])
@pytest.mark.parametrize(
    ("event", "passes"),
    [
        ({"level": "info"}, False),
        ({"level": "warning"}, True),
        ({"level": "debug", "level_number": 10}, False),
        ({"level": "debug", "level_number": 40}, True),
        ({"level": "error", "level_number": 10}, False),
        ({"level_number": 29}, False),
        ({}, False),
        ({"level": "WARN"}, True),
        ({"level": "nobody knows"}, True),
        ({"level": 35}, True),
        ({"level": []}, True),
    ],
)
def test_the_level_decides_as_in_the_pipeline(path, event, passes, buffer_bytes):
    """On the hot path too level_number wins over level and an unknown level passes."""
    with FileSink(path, level="warning", buffer_bytes=buffer_bytes) as sink:
        sink.handle({"event": "e", **event})
    assert len(events_of(path)) == passes
    assert (sink.stats().delivered, sink.stats().filtered) == (passes, not passes)


def test_an_exception_is_rendered(path):
    """What only the renderer's slow path can do is not missed by the short cut."""
    with FileSink(path) as sink:
        try:
            raise ValueError("why")
        except ValueError:
            sink.handle({"event": "failed", "exc_info": True})
        sink.handle({"event": "odd", "n": 2**70})
    failed, odd = events_of(path)
    assert "ValueError: why" in failed["exception"]
    assert odd["n"] in (2**70, str(2**70))


def test_text_somebody_else_rendered_is_written_as_it_is(path):
    """A structlog chain may end in a renderer."""
    with FileSink(path) as sink:
        sink.handle("ready text")
        sink.handle(b"ready bytes")
    assert path.read_bytes() == b"ready text\nready bytes\n"


def test_the_terminator_may_be_set_at_any_time(path):
    """What is set after construction counts from the next event on."""
    sink = FileSink(path, terminator="|")
    sink.handle({"event": 1})
    sink.terminator = "\n"
    sink.handle({"event": 2})
    sink.renderer = structlog.processors.JSONRenderer(sort_keys=True)
    sink.handle({"z": 1, "a": 2})
    sink.renderer = OrjsonRenderer()
    sink.handle({"event": 3})
    assert path.read_text() == '{"event":1}|{"event":2}\n{"a": 2, "z": 1}\n{"event":3}\n'


def test_a_level_set_later_counts(path):
    """The hot path sees what was set after construction."""
    with FileSink(path) as sink:
        sink.handle({"event": 1, "level": "info", "n": 1})
        sink.level = "error"
        sink.handle({"event": 2, "level": "info", "n": 2})
        sink.level = "notset"
        sink.handle({"event": 3, "level": "debug", "n": 3})
    assert _numbers(path) == [1, 3]


@pytest.mark.parametrize("hook", ["deliver", "emit", "render", "write"])
def test_a_subclass_that_overrides_a_step_is_called(path, hook):
    """The short cut is not taken past somebody's own method."""
    called = []

    def override(self, *arguments):
        called.append(hook)
        return getattr(FileSink, hook)(self, *arguments)

    with type("Own", (FileSink,), {hook: override})(path) as sink:
        sink.handle({"event": "e", "n": 1})
    assert called == [hook]
    assert _numbers(path) == [1]


def test_a_batch_is_written_at_once_and_behind_the_buffer(path):
    """emit_batch keeps the order of what waits and what comes."""
    with FileSink(path, buffer_bytes=10_000) as sink:
        sink.handle({"n": 0})
        assert sink.emit_batch([Encoded(b'{"n":%d}' % n, 20, 0.0) for n in (1, 2, 3)]) is None
        assert sink.emit_batch([]) is None
        assert _numbers(path) == [0, 1, 2, 3]


def test_threads_tear_no_line_and_lose_none(path):
    """8 threads with 20 000 events each: every line is whole, each event there once, each thread's in order."""
    sink = FileSink(path)
    begin = threading.Barrier(8)

    def work(thread):
        begin.wait()
        handle = sink.handle
        for n in range(20_000):
            handle({"event": "x", "t": thread, "n": n})

    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sink.stats().delivered == 160_000
    by_thread = {t: [] for t in range(8)}
    for event in events_of(path):
        by_thread[event["t"]].append(event["n"])
    assert all(numbers == list(range(20_000)) for numbers in by_thread.values())


def test_threads_on_a_buffer_lose_none(path):
    """The same through a small buffer, with urgent events and flushes in between."""
    sink = FileSink(path, buffer_bytes=2_000)

    def work(thread):
        for n in range(2_000):
            sink.handle({"event": "x", "t": thread, "n": n, "level": "error" if n % 97 == 0 else "info"})
            if n % 501 == 0:
                sink.flush()

    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sink.close()
    assert sink.stats().delivered == 16_000
    seen = [(event["t"], event["n"]) for event in events_of(path)]
    assert sorted(seen) == [(t, n) for t in range(8) for n in range(2_000)]


# -- the path


@pytest.mark.parametrize("form", [str, Path, os.fsencode])
def test_any_kind_of_path_is_taken(path, form):
    """Text, bytes and path-like objects name the same file."""
    with FileSink(form(path)) as sink:
        assert sink.base_filename == str(path)
    assert path.exists()


def test_what_is_no_path_is_refused():
    """A descriptor or a file object is a mistake that shows at once."""
    with pytest.raises(TypeError):
        FileSink(3)


@pytest.mark.parametrize("delay", [False, True])
def test_the_path_is_frozen_at_construction(tmp_path, monkeypatch, delay):
    """A later chdir moves neither the first opening nor a later one."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    sink = FileSink("log", delay=delay)
    monkeypatch.chdir(there)
    sink.handle({"n": 1})
    sink.reopen()
    sink.handle({"n": 2})
    sink.close()
    assert _numbers(here / "log") == [1, 2]
    assert not any(there.iterdir())


def test_delay_opens_at_the_first_event(path):
    """A file nobody writes to is not made; a filtered event makes none either."""
    sink = FileSink(path, delay=True, level="info")
    sink.handle({"event": "e", "level": "debug"})
    assert not path.exists()
    sink.handle({"event": "e", "level": "info", "n": 1})
    assert _numbers(path) == [1]
    assert FileSink(path, delay=True).close()


@pytest.mark.parametrize("delay", [False, True])
def test_without_delay_the_file_is_there_at_once(path, delay):
    """As with logging.FileHandler."""
    FileSink(path, delay=delay).close()
    assert path.exists() is not delay


# -- modes


def test_mode_a_keeps_what_is_there(path):
    """The default appends."""
    path.write_text('{"n":0}\n')
    with FileSink(path) as sink:
        sink.handle({"n": 1})
    assert _numbers(path) == [0, 1]


@pytest.mark.parametrize("mode", ["w", "wb", "w+", "bw", "+w"])
def test_mode_w_truncates_when_first_opened_and_never_again(path, mode):
    """Not at reopen, and not in a forked child."""
    path.write_text('{"n":"old"}\n')
    sink = FileSink(path, mode)
    assert path.read_text() == ""
    sink.handle({"n": 1})
    sink.reopen()
    sink.handle({"n": 2})

    def child():
        sink.handle({"n": 3})
        sink.reopen()
        sink.handle({"n": 4})

    in_fork(child)
    sink.handle({"n": 5})
    assert _numbers(path) == [1, 2, 3, 4, 5]


def test_mode_w_with_delay_truncates_at_the_first_event_and_not_in_a_child(path):
    """A child that writes first does not destroy what the file holds."""
    path.write_text('{"n":0}\n')
    sink = FileSink(path, "w", delay=True)
    in_fork(lambda: sink.handle({"n": 1}))
    assert _numbers(path) == [0, 1]
    sink.handle({"n": 2})
    assert _numbers(path) == [2]


def test_mode_w_writes_to_the_end_even_if_others_truncate(path):
    """copytruncate leaves no hole of zero bytes."""
    with FileSink(path, "w") as sink:
        sink.handle({"n": 1})
        os.truncate(path, 0)
        sink.handle({"n": 2})
    assert path.read_bytes() == b'{"n":2}\n'


def test_mode_x_insists_on_a_new_file(path):
    """A file that is there is an error for on_error; a reopened one is not."""
    failures = []
    with FileSink(path, "x", on_error=failures.append) as sink:
        sink.handle({"n": 1})
        sink.reopen()
        sink.handle({"n": 2})
    assert failures == []
    with FileSink(path, "x", on_error=failures.append) as sink:
        sink.handle({"n": 3})
    assert [type(failure.error) for failure in failures] == [FileExistsError, FileExistsError]
    assert [failure.events for failure in failures] == [0, 1]
    assert sink.stats().dropped == {"error": 1}
    assert _numbers(path) == [1, 2]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("mode", "r"),
        ("mode", "aw"),
        ("mode", ""),
        ("mode", None),
        ("encoding", "no such"),
        ("errors", "no such"),
        ("permissions", -1),
        ("permissions", 0o10000),
        ("permissions", "0640"),
        ("buffer_bytes", -1),
        ("buffer_bytes", 1.5),
        ("buffer_bytes", True),
        ("flush_interval", -1),
        ("flush_interval", float("nan")),
        ("flush_interval", "one"),
        ("flush_level", "no such"),
        ("level", "no such"),
    ],
)
def test_a_mistake_raises_at_construction_and_names_the_argument(path, argument, value):
    """Nothing is opened or made then."""
    with pytest.raises(ValueError, match=argument):
        FileSink(path, **{argument: value})
    assert not path.exists()


SINKS = pytest.mark.parametrize("make", [FileSink, WatchedFileSink, RotatingFileSink, TimedRotatingFileSink])


@SINKS
@pytest.mark.parametrize(
    ("permissions", "meant"),
    [(640, "0o640"), (600, "0o600"), (644, "0o644"), (755, "0o755"), (440, "0o440"), (444, "0o444"), ("0640", "0o640")],
)
def test_permissions_without_their_0o_are_refused_with_the_right_way_to_write_them(path, make, permissions, meant):
    """The decimal number 640 is other bits than 0o640."""
    with pytest.raises(ValueError, match=f"permissions={permissions!r} .*write {meant}$"):
        make(path, permissions=permissions)
    assert not path.exists()


@SINKS
@pytest.mark.parametrize("wrong", [123, True, None, 1.5, ["app.jsonl"]], ids=str)
def test_what_is_no_path_is_refused_by_name_and_value(make, wrong):
    """A descriptor, an open file or anything else is not a filename."""
    with pytest.raises(TypeError, match=r"filename=.* is not a path such as 'app.jsonl'") as caught:
        make(wrong)
    assert repr(wrong) in str(caught.value)


@SINKS
def test_an_open_file_is_referred_to_the_sink_that_takes_one(path, make):
    """The error says what to write instead, and that works."""
    with path.open("w") as file:
        with pytest.raises(TypeError, match=r"for an open file there is StreamSink\(file\)"):
            make(file)
        StreamSink(file).handle({"n": 1})
        with pytest.raises(TypeError, match=f"StreamSink\\(open\\({file.fileno()}, 'wb'\\)\\)"):
            make(file.fileno())
    assert _numbers(path) == [1]


@SINKS
@pytest.mark.parametrize(("wrong", "why"), [("", "is empty"), (b"", "is empty"), ("a\0b", "has a NUL")])
def test_a_path_that_no_file_can_have_is_refused_at_construction(make, wrong, why):
    """The empty path would be the directory the process stands in."""
    with pytest.raises(ValueError, match=r"filename=.* is not a path") as caught:
        make(wrong)
    assert repr(wrong) in str(caught.value)
    assert why in str(caught.value)


# -- encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32", "utf-16-be"])
def test_a_byte_order_mark_stands_at_the_start_of_the_file_alone(path, encoding):
    """Not before each event, not at a reopening, not when a second sink goes on."""
    with FileSink(path, encoding=encoding, renderer=_text) as sink:
        sink.handle({"event": "ä"})
        sink.handle({"event": "b"})
        sink.reopen()
        sink.handle({"event": "c"})
    with FileSink(path, encoding=encoding, renderer=_text, buffer_bytes=100) as sink:
        sink.handle({"event": "d"})
    assert path.read_bytes() == "".encode(encoding) + "ä\nb\nc\nd\n".encode(sink._bare_encoding)
    assert path.read_text(encoding) == "ä\nb\nc\nd\n"


def test_json_is_utf_8_whatever_the_encoding(path):
    """What renders bytes is not encoded again, and gets no mark."""
    with FileSink(path, encoding="utf-16") as sink:
        sink.handle({"event": "ä"})
    assert path.read_bytes() == '{"event":"ä"}\n'.encode()


@pytest.mark.parametrize(
    ("errors", "expected"), [(None, b"\\u20ac\n"), ("replace", b"?\n"), ("ignore", b"\n"), ("strict", b"")]
)
def test_what_the_encoding_has_not_is_treated_as_errors_says(path, errors, expected):
    """By default nothing is lost; under "strict" the event is, loudly."""
    failures = []
    with FileSink(path, encoding="latin-1", errors=errors, renderer=_text, on_error=failures.append) as sink:
        sink.handle({"event": "€"})
    assert path.read_bytes() == expected
    assert len(failures) == (errors == "strict")


# -- permissions


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666])
def test_permissions_are_exact_under_any_umask(path, umask, permissions):
    """What is asked for is what a new file gets."""
    before = os.umask(umask)
    try:
        FileSink(path, permissions=permissions).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == permissions


def test_permissions_default_to_the_umask(path):
    """None is what open() does."""
    before = os.umask(0o027)
    try:
        FileSink(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", ["a", "w"])
def test_an_existing_file_keeps_its_permissions(path, mode):
    """They are its owner's choice."""
    path.touch()
    path.chmod(0o604)
    with FileSink(path, mode, permissions=0o640) as sink:
        sink.handle({"n": 1})
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_permissions_hold_for_a_file_made_through_a_link(path):
    """A symbolic link to a file that is yet to be made is no existing file."""
    link = path.with_name("link")
    link.symlink_to(path)
    before = os.umask(0o077)
    try:
        FileSink(link, permissions=0o664).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_permissions_hold_for_the_file_that_reopen_makes(path):
    """Each new file gets them."""
    with FileSink(path, permissions=0o600) as sink:
        path.rename(path.with_suffix(".1"))
        sink.reopen()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- the buffer


def test_the_buffer_keeps_events_back_until_it_is_full(path, clock):
    """It is written when buffer_bytes have come, in order."""
    line = len(b'{"event":"e","level":"info","n":1}\n')
    with FileSink(path, buffer_bytes=3 * line) as sink:
        for n in (1, 2):
            sink.handle({"event": "e", "level": "info", "n": n})
        assert path.read_bytes() == b""
        assert (sink.stats().accepted, sink.stats().pending, sink.stats().delivered) == (2, 2, 0)
        sink.handle({"event": "e", "level": "info", "n": 3})
        assert _numbers(path) == [1, 2, 3]
        assert (sink.stats().accepted, sink.stats().pending, sink.stats().delivered) == (3, 0, 3)


@pytest.mark.parametrize("interval", [2.0, 2, dt.timedelta(seconds=2)])
def test_the_buffer_is_written_at_the_first_event_after_the_interval(path, clock, interval):
    """No thread watches the clock; it runs from the last write on."""
    with FileSink(path, buffer_bytes=10_000, flush_interval=interval) as sink:
        sink.handle({"event": "e", "level": "info", "n": 1})
        clock[0] += 1.9
        sink.handle({"event": "e", "level": "info", "n": 2})
        assert path.read_bytes() == b""
        clock[0] += 0.1
        sink.handle({"event": "e", "level": "info", "n": 3})
        assert _numbers(path) == [1, 2, 3]
        clock[0] += 1.9
        sink.handle({"event": "e", "level": "info", "n": 4})
        assert _numbers(path) == [1, 2, 3]


@pytest.mark.parametrize("urgent", [{"level": "error"}, {"level": "critical"}, {"level": "info", "level_number": 45}])
def test_an_urgent_event_is_written_at_once_with_those_before(path, clock, urgent):
    """flush_level is "error" unless said otherwise, and level_number counts."""
    with FileSink(path, buffer_bytes=10_000) as sink:
        sink.handle({"event": "e", "level": "warning", "n": 1})
        assert path.read_bytes() == b""
        sink.handle({"event": "e", "n": 2, **urgent})
        assert _numbers(path) == [1, 2]


def test_flush_level_may_be_chosen(path, clock):
    """A name or a number."""
    with FileSink(path, buffer_bytes=10_000, flush_level="warning") as sink:
        sink.handle({"event": "e", "level": "info", "n": 1})
        assert path.read_bytes() == b""
        sink.handle({"event": "e", "level": "warning", "n": 2})
        assert _numbers(path) == [1, 2]


def test_flush_writes_the_buffer(path, clock):
    """And says that all is settled."""
    sink = FileSink(path, buffer_bytes=10_000)
    sink.handle({"event": "e", "level": "info", "n": 1})
    assert sink.flush()
    assert _numbers(path) == [1]
    assert sink.stats().pending == 0


def test_close_writes_the_buffer(path, clock):
    """Nothing is pending after it."""
    sink = FileSink(path, buffer_bytes=10_000)
    sink.handle({"event": "e", "level": "info", "n": 1})
    assert sink.close()
    assert _numbers(path) == [1]
    assert (sink.stats().accepted, sink.stats().delivered, sink.stats().pending) == (1, 1, 0)


def test_a_sink_nobody_holds_any_more_writes_its_buffer(path, clock):
    """Garbage collection loses no event and leaks no descriptor."""
    before = _descriptors()
    sink = FileSink(path, buffer_bytes=10_000)
    sink.handle({"event": "e", "level": "info", "n": 1})
    del sink
    gc.collect()
    assert _numbers(path) == [1]
    assert _descriptors() == before


def test_a_buffered_event_is_a_snapshot(path, clock):
    """What the caller changes later is not seen."""
    event = {"event": "e", "level": "info", "nested": [1]}
    with FileSink(path, buffer_bytes=10_000) as sink:
        sink.handle(event)
        event["nested"].append(2)
    assert events_of(path)[0]["nested"] == [1]


def test_a_forked_child_leaves_the_buffer_to_the_parent(path, clock):
    """Each event is written once, by the process that took it."""
    sink = FileSink(path, buffer_bytes=10_000)
    sink.handle({"event": "e", "level": "info", "n": "parent"})

    def child():
        stats = sink.stats()
        assert (stats.accepted, stats.pending) == (0, 0)
        sink.handle({"event": "e", "level": "info", "n": "child"})
        assert sink.stats().pending == 1
        assert sink.close()

    in_fork(child)
    assert _numbers(path) == ["child"]
    assert sink.close()
    assert _numbers(path) == ["child", "parent"]


# -- reopen and close


def test_reopen_goes_on_in_the_new_file(path):
    """What waits goes to the old file, what comes to the new one."""
    sink = FileSink(path, buffer_bytes=10_000)
    sink.handle({"event": "e", "level": "info", "n": 1})
    path.rename(path.with_suffix(".1"))
    sink.reopen()
    sink.handle({"event": "e", "level": "info", "n": 2})
    assert sink.close()
    assert (_numbers(path.with_suffix(".1")), _numbers(path)) == ([1], [2])


def test_reopen_from_a_hangup_handler_loses_nothing(path):
    """logrotate's way: the file is moved and the process told, again and again, while threads write."""
    moved = []
    sink = FileSink(path)
    stop = threading.Event()
    written = [0, 0]

    def work(thread):
        while not stop.is_set():
            sink.handle({"t": thread, "n": written[thread]})
            written[thread] += 1

    before = signal.signal(signal.SIGHUP, lambda *_: sink.reopen())
    threads = [threading.Thread(target=work, args=(t,)) for t in range(2)]
    try:
        for thread in threads:
            thread.start()
        for round_ in range(30):
            moved.append(path.with_suffix(f".{round_}"))
            path.rename(moved[-1])
            os.kill(os.getpid(), signal.SIGHUP)
            for n in range(20):
                sink.handle({"t": "main", "n": [round_, n]})
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        signal.signal(signal.SIGHUP, before)
    assert sink.close()
    events = [event for file in [*moved, path] for event in events_of(file)]
    for t in range(2):
        assert [event["n"] for event in events if event["t"] == t] == list(range(written[t]))
    assert [event["n"] for event in events if event["t"] == "main"] == [[r, n] for r in range(30) for n in range(20)]
    assert sink.stats().dropped == {}


def test_reopen_leaks_no_descriptor(path):
    """The old file is let go."""
    sink = FileSink(path)
    before = _descriptors()
    for _ in range(5):
        sink.reopen()
    assert _descriptors() == before
    sink.close()
    assert _descriptors() == before - 1


@pytest.mark.parametrize("buffer_bytes", [0, 1000])
def test_after_close_nothing_reopens_or_truncates_the_file(path, buffer_bytes):
    """Late events are counted; late calls do nothing."""
    failures = []
    sink = FileSink(path, "w", buffer_bytes=buffer_bytes, on_error=failures.append)
    sink.handle({"n": 1})
    assert sink.close()
    path.rename(path.with_suffix(".old"))
    for n in range(3):
        sink.handle({"n": n, "level": "info"})
    sink.reopen()
    with pytest.raises(SinkClosedError):
        sink.write(b"late\n")  # as a thread that had passed all checks
    assert sink.flush()
    assert sink.close()
    assert not path.exists()
    assert sink.stats().dropped == {"closed": 3}
    assert sink.stats().pending == 0
    assert [failure.events for failure in failures] == [1, 1, 1]
    assert _numbers(path.with_suffix(".old")) == [1]


@pytest.mark.parametrize("buffer_bytes", [0, 1000])
def test_close_while_threads_write_keeps_the_account(path, buffer_bytes):
    """Each event is in the file or counted as closed; none is both, none neither."""
    for _ in range(10):
        path.unlink(missing_ok=True)
        sink = FileSink(path, buffer_bytes=buffer_bytes, on_error=lambda failure: None)
        begin = threading.Barrier(5)

        def work(sink=sink, begin=begin):
            begin.wait()
            for n in range(200):
                sink.handle({"event": "e", "level": "info", "n": n})

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        begin.wait()
        time.sleep(0.002)
        assert sink.close(PATIENCE_SECONDS)
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        stats = sink.stats()
        assert stats.accepted == 800
        assert stats.pending == 0
        assert stats.delivered == len(events_of(path))
        assert stats.delivered + stats.dropped.get("closed", 0) == 800


def test_a_buffered_event_that_was_on_its_way_at_close_is_counted(path):
    """A thread that has passed all checks when close() comes does not put its event into a dead buffer."""
    sink = FileSink(path, buffer_bytes=1000, on_error=lambda failure: None)
    append = sink._append
    assert append is not None
    assert sink.close()
    sink._append = append  # as a thread has read it that was put to sleep just then
    sink.handle({"event": "e", "level": "info"})
    assert (sink.stats().pending, sink.stats().dropped) == (0, {"closed": 1})


def test_the_repr_names_the_file(path):
    """A repr tells one sink from another, and that it is closed."""
    sink = FileSink(path)
    sink.close()
    assert repr(sink) == f"<FileSink {str(path)!r} closed>"


def test_a_failing_construction_leaves_no_noise(path):
    """An object that was never finished has nothing to close."""
    result = run(
        """
        import sys
        from outfall.sinks.files.file import FileSink
        for arguments in ({"mode": "r"}, {"level": "no such"}, {"terminator": 3}):
            try:
                FileSink(sys.argv[1], **arguments)
            except (TypeError, ValueError):
                pass
        """,
        path,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_close_opens_a_delayed_file_for_what_waits(path):
    """Events that were buffered before the file was ever opened are not lost to close."""
    sink = FileSink(path, delay=True, buffer_bytes=1000)
    sink.handle({"level": "info", "n": 1})
    assert not path.exists()
    assert sink.close()
    assert _numbers(path) == [1]


@pytest.mark.parametrize("kind", [FileSink, WatchedFileSink, RotatingFileSink, TimedRotatingFileSink])
def test_sizes_and_spans_are_annotated_as_what_they_take(kind):
    """Text such as "50 MB" and "1h30m", for type checkers and URLs alike."""
    annotations = {name: parameter.annotation for name, parameter in inspect.signature(kind).parameters.items()}
    sizes = {name for name in annotations if name.endswith("_bytes")}
    spans = {"flush_interval", "timeout", "max_age"} & annotations.keys()
    assert sizes
    assert spans
    assert {annotations[name].removesuffix(" | None") for name in sizes} == {"Size"}
    assert {annotations[name].removesuffix(" | None") for name in spans} == {"Span"}


@pytest.mark.parametrize("options", [RotationOptions, FileOptions], ids=["rotation", "file"])
def test_arguments_that_are_passed_on_have_the_types_of_the_class_that_takes_them(options):
    """A type checker sees the same whether a class has an argument of its own or passes it on."""
    passed_on = {name: annotation.__forward_arg__ for name, annotation in options.__annotations__.items()}
    known = BaseRotatingFileSink.parameters()
    assert {name: known[name].annotation for name in passed_on} == passed_on


def test_sizes_and_spans_may_be_text(tmp_path):
    """Wherever a file sink takes one."""
    with TimedRotatingFileSink(
        tmp_path / "a",
        max_bytes="50 MB",
        max_age="7 days",
        max_total_bytes="1 GiB",
        buffer_bytes="4 KiB",
        flush_interval="500 ms",
        timeout="2s",
    ) as sink:
        assert (sink.max_bytes, sink.max_age, sink.max_total_bytes) == (50_000_000, 604_800.0, 2**30)
        assert sink.buffer_bytes == 4096
    with WatchedFileSink(tmp_path / "b", keep_bytes="1 MB") as watched:
        assert watched.keep_bytes == 1_000_000
