"""A fleet on one machine: four services log to Redis, two relays deliver the events, and two failures are simulated.

Run it as ``make fleet``, or ``python examples/fleet/fleet.py``; it needs ``redis-server`` and the extra ``redis``. It
starts its own server on loopback, four services that log through a spool to one stream, and two relays that share the
work. Midway a relay is killed, and then Redis is killed and started again. At the end the program prints whether each
event has arrived, and how many came twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SERVICES = 4
HERE = Path(__file__).parent


def free_port() -> int:
    """Return a port that no program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: object, what: str, seconds: float = 120.0) -> None:
    """Wait until *condition*, a callable, is true."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain until {what}")
        time.sleep(0.01)


class Fleet:
    """The processes. All of them end with the program.

    Args:
        directory: The directory for all files.
        events: How many events each service logs.
    """

    def __init__(self, directory: Path, events: int) -> None:
        self.directory, self.events = directory, events
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: object) -> subprocess.Popen[bytes]:
        """Start a process, whose output goes to a file of that *name*."""
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_redis(self) -> subprocess.Popen[bytes]:
        """Start Redis, which writes each event to disk before it answers."""
        program = shutil.which("redis-server")
        if program is None:
            sys.exit("redis-server is not installed: sudo apt-get install redis-server")
        place = ("--port", self.port, "--bind", "127.0.0.1", "--dir", self.directory)
        server = self.start("redis", program, *place, "--appendonly", "yes", "--appendfsync", "always", "--save", "")
        wait_for(self.redis_answers, "Redis answers")
        return server

    def redis_answers(self) -> bool:
        """Return True if Redis accepts connections and has loaded its files."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def start_relay(self, number: int) -> subprocess.Popen[bytes]:
        """Start a relay, which after two seconds takes over the events of a dead relay."""
        source = f"{self.url}?key=logs&group=archive&claim_after=2s&batch_size=200"
        target = f"file:{self.directory}/archive-{number}.jsonl"
        return self.start(f"relay-{number}", sys.executable, "-m", "outfall", "relay", source, target)

    def start_service(self, number: int) -> subprocess.Popen[bytes]:
        """Start a service that logs."""
        service = (sys.executable, HERE / "service.py", self.url, self.directory / f"spool-{number}")
        return self.start(f"service-{number}", *service, number, self.events)

    def arrived(self) -> Counter[tuple[int, int]]:
        """Return how often each event has arrived."""
        found: Counter[tuple[int, int]] = Counter()
        for path in sorted(self.directory.glob("archive-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                event = json.loads(line)
                found[event["service"], event["number"]] += 1
        return found

    def end(self) -> None:
        """Kill all processes that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def run(fleet: Fleet) -> int:
    """Run the simulation; return the exit code."""
    redis = fleet.start_redis()
    relays = [fleet.start_relay(1), fleet.start_relay(2)]
    services = [fleet.start_service(number) for number in range(SERVICES)]
    wanted = SERVICES * fleet.events
    print(f"Redis, {len(relays)} relays, {SERVICES} services that log {fleet.events:,} events each")

    wait_for(lambda: sum(fleet.arrived().values()) > wanted // 10, "a tenth has arrived")
    relays[0].kill()
    print(f"relay 1 is killed when {sum(fleet.arrived().values()):,} events have arrived")

    wait_for(lambda: sum(fleet.arrived().values()) > wanted // 4, "a quarter has arrived")
    redis.kill()
    redis.wait()
    print(f"Redis is killed when {sum(fleet.arrived().values()):,} events have arrived, and started again")
    fleet.start_redis()

    for service in services:
        if service.wait(120):
            sys.exit(f"a service has failed: see {fleet.directory}")
    wait_for(lambda: len(fleet.arrived()) == wanted, "every event has arrived")
    relays[1].send_signal(signal.SIGTERM)
    code = relays[1].wait(60)
    found = fleet.arrived()
    twice = sum(found.values()) - len(found)
    print(f"{len(found):,} of {wanted:,} events have arrived; {twice:,} came more than once; relay 2 ended with {code}")
    return 0 if len(found) == wanted and code == 0 else 1


def main() -> int:
    """Run the fleet in a directory of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000, help="logged by each service")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        fleet = Fleet(Path(directory), options.events)
        try:
            return run(fleet)
        finally:
            fleet.end()


if __name__ == "__main__":
    sys.exit(main())
