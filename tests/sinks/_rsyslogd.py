"""A real rsyslogd on loopback, with a configuration, files and sockets of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from urllib.parse import unquote

from tests.sinks._processes import PATIENCE_SECONDS, until
from tests.sinks._wire import free_port, takes_datagrams

CONFIGURATION = """
global(workDirectory="{directory}" {size} net.enableDNS="off"
       parser.escapeControlCharactersOnReceive="off" {defaults})
module(load="imudp")
module(load="imtcp" maxSessions="500" {driver})
module(load="imptcp")
module(load="imuxsock" sysSock.use="off")
module(load="mmpstrucdata")
template(name="line" type="list") {{
  constant(value="{{")
  property(outname="msg" name="msg" format="jsonf") constant(value=",")
  property(outname="pri" name="pri" format="jsonf") constant(value=",")
  property(outname="facility" name="syslogfacility-text" format="jsonf") constant(value=",")
  property(outname="severity" name="syslogseverity" format="jsonf") constant(value=",")
  property(outname="app" name="app-name" format="jsonf") constant(value=",")
  property(outname="host" name="hostname" format="jsonf") constant(value=",")
  property(outname="procid" name="procid" format="jsonf") constant(value=",")
  property(outname="msgid" name="msgid" format="jsonf") constant(value=",")
  property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf") constant(value=",")
  property(outname="sd" name="structured-data" format="jsonf") constant(value=",\\"parsed\\":")
  property(name="$!all-json-plain") constant(value="}}\\n")
}}
ruleset(name="all") {{
  action(type="mmpstrucdata")
  action(type="omfile" file="{directory}/out.jsonl" template="line")
}}
input(type="imudp" address="127.0.0.1" port="{udp}" ruleset="all")
input(type="imtcp" address="127.0.0.1" port="{tcp}" ruleset="all")
input(type="imptcp" path="{directory}/stream" unlink="on" ruleset="all")
input(type="imuxsock" socket="{directory}/datagram" useSpecialParser="off" parseHostname="on" ignoreTimestamp="off"
      rateLimit.interval="0" ruleset="all")
"""


class Rsyslogd:
    """One rsyslogd, started in the foreground and ended by its own process id."""

    def __init__(
        self, program, directory, driver="", defaults="", size='maxMessageSize="64k"', configuration=CONFIGURATION
    ) -> None:
        self.program = program
        self.directory = directory
        self.output = directory / "out.jsonl"
        self.udp, self.tcp = free_port(), free_port()
        self.datagram, self.stream = str(directory / "datagram"), str(directory / "stream")
        ports = {"udp": self.udp, "tcp": self.tcp}
        given = configuration.format(directory=directory, driver=driver, defaults=defaults, size=size, **ports)
        self.start(given, None if "imuxsock" in given else lambda: self.takes_tcp() and takes_datagrams(self.udp))

    def start(self, configuration=None, ready=None):
        """Start it, with another *configuration* if given, and return when it takes messages by all its inputs."""
        if configuration is not None:
            (self.directory / "rsyslog.conf").write_text(configuration)
        command = [self.program, "-n", "-f", f"{self.directory}/rsyslog.conf", "-i", f"{self.directory}/pid"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(lambda: self._runs() and (ready or self._is_ready)())
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _runs(self):
        assert self.process.poll() is None, (self.directory / "log").read_text()
        return True

    def takes_tcp(self):
        """Return True if it takes connections."""
        return _connects(socket.AF_INET, ("127.0.0.1", self.tcp))

    def _is_ready(self):
        return (
            takes_datagrams(self.udp)
            and self.takes_tcp()
            and _connects(socket.AF_UNIX, self.stream)
            and _connects(socket.AF_UNIX, self.datagram, socket.SOCK_DGRAM)
        )

    def stop(self, by=signal.SIGTERM):
        """End it, and return when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(by)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def messages(self, app):
        """Return the messages of the program *app* so far."""
        if not self.output.exists():
            return []
        whole, _, _ = self.output.read_bytes().rpartition(b"\n")
        # mmpstrucdata writes control characters as they are.
        lines = [json.loads(line, strict=False) for line in whole.split(b"\n") if line]
        return [line for line in lines if line["app"] == app]

    def wait(self, app, number):
        """Wait until so many messages of *app* have come, and return them."""
        until(lambda: len(self.messages(app)) >= number)
        return self.messages(app)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


PARAMETER = re.compile(r' ([^\x00- "=\]\x7f-\U0010ffff]{1,32})="((?:[^"\\\]]|\\["\\\]])*)"')
ELEMENT = re.compile(r'\[([^\x00- "=\]\x7f-\U0010ffff]{1,32})((?: [^ =\]"]+="(?:[^"\\\]]|\\["\\\]])*")*)\]')


def parsed(text):
    """Return the elements of structured data as RFC 5424 has them; stricter than it, which forgives backslashes."""
    if text == "-":
        return {}
    elements, position = {}, 0
    while position < len(text):
        element = ELEMENT.match(text, position)
        assert element, text[position:]
        assert element[1] not in elements
        parameters = PARAMETER.findall(element[2])
        assert len(dict(parameters)) == len(parameters), text
        elements[element[1]] = {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in parameters}
        position = element.end()
    return elements


def fields_of(text, sd_id="outfall@32473", names="names@32473"):
    """Return the fields in structured data, under their whole names."""
    elements = parsed(text)
    whole = elements.pop(names, {})
    fields = elements.pop(sd_id, {})
    assert not elements
    return {whole[name] if name in whole else unquote(name): value for name, value in fields.items()}


def _connects(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True
