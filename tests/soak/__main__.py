"""Everything at once, for long, with faults all along: ``python -m tests.soak --seconds 600``.

Ten threads log to every kind of sink. Meanwhile peers are restarted, answer wrongly, slowly or not at all, files may
not grow, files are rolled over, and children are forked that log and close. At the end each ledger has to balance, what
came out has to agree with it, memory must not have grown, and no thread, descriptor or temporary file may be left.

It prints a table, and its status is 1 if something was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import json
import os
import random
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from outfall import (
    NDJSON,
    BackgroundSink,
    FanoutSink,
    HTTPSink,
    MemorySink,
    NullSink,
    QueueListener,
    QueueSink,
    RetryPolicy,
    RotatingFileSink,
    Sink,
    SocketListener,
    SocketSink,
    SpoolSink,
    SysLogSink,
    TimedRotatingFileSink,
)
from outfall.sinks.testing import assert_balanced
from tests.sinks._http import Answer, Server

THREADS = 10
#: Memory may differ by so much between the second quarter of the run and the last one.
GROWTH = 1.15
GROWTH_BYTES = 12 * 2**20
#: So many events may be logged; each has a bit.
MOST_EVENTS = 1 << 26


class Seen:
    """Which events came out, by their number."""

    def __init__(self):
        self._bits = bytearray(MOST_EVENTS // 8)
        self._lock = threading.Lock()
        self.unique = self.again = 0

    def add(self, number):
        """Take note of event *number*; of those of children, which have none, nothing."""
        if number < 0:
            return
        with self._lock:
            byte, bit = number >> 3, 1 << (number & 7)
            if self._bits[byte] & bit:
                self.again += 1
            else:
                self._bits[byte] |= bit
                self.unique += 1


class SeenSink(Sink):
    """A target in this process."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def emit(self, event):
        """Take note of it."""
        self.seen.add(event["number"])


