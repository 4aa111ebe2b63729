"""StreamSink and NullSink."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import structlog

from outfall.sinks.core.item import BatchResult
from outfall.sinks.errors import DeliveryError
from outfall.sinks.files.file import FileSink
from outfall.sinks.files.stream import NullSink, StreamSink
from tests.sinks._processes import PATIENCE_SECONDS, check, events_of, in_fork, until


class Recorder:
    """A stream that notes what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def write(self, data):
        self.calls.append(("write", data))

    def flush(self):
        self.calls.append(("flush", None))

    def close(self):
        self.calls.append(("close", None))

    @property
    def text(self) -> str:
        return "".join(str(data) for name, data in self.calls if name == "write")


def _text(logger, name, event):
    return event["event"]


# -- what is written


def test_without_a_stream_it_is_stderr_as_that_is_now(monkeypatch):
    """Whatever sys.stderr is exchanged for, text or bytes, gets the events from then on, until a stream is set."""
    first, second, third = io.StringIO(), io.BytesIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    sink = StreamSink()
    sink.handle({"event": 1})
    monkeypatch.setattr(sys, "stderr", second)
    sink.handle({"event": 2})
    assert (first.getvalue(), second.getvalue()) == ('{"event":1}\n', b'{"event":2}\n')
    assert sink.stream is second
    assert sink.set_stream(third) is second
    monkeypatch.setattr(sys, "stderr", first)
    sink.handle({"event": 3})
    assert third.getvalue() == '{"event":3}\n'
    assert sink.stream is third


def test_a_stream_that_is_given_stays_though_it_was_stderr(monkeypatch):
    """Who passes sys.stderr means that very stream."""
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    given, set_later = StreamSink(sys.stderr), StreamSink()
    assert set_later.set_stream(sys.stderr) is None
    monkeypatch.setattr(sys, "stderr", second)
    given.handle({"event": 1})
    set_later.handle({"event": 2})
    assert (first.getvalue(), second.getvalue()) == ('{"event":1}\n{"event":2}\n', "")


#: Made before any test begins, as an application's sinks are.
_CONSOLE = StreamSink()


def test_pytest_captures_the_events_of_a_sink_made_at_import(capsys):
    """Each test has its own sys.stderr."""
    _CONSOLE.handle({"event": "captured"})
    assert capsys.readouterr().err == '{"event":"captured"}\n'


def test_pytest_captures_the_descriptor_as_well(capfd):
    """What replaces descriptor 2 gets the events too."""
    _CONSOLE.handle({"event": "captured"})
    assert capfd.readouterr().err == '{"event":"captured"}\n'


def test_each_event_is_one_write_and_one_flush():
    """The terminator comes with the event, and the flush right after it."""
    stream = Recorder()
    sink = StreamSink(stream)
    sink.handle({"event": 1})
    sink.handle({"event": 2})
    expected = [("write", '{"event":1}\n'), ("flush", None), ("write", '{"event":2}\n'), ("flush", None)]
    assert stream.calls == expected


def test_close_flushes_and_leaves_the_stream_open():
    """The stream is the caller's; events after close are counted and not written."""
    stream = Recorder()
    sink = StreamSink(stream)
    assert sink.close()
    assert stream.calls == [("flush", None)]
    sink.on_error = lambda failure: None
    sink.handle({"event": "late"})
    assert stream.calls == [("flush", None)]
    assert sink.stats().dropped == {"closed": 1}


def test_close_of_a_sink_on_a_closed_stream_is_fine():
    """Who closes the stream first has done nothing wrong."""
    stream = io.StringIO()
    sink = StreamSink(stream)
    stream.close()
    assert sink.flush()
    assert sink.close()


def test_a_stream_without_flush_is_fine():
    """write is all that a stream needs."""

    class Bare:
        text = ""

        def write(self, text):
            self.text += text

    stream = Bare()
    with StreamSink(stream) as sink:
        sink.handle({"event": "e"})
        assert sink.flush()
    assert stream.text == '{"event":"e"}\n'
    assert sink.stats().delivered == 1


def test_a_stream_without_write_is_refused():
    """The mistake shows at construction and at set_stream, where the old stream is kept."""
    with pytest.raises(TypeError, match="has no write"):
        StreamSink(object())
    stream = io.StringIO()
    sink = StreamSink(stream)
    with pytest.raises(TypeError, match="has no write"):
        sink.set_stream(object())
    assert sink.stream is stream


