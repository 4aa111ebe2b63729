"""An HTTP server on loopback that does what it is told, misbehaving on purpose included; and a proxy."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import struct
import threading
import urllib.parse
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.sinks._processes import until

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

#: RST instead of FIN at close.
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Answer:
    """What a server does with one request.

    Args:
        status: The status code.
        body: The body; anything but bytes and text is sent as JSON.
        headers: More headers. ``Content-Length`` is made unless it is among them.
        hang: Do not answer, until `Server.release` is called or the server closes.
        drip: Seconds to wait before each byte of the answer, or None.
        drip_body: The same for each byte of the body alone.
        send_only: Send so many bytes of the answer, headers included, and then hang up; -1 for all but the last.
        reset: Hang up with a reset instead of in order. Alone: instead of an answer.
        hang_up: Close the connection after the answer without having said so.
        say_continue: Send ``100 Continue`` before it.
        raw: Send these bytes instead of an answer.
        read_body: False to answer before the request's body is read; it is recorded as empty, thrown away, and the
            connection is closed. With *hang* it is not read at all.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    drip: float | None = None
    drip_body: float | None = None
    send_only: int | None = None
    reset: bool = False
    hang_up: bool = False
    say_continue: bool = False
    raw: bytes | None = None
    read_body: bool = True

    def encoded(self) -> tuple[bytes, bytes]:
        """Return head and body as they are sent."""
        body = self.body
        headers = dict(self.headers)
        names = {name.lower() for name in headers}
        if isinstance(body, str):
            body = body.encode()
        elif not isinstance(body, bytes):
            body = json.dumps(body).encode()
            if "content-type" not in names:
                headers["Content-Type"] = "application/json"
        if not names & {"content-length", "transfer-encoding"} and self.status not in {204, 304}:
            headers["Content-Length"] = str(len(body))
        lines = [f"HTTP/1.1 {self.status} Said So", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), body


