"""SIGTERM: `configure(drain_on_sigterm=True)` drains the sinks before the process ends as it would have."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

import outfall
from tests.sinks._processes import PATIENCE_SECONDS, events_of, start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

#: What waits here is delivered by nothing but a flush or a drain.
SET_UP = """
import multiprocessing, os, signal, sys, threading, time
import outfall
path = sys.argv[1]
sink = outfall.BackgroundSink(outfall.FileSink(path), linger=3600)
{before}
outfall.configure(sink, console=False, drain_on_sigterm={option})
log = outfall.get_logger("shop")
log.info("one")
{after}
print("ready", flush=True)
while True:
    time.sleep(0.01)  # pause() may miss a signal that comes just before
"""


def ended_by_sigterm(path, before="", after="", *, option=True, times=1):
    """Start a program, send it SIGTERM once it is ready, and return its exit status and the events in the file."""
    script = SET_UP.format(before=before, after=after, option=option)
    with start(script, path, stdout=subprocess.PIPE) as process:
        try:
            for _ in range(times):
                line = process.stdout.readline()
                assert line == b"ready\n"
                process.send_signal(signal.SIGTERM)
            status = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
    return status, [event["event"] for event in events_of(path)] if path.exists() else None


def test_what_waits_is_delivered_and_the_status_is_that_of_the_signal(tmp_path):
    """The process ends as it would have; without the option, what was in memory is lost."""
    assert ended_by_sigterm(tmp_path / "with.jsonl") == (-signal.SIGTERM, ["one"])
    assert ended_by_sigterm(tmp_path / "without.jsonl", option=False) == (-signal.SIGTERM, [])


def test_an_earlier_handler_is_called_when_the_sinks_are_drained(tmp_path):
    """It finds the events delivered, and what it does decides about the process: here it ends without exit hooks."""
    path = tmp_path / "a.jsonl"
    handler = "signal.signal(signal.SIGTERM, lambda *_: os._exit(len(open(path).readlines()) + 40))"
    assert ended_by_sigterm(path, handler) == (41, ["one"])


def test_an_earlier_handler_may_let_the_process_go_on(tmp_path):
    """What comes then is delivered by the thread that logs, since the process may end in any way."""
    handler = """
seen = []
def on_sigterm(number, frame):
    seen.append(threading.current_thread().name)
    if len(seen) == 2:
        os._exit(0)
    log.info("two")
    assert sink.stats().pending == 0
    print("ready", flush=True)
signal.signal(signal.SIGTERM, on_sigterm)
"""
    assert ended_by_sigterm(tmp_path / "a.jsonl", handler, times=2) == (0, ["one", "two"])


def test_one_that_is_set_later_takes_its_place(tmp_path):
    """As servers do, which end by exit hooks."""
    after = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))"
    assert ended_by_sigterm(tmp_path / "a.jsonl", after=after) == (3, ["one"])


UVICORN = """
import asyncio, sys
import outfall, uvicorn
path, option = sys.argv[1], sys.argv[2] == "True"

async def say_ready():
    while not server.started:
        await asyncio.sleep(0.01)
    print("ready", flush=True)

async def app(scope, receive, send):
    sink = outfall.BackgroundSink(outfall.FileSink(path), linger=3600)
    outfall.configure(sink, console=False, drain_on_sigterm=option)
    await receive()
    outfall.get_logger("shop").info("one")
    await send({"type": "lifespan.startup.complete"})
    task = asyncio.create_task(say_ready())
    await receive()
    outfall.get_logger("shop").info("two")
    await send({"type": "lifespan.shutdown.complete"})

server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="on", log_config=None))
server.run()
"""


@pytest.mark.parametrize(("option", "expected"), [(True, ["one", "two"]), (False, [])])
def test_uvicorn_ends_by_the_signal_and_nothing_is_lost(option, expected, tmp_path):
    """It handles the signal, shuts down, and sends the signal to itself once more, without a handler."""
    path = tmp_path / "a.jsonl"
    with start(UVICORN, path, option, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM
        finally:
            process.kill()
    events = [event["event"] for event in events_of(path) if event["logger"] == "shop"]
    assert events == expected


def test_a_process_that_ignores_the_signal_goes_on_ignoring_it(tmp_path):
    """As it would have."""
    before = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    after = "os.kill(os.getpid(), signal.SIGTERM); os._exit(7)"
    with start(SET_UP.format(before=before, after=after, option=True), tmp_path / "a.jsonl") as process:
        assert process.wait(PATIENCE_SECONDS) == 7


def test_the_first_process_of_a_container_ends_too(tmp_path):
    """The system spares it when it has no handler: it exits with the status that a shell reports."""
    assert ended_by_sigterm(tmp_path / "a.jsonl", "os.kill = lambda *_: None") == (128 + signal.SIGTERM, ["one"])


def test_a_second_signal_ends_it_at_once(tmp_path):
    """Even if a sink does not take anything."""
    before = """