def test_no_stderr_at_all_is_reported(monkeypatch):
    """Under pythonw there is none: each event is a counted loss, not a crash."""
    monkeypatch.setattr(sys, "stderr", None)
    failures = []
    sink = StreamSink(on_error=failures.append)
    sink.handle({"event": "e"})
    assert [type(failure.error) for failure in failures] == [DeliveryError]
    assert sink.stats().dropped == {"error": 1}
    assert sink.close()


@pytest.mark.parametrize("buffering", [-1, 0])
def test_binary_streams_get_bytes(tmp_path, buffering):
    """Files opened in binary mode, buffered or raw, take the bytes of the event."""
    with (tmp_path / "log").open("wb", buffering=buffering) as stream:
        sink = StreamSink(stream)
        sink.handle({"event": "ä"})
        assert (tmp_path / "log").read_bytes() == '{"event":"ä"}\n'.encode()


def test_binary_streams_get_text_in_the_encoding_asked_for():
    """Encoding is about binary streams and text renderers."""
    stream = io.BytesIO()
    sink = StreamSink(stream, renderer=_text, encoding="latin-1")
    sink.handle({"event": "ä€"})
    assert stream.getvalue() == b"\xe4\\u20ac\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "ascii"])
@pytest.mark.parametrize("renderer", [None, _text])
def test_text_streams_get_the_text_itself(renderer, encoding):
    """What the encoding for binary streams is does not garble what a text stream gets."""
    stream = io.StringIO()
    sink = StreamSink(stream, renderer=renderer, encoding=encoding, errors="backslashreplace")
    sink.handle({"event": "\xe4" if encoding != "ascii" or renderer is None else "a"})
    expected = "\xe4" if encoding != "ascii" or renderer is None else "a"
    assert stream.getvalue() in (f'{{"event":"{expected}"}}\n', f"{expected}\n")


def test_a_duck_that_refuses_text_gets_bytes_from_then_on():
    """A stream whose type says nothing is asked once."""

    class Bytes:
        def __init__(self):
            self.got = []

        def write(self, data):
            self.got.append(data)
            if not isinstance(data, bytes):
                raise TypeError("bytes, please")

    stream = Bytes()
    sink = StreamSink(stream)
    sink.handle({"event": 1})
    sink.handle({"event": 2})
    assert stream.got == ['{"event":1}\n', b'{"event":1}\n', b'{"event":2}\n']
    assert sink.stats().delivered == 2


def test_a_type_error_of_a_stream_that_took_text_is_an_error():
    """Once a stream has shown that it takes text, it is not offered bytes."""
    failures = []
    stream = Recorder()
    sink = StreamSink(stream, on_error=failures.append)
    sink.handle({"event": 1})
    stream.write = lambda data: (_ for _ in ()).throw(TypeError("no"))
    sink.handle({"event": 2})
    assert [type(failure.error) for failure in failures] == [TypeError]


def test_a_character_the_stream_cannot_encode_is_escaped(tmp_path):
    """The event is mended, not lost."""
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        sink = StreamSink(stream)
        sink.handle({"event": "ä"})
        sink.handle({"event": "b"})
    assert (tmp_path / "log").read_bytes() == b'{"event":"\\xe4"}\n{"event":"b"}\n'
    assert sink.stats().delivered == 2


def test_the_terminator_may_be_set_at_any_time():
    """It is read at each event."""
    stream = io.StringIO()
    sink = StreamSink(stream, terminator="|")
    sink.handle({"event": 1})
    sink.terminator = ""
    sink.handle({"event": 2})
    assert stream.getvalue() == '{"event":1}|{"event":2}'


def test_a_console_renderer_writes_for_people():
    """Any structlog renderer will do."""
    stream = io.StringIO()
    sink = StreamSink(stream, renderer=structlog.dev.ConsoleRenderer(colors=False))
    sink.handle({"event": "hello", "level": "info", "n": 1})
    assert stream.getvalue().split() == ["[info", "]", "hello", "n=1"]