@dataclass(frozen=True)
class Request:
    """What came.

    Args:
        method: ``"POST"``.
        target: The path with its query, as it was sent.
        headers: By lower-case name.
        raw_body: The body as it was sent.
        connection: The number of the connection it came by, from 1 up.
        certificate: The client's, as `ssl.SSLSocket.getpeercert` gives it, or None.
    """

    method: str
    target: str
    headers: dict[str, str]
    raw_body: bytes
    connection: int
    certificate: dict[str, Any] | None = None

    @property
    def path(self) -> str:
        """The path without the query."""
        return urllib.parse.urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's fields."""
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.target).query, keep_blank_values=True)

    @property
    def body(self) -> bytes:
        """The body, decompressed."""
        encoding = self.headers.get("content-encoding", "identity")
        if encoding == "gzip":
            return gzip.decompress(self.raw_body)
        if encoding == "zstd":
            import zstandard

            return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(self.raw_body)).read()
        assert encoding == "identity", encoding
        return self.raw_body

    @property
    def form(self) -> dict[str, list[str]]:
        """The fields of a form."""
        return urllib.parse.parse_qs(self.body.decode(), keep_blank_values=True, strict_parsing=True)

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The body parsed as NDJSON, whose last line ends too."""
        assert self.body.endswith(b"\n"), self.body[-100:]
        return [json.loads(line) for line in self.body.splitlines()]


class Server:
    """An HTTP/1.1 server with a thread for each connection.

    What it does with a request is the next of `answers`, else `default`: an `Answer`, a status, or a callable that gets
    the `Request` and returns either. It closes with the ``with`` block, whatever hangs.

    Args:
        default: What it does when nothing is in `answers`. Default: it answers 200 with an empty body.
        context: For TLS, or None.
        host: Where it listens.
    """

    def __init__(
        self,
        default: Answer | int | Callable[[Request], Answer | int] = 200,
        *,
        context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.default = default
        self.answers: deque[Answer | int | Callable[[Request], Answer | int]] = deque()
        #: What has come, oldest first, recorded before it is answered.
        self.requests: list[Request] = []
        #: Errors that connections ended with, those of clients that hung up included.
        self.errors: list[Exception] = []
        #: How many connections were made.
        self.connections = 0
        self.context = context
        self.host = host
        self.port = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._released = threading.Event()
        self._listener: socket.socket | None = None
        self.start()

    # -- for the test

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def url(self) -> str:
        """The root's URL, without the last slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.context is None else 'https'}://{host}:{self.port}"

    def wait(self, requests: int) -> list[Request]:
        """Wait until so many have come, and return all."""
        until(lambda: len(self.requests) >= requests)
        return list(self.requests)

    def release(self) -> None:
        """Let what hangs be answered, and hang no more."""
        self._released.set()

    def hang_up(self) -> None:
        """Close all connections, and go on listening."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Close everything; connections are refused until `start`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        # What hangs must not answer when it is let go.
        self.hang_up()
        self._released.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "the server hangs"
        self._threads.clear()

    def start(self) -> None:
        """Listen, after `stop` on the same port as before."""
        self._released.clear()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._begin(self._accept, listener)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the threads

    def _begin(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                made, _ = listener.accept()
            except OSError:
                return
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open.add(made)
            if self._listener is not listener:
                made.close()
                return
            self._begin(self._serve, made, number)

    def _serve(self, made: socket.socket, number: int) -> None:
        sock = made
        try:
            if self.context is not None:
                sock = self.context.wrap_socket(made, server_side=True)
                with self._lock:
                    self._open.discard(made)
                    self._open.add(sock)
            with sock.makefile("rb") as stream:
                while self._exchange(sock, stream, number):
                    pass
        except (OSError, ValueError) as error:
            self.errors.append(error)
        finally:
            with self._lock:
                self._open -= {made, sock}
            sock.close()

    def _exchange(self, sock: socket.socket, stream: Any, number: int) -> bool:
        """Serve one request; return False when the connection is at its end."""
        head = stream.readline(65_536).decode("latin-1").split()
        if len(head) != 3:
            return False
        method, target, _ = head
        headers = {}
        while (line := stream.readline(65_536).decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        answer = None
        if self.answers and isinstance(self.answers[0], Answer) and not self.answers[0].read_body:
            answer = self.answers.popleft()
        elif isinstance(self.default, Answer) and not self.default.read_body and not self.answers:
            answer = self.default
        body = _read_body(stream, headers) if answer is None else b""
        certificate = sock.getpeercert() if self.context is not None else None
        request = Request(method, target, headers, body, number, certificate)
        with self._lock:
            # Decided and recorded in one: answers go to the requests in the order in which they are recorded.
            if answer is None:
                answer = self.answers.popleft() if self.answers else self.default
            self.requests.append(request)
        return self._answer(sock, stream, request, answer)

    def _answer(self, sock: socket.socket, stream: Any, request: Request, answer: Any) -> bool:
        if not isinstance(answer, (Answer, int)):
            answer = answer(request)
        if isinstance(answer, int):
            answer = Answer(answer)
        if answer.hang:
            self._released.wait()
        if answer.say_continue:
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if answer.reset and answer.send_only is None:
            _reset(sock)
            return False
        head, body = answer.encoded()
        if answer.raw is not None:
            head, body = answer.raw, b""
        whole = (head + body)[: answer.send_only]
        head, body = whole[: len(head)], whole[len(head) :]
        self._send(sock, head, answer.drip)
        self._send(sock, body, answer.drip or answer.drip_body)
        if answer.reset:
            _reset(sock)
        if not answer.read_body:
            # Closed with something unread, the connection would be reset, and the client might not see the answer.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass
            return False
        told = request.headers.get("connection", "").lower() == "close"
        kept = answer.send_only is None and answer.raw is None
        return kept and not (told or answer.hang_up or answer.reset)

    def _send(self, sock: socket.socket, data: bytes, pause: float | None) -> None:
        if pause is None:
            sock.sendall(data)
            return
        for byte in data:
            if self._released.wait(pause):
                return
            sock.sendall(bytes([byte]))


class Proxy(Server):
    """A forward proxy: it tunnels CONNECT, and passes on requests for ``http://`` as they are."""

    def _answer(self, sock: socket.socket, stream: Any, request: Request, answer: Any) -> bool:
        if answer != 200:  # told to do something else
            return super()._answer(sock, stream, request, answer)
        if request.method == "CONNECT":
            host, _, port = request.target.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port))) as origin:
                sock.sendall(b"HTTP/1.1 200 Tunnel\r\n\r\n")
                back = threading.Thread(target=_pump, args=(origin, sock), daemon=True)
                back.start()
                _pump(sock, origin)
                back.join(60)
            return False
        where = urllib.parse.urlsplit(request.target)
        path = urllib.parse.urlunsplit(("", "", where.path or "/", where.query, ""))
        lines = [f"{request.method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items() if name != "connection"]
        head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
        with socket.create_connection((str(where.hostname), where.port or 80)) as origin:
            origin.sendall(head + request.raw_body)
            _pump(origin, sock)
        return False


def _read_body(stream: Any, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts = []
        while size := int(stream.readline().split(b";")[0], 16):
            parts.append(stream.read(size))
            stream.readline()
        stream.readline()
        return b"".join(parts)
    length = int(headers.get("content-length", 0))
    body = stream.read(length)
    if len(body) < length:
        raise ConnectionError(f"{len(body)} of {length} bytes came")
    return body


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def _pump(source: socket.socket, destination: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            destination.sendall(data)
    with contextlib.suppress(OSError):
        destination.shutdown(socket.SHUT_WR)


def server_context(certificate: Any, authority: Any = None) -> ssl.SSLContext:
    """Return what a server encrypts with; with *authority*, it wants a certificate of its clients.

    Args:
        certificate: A `trustme.LeafCert`.
        authority: A `trustme.CA`.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context