class Syslog:
    """A receiver of syslog over TCP or UDP that can be restarted."""

    def __init__(self, kind):
        self.kind = kind
        self.port = 0
        self.start()

    def start(self):
        """Listen, on the same port as before."""
        self._socket = socket.socket(socket.AF_INET, self.kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._ended = False
        self._connections = []
        if self.kind == socket.SOCK_STREAM:
            self._socket.listen(16)
        self._threads = [threading.Thread(target=self._serve, args=(self._socket,), daemon=True)]
        self._threads[0].start()

    def _serve(self, sock):
        try:
            while not self._ended:
                if self.kind == socket.SOCK_STREAM:
                    made, _ = sock.accept()
                    self._connections.append(made)
                    thread = threading.Thread(target=self._read, args=(made,), daemon=True)
                    self._threads.append(thread)
                    thread.start()
                else:
                    sock.recv(65_536)
        except OSError:
            pass

    def _read(self, made):
        try:
            while made.recv(65_536):
                pass
        except OSError:
            pass
        finally:
            made.close()

    def stop(self):
        """Close everything."""
        self._ended = True
        for each in (*self._connections, self._socket):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if self.kind == socket.SOCK_DGRAM:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake:
                wake.sendto(b"", ("127.0.0.1", self.port))
        self._socket.close()
        for thread in self._threads:
            thread.join(10)


class Soak:
    """The run.

    Args:
        directory: Where files are written.
        seconds: How long it logs.
        rate: How many events each thread logs in a second, at most.
    """

    def __init__(self, directory, seconds, rate):
        self.directory = directory
        self.seconds = seconds
        self.rate = rate
        self.problems = []
        self.random = random.Random(1)
        self.numbers = iter(range(MOST_EVENTS))
        self.number_lock = threading.Lock()
        self.stopping = threading.Event()
        self.failures = 0
        self.children = self.bad_children = 0
        self.children_shared = 0
        self.faults = dict.fromkeys(("listener", "syslog", "http", "disk", "rollover", "fork"), 0)
        self.memory = []

    def fail(self, what):
        """Take note of what is not as it should be."""
        self.problems.append(what)
        sys.stdout.write(f"PROBLEM: {what}\n")

    # -- what there is

    def open(self):
        """Make peers and sinks."""
        told = {"on_error": self.told}
        retry = RetryPolicy(start_seconds=0.05, max_seconds=0.5, pause_start_seconds=0.1, pause_max_seconds=0.5)
        self.seen = {name: Seen() for name in ("socket", "memory", "queue", "background", "spool", "fanout")}
        self.answer = Answer()
        self.server = Server(self.answered)
        self.syslog_tcp, self.syslog_udp = Syslog(socket.SOCK_STREAM), Syslog(socket.SOCK_DGRAM)
        self.taking = SeenSink(self.seen["socket"])
        self.listener = SocketListener(("127.0.0.1", 0), self.taking, **told).start()
        self.listener_address = self.listener.address
        queue = SimpleQueue()
        self.queue_target = SeenSink(self.seen["queue"])
        self.memory_target = SeenSink(self.seen["memory"])
        self.queue_listener = QueueListener(queue, self.queue_target)
        self.queue_listener.start()
        url = self.server.url
        self.sinks = {
            "rotating": RotatingFileSink(
                self.directory / "rotating.jsonl", max_bytes=100_000, backup_count=100_000, compression="gzip", **told
            ),
            "timed": TimedRotatingFileSink(
                self.directory / "timed.jsonl", when="S", interval=2, backup_count=100_000, **told
            ),
            "shared": RotatingFileSink(
                self.directory / "shared.jsonl", max_bytes=100_000, backup_count=100_000, multiprocess=True, **told
            ),
            "socket": SocketSink(*self.listener_address, timeout=0.5, retry_start=0.1, retry_max=0.5, **told),
            "syslog tcp": SysLogSink(
                ("127.0.0.1", self.syslog_tcp.port), socktype=socket.SOCK_STREAM, timeout=0.5, **told
            ),
            "syslog udp": SysLogSink(("127.0.0.1", self.syslog_udp.port), **told),
            "memory": MemorySink(100, target=self.memory_target, **told),
            "queue": QueueSink(queue, **told),
            "background": BackgroundSink(
                HTTPSink(f"{url}/background", body=NDJSON(), timeout=1.0), retry=retry, block_timeout=0.1, **told
            ),
            "spool": SpoolSink(
                HTTPSink(f"{url}/spool", body=NDJSON(), timeout=1.0),
                self.directory / "spool",
                retry=retry,
                block_timeout=0.1,
                segment_bytes=200_000,
                **told,
            ),
            "fanout": FanoutSink(NullSink(), SeenSink(self.seen["fanout"]), **told),
        }
        for sink in self.sinks.values():
            sink.drain_timeout = 2.0

    def told(self, _failure):
        """Count a failure."""
        self.failures += 1

    def answered(self, request):
        """Take the events of a request, unless a fault says otherwise."""
        self.server.requests.clear()
        self.server.errors.clear()
        answer = self.answer
        if answer.status == 200 and not answer.hang and not answer.reset:
            seen = self.seen[request.path.strip("/")]
            for event in request.lines:
                seen.add(event["number"])
        return answer

    # -- what happens

    def log(self, index):
        """Log to all sinks in turns, until told to stop."""
        names = list(self.sinks)
        chosen = random.Random(index)
        while not self.stopping.is_set():
            with self.number_lock:
                number = next(self.numbers)
            name = chosen.choice(names)
            self.sinks[name].handle(
                {
                    "event": "soak",
                    "level": "info",
                    "number": number,
                    "thread": index,
                    "text": "x" * chosen.randrange(200),
                }
            )
            time.sleep(1 / self.rate)

    def disturb(self):
        """One fault after the other, until told to stop."""
        faults = list(self.faults)
        while not self.stopping.wait(0.3):
            fault = self.random.choice(faults)
            self.faults[fault] += 1
            try:
                getattr(self, f"fault_{fault}")()
            except Exception as error:
                self.fail(f"the fault {fault} ended in {error!r}")
        self.answer = Answer()

    def fault_listener(self):
        """The receiver of frames is away for a while."""
        self.listener.stop()
        self.stopping.wait(self.random.uniform(0, 1.5))
        self.listener = SocketListener(self.listener_address, self.taking, on_error=self.told).start()

    def fault_syslog(self):
        """Both daemons are."""
        for daemon in (self.syslog_tcp, self.syslog_udp):
            daemon.stop()
        self.stopping.wait(self.random.uniform(0, 1.5))
        for daemon in (self.syslog_tcp, self.syslog_udp):
            daemon.start()

    def fault_http(self):
        """The collector answers wrongly, slowly, not at all, or is away."""
        kind = self.random.choice(["status", "reset", "drip", "hang", "away"])
        if kind == "away":
            self.server.stop()
            self.stopping.wait(self.random.uniform(0, 1.5))
            self.server.start()
            return
        self.answer = {
            "status": Answer(self.random.choice([400, 401, 413, 429, 500, 503])),
            "reset": Answer(reset=True),
            "drip": Answer(drip=0.005),
            "hang": Answer(hang=True),
        }[kind]
        self.stopping.wait(self.random.uniform(0.2, 1.5))
        self.answer = Answer()
        if kind == "hang":
            self.server.stop()
            self.server.start()

    def fault_disk(self):
        """No file may grow beyond a few pages: as with a full disk, writes fail or are short."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            self.stopping.wait(self.random.uniform(0.1, 1.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def fault_rollover(self):
        """Files are rolled over and opened anew by hand."""
        self.sinks["rotating"].do_rollover()
        self.sinks["timed"].reopen()
        self.sinks["shared"].reopen()

    def fault_fork(self):
        """A child logs, closes and looks at its own ledgers."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self.be_a_child(writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        self.children += 1
        if os.waitstatus_to_exitcode(status) != 0 or not told.isdigit():
            self.fail(f"a child ended with {status}: {told[:500]!r}")
        else:
            self.children_shared += int(told)

    def be_a_child(self, writer):
        """Log to what processes may share, in a forked child, and end."""
        told = b"it did not get to its end"
        status = 1
        try:
            names = ["shared", "socket", "syslog tcp", "syslog udp", "memory", "background", "spool", "fanout"]
            for _ in range(20):
                for name in names:
                    self.sinks[name].handle({"event": "child", "level": "info", "number": -1})
            for name in names:
                self.sinks[name].close(1)
                assert_balanced(self.sinks[name].stats())
                assert self.sinks[name].stats().accepted == 20, self.sinks[name].stats()
            told = b"%d" % self.sinks["shared"].stats().delivered
            status = 0
        except BaseException as error:
            told = repr(error).encode()
        finally:
            os.write(writer, told)
            os._exit(status)

    # -- the run

    def run(self):
        """Do it; return the number of problems."""
        gc.collect()
        descriptors, threads = _descriptors(), threading.active_count()
        self.open()
        workers = [threading.Thread(target=self.log, args=(index,)) for index in range(THREADS)]
        disturber = threading.Thread(target=self.disturb)
        began = time.monotonic()
        for thread in (*workers, disturber):
            thread.start()
        while (passed := time.monotonic() - began) < self.seconds:
            time.sleep(min(1.0, self.seconds - passed))
            self.memory.append((time.monotonic() - began, _rss()))
        self.stopping.set()
        for thread in (*workers, disturber):
            thread.join(120)
            if thread.is_alive():
                self.fail(f"{thread.name} hangs")
        self.close()
        self.look_at_the_ledgers()
        self.look_at_files()
        self.look_at_memory()
        gc.collect()
        self.look_for_leftovers(descriptors, threads)
        return len(self.problems)

    def close(self):
        """Close the sinks, then the peers."""
        for name, sink in self.sinks.items():
            if not sink.close(60):
                self.fail(f"{name}: close gave something up although its peer was back: {sink.stats()}")
        self.queue_listener.stop()
        self.listener.stop()
        for peer in (self.syslog_tcp, self.syslog_udp, self.server):
            peer.stop()
        for target in (self.taking, self.queue_target, self.memory_target):
            target.close()

    def look_at_the_ledgers(self):
        """Each balances, and agrees with what came out."""
        head = f"{'sink':12}{'accepted':>10}{'delivered':>10}{'came':>10}{'again':>7}{'retried':>8}  dropped\n"
        sys.stdout.write(head)
        for name, sink in self.sinks.items():
            stats, seen = sink.stats(), self.seen.get(name)
            try:
                assert_balanced(stats)
            except AssertionError as error:
                self.fail(f"{name}: {error}")
            came, again = (seen.unique, seen.again) if seen else ("", "")
            sys.stdout.write(
                f"{name:12}{stats.accepted:>10}{stats.delivered:>10}{came:>10}{again:>7}{stats.retried:>8}"
                f"  {dict(stats.dropped)}\n"
            )
            if seen is None:
                continue
            if name in {"memory", "queue", "fanout"} and (came, again) != (stats.delivered, 0):
                self.fail(f"{name}: {came} events came out, and {again} again, of {stats.delivered} delivered")
            if name in {"background", "spool"} and came < stats.delivered:
                self.fail(f"{name}: {came} events came out of {stats.delivered} delivered")

    def look_at_files(self):
        """Each line is an event, none comes twice, and there are as many as the ledger says."""
        for name in ("rotating", "timed", "shared"):
            seen, children, halves = Seen(), 0, []
            for path in self.directory.glob(f"{name}.jsonl*"):
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                for line in content.split(b"\n"):
                    if not line:
                        continue
                    try:
                        number = json.loads(line)["number"]
                    except ValueError:
                        halves.append((path.name, line[:80]))
                        continue
                    children += number < 0
                    seen.add(number)
            stats = self.sinks[name].stats()
            delivered = stats.delivered
            # What a full disk cut is taken back, unless another process has written after it: then it is ended.
            if len(halves) > (stats.dropped.get("error", 0) if name == "shared" else 0):
                self.fail(f"{name}: {len(halves)} lines that are no events: {halves[:3]}")
            if (seen.unique, seen.again) != (delivered, 0):
                self.fail(f"{name}: {seen.unique} lines, and {seen.again} again, for {delivered} delivered")
            if name == "shared" and children != self.children_shared:
                self.fail(f"{name}: {children} lines of children for {self.children_shared} that they delivered")

    def look_at_memory(self):
        """It was as large in the last quarter as in the second."""
        sizes = [size for _, size in self.memory]
        quarter = len(sizes) // 4
        if not quarter:
            return
        early, late = sorted(sizes[quarter : 2 * quarter])[quarter // 2], sorted(sizes[-quarter:])[quarter // 2]
        sys.stdout.write(f"memory: {early / 2**20:.1f} MiB in the second quarter, {late / 2**20:.1f} in the last\n")
        if late > early * GROWTH and late > early + GROWTH_BYTES:
            self.fail(f"memory grew from {early} to {late} bytes")

    def look_for_leftovers(self, descriptors, threads):
        """No thread, descriptor or temporary file."""
        deadline = time.monotonic() + 10
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [thread.name for thread in threading.enumerate()]
        if len(left) > threads:
            self.fail(f"threads are left: {left}")
        if (now := _descriptors()) != descriptors:
            self.fail(f"descriptors are left: {sorted(now.items() - descriptors.items())}")
        odd = [
            path.name
            for path in self.directory.rglob("*")
            if path.is_file() and (".tmp" in path.name or "spool" in path.relative_to(self.directory).parts[0])
        ]
        if odd:
            self.fail(f"files are left: {odd}")
        sys.stdout.write(
            f"{self.children} children, {self.failures} failures told; faults: "
            + ", ".join(f"{name} {count}" for name, count in self.faults.items())
            + "\n"
        )


def _descriptors():
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found[path.name] = str(path.readlink())
    return found


def _rss():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def main():
    """Run as the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Everything at once, with faults.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to log (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=100.0, help="events a second of each thread (default: %(default)s)"
    )
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="outfall-soak-"))
    began = time.monotonic()
    try:
        problems = Soak(directory, options.seconds, options.rate).run()
    finally:
        shutil.rmtree(directory)
    sys.stdout.write(f"{time.monotonic() - began:.0f} s, {problems or 'no'} problems\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
