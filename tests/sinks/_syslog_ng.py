"""A real syslog-ng on loopback, with a configuration, files and sockets of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess

from tests.sinks._processes import PATIENCE_SECONDS, until
from tests.sinks._rsyslogd import _connects
from tests.sinks._wire import free_port, takes_datagrams

CONFIGURATION = """@version: 3.38
options { stats-freq(0); dns-cache(no); use-dns(no); keep-hostname(yes); ts-format(iso); frac-digits(6); };
source s_all {
  syslog(ip("127.0.0.1") port(%(syslog)d) transport("tcp"));
  syslog(ip("127.0.0.1") port(%(udp_syslog)d) transport("udp"));
  network(ip("127.0.0.1") port(%(network)d) transport("tcp"));
  network(ip("127.0.0.1") port(%(structured)d) transport("tcp") flags(syslog-protocol));
  network(ip("127.0.0.1") port(%(udp)d) transport("udp"));
  unix-dgram("%(directory)s/datagram");
};
destination d_all {
  file("%(directory)s/out.jsonl" template("$(format-json --scope none time=$ISODATE program=$PROGRAM severity=$LEVEL
    facility=$FACILITY message=$MSG --key .SDATA.outfall@32473.* --rekey .SDATA.* --shift-levels 3
    --add-prefix data.)\\n"));
};
log { source(s_all); destination(d_all); };
"""


class SyslogNg:
    """One syslog-ng, started in the foreground and ended by its own process id."""

    def __init__(self, program, directory, configuration=CONFIGURATION) -> None:
        self.directory = directory
        self.output = directory / "out.jsonl"
        self.ports = {name: free_port() for name in ("syslog", "udp_syslog", "network", "structured", "udp")}
        self.datagram = str(directory / "datagram")
        (directory / "syslog-ng.conf").write_text(configuration % {"directory": directory, **self.ports})
        command = [program, "-F", "-e", "--no-caps", "-f", "syslog-ng.conf", "-R", "persist", "-p", "pid", "-c", "ctl"]
        with (directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        try:
            until(self._is_ready)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _is_ready(self):
        assert self.process.poll() is None, (self.directory / "log").read_text()
        configured = (self.directory / "syslog-ng.conf").read_text()
        for name, port in self.ports.items():
            if f"port({port})" in configured:
                udp = name.startswith("udp")
                if not (takes_datagrams(port) if udp else _connects(socket.AF_INET, ("127.0.0.1", port))):
                    return False
        return "unix-dgram" not in configured or _connects(socket.AF_UNIX, self.datagram, socket.SOCK_DGRAM)

    def stop(self, by=signal.SIGTERM):
        """End it, and return when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(by)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait(self, program, number):
        """Wait until so many messages of *program* have come, and return them."""
        found = []

        def read():
            if not self.output.exists():
                return False
            whole, _, _ = self.output.read_bytes().rpartition(b"\n")
            lines = [json.loads(line) for line in whole.split(b"\n") if line]
            found[:] = [line for line in lines if line.get("program") == program]
            return len(found) >= number

        until(read)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