def test_what_fails_to_write_is_counted_and_reported():
    """A stream on a full device costs the event, not the application."""
    failures = []
    stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    try:
        sink = StreamSink(stream, on_error=failures.append)
        sink.handle({"event": "e"})
        # The stream has it in its buffer still; the next cannot go behind it.
        sink.handle({"event": "f"})
        assert (sink.stats().pending, sink.stats().dropped) == (1, {"error": 1})
        assert not sink.close()
        assert (sink.stats().pending, sink.stats().dropped) == (0, {"error": 2})
        assert [failure.events for failure in failures] == [0, 1, 1]
    finally:
        # It keeps the event and cannot be closed otherwise.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        stream.close()


def test_a_raw_stream_that_takes_parts_gets_the_rest():
    """A short write is gone on with."""

    class Sips(io.RawIOBase):
        def __init__(self):
            self.got = b""

        def writable(self):
            return True

        def write(self, data):
            self.got += bytes(data[:3])
            return min(3, len(data))

    stream = Sips()
    sink = StreamSink(stream)
    sink.handle({"event": "abcdef"})
    assert stream.got == b'{"event":"abcdef"}\n'


def test_a_raw_stream_that_takes_nothing_is_an_error():
    """A descriptor that does not block and is full loses events loudly, but for one that stands there half."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    failures = []
    with os.fdopen(writer, "wb", buffering=0) as stream, os.fdopen(reader, "rb"):
        sink = StreamSink(stream, timeout=0, on_error=failures.append)
        for _ in range(3):
            sink.handle({"event": "x" * 100_000})
        stats = sink.stats()
        assert (stats.delivered, stats.pending, stats.dropped) == (0, 1, {"error": 2})
        assert not sink.close(0)
        assert sink.stats().dropped == {"error": 3}
    assert all(isinstance(failure.error, TimeoutError) for failure in failures)
    assert [failure.events for failure in failures] == [0, 1, 1, 1]


class _Full:
    """The two ends of something that does not block, with room for little, and what was read of it."""

    def __init__(self, kind: str) -> None:
        self.read = b""
        if kind.startswith("socket"):
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            self.stream = self._writer.makefile(kind.split()[1], encoding=None if "b" in kind else "utf-8")
            self._descriptor = self._reader.fileno()
        else:
            self._descriptor, writer = os.pipe()
            os.set_blocking(writer, False)
            fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ, that Python names from 3.10 on
            mode, buffering = kind.split()
            binary = "b" in mode
            self.stream = open(  # noqa: SIM115
                writer, mode, buffering=int(buffering), encoding=None if binary else "latin-1"
            )
        os.set_blocking(self._descriptor, False)

    def take(self, most: int = 1 << 20) -> None:
        """Read what is there, *most* bytes at most."""
        with contextlib.suppress(BlockingIOError):
            while most > 0 and (part := os.read(self._descriptor, min(most, 65_536))):
                self.read += part
                most -= len(part)

    def close(self) -> None:
        self.stream.close()
        if hasattr(self, "_writer"):
            self._writer.close()
            self._reader.close()
        else:
            os.close(self._descriptor)


KINDS = ["w -1", "w 1", "wb -1", "wb 16", "wb 0", "socket w", "socket wb"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs F_SETPIPE_SZ")
@pytest.mark.parametrize("size", [10, 900, 5000, 50_000])
@pytest.mark.parametrize("kind", KINDS)
def test_before_a_reader_that_pauses_no_line_is_torn_and_the_ledger_is_true(kind, size):
    """What the reader gets at last is the whole lines that are called delivered, and nothing else."""
    full = _Full(kind)
    sink = StreamSink(full.stream, timeout=0, on_error=lambda failure: None)
    number = 0
    for most in (1, 100, 3000, 4096, 1 << 20, 0, 7777, 1 << 20):
        for _ in range(3 + 10_000 // (size + 100)):
            sink.handle({"i": number, "event": "é" + "y" * size})
            number += 1
        full.take(most)
        stats = sink.stats()
        assert stats.accepted == number == stats.delivered + stats.pending + sum(stats.dropped.values())
        assert stats.pending <= 1
    for _ in range(200):
        full.take()
        if sink.flush(0):
            break
    full.take()
    assert full.read.endswith(b"\n")
    lines = [json.loads(line)["i"] for line in full.read.decode(errors="replace").splitlines()]
    assert lines == sorted(set(lines))
    stats = sink.stats()
    assert len(lines) == stats.delivered > 0
    assert stats.dropped == {"error": number - len(lines)}
    assert sink.close(0)
    full.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs F_SETPIPE_SZ")
@pytest.mark.parametrize("kind", KINDS)
def test_an_event_waits_for_room_until_its_time_is_over_and_the_next_do_not(kind):
    """A reader that comes in time costs nothing; one that does not come costs the application one timeout."""
    full = _Full(kind)
    sink = StreamSink(full.stream, timeout=PATIENCE_SECONDS)
    reader = threading.Thread(target=lambda: until(lambda: full.take() or full.read.count(b"\n") == 20))
    reader.start()
    for number in range(20):
        sink.handle({"i": number, "event": "y" * 3000})
    reader.join()
    assert sink.stats().delivered == 20
    impatient = StreamSink(full.stream, timeout=0.05, on_error=lambda failure: None)
    begin = time.monotonic()
    for number in range(200):
        impatient.handle({"i": number, "event": "y" * 3000})
    assert 0.05 <= time.monotonic() - begin < PATIENCE_SECONDS
    full.take()
    impatient.close(0)
    full.take()
    full.close()


@pytest.mark.parametrize("kind", ["w -1", "wb 0"])
def test_a_batch_before_a_full_pipe_is_taken_as_far_as_it_goes(kind):
    """The rest is left for a retry; an event that is half written goes on by itself."""
    full = _Full(kind)
    sink = StreamSink(full.stream, timeout=0, on_error=lambda failure: None)
    batch = [sink.encode({"i": number, "event": "y" * 900}) for number in range(50)]
    rounds = 0
    while batch:
        try:
            result = sink.emit_batch(batch)
        except TimeoutError:
            result = BatchResult(retry=range(len(batch)))
        batch = [] if result is None else [batch[index] for index in result.retry]
        full.take(2000)
        rounds += 1
    full.take()
    assert sink.flush(1)
    full.take()
    assert [json.loads(line)["i"] for line in full.read.splitlines()] == list(range(50))
    assert rounds > 5
    full.close()


def test_what_a_full_disk_left_in_the_streams_buffer_is_delivered_when_there_is_room(tmp_path):
    """Until it is out nothing goes behind it; then it counts, and so does what comes next."""
    stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    sink = StreamSink(stream, on_error=lambda failure: None)
    for number in range(3):
        sink.handle({"i": number})
    room = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(room, stream.fileno())
    os.close(room)
    sink.handle({"i": 3})
    stream.close()
    assert (tmp_path / "log").read_text() == '{"i":0}\n{"i":3}\n'
    stats = sink.stats()
    assert (stats.delivered, stats.pending, stats.dropped) == (2, 0, {"error": 2})


def test_a_stream_that_goes_with_half_an_event_costs_that_event():
    """Closed or exchanged before it had taken all: counted, and told at the latest by close."""
    for exchange in (False, True):
        full = _Full("wb 0")
        failures = []
        sink = StreamSink(full.stream, timeout=0, on_error=failures.append)
        sink.handle({"event": "y" * 100_000})
        assert sink.stats().pending == 1
        if exchange:
            sink.set_stream(io.StringIO())
            sink.handle({"event": "next"})
        else:
            full.stream.close()
        assert sink.close() is exchange
        assert (sink.stats().pending, sink.stats().dropped) == (0, {"error": 1})
        assert [failure.events for failure in failures] == [0, 1]
        full.close()


# -- set_stream


def test_set_stream_flushes_and_returns_the_old_one():
    """The old stream is complete when it is given back."""
    old, new = Recorder(), Recorder()
    sink = StreamSink(old)
    assert sink.set_stream(new) is old
    assert old.calls == [("flush", None)]
    sink.handle({"event": 1})
    assert (old.text, new.text) == ("", '{"event":1}\n')


def test_set_stream_to_the_same_returns_none():
    """Nothing is done then, as with logging.StreamHandler.setStream."""
    stream = Recorder()
    sink = StreamSink(stream)
    assert sink.set_stream(stream) is None
    assert stream.calls == []


def test_set_stream_gets_rid_of_a_stream_that_cannot_be_flushed():
    """The failure is reported, and the new stream is in place."""
    failures = []
    old, new = Recorder(), Recorder()
    old.flush = lambda: (_ for _ in ()).throw(OSError(5, "broken"))
    sink = StreamSink(old, on_error=failures.append)
    assert sink.set_stream(new) is old
    assert [(type(failure.error), failure.events) for failure in failures] == [(OSError, 0)]
    sink.handle({"event": 1})
    assert new.text == '{"event":1}\n'


def test_set_stream_asks_anew_whether_text_or_bytes_are_wanted():
    """What one stream has shown says nothing about the next."""
    sink = StreamSink(io.StringIO())
    binary = io.BytesIO()
    sink.set_stream(binary)
    sink.handle({"event": 1})
    assert binary.getvalue() == b'{"event":1}\n'


# -- re-entrancy


class Interrupting(Recorder):
    """A stream in whose write something else happens once."""

    def __init__(self, what) -> None:
        super().__init__()
        self.what = what

    def write(self, data):
        what, self.what = self.what, None
        if what is not None:
            super().write(data[: len(data) // 2])
            what()
            super().write(data[len(data) // 2 :])
        else:
            super().write(data)


@pytest.mark.parametrize("how", ["signal", "__del__"])
def test_an_event_from_within_a_write_is_written_after_it(how):
    """A signal handler or __del__ that logs to the sink it interrupts tears no line and loses none."""

    class Dying:
        def __del__(self):
            sink.handle({"event": "nested"})

    def interrupt():
        if how == "signal":
            signal.raise_signal(signal.SIGUSR1)
        else:
            dying = [Dying()]
            dying.append(dying)
            del dying
            gc.collect()

    stream = Interrupting(interrupt)
    sink = StreamSink(stream)
    before = signal.signal(signal.SIGUSR1, lambda *_: sink.handle({"event": "nested"}))
    try:
        sink.handle({"event": "outer"})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stream.text == '{"event":"outer"}\n{"event":"nested"}\n'
    assert sink.stats().delivered == 2


def test_nested_events_that_fail_are_not_counted_as_delivered():
    """The ledger is exact when the outer event is written and those that came meanwhile are not."""
    failures = []

    class Breaking(Interrupting):
        def write(self, data):
            if "nested" in data:
                raise OSError(28, "No space left on device")
            super().write(data)

    def interrupt():
        for _ in range(3):
            sink.handle({"event": "nested"})

    sink = StreamSink(Breaking(interrupt), on_error=failures.append)
    sink.handle({"event": "outer"})
    stats = sink.stats()
    assert (stats.accepted, stats.delivered, stats.dropped) == (4, 1, {"error": 3})
    assert [failure.events for failure in failures] == [3]


def test_nested_events_are_written_although_the_outer_one_fails():
    """What a failing write was interrupted by is not left behind."""
    failures = []

    class Breaking(Recorder):
        def write(self, data):
            if "outer" in data:
                sink.handle({"event": "nested"})
                raise OSError(5, "broken")
            super().write(data)

    stream = Breaking()
    sink = StreamSink(stream, on_error=failures.append)
    sink.handle({"event": "outer"})
    stats = sink.stats()
    assert stream.text == '{"event":"nested"}\n'
    assert (stats.accepted, stats.delivered, stats.dropped) == (2, 1, {"error": 1})
    assert [failure.events for failure in failures] == [1]


def test_an_interrupted_write_leaves_the_sink_usable():
    """KeyboardInterrupt passes through, is counted, and the next event is written by any thread."""

    def interrupt():
        raise KeyboardInterrupt

    stream = Interrupting(interrupt)
    sink = StreamSink(stream)
    with pytest.raises(KeyboardInterrupt):
        sink.handle({"event": 1})
    thread = threading.Thread(target=sink.handle, args=({"event": 2},))
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert stream.text.endswith('{"event":2}\n')
    assert sink.stats().dropped == {"interrupted": 1}
    assert sink.stats().delivered == 1


def test_threads_tear_no_line(tmp_path):
    """Lines of 8 threads through one text stream are whole and all there."""
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        sink = StreamSink(stream)

        def work(thread):
            for n in range(300):
                sink.handle({"event": "x" * 50, "thread": thread, "n": n})

        threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    seen = [(event["thread"], event["n"]) for event in events_of(tmp_path / "log")]
    assert sorted(seen) == [(t, n) for t in range(8) for n in range(300)]


@pytest.mark.skipif(sys.gettrace() is not None, reason="under a tracer interrupts come faster than events get through")
def test_interrupts_at_random_instants(tmp_path):
    """KeyboardInterrupts from a timer are all counted, and another thread's events go on being written."""
    check(
        """
        import random, signal, sys, threading, time
        from outfall.sinks.files.stream import StreamSink

        stream = open(sys.argv[1], "w", encoding="utf-8")
        sink = StreamSink(stream)
        stop, theirs = False, 0

        def other():
            global theirs
            while not stop:
                sink.handle({"event": "theirs", "n": theirs})
                theirs += 1

        thread = threading.Thread(target=other)
        thread.start()

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        caught = calls = 0
        end = time.monotonic() + 20
        while caught < 300 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))
                while True:
                    calls += 1
                    sink.handle({"event": "ours", "n": calls})
            except KeyboardInterrupt:
                caught += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        stop = True
        thread.join(60)
        assert not thread.is_alive()
        stats = sink.stats()
        assert set(stats.dropped) == {"interrupted"}, stats
        # One that comes before the first line of handle() finds nothing to count yet.
        assert calls + theirs - caught <= stats.accepted <= calls + theirs, (calls, theirs, caught, stats)
        assert sink.close(60)
        """,
        tmp_path / "log",
    )
    theirs = [e["n"] for e in events_of_lenient(tmp_path / "log") if e["event"] == "theirs"]
    assert theirs == list(range(len(theirs)))