stuck = threading.Event()
class Stuck(outfall.Sink):
    def emit(self, event):
        print("ready", flush=True)
        stuck.wait()
background = sink
sink = outfall.FanoutSink(background, outfall.BackgroundSink(Stuck(), linger=3600))
"""
    assert ended_by_sigterm(tmp_path / "a.jsonl", before, times=2)[0] == -signal.SIGTERM


def test_a_child_that_is_terminated_delivers_its_own(tmp_path):
    """By `Process.terminate`; the parent's events stay the parent's."""
    path = tmp_path / "a.jsonl"
    after = """
def work():
    log.info("child")
    ready.set()
    while True:
        time.sleep(0.01)
context = multiprocessing.get_context("fork")
ready = context.Event()
child = context.Process(target=work)
child.start()
ready.wait()
child.terminate()
child.join()
assert child.exitcode == -signal.SIGTERM, child.exitcode
assert len(open(path).readlines()) == 1
"""
    assert ended_by_sigterm(path, after=after) == (-signal.SIGTERM, ["child", "one"])


def test_the_set_up_in_force_decides(tmp_path):
    """One that replaces it without the option drains nothing; one that was closed leaves the handler that was there."""
    replaced = "outfall.configure(sink, console=False)\nlog.info('two')"
    assert ended_by_sigterm(tmp_path / "a.jsonl", after=replaced) == (-signal.SIGTERM, ["one"])
    again = "outfall.configure(sink, console=False, drain_on_sigterm=True)\nlog.info('two')"
    assert ended_by_sigterm(tmp_path / "b.jsonl", after=again) == (-signal.SIGTERM, ["one", "two"])
    before = signal.getsignal(signal.SIGTERM)
    with outfall.configure(outfall.CaptureSink(), console=False, drain_on_sigterm=True):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_is_for_the_main_thread(own_logging):
    """Elsewhere it is refused, and nothing has changed."""
    raised = []

    def elsewhere():
        try:
            outfall.configure(outfall.CaptureSink(), console=False, drain_on_sigterm=True)
        except ValueError as error:
            raised.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert raised == ["drain_on_sigterm=True: Python lets only the main thread handle signals"]


BUSY = """
import os, sys
import outfall
folder = sys.argv[1]
sinks = [
    outfall.FileSink(folder + "/buffered.jsonl", buffer_bytes=1 << 30),
    outfall.BackgroundSink(outfall.FileSink(folder + "/background.jsonl")),
    outfall.SpoolSink(outfall.FileSink(folder + "/spooled.jsonl"), folder + "/spool"),
]
outfall.configure(*sinks, console=False, drain_on_sigterm=True)
log = outfall.get_logger("shop")
for number in range(1 << 40):
    log.info("x", number=number)
    if number % 100 == 99:
        os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("after", [1, 19])
def test_in_the_midst_of_logging_nothing_that_was_taken_is_lost(after, tmp_path):
    """Whatever the main thread was doing when the signal came."""
    with start(BUSY, tmp_path, stdout=subprocess.PIPE) as process:
        try:
            for _ in range(after):
                process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            last = [int(line) for line in process.stdout]
            assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM
        finally:
            process.kill()
    least = last[-1] + 1 if last else 100 * after
    for name in ("buffered", "background", "spooled"):
        path = tmp_path / f"{name}.jsonl"
        if name == "spooled":  # what came after the drain is on disk; a batch may come twice
            with outfall.SpoolSink(outfall.FileSink(path), tmp_path / "spool") as rest:
                assert rest.flush(PATIENCE_SECONDS)
        numbers = sorted({event["number"] for event in events_of(path)})
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= least, name
