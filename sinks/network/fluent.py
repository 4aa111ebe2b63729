"""Events for Fluentd and Fluent Bit by the Forward protocol: `FluentSink`."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import os
import socket
import struct
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from outfall.sinks.core.clock import now
from outfall.sinks.core.item import Batch, BatchResult, Encoded, typed
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    TemporaryDeliveryError,
    extra_module,
)
from outfall.sinks.event.event import timestamp_of
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.network.peer import await_socket, checked_limit
from outfall.sinks.network.socket import SocketSink

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.network.socket import RetryOptions

_TIME = struct.Struct(">LL")
#: The msgpack extension type of `EventTime`.
_EVENT_TIME = 0
_MOST_SECONDS = (1 << 32) - 1
#: The longest sensible answer, in bytes.
_LONGEST_ANSWER_BYTES = 65_536
#: The greatest size of a chunk without its entries, in bytes.
_OVERHEAD_BYTES = 256
#: How long a peer that requires a login may take to say so, in seconds.
_MOMENT_SECONDS = 0.25
_LEAST_INTEGER, _MOST_INTEGER = -(1 << 63), (1 << 64) - 1


class _Message(bytes):
    """A message of the protocol, and the id of the chunk in its acknowledgement."""

    chunk: str


class FluentSink(SocketSink):
    """Send events to Fluentd or Fluent Bit by the Forward protocol; an event is delivered once it is acknowledged.

    Args:
        host: Name or address, IPv4 or IPv6; the path of a Unix socket when *port* is None.
        port: TCP port, 1 to 65535, or None. Default 24224.
        tag: The tag by which Fluentd routes, such as ``"shop.web"``.
        shared_key: The key of both ends, for an input with ``<security>``. No repr shows it, and it is never sent.
            Default None: no login.
        username: For an input with ``user_auth``, with *shared_key*. Default None.
        password: The same. Default None.
        packed: Send the events of a message as one value, which the peer can store without decoding it
            (PackedForward). Default True. False: as a list (Forward).
        max_chunk_bytes: Size of a message above which a batch is divided, and an event is shortened. Default 4 MiB; at
            least 512.
        tls: An `ssl.SSLContext`, which may contain a client certificate, or True for
            ``ssl.create_default_context()``. Default None: no encryption.
        nodelay: Send each message at once (TCP_NODELAY). Default True, since the sink waits for each acknowledgement.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that connecting, login, and sending with its
            acknowledgement may each take. Default 5.0.
        max_connection_age: Seconds, a timedelta or text such as ``"10m"``, after which a new connection replaces the
            old one. It follows a changed address of the name, or a new backend of a balancer. Default None: a
            connection lasts as long as it works.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after an attempt failed. Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        clock: The clock of these waits and ages, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *tag* is empty, *password* comes without *username* or either without *shared_key*, or a size,
            port or duration is out of range.
        TypeError: If *tag*, *shared_key*, *username* or *password* is not text, or *host* or *tls* of another type.
        MissingDependencyError: If msgpack is not installed, the extra ``fluent``.

    An entry's time is the event's ``timestamp``, as EventTime, which has nanoseconds; its record contains all other
    fields. Text, numbers, lists and mappings keep their types. So do bytes and NaN, unless the event waits on disk.
    Integers over 64 bits become text, and other values what they are in JSON.

    Each message has the id of a chunk, which the peer acknowledges. An event without an acknowledgement is not
    delivered. A sink of its own counts it as ``dropped["error"]``; a `BackgroundSink` or a `SpoolSink` around it sends
    it again, with the same id. So an event may arrive twice if the acknowledgement was lost. If the connection breaks
    before the acknowledgement, the message is sent once more over a new one; after a timeout it is not. Then the sink
    backs off: events are ``dropped["backoff"]`` at once, and nothing waits for the peer.

    After a refused login, or if the peer speaks another protocol, a wrapper keeps its events, and attempts are rare.
    The peer has to prove that it has the key too.

    Without a wrapper `handle` waits for the acknowledgement of each event: put the sink behind a `BackgroundSink`. Safe
    from any thread. A forked child opens its own connection.

    Source: https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1
    """

    retry_period: float

    _limited_by = "max_chunk_bytes"

    def __init__(
        self,
        host: str | os.PathLike[str],
        port: int | None = 24224,
        *,
        tag: str,
        shared_key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        packed: bool = True,
        max_chunk_bytes: Size = 4 * 1024 * 1024,
        tls: ssl.SSLContext | Literal[True] | None = None,
        nodelay: bool = True,
        timeout: Span = 5.0,
        max_connection_age: Span | None = None,
        **options: Unpack[RetryOptions],
    ) -> None:
        for argument, text in (
            ("tag", tag),
            ("shared_key", shared_key),
            ("username", username),
            ("password", password),
        ):
            # The message must not contain the secret.
            if text is not None and not isinstance(text, str):
                msg = f"{argument} is {type(text).__name__}, not text"
                raise TypeError(msg)
        if not tag:
            msg = f"tag={tag!r} names nothing that Fluentd could route by"
            raise ValueError(msg)
        if (username is None) is not (password is None):
            msg = "username and password go together"
            raise ValueError(msg)
        if username is not None and not shared_key:
            msg = f"username={username!r} without shared_key: the protocol has no login without a key"
            raise ValueError(msg)
        #: The tag by which Fluentd routes; settable.
        self.tag: str = tag
        self._shared_key = shared_key
        self._login = None if username is None or password is None else (username, password)
        #: Whether the events of a message are sent as one value; settable.
        self.packed: bool = bool(packed)
        self.max_chunk_bytes: int = checked_limit(max_chunk_bytes, "max_chunk_bytes")
        self._msgpack: Any = extra_module("msgpack", "fluent")
        self._answers: Any = None
        #: Whether the peer has acknowledged a message on this connection; whether it closed the last one without.
        self._answered = self._wary = False
        super().__init__(
            host,
            port,
            tls=tls,
            nodelay=nodelay,
            timeout=timeout,
            max_connection_age=max_connection_age,
            **options,
        )

    # -- messages

    def make_frame(self, event: dict[str, Any]) -> bytes:
        """Return the message of *event*, shortened if necessary. Called outside the sink's lock.

        Raises:
            PermanentDeliveryError: If it cannot be shortened enough.
        """
        return self._message([self._fitting(event, None)], os.urandom(16))

    @property
    def _limit(self) -> int:
        return self.max_chunk_bytes - _OVERHEAD_BYTES

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event* as a batch item: JSON, and the values that JSON cannot represent."""
        return typed(Sink.encode(self, event), event)

    def _fitting(self, event: dict[str, Any], when: float | None) -> bytes:
        entry = self._entry(event, when)
        return entry if len(entry) <= self._limit else self._shortened(event, partial(self._entry, when=when))

    def _entry(self, event: dict[str, Any], when: float | None) -> bytes:
        """Return the entry of *event*, whose time is *when* unless it has a timestamp."""
        stamp = timestamp_of(event)
        # msgpack can represent what JSON cannot.
        plain = typed(Encoded(_json.render(event), 0.0, 0.0), event).event
        if stamp is not None:
            plain.pop("timestamp", None)
        elif when is None:
            stamp = time()
        record = self._time(when if stamp is None else stamp), plain
        packb = self._msgpack.packb
        try:
            return packb(record)  # type: ignore[no-any-return]
        except (OverflowError, UnicodeEncodeError):
            return packb((record[0], _within(plain)))  # type: ignore[no-any-return]

    def _time(self, when: float | None) -> Any:
        nanoseconds = round((when or 0.0) * 1_000_000) * 1_000
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        if not 0 <= seconds <= _MOST_SECONDS:
            return seconds
        return self._msgpack.ExtType(_EVENT_TIME, _TIME.pack(seconds, rest))

    def _message(self, entries: Sequence[bytes], key: bytes) -> _Message:
        chunk = base64.b64encode(key).decode()
        packer = self._msgpack.Packer()
        packed = b"".join(entries)
        head = packer.pack_array_header(3) + packer.pack(self.tag)
        body = packer.pack(packed) if self.packed else packer.pack_array_header(len(entries)) + packed
        made = _Message(head + body + packer.pack({"chunk": chunk, "size": len(entries)}))
        made.chunk = chunk
        return made

    # -- sending

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send the batch in as few messages as its size allows; after a failure leave the rest for a retry."""
        rejected: dict[int, str] = {}
        try:
            for places, entries in self._chunks(batch, rejected):
                try:
                    with self._lock:
                        self.write(self._message(entries, _key_of(batch, places)))
                except (DeliveryError, OSError) as error:
                    if places[0] == 0:
                        raise
                    # Raising would say that nothing was taken, and acknowledged events would be sent again.
                    left = [place for place in range(places[0], len(batch)) if place not in rejected]
                    return BatchResult(left, rejected, retry_after=getattr(error, "retry_after", None))
        finally:
            if self._aftermath:
                self._settle(raising=False)
        return BatchResult(rejected=rejected) if rejected else None

    def _chunks(self, batch: Sequence[Encoded], rejected: dict[int, str]) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield places and entries of each message; add the events that are too large for a message to *rejected*."""
        places: list[int] = []
        entries: list[bytes] = []
        size = 0
        for place, item in enumerate(batch):
            try:
                entry = self._fitting(item.event, item.time)
            except DeliveryError as error:
                rejected[place] = str(error)
                continue
            if entries and size + len(entry) > self._limit:
                yield places, entries
                places, entries, size = [], [], 0
            places.append(place)
            entries.append(entry)
            size += len(entry)
        if entries:
            yield places, entries

    def _transmit(self, data: bytes) -> None:
        chunk = getattr(data, "chunk", None)
        try:
            self._push(data)
            if chunk is not None:
                self._await_acknowledgement(chunk)
        except TimeoutError:
            # A slow peer would be as slow with a second copy. The connection is closed, since the peer may have only a
            # part of the message.
            self._disconnect()
            self._back_off()
            msg = f"{self._peer} has not acknowledged within {self.timeout} s"
            raise TemporaryDeliveryError(msg, self.retry_period, halve_after=1) from None
        except OSError:
            self._wary = not self._answered
            raise
        self._answered, self._wary = True, False
        self._short_lived = 0
        self.retry_period = 0.0

    def _await_acknowledgement(self, chunk: str) -> None:
        sock, deadline = self.sock, now() + self.timeout
        while sock is not None:
            answer = self._read(sock, self._answers, deadline)
            if isinstance(answer, dict) and "ack" in answer:
                if answer["ack"] == chunk:
                    return
            else:
                self._refuse_answer(answer)

    def _refuse_answer(self, answer: object) -> NoReturn:
        asked = isinstance(answer, list) and answer[:1] == ["HELO"]
        self._refuse("asks for a login: give it shared_key" if asked else "does not speak the Forward protocol")

    def _refuse(self, why: str) -> NoReturn:
        """Close the connection, and raise an error that makes a wrapper keep its events and try rarely."""
        self._disconnect()
        self._back_off()
        msg = f"{self._peer} {why}"
        raise PausedDeliveryError(msg, retry_after=self.retry_period)

    def _read(self, sock: socket.socket, answers: Any, deadline: float) -> Any:
        """Return the next message from *sock*.

        Raises:
            OSError: If the peer has closed the connection, or nothing came until the deadline.
        """
        while True:
            try:
                for answer in answers:
                    return answer
            except Exception:  # of msgpack, for invalid data
                self._refuse("does not speak the Forward protocol")
            try:
                data = sock.recv(_LONGEST_ANSWER_BYTES)
            except self._waits:
                left = deadline - now()
                if left <= 0 or not await_socket(sock, left, for_reading=True):
                    raise TimeoutError(errno.ETIMEDOUT, "no answer") from None
                continue
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the peer ended the connection")
            try:
                answers.feed(data)
            except Exception:
                self._refuse("does not speak the Forward protocol")

    # -- connecting

    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Return a connected socket after the login; called by ``create_socket``.

        Args:
            timeout: Seconds for each address of the name, and for the login. None stands for the sink's *timeout*.

        Raises:
            OSError: If no address can be connected.
            PausedDeliveryError: If the peer refuses the login.
        """
        made = super().make_socket(timeout)
        key = self._shared_key
        try:
            made.settimeout(0)
            if key is not None:
                self._log_in(made, key, now() + (self.timeout if timeout is None else timeout))
            elif self._wary:
                self._listen(made)
        except BaseException:
            made.close()
            raise
        return made

    def _listen(self, sock: socket.socket) -> None:
        """Wait a moment for the peer to request a login, which may be why it closed the last connection."""
        try:
            greeting = self._read(sock, self._unpacker(), now() + _MOMENT_SECONDS)
        except TimeoutError:
            return
        self._refuse_answer(greeting)

    def _await_verdict(self, made: ssl.SSLSocket, seconds: float) -> bool:
        # The first answer shows that the peer has accepted the connection. It must not be discarded.
        return True

    def _adopt(self, made: socket.socket) -> None:
        self._answers = self._unpacker()
        self._answered = False
        super()._adopt(made)

    def _unpacker(self) -> Any:
        return self._msgpack.Unpacker(
            raw=False, unicode_errors="surrogateescape", max_buffer_size=4 * _LONGEST_ANSWER_BYTES
        )

    def _log_in(self, sock: socket.socket, shared_key: str, deadline: float) -> None:
        answers = self._unpacker()
        helo = self._read(sock, answers, deadline)
        options = helo[1] if isinstance(helo, list) and len(helo) == 2 and helo[0] == "HELO" else None
        if not isinstance(options, dict):
            self._refuse("does not ask for a login, though shared_key is given")
        nonce, salt, key = _raw(options.get("nonce", "")), os.urandom(16).hex(), shared_key.encode()
        # The name must differ from the peer's, which refuses its own.
        host = f"outfall@{socket.gethostname()}"
        user = password = ""
        if self._login is not None:
            user = self._login[0]
            password = _digest(_raw(options.get("auth", "")), user.encode(), self._login[1].encode())
        ping = ["PING", host, salt, _digest(salt.encode(), host.encode(), nonce, key), user, password]
        sock.settimeout(max(deadline - now(), 0.001))
        sock.sendall(self._msgpack.packb(ping))
        sock.settimeout(0)
        pong = self._read(sock, answers, deadline)
        if not isinstance(pong, list) or len(pong) != 5 or pong[0] != "PONG":
            self._refuse("does not speak the Forward protocol")
        if pong[1] is not True:
            self._refuse(f"refuses the login: {_shown(pong[2])}")
        expected = _digest(salt.encode(), _raw(pong[3]), nonce, key)
        if not hmac.compare_digest(_raw(pong[4]), expected.encode()):
            self._refuse("does not have the shared key")


_json = OrjsonRenderer()


def _key_of(batch: Sequence[Encoded], places: Sequence[int]) -> bytes:
    """Return a key that is the same at every retry, so that the receiver can recognize one."""
    if not isinstance(batch, Batch):
        return os.urandom(16)
    keys = batch.item_keys
    return hashlib.sha256(f"{keys[places[0]]} {keys[places[-1]]} {len(places)}".encode()).digest()[:16]


def _digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()


def _raw(value: object) -> bytes:
    """Return as bytes what the peer sent as text or as bytes."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _shown(reason: object) -> str:
    """Return a text of the peer in a form that is safe for a report."""
    text = "".join(character if character.isprintable() else " " for character in str(reason))
    return text[:200] or "it gives no reason"


def _within(value: Any) -> Any:
    """Return *value* with integers beyond msgpack's range as text, and text that UTF-8 cannot encode escaped."""
    if isinstance(value, dict):
        return {_within(key): _within(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_within(each) for each in value]
    if isinstance(value, int) and not _LEAST_INTEGER <= value <= _MOST_INTEGER:
        return str(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
