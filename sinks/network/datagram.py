"""Events sent as datagrams: `DatagramSink`."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from outfall.sinks.network.frames import Codec, JSONLines, delimiter_of, pack_length
from outfall.sinks.network.peer import checked_limit
from outfall.sinks.network.socket import MakeFrame, SocketSink

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.network.socket import RetryOptions


def _datagram(sink: Any, event: Any, line: bytes) -> bytes:
    if len(line) > sink.max_datagram_bytes:
        raise LookupError
    return line


def _line(sink: Any, event: Any, line: bytes) -> bytes:
    if len(line) >= sink.max_datagram_bytes:
        raise LookupError
    return line + b"\n"


class DatagramSink(SocketSink):
    """Send each event as one datagram to *host*:*port*, over UDP or a Unix datagram socket.

    Use it where losing an event is better than waiting: datagrams are not acknowledged.

    Args:
        host: Name or address, IPv4 or IPv6; a path when *port* is None (a Unix datagram socket).
        port: UDP port, 1 to 65535, or None.
        max_datagram_bytes: Size above which the longest text fields are shortened and the event gets
            ``"truncated": true``; if that is not enough, the largest fields are left out. Default 8 192; 65 507 is
            what UDP over IPv4 can carry.
        codec: What is in a datagram. With ``JSONFrames()``, the default, one JSON object and nothing else. With
            `JSONLines` a line feed ends it. With `PickleFrames` what `logging.handlers.DatagramHandler` sends, the four
            bytes of length included. With `SignedFrames` the signature and the payload.
        timeout: Seconds, a timedelta or text such as ``"2s"``, to wait for room in the system's buffers. The reader
            of a Unix socket makes room by reading. Default 1.0.
        max_connection_age: Seconds, a timedelta or text such as ``"10m"``, after which the name is resolved again. No
            error shows that an address has changed. Default None: only after a failed send.
        encoding: The encoding of text. Default UTF-8.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``. It renders
            an event that has to be shortened again, with plain values.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after the name could not be resolved, the
            path did not exist, or there was no room. Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        clock: The clock of these waits and ages, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *max_datagram_bytes* is below 512, or *port*, *timeout* or a retry argument out of range.
        TypeError: If *host* or *codec* is of another type.

    The name is resolved at the first event and again after a failed send. The system reports a refusal by the peer's
    host, or a new reader of a Unix socket, at a later event. That event is sent over a new socket; after a refusal to
    the next address of the name, since the first one of ``localhost`` may be ``::1`` while the reader listens on
    127.0.0.1. An event that cannot be shortened enough, or that the network refuses for its size, is counted as
    ``dropped["oversize"]``.

    Safe from any thread. A forked child opens its own socket. ``close`` has nothing to wait for.

    Source: `logging.handlers.DatagramHandler`; CPython gh-59060 for IPv6.
    """

    _kind = socket.SOCK_DGRAM
    _ends = False
    _limited_by = "max_datagram_bytes"

    def __init__(
        self,
        host: str | os.PathLike[str],
        port: int | None,
        *,
        max_datagram_bytes: Size = 8192,
        codec: Codec | None = None,
        timeout: Span = 1.0,
        max_connection_age: Span | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        **options: Unpack[RetryOptions],
    ) -> None:
        self.max_datagram_bytes: int = checked_limit(max_datagram_bytes, "max_datagram_bytes")
        super().__init__(
            host,
            port,
            codec=codec,
            timeout=timeout,
            max_connection_age=max_connection_age,
            encoding=encoding,
            errors=errors,
            renderer=renderer,
            **options,
        )

    def _usual_frame(self) -> MakeFrame | None:
        return _line if type(self._codec) is JSONLines else _datagram

    def _frame(self, payload: bytes) -> bytes:
        codec = self._codec
        return pack_length(len(payload)) + payload if codec.length_in_datagrams else payload + delimiter_of(codec)

    @property
    def _limit(self) -> int:
        return self.max_datagram_bytes


DatagramSink._hot_class = DatagramSink
