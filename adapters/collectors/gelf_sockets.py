"""Graylog over sockets: GELF over UDP in chunks, and over TCP and TLS."""

from __future__ import annotations

import os
import time
import zlib
from typing import TYPE_CHECKING, Any, Literal

from outfall.adapters.collectors.gelf import GELFMessage
from outfall.sinks.core.arguments import checked_choice, checked_count
from outfall.sinks.core.item import Encoded
from outfall.sinks.event.event import METADATA, timestamp_of
from outfall.sinks.event.json import line_to_send, loads
from outfall.sinks.event.levels import level_of
from outfall.sinks.network.datagram import DatagramSink
from outfall.sinks.network.frames import FrameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.network.socket import RetryOptions

#: The size of a chunk's header: two magic bytes, an id of eight bytes, the chunk's number, the number of chunks.
_HEAD_BYTES = 12
_MOST_CHUNKS = 128
_LARGEST_CHUNK_BYTES = 8192
_LEAST_CHUNK_BYTES = 128
#: Level names by syslog severity.
_LEVELS = ("emerg", "alert", "critical", "error", "warning", "notice", "info", "debug")


class GELFFrames:
    """Encode events as GELF messages for a `SocketSink`; over TCP and TLS each message ends with a NUL byte.

    For a GELF TCP input of Graylog: ``SocketSink("graylog.example.org", 12201, codec=GELFFrames())``, with ``tls=True``
    if the input uses TLS. `GELFMessage` documents the messages. For UDP use `GELFDatagramSink`, which sends large
    messages in chunks. A `SocketListener` accepts such messages too.

    Args:
        host: The name of the sender. Default None: this machine's name.

    Graylog sends no response. Messages that it has not read when it stops are lost, but count as delivered. Safe from
    any thread.

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
        """Return the event in the message *payload*; additional fields lose their ``_``.

        Raises:
            FrameError: If *payload* is not a JSON object with a ``short_message``.
        """
        try:
            made: Any = loads(payload)
        except (ValueError, RecursionError):
            made = None
        if type(made) is not dict or not isinstance(made.get("short_message"), str):
            msg = f"a message of {len(payload)} bytes is not GELF"
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
    """Send each event as a GELF message over UDP to *host*:*port*, compressed, and in chunks if it is large.

    For a GELF UDP input of Graylog. `GELFMessage` documents the messages. For TCP and TLS use a `SocketSink` with
    `GELFFrames`. For HTTP use `gelf_sink`: only there Graylog says whether it has taken a message.

    Args:
        host: Name or address, IPv4 or IPv6.
        port: UDP port, 1 to 65535. Default 12201.
        sender: The name of the sender, ``host`` in the messages. Default None: this machine's name.
        chunk_bytes: The largest size of a datagram; a larger message is sent in several. Default 1 420, which most
            networks do not fragment; at most 8 192, for networks with larger packets.
        timeout: Seconds, a timedelta or text such as ``"2s"``, to wait for room in the system's buffers. Default 1.0.
        compression: ``"zlib"`` (default), ``"gzip"`` or None.
        max_connection_age: The time after which the name is resolved again, so that a changed address is found, in
            seconds, as a timedelta or as text such as ``"10m"``. Default 60.0. None: only after a failed send. At other
            times no message waits for the resolution of the name.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after the name could not be resolved.
            Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        clock: The clock of these waits and ages, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *chunk_bytes* is not 128 to 8 192, *compression* is unknown, or *port*, *timeout*, an age or a
            retry argument is out of range.
        TypeError: If *host* has the wrong type.

    A message has at most 128 chunks. In a longer one the longest text fields are shortened, and it gets ``_truncated``:
    true; if that is not enough, the largest fields are left out. If one chunk is lost, its message is lost, without an
    error.

    Safe from any thread. A forked child opens its own socket. ``close`` does not wait.

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
        max_connection_age: Span | None = 60.0,
        **options: Unpack[RetryOptions],
    ) -> None:
        self.chunk_bytes: int = checked_count(chunk_bytes, "chunk_bytes", "bytes")
        if not _LEAST_CHUNK_BYTES <= self.chunk_bytes <= _LARGEST_CHUNK_BYTES:
            msg = f"chunk_bytes={chunk_bytes!r} is not {_LEAST_CHUNK_BYTES} to {_LARGEST_CHUNK_BYTES}"
            raise ValueError(msg)
        if compression is not None:
            checked_choice(compression, "compression", ("zlib", "gzip"))
        #: The compression of messages; settable.
        self.compression: Literal["zlib", "gzip"] | None = compression
        super().__init__(
            host,
            port,
            codec=GELFFrames(sender),
            timeout=timeout,
            max_connection_age=max_connection_age,
            **options,
        )

    def _frame(self, payload: bytes) -> bytes:
        if self.compression is None:
            return payload
        # Adding 16 to zlib's window size selects the gzip format.
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
        # A repeated message gets another id, so that no receiver mixes chunks of both.
        head = b"\x1e\x0f" + os.urandom(8)
        number = -(-len(data) // size)
        for place in range(number):
            super()._push(head + bytes((place, number)) + data[place * size : (place + 1) * size])