def events_of_lenient(path):
    """Return what can be read: a stream's own write may be interrupted between its text and its flush."""
    events = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


# -- time, forks


def test_flush_and_close_keep_their_time_while_another_thread_is_stuck():
    """A pipe that nobody reads holds neither flush nor close longer than asked."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, os.fdopen(reader, "rb", buffering=0) as other_end:
        sink = StreamSink(stream)
        thread = threading.Thread(target=sink.handle, args=({"event": "x" * 300_000},), daemon=True)
        thread.start()
        until(lambda: sink._writing)
        begin = time.monotonic()
        assert not sink.flush(0.05)
        assert not sink.close(0.05)
        assert time.monotonic() - begin < PATIENCE_SECONDS / 2
        while thread.is_alive():
            if select.select([other_end], [], [], 0.01)[0]:
                other_end.read(65_536)
        thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize("sinks", [1, 2], ids=["the same sink", "another sink on the buffer"])
def test_a_child_does_not_wait_for_a_lock_that_a_thread_of_the_parent_held(tmp_path, sinks):
    """Forked while a thread is stuck in the stream's write, the child still writes, in the stream's encoding."""
    # The pipe is exchanged for a file in the child, which shows what was written there.
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="latin-1") as stream, os.fdopen(reader, "rb", buffering=0) as other_end:
        busy = StreamSink(stream)
        sink = busy if sinks == 1 else StreamSink(stream.buffer)
        thread = threading.Thread(target=busy.handle, args=({"event": "x" * 300_000},), daemon=True)
        thread.start()
        until(lambda: busy._writing)
        until(lambda: _blocked_in_write(thread))

        def child():
            os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), writer)
            sink.handle({"event": "ä"})
            late = StreamSink(stream)
            late.handle({"event": "late"})
            stats = sink.stats()
            assert (stats.accepted, stats.delivered) == (1, 1), stats
            assert sink.close(60)

        in_fork(child)
        while thread.is_alive():
            if select.select([other_end], [], [], 0.01)[0]:
                other_end.read(65_536)
        thread.join(PATIENCE_SECONDS)
    encoding = "latin-1" if sinks == 1 else "utf-8"
    assert (tmp_path / "log").read_bytes().splitlines() == ['{"event":"ä"}'.encode(encoding), b'{"event":"late"}']


def _blocked_in_write(thread) -> bool:
    state = (Path("/proc/self/task") / str(thread.native_id) / "stat").read_text().rpartition(")")[2].split()[0]
    return state == "S"


def test_a_child_of_an_idle_parent_uses_the_stream_itself():
    """Nothing changes for a stream that nobody was writing to."""
    stream = io.StringIO()
    sink = StreamSink(stream)
    sink.handle({"event": "parent"})

    def child():
        sink.handle({"event": "child"})
        assert stream.getvalue() == '{"event":"parent"}\n{"event":"child"}\n'
        assert sink.stats().delivered == 1

    in_fork(child)


def test_the_repr_names_the_stream(tmp_path):
    """A repr tells one sink from another."""
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        assert repr(StreamSink(stream)) == f"<StreamSink {tmp_path / 'log'}>"
    assert repr(StreamSink(io.StringIO(), level="info")) == "<StreamSink on StringIO level='info'>"


def test_a_null_sink_takes_everything():
    """Events count as delivered and go nowhere."""
    sink = NullSink(level="info")
    sink.handle({"event": "e", "level": "error"})
    sink.handle({"event": "e", "level": "debug"})
    assert (sink.stats().delivered, sink.stats().filtered) == (1, 1)
    assert sink.close()


def test_a_file_sink_and_a_stream_sink_may_nest(tmp_path):
    """A stream that logs to another sink while it is written to blocks nothing."""
    with FileSink(tmp_path / "log") as file:
        stream = Interrupting(lambda: file.handle({"event": "nested"}))
        StreamSink(stream).handle({"event": "outer"})
    assert events_of(tmp_path / "log") == [{"event": "nested"}]
    assert stream.text == '{"event":"outer"}\n'


def test_a_stream_that_codecs_opened_gets_text(tmp_path):
    """What such a stream says of its mode is that of the binary stream below, and does not count."""
    with codecs.open(str(tmp_path / "out"), "w", "utf-16") as stream:
        StreamSink(stream, on_error="raise").handle({"event": "é"})
    assert (tmp_path / "out").read_text("utf-16") == '{"event":"é"}\n'


@pytest.mark.parametrize(("mode", "wanted"), [("w+", "{'event':'é'}\n"), ("w+b", "{'event':'é'}\n".encode())])
def test_a_spooled_temporary_file_gets_what_its_mode_says(mode, wanted):
    """It is an io.IOBase and neither io.TextIOBase nor io.RawIOBase, in memory as on the disk."""
    with tempfile.SpooledTemporaryFile(20, mode, encoding=None if "b" in mode else "utf-8") as stream:
        sink = StreamSink(stream, on_error="raise", renderer=lambda *_: "{'event':'é'}")
        sink.handle({})
        sink.handle({})
        stream.seek(0)
        assert stream.read() == 2 * wanted


@pytest.mark.parametrize("stream", [io.StringIO(), io.BytesIO()])
def test_write_takes_text_as_well(stream):
    """Who writes to the sink itself may give text, for either kind of stream."""
    sink = StreamSink(stream, on_error="raise")
    sink.write("é\ud800\n" if isinstance(stream, io.StringIO) else "é\n")
    written = stream.getvalue()
    assert written in {"é\ud800\n", "é\n".encode()}


class _Counting(io.BytesIO):
    writes = 0

    def write(self, data):
        self.writes += 1
        return super().write(data)


def test_a_batch_is_one_write():
    """Many events in a batch reach the stream together."""
    stream = _Counting()
    sink = StreamSink(stream)
    assert sink.emit_batch([sink.encode({"n": n}) for n in range(3)]) is None
    assert stream.getvalue() == b'{"n":0}\n{"n":1}\n{"n":2}\n'
    assert stream.writes == 1


def test_a_subclass_that_overrides_write_gets_each_event_of_a_batch():
    """What a subclass does with one event it does with each."""

    class Own(StreamSink):
        def write(self, data):
            super().write(b"> " + data)

    stream = io.BytesIO()
    sink = Own(stream)
    sink.emit_batch([sink.encode({"n": n}) for n in range(2)])
    assert stream.getvalue() == b'> {"n":0}\n> {"n":1}\n'


def test_a_null_sink_looks_at_no_item_of_a_batch():
    """A batch of anything is taken; a subclass that overrides emit gets each event."""
    assert NullSink().emit_batch([object()]) is None

    class Own(NullSink):
        seen = ()

        def emit(self, event):
            self.seen += (event["n"],)

    sink = Own()
    sink.emit_batch([sink.encode({"n": n}) for n in range(2)])
    assert sink.seen == (0, 1)
