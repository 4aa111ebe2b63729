"""A connection that a listener accepted: its handshake, its bytes, and the frames in them."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING, Any

from outfall.sinks.network.frames import LENGTH_BYTES, FrameError, length_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


class Incoming:
    """One accepted connection.

    Args:
        sock: Its non-blocking socket.
        moment: The time of acceptance, by the monotonic clock.
        handshaking: Whether a TLS handshake comes first.
    """

    __slots__ = ("began", "buffer", "counted", "handshaking", "heard", "interest", "proven", "skipping", "sock")

    def __init__(self, sock: socket.socket, moment: float, *, handshaking: bool) -> None:
        self.sock: socket.socket = sock
        #: The received bytes of an incomplete frame.
        self.buffer: bytearray = bytearray()
        #: How many bytes of an oversized frame are still to be discarded; for lines, whether the rest of one is.
        self.skipping: int = 0
        #: How many bytes of `buffer` the listener's total includes.
        self.counted: int = 0
        #: When this frame began; for the first frame, when the connection began.
        self.began: float = moment
        #: When data came last.
        self.heard: float = moment
        #: True once a complete frame has come.
        self.proven: bool = False
        self.handshaking: bool = handshaking
        #: The events that the selector waits for.
        self.interest: int = selectors.EVENT_READ

    @property
    def unfinished(self) -> bool:
        """True if an incomplete frame has come."""
        return bool(self.buffer or self.skipping)

    def shake_hands(self) -> bool:
        """Continue the handshake; return True when it is over.

        Raises:
            FrameError: If it has failed.
        """
        sock: Any = self.sock
        self.interest = selectors.EVENT_READ
        try:
            sock.do_handshake()
        except (OSError, ValueError) as error:
            if not would_block(error):
                msg = f"no TLS handshake: {type(error).__name__}"
                raise FrameError(msg, "tls") from None
            if type(error).__name__ == "SSLWantWriteError":
                self.interest = selectors.EVENT_WRITE
            return False
        self.handshaking = False
        return True

    def receive(self, moment: float) -> tuple[bytes, bool]:
        """Receive once; return the data, and whether the peer has closed the connection."""
        chunks: list[bytes] = []
        ended = False
        try:
            chunk = self.sock.recv(_CHUNK_BYTES)
            ended = not chunk
            chunks.append(chunk)
            # Data that TLS has decrypted does not make the socket readable again.
            pending: Any = getattr(self.sock, "pending", None)
            while not ended and pending is not None and pending():
                chunks.append(self.sock.recv(_CHUNK_BYTES))
        except OSError as error:
            # Data received before the error counts. The error is a reset, or means that no more data is available now.
            ended = not would_block(error)
        data = b"".join(chunks)
        if data:
            self.heard = moment
            if self.proven and not self.unfinished:
                self.began = moment
        return data, ended

    def frames(self, data: bytes, moment: float, limit: int) -> Iterator[bytes | int]:
        """Yield the payload of each frame that *data* completes, and the length of each above *limit*; keep the rest.

        Raises:
            FrameError: At a length that is impossible.
        """
        if self.skipping:
            skipped = min(self.skipping, len(data))
            self.skipping -= skipped
            if self.skipping:
                return
            data = data[skipped:]
            self.proven = True
            self.began = moment
        buffered = bool(self.buffer)
        if buffered:
            self.buffer += data
        source = self.buffer if buffered else data
        at, end = 0, len(source)
        while end - at >= LENGTH_BYTES:
            length = length_of(source, at)
            start, stop = at + LENGTH_BYTES, at + LENGTH_BYTES + length
            if length > limit:
                if length > _MOST_SKIPPED_BYTES:
                    msg = f"a frame of {length} bytes was announced"
                    raise FrameError(msg, "oversize")
                yield length
                self.skipping = max(0, stop - end)
            elif stop > end:
                break
            else:
                yield bytes(source[start:stop])
            at = min(stop, end)
            self.proven = not self.skipping
            self.began = moment
        if buffered:
            del self.buffer[:at]
        else:
            self.buffer += data[at:]

    def lines(self, data: bytes, moment: float, limit: int, delimiter: bytes) -> Iterator[bytes | int]:
        """Yield each payload that a delimiter in *data* ends, and the length of each above *limit*; keep the rest.

        Blank ones are skipped.
        """
        *ended, rest = data.split(delimiter)
        for part in ended:
            self.proven = True
            self.began = moment
            if self.skipping:  # its length has been yielded
                self.skipping = 0
                continue
            payload = bytes(self.buffer) + part
            self.buffer.clear()
            if len(payload) > limit:
                yield len(payload)
            elif payload.strip():
                yield payload
        if not self.skipping:
            self.buffer += rest
            if len(self.buffer) > limit:
                yield len(self.buffer)
                self.buffer.clear()
                self.skipping = 1

    def last_line(self) -> bytes:
        """Return the unterminated line, and remove it."""
        line = bytes(self.buffer)
        self.buffer.clear()
        return line


def would_block(error: Exception) -> bool:
    """Return True if *error* means that no data is available now."""
    # By name, since Python may be built without ssl.
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )


_CHUNK_BYTES = 64 * 1024
#: A greater number is not a length but text, or a TLS handshake.
_MOST_SKIPPED_BYTES = 64 * 1024 * 1024
