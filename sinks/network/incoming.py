"""A connection that a listener has accepted: its handshake, its bytes, and the frames in them."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING, Any

from outfall.sinks.network.frames import LENGTH_BYTES, FrameError, length_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


class Incoming:
    """One connection.

    Args:
        sock: Its socket, which does not wait.
        moment: When it was accepted, by the monotonic clock.
        handshaking: Whether a handshake of TLS comes first.
    """

    began: float
    buffer: bytearray
    counted: int
    handshaking: bool
    heard: float
    interest: int
    proven: bool
    skipping: int
    sock: socket.socket

    __slots__ = ("began", "buffer", "counted", "handshaking", "heard", "interest", "proven", "skipping", "sock")

    def __init__(self, sock: socket.socket, moment: float, *, handshaking: bool) -> None:
        self.sock = sock
        #: What has come of a frame that is not whole.
        self.buffer = bytearray()
        #: How many bytes more of a frame too large are to be thrown away; where lines come, whether the rest of one is.
        self.skipping = 0
        #: How much of `buffer` is in the listener's total.
        self.counted = 0
        #: When this frame began; for the first one, when the connection did.
        self.began = moment
        #: When something came last.
        self.heard = moment
        #: True once a whole frame has come.
        self.proven = False
        self.handshaking = handshaking
        #: What the selector waits for.
        self.interest = selectors.EVENT_READ

    @property
    def unfinished(self) -> bool:
        """True if a frame has begun that is not whole."""
        return bool(self.buffer or self.skipping)

    def shake_hands(self) -> bool:
        """Go on with the handshake; return True when it is over.

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
        """Return what has come, up to so much, and whether the peer has ended the connection."""
        chunks: list[bytes] = []
        ended = False
        try:
            chunk = self.sock.recv(_CHUNK_BYTES)
            ended = not chunk
            chunks.append(chunk)
            # What TLS has decrypted already does not make the socket readable again.
            pending: Any = getattr(self.sock, "pending", None)
            while not ended and pending is not None and pending():
                chunks.append(self.sock.recv(_CHUNK_BYTES))
        except OSError as error:
            # What came before it counts, be it a reset or the end of what there is for now.
            ended = not would_block(error)
        data = b"".join(chunks)
        if data:
            self.heard = moment
            if self.proven and not self.unfinished:
                self.began = moment
        return data, ended

    def frames(self, data: bytes, moment: float, limit: int) -> Iterator[bytes | int]:
        """Yield the payload of each frame that *data* makes whole, and the length of each above *limit*; keep the rest.

        Raises:
            FrameError: At a length that can be none.
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
            if self.skipping:  # its length has been told
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
        """Return the line that has not been ended, and forget it."""
        line = bytes(self.buffer)
        self.buffer.clear()
        return line


def would_block(error: Exception) -> bool:
    """Return True if *error* says that there is nothing to be had now."""
    # By name: not every Python is built with ssl.
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )


_CHUNK_BYTES = 64 * 1024
#: A length beyond this is text, or a handshake of TLS, and no length.
_MOST_SKIPPED_BYTES = 64 * 1024 * 1024
