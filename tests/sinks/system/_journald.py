"""A real systemd-journald with a namespace of its own, and a reader of its protocol written from the specification."""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.sinks._processes import PATIENCE_SECONDS, until

PROGRAM = "/lib/systemd/systemd-journald"


class Journald:
    """One journald, started in the foreground and ended by its own process id; it may be started again."""

    def __init__(self) -> None:
        self.namespace = f"outfall{os.getpid()}"
        self.runtime = Path(f"/run/systemd/journal.{self.namespace}")
        self.socket = str(self.runtime / "socket")
        self.start()

    def start(self):
        """Start it, and return when it takes entries."""
        self.runtime.mkdir(parents=True, exist_ok=True)
        command = [PROGRAM, self.namespace]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._takes)

    def _takes(self):
        assert self.process.poll() is None, "systemd-journald has ended"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(self.socket)
            except OSError:
                return False
        return True

    def stop(self, by=signal.SIGTERM):
        """End it, and return when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(by)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait(self, identifier, number):
        """Wait until so many entries of *identifier* have come, and return them."""
        found = []

        def read():
            command = ["journalctl", f"--namespace={self.namespace}", "-o", "json", "--all", "-q", "-t", identifier]
            lines = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_SECONDS).stdout
            found[:] = map(json.loads, lines.splitlines())
            return len(found) >= number

        until(read)
        return found

    def close(self):
        """End it, and remove what it has kept."""
        self.stop()
        shutil.rmtree(self.runtime, ignore_errors=True)
        for directory in ("/var/log/journal", "/run/log/journal"):
            for kept in Path(directory).glob(f"*.{self.namespace}"):
                shutil.rmtree(kept, ignore_errors=True)


def receive(sock):
    """Return the fields of the next entry, each a list of values, as the protocol's specification has them."""
    data, ancillary, _, _ = sock.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    for level, kind, passed in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        file = array.array("i", passed)[0]
        with os.fdopen(file, "rb") as stream:
            assert not data
            data = stream.read() if stream.seek(0) == 0 else b""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        fields.setdefault(name.decode("ascii"), []).append(value)
    return fields
