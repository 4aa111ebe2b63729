"""Graylog over sockets: GELF by UDP in chunks, and by TCP and TLS."""

from __future__ import annotations

import os
import time
import zlib
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from outfall.adapters.collectors.gelf import GELFMessage
from outfall.sinks.core.arguments import checked_choice, checked_count
from outfall.sinks.core.item import Encoded
from outfall.sinks.core.reporting import report
from outfall.sinks.event.event import METADATA, timestamp_of
from outfall.sinks.event.json import line_to_send, loads
from outfall.sinks.event.levels import NOTSET, level_of
from outfall.sinks.network.datagram import DatagramSink
from outfall.sinks.network.frames import FrameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from outfall.sinks.core.sink import OnError
    from outfall.sinks.event.levels import Level
    from outfall.sinks.event.units import Size, Span

#: Bytes before the part of a message in each chunk: two that say what it is, an id of eight, its number and how many.
_HEAD_BYTES = 12
_MOST_CHUNKS = 128
_LARGEST_CHUNK_BYTES = 8192
_LEAST_CHUNK_BYTES = 128
#: For severities, by number.
_LEVELS = ("emerg", "alert", "critical", "error", "warning", "notice", "info", "debug")


class GELFFrames:
    """Events as GELF messages for a `SocketSink`: over TCP and TLS each ends with a NUL byte, which no message has.

    For a GELF TCP input of Graylog: ``SocketSink("graylog.example.org", 12201, codec=GELFFrames())``, with ``tls=True``
    if the input has TLS. What the messages are `GELFMessage` says. Over UDP use `GELFDatagramSink`, which sends large
    messages in chunks. A `SocketListener` takes such messages too.

    Args:
        host: The name of what sends. Default None: the machine's.

    Graylog does not answer: what it has not read when it goes away is lost, and counted as delivered. Safe from any
    thread.

    Source: https://go2docs.graylog.org/current/getting_in_log_data/gelf_format.html
    """

    length_in_datagrams = False
    delimiter = b"\0"

    def __init__(self, host: str | None = None) -> None:
        self._message = GELFMessage(host)

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return *event* as a message."""
        when = timestamp_of(event)
        item = Encoded(line_to_send(event), level_of(event), time.time() if when is None else when)
        return self.encode_item(item)

    def encode_item(self, item: Encoded) -> bytes:
        """Return the item as a message."""
        return self._message.encode((item,))

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload*: additional fields without their ``_``, and the message's own as an event's.

        Raises:
            FrameError: If it is no JSON object with a ``short_message``.
        """
        try:
            made: Any = loads(payload)
        except (ValueError, RecursionError):
            made = None
        if type(made) is not dict or not isinstance(made.get("short_message"), str):
            msg = f"a message of {len(payload)} bytes is no GELF"
            raise FrameError(msg)
        event: dict[str, Any] = {"event": made["short_message"]}
        severity = made.get("level", 6)
        event["level"] = _LEVELS[severity] if type(severity) is int and 0 <= severity < len(_LEVELS) else "info"
        for name in ("timestamp", "host", "full_message"):
            if name in made:
                event[name] = made[name]
        for name, value in made.items():
            bare = name[1:]
            if name[:1] == "_" and bare and bare not in event and bare not in METADATA:
                event[bare] = value
        return event

    def __repr__(self) -> str:
        return "GELFFrames()"


class GELFDatagramSink(DatagramSink):
    """Send each event as a GELF message by UDP to *host*:*port*, compressed, and in chunks where it is large.

    For a GELF UDP input of Graylog. What the messages are `GELFMessage` says. By TCP and TLS use a `SocketSink` with
    `GELFFrames`, by HTTP `gelf_sink`, which alone hears whether a message was taken.

    Args:
        host: Name or address, IPv4 or IPv6.
        port: UDP port, 1 to 65535. Default 12201.
        sender: The name of what sends, ``host`` in the messages. Default None: the machine's.
        chunk_bytes: Size of a datagram; a larger message goes in several. Default 1 420, which passes through most
            networks whole; 8 192 at most, for networks with larger packets.
        timeout: Seconds, a timedelta or text such as ``"2s"``, to wait for room in the system's buffers. Default 1.0.
        compression: ``"zlib"`` (default), ``"gzip"`` or None.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after the name could not be resolved.
            Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        max_connection_age: Seconds, a timedelta or text such as ``"10m"``, after which the name is resolved again, so
            that a changed address is found. Default 60.0. None: after a failed send alone. No message waits for a name
            otherwise.
        clock: The clock of these waits and ages, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *chunk_bytes* is not 128 to 8 192, *compression* is not known, or *port*, *timeout*, an age or a
            retry argument is out of range.
        TypeError: If *host* is of another type.

    A message is 128 chunks at most. In one that would be more the longest text fields are shortened, and it gets
    ``_truncated``: true; if that is not enough, the largest fields are left out. One chunk that is lost costs its
    message, and nobody says so.

    Safe from any thread. A forked child opens its own socket. ``close`` has nothing to wait for.

    Source: https://go2docs.graylog.org/current/getting_in_log_data/gelf_format.html
    """

    _limited_by = "chunk_bytes"

    def __init__(
        self,
        host: str | os.PathLike[str],
        port: int = 12201,
        *,
        sender: str | None = None,
        chunk_bytes: Size = 1420,
        timeout: Span = 1.0,
        compression: Literal["zlib", "gzip"] | None = "zlib",
        retry_start: Span = 1.0,
        retry_factor: float = 2.0,
        retry_max: Span = 30.0,
        max_connection_age: Span | None = 60.0,
        clock: Callable[[], float] = monotonic,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self.chunk_bytes: int = checked_count(chunk_bytes, "chunk_bytes", "bytes")
        if not _LEAST_CHUNK_BYTES <= self.chunk_bytes <= _LARGEST_CHUNK_BYTES:
            msg = f"chunk_bytes={chunk_bytes!r} is not {_LEAST_CHUNK_BYTES} to {_LARGEST_CHUNK_BYTES}"
            raise ValueError(msg)
        if compression is not None:
            checked_choice(compression, "compression", ("zlib", "gzip"))
        #: How messages are compressed; settable.
        self.compression: Literal["zlib", "gzip"] | None = compression
        super().__init__(
            host,
            port,
            codec=GELFFrames(sender),
            timeout=timeout,
            retry_start=retry_start,
            retry_factor=retry_factor,
            retry_max=retry_max,
            max_connection_age=max_connection_age,
            clock=clock,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )

    def _frame(self, payload: bytes) -> bytes:
        if self.compression is None:
            return payload
        # 16 more than zlib's window makes gzip's header and check sum.
        made = zlib.compressobj(wbits=zlib.MAX_WBITS + (16 if self.compression == "gzip" else 0))
        return made.compress(payload) + made.flush()

    @property
    def _limit(self) -> int:
        return _MOST_CHUNKS * (self.chunk_bytes - _HEAD_BYTES)

    def _push(self, data: bytes) -> None:
        if len(data) <= self.chunk_bytes:
            super()._push(data)
            return
        size = self.chunk_bytes - _HEAD_BYTES
        # A message that is sent again has another id, so that no receiver puts parts of both together.
        head = b"\x1e\x0f" + os.urandom(8)
        number = -(-len(data) // size)
        for place in range(number):
            super()._push(head + bytes((place, number)) + data[place * size : (place + 1) * size])
