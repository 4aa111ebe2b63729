"""Every sink beside a peer that can be looked at, for what is to be shown of all of them.

Run as a program it does one of `SCENARIOS` with all sinks: ``python -m tests._lab exit plan.json``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outfall import (
    NDJSON,
    BackgroundSink,
    CaptureSink,
    DatagramSink,
    FallbackSink,
    FanoutSink,
    FileSink,
    FluentSink,
    GELFDatagramSink,
    HandlerSink,
    HTTPSink,
    JournaldSink,
    MemorySink,
    RotatingFileSink,
    SMTPSink,
    SocketListener,
    SocketSink,
    SpoolSink,
    StreamSink,
    SysLogSink,
    TimedRotatingFileSink,
    WatchedFileSink,
)
from tests.sinks._processes import PATIENCE_SECONDS, ROOT, events_of, until

if TYPE_CHECKING:
    from outfall import Sink

#: How many events each writer has for each sink.
EVENTS = 4
#: How many children there are in "fork".
CHILDREN = 8
#: What is in no hurry waits until it is told.
LONG_SECONDS = 600.0

Plan = dict[str, Any]


def _append(path: str) -> Any:
    return Path(path).open("ab", buffering=0)


def _handler(path: str) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter('{"event": "%(message)s", "writer": %(writer)d, "number": %(number)d}'))
    return handler


#: How each sink is made, given its file and the peers' addresses.
MAKERS = {
    "FileSink": lambda path, _: FileSink(path),
    "WatchedFileSink": lambda path, _: WatchedFileSink(path),
    "RotatingFileSink": lambda path, _: RotatingFileSink(path, max_bytes=500, backup_count=99, multiprocess=True),
    "TimedRotatingFileSink": lambda path, _: TimedRotatingFileSink(path, max_bytes=500, multiprocess=True),
    "StreamSink": lambda path, _: StreamSink(_append(path)),
    "SocketSink": lambda _, plan: SocketSink(*plan["tcp"]),
    "DatagramSink": lambda _, plan: DatagramSink(*plan["udp"]),
    "SysLogSink": lambda _, plan: SysLogSink(tuple(plan["syslog"])),
    "JournaldSink": lambda _, plan: JournaldSink(plan["journal"], timeout=PATIENCE_SECONDS),
    "GELFDatagramSink": lambda _, plan: GELFDatagramSink(*plan["gelf"]),
    "FluentSink": lambda _, plan: FluentSink(*plan["fluent"], tag="lab", timeout=PATIENCE_SECONDS),
    "SMTPSink": lambda _, plan: SMTPSink(tuple(plan["smtp"]), "shop@example.org", "ops@example.org", "an event"),
    "HTTPSink": lambda _, plan: HTTPSink(plan["http"], body=NDJSON()),
    "MemorySink": lambda path, _: MemorySink(10_000, target=FileSink(path)),
    "BackgroundSink": lambda path, _: BackgroundSink(FileSink(path), linger=LONG_SECONDS),
    "SpoolSink": lambda path, plan: SpoolSink(FileSink(path), plan["spool"], linger=LONG_SECONDS),
    "FanoutSink": lambda path, _: FanoutSink(CaptureSink(), FileSink(path)),
    "FallbackSink": lambda path, _: FallbackSink(
        FileSink(f"{path}/no/such/directory", on_error=_quiet), FileSink(path), on_error=_quiet
    ),
    "HandlerSink": lambda path, _: HandlerSink(_handler(path)),
}


def _quiet(_failure: object) -> None:
    """Take note of nothing: the primary is to fail."""


def make(name: str, plan: Plan) -> Sink:
    """Return the sink of that name, leading to its peer."""
    return MAKERS[name](f"{plan['directory']}/{name}.jsonl", plan)


def log(sink: Sink, writer: int, events: int = EVENTS) -> None:
    """Log as many events, each of which is one of a kind."""
    for number in range(events):
        sink.handle({"event": "lab", "level": "info", "writer": writer, "number": number})


def _receive(sock: socket.socket, datagrams: list[bytes]) -> None:
    while data := sock.recv(65_536):
        datagrams.append(data)


def _fields(entry: bytes) -> dict[str, Any]:
    """Return writer and number of an entry for the journal."""
    fields = dict(line.split(b"=", 1) for line in entry.splitlines())
    return {name: int(fields[name.upper().encode()]) for name in ("writer", "number")}


def _fields_of_gelf(data: bytes) -> dict[str, Any]:
    message = json.loads(zlib.decompress(data))
    return {name: message[f"_{name}"] for name in ("writer", "number")}


class Lab:
    """The peers of all sinks, and what they have received.

    Args:
        directory: For files.
    """

    def __init__(self, directory: Path) -> None:
        # Here, since the programs that Lab starts need no servers.
        from tests.sinks._http import Server
        from tests.sinks._mail import MailServer
        from tests.sinks.network._fluent import Forward

        self.directory = directory
        self._stack = contextlib.ExitStack()
        self._tcp, self._udp = CaptureSink(), CaptureSink()
        tcp = self._stack.enter_context(SocketListener(("127.0.0.1", 0), self._tcp))
        udp = self._stack.enter_context(SocketListener(("127.0.0.1", 0), self._udp, kind="datagram"))
        self._http = self._stack.enter_context(Server())
        self._mail = self._stack.enter_context(MailServer())
        self._datagrams: list[bytes] = []
        self._syslog = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._syslog.bind(("127.0.0.1", 0))
        self._journal = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._journal.bind(str(directory / "journal"))
        self._gelf = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._gelf.bind(("127.0.0.1", 0))
        self._fluent = self._stack.enter_context(Forward())
        self._entries: list[bytes] = []
        self._messages: list[bytes] = []
        self._threads = [
            threading.Thread(target=_receive, args=pair, daemon=True)
            for pair in (
                (self._syslog, self._datagrams),
                (self._journal, self._entries),
                (self._gelf, self._messages),
            )
        ]
        for thread in self._threads:
            thread.start()
        #: What `make` has to know.
        self.plan: Plan = {
            "directory": str(directory),
            "spool": str(directory / "spool"),
            "tcp": tcp.address[:2],
            "udp": udp.address[:2],
            "http": self._http.url,
            "smtp": self._mail.address,
            "syslog": self._syslog.getsockname(),
            "journal": self._journal.getsockname(),
            "gelf": self._gelf.getsockname(),
            "fluent": self._fluent.target,
        }

    def run(self, scenario: str) -> int:
        """Do *scenario* in a program of its own; return its exit status."""
        plan = self.directory / "plan.json"
        plan.write_text(json.dumps(self.plan))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        command = [sys.executable, "-m", "tests._lab", scenario, str(plan)]
        return subprocess.run(command, cwd=ROOT, env=environ, timeout=PATIENCE_SECONDS, check=False).returncode

    def received(self, name: str, expected: int) -> list[tuple[int, int]]:
        """Return writer and number of each event that the peer of *name* has, in order; wait until there are enough."""
        sources = {
            "SocketSink": lambda: self._tcp.events,
            "DatagramSink": lambda: self._udp.events,
            "SysLogSink": lambda: [json.loads(data.partition(b">")[2].rstrip(b"\0")) for data in self._datagrams],
            "JournaldSink": lambda: [_fields(entry) for entry in self._entries],
            "GELFDatagramSink": lambda: [_fields_of_gelf(data) for data in self._messages],
            "FluentSink": lambda: [record for _, _, record in self._fluent.entries],
            "SMTPSink": self._mailed,
            "HTTPSink": lambda: [event for request in self._http.requests for event in request.lines],
        }
        source = sources.get(name, lambda: self._in_files(name))
        with contextlib.suppress(AssertionError):  # what is missing is seen by who compares
            until(lambda: len(source()) >= expected)
        return sorted((event["writer"], event["number"]) for event in source())

    def _in_files(self, name: str) -> list[dict[str, Any]]:
        paths = [path for path in self.directory.glob(f"{name}.jsonl*") if not path.name.endswith(".lock")]
        return [event for path in paths for event in events_of(path)]

    def _mailed(self) -> list[dict[str, Any]]:
        attachments = [part for mail in self._mail.mails for part in mail.iter_attachments()]
        return [json.loads(line) for part in attachments for line in part.get_content().splitlines()]

    def close(self) -> None:
        """Stop the peers."""
        self._mail.wait_until_idle()
        for peer in (self._syslog, self._journal, self._gelf):
            with socket.socket(peer.family, socket.SOCK_DGRAM) as last:
                last.sendto(b"", peer.getsockname())
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        self._stack.close()


# -- the scenarios, in a program of their own


def _exit(plan: Plan) -> None:
    """Log, and come to the end of the program."""
    _kept.extend(make(name, plan) for name in MAKERS)
    for sink in _kept:
        log(sink, 0)


def _kill(plan: Plan) -> None:
    """Log, and be killed at once."""
    _exit(plan)
    os.kill(os.getpid(), signal.SIGKILL)


def _fork(plan: Plan) -> None:
    """Log here and in children, all of which use the sinks that were made here."""
    sinks = [make(name, plan) for name in MAKERS]
    for sink in sinks:
        log(sink, 0)
    children = []
    for writer in range(1, CHILDREN + 1):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for sink in sinks:
                    log(sink, writer)
                closed = [sink.close() for sink in sinks]
                status = 0 if all(closed) else 2
            finally:
                os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    closed = [sink.close() for sink in sinks]
    sys.exit(0 if all(closed) and not failed else 1)


def _full(plan: Plan) -> None:
    """Log while no file may grow, and again when it may."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A handler's stream keeps what it could not write.
    sinks = [make(name, plan) for name in MAKERS if name != "HandlerSink"]
    for sink in sinks:
        sink.on_error = _quiet
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    for sink in sinks:
        log(sink, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for sink in sinks:
        log(sink, 1)
    closed = [sink.close() for sink in sinks]
    sys.exit(0 if all(closed) else 1)


#: Sinks that are not to be collected before the end.
_kept: list[Sink] = []
SCENARIOS = {"exit": _exit, "kill": _kill, "fork": _fork, "full": _full}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
