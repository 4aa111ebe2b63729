"""A collector in a process of its own, on loopback: it takes batches, fails, hangs, hangs up, and is killed."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from pathlib import Path

from tests.sinks._wire import free_port


class Collector:
    """Takes NDJSON over HTTP, and writes down what came before it answers.

    Each life of it has a journal: a line for each request that it took, and a line for each answer of 200 that it has
    sent. A line that a kill has torn stands for nothing: it came before the answer.

    Args:
        directory: Where the journals are.
    """

    def __init__(self, directory):
        self._directory = Path(directory)
        self.port = free_port()
        self._lives = 0
        self._pid = 0

    @property
    def url(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/events"

    def start(self, seed, *, well_behaved=False):
        """Begin another life, in a forked child; return when it listens."""
        self._lives += 1
        path = self._path(self._lives)
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _Life(self.port, path, random.Random(seed), well_behaved).serve(writer)
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(reader, 1) == b"!", "the collector cannot listen"
        os.close(reader)

    def kill(self):
        """End this life."""
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)

    def await_requests(self, requests, seconds):
        """Wait until so many more have come in this life, or for so long."""
        path = self._path(self._lives)
        deadline = time.monotonic() + seconds
        before = path.read_bytes().count(b'"key"')
        while time.monotonic() < deadline and path.read_bytes().count(b'"key"') < before + requests:
            time.sleep(0.001)

    def _path(self, life):
        return self._directory / f"collector-{life:06}.journal"

    def notes(self):
        """Return all that was written down, oldest first."""
        found = []
        for path in sorted(self._directory.glob("collector-*.journal")):
            lines = path.read_bytes().split(b"\n")
            found += [json.loads(line) for line in lines[:-1]]
        return found


class _Life:
    def __init__(self, port, path, chance, well_behaved):
        self._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._chance = chance
        self._well_behaved = well_behaved
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(64)
        self._lock = threading.Lock()

    def serve(self, ready):
        os.write(ready, b"!")
        os.close(ready)
        while True:
            made, _ = self._listener.accept()
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._converse, args=(made,), daemon=True).start()

    def _converse(self, made):
        try:
            with made, made.makefile("rb") as stream:
                while self._exchange(made, stream):
                    pass
        except OSError:
            pass

    def _exchange(self, made, stream):
        if not stream.readline():
            return False
        headers = {}
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        size = int(headers[b"content-length"])
        body = stream.read(size)
        if len(body) < size:
            return False  # its sender was killed
        mood = 1.0 if self._well_behaved else self._chance.random()
        if mood < 0.06:
            made.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
            return True
        if mood < 0.1:
            return False
        key = headers[b"idempotency-key"].decode()
        self._note({"key": key, "events": [_event(line) for line in body.splitlines()], "whole": body.endswith(b"\n")})
        if mood < 0.14:
            return False  # the answer gets lost
        if mood < 0.4:
            time.sleep(self._chance.random() * 0.01)
        made.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self._note({"answered": key})
        return True

    def _note(self, fields):
        with self._lock:
            os.write(self._journal, json.dumps(fields).encode() + b"\n")


def _event(line):
    """Return process, thread and number of the event in *line*; None if it is torn, or glued to another."""
    try:
        fields = json.loads(line)
        process, thread, number, pad = (fields[name] for name in ("process", "thread", "number", "pad"))
    except (ValueError, KeyError, TypeError):
        return None
    return [process, thread, number] if pad == "x" * (number * 7 % 90) else None
