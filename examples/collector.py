"""A collector for experiments: it accepts lines of JSON by POST, and appends them to a file.

``python examples/collector.py collected.jsonl`` prints its URL, and serves until the process is ended. A port may be
given as a second argument.
"""

from __future__ import annotations

import gzip
import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Collector(BaseHTTPRequestHandler):
    """Accept all lines of a request, or none."""

    protocol_version = "HTTP/1.1"  # keeps connections alive
    file: Path

    def do_POST(self) -> None:
        """Append the request's lines to the file; respond with 204, or with 400 if a line is not JSON."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status = HTTPStatus.NO_CONTENT
        try:
            for line in body.splitlines():
                json.loads(line)
        except ValueError:
            status = HTTPStatus.BAD_REQUEST
        else:
            with self.file.open("ab") as file:
                file.write(body)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing for each request."""


def open_file(path: Path) -> Path:
    """Create the file if it is missing; remove the half line of a killed collector, which has not acknowledged it."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return path


def main() -> None:
    """Serve until the process is ended."""
    Collector.file = open_file(Path(sys.argv[1]))
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with HTTPServer(("127.0.0.1", port), Collector) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
