"""The drop-in twin of the handler for syslog: `SysLogHandler`."""

from __future__ import annotations

import contextlib
import copy
import logging
import logging.handlers
import socket
from typing import Any

from outfall.adapters.handlers.base import Twin, account_of, count_failure
from outfall.adapters.handlers.socket import close, is_usable, limit_sending, remember_process, resolved
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.system.rfc5424 import without_controls

_SysLogHandler = logging.handlers.SysLogHandler

_STREAM = socket.SOCK_STREAM

#: Seconds between attempts to connect: the first wait, which doubles, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0


class SysLogHandler(Twin, _SysLogHandler):
    """A drop-in twin of `logging.handlers.SysLogHandler`: send each record to a syslog daemon.

    Args:
        address: ``(host, port)``, IPv4 or IPv6, or the path of a Unix socket. Default ``("localhost", 514)``.
        facility: A name of ``facility_names`` or its number. Default ``LOG_USER``.
        socktype: ``socket.SOCK_DGRAM`` or ``socket.SOCK_STREAM``. Default None: datagrams; for a path also a stream, if
            datagrams fail.
        timeout: Seconds to connect, and for each send, as since Python 3.14. Default None: the socket blocks, but each
            send is limited to one second.

    Attributes:
        address: As above; read for each datagram, and when a stream connects.
        facility: As above. This and the next two are read for each record.
        ident: Text before each message. Default ``""``.
        append_nul: Whether a NUL ends each message. Default True.
        send_exc_info: Whether to send the text of exceptions too. Default False. An addition of Outfall's.
        socktype: The requested kind of socket; once connected, the actual kind.
        socket: The socket, or None. Assign another to use it.
        unixsocket: True if the address is a path.
        timeout: As above.

    A message is ``<PRI>``, ``ident`` and the formatted record, in UTF-8. The constructor calls ``createSocket``; an
    absent daemon is not an error. In a forked child a stream is connected again when the child sends, and datagrams use
    the parent's socket. Deliberate differences from its namesake: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#sysloghandler
    """

    #: Whether to send the text of exceptions too; settable. An addition of Outfall's.
    send_exc_info: bool = False
    timeout: float | None = None
    socket: Any
    socktype: Any

    def __init__(
        self,
        address: tuple[str, int] | str = ("localhost", logging.handlers.SYSLOG_UDP_PORT),
        facility: str | int = _SysLogHandler.LOG_USER,
        socktype: socket.SocketKind | None = None,
        timeout: float | None = None,
    ) -> None:
        logging.Handler.__init__(self)
        self.address = address
        self.facility: Any = facility
        self.socktype = socktype
        self.timeout = timeout
        self.socket = None
        # The daemon may be there when the first record comes.
        with contextlib.suppress(OSError):
            self.createSocket()

    def _connect_unixsocket(self, address: str) -> None:
        asked = self.socktype
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM) if asked is None else (asked,):
            self.socket = socket.socket(socket.AF_UNIX, kind)
            _limit(self, self.socket)
            try:
                self.socket.connect(address)
            except OSError:
                self.socket.close()
                if kind == asked or kind == socket.SOCK_STREAM:
                    raise
            else:
                self.socktype = kind
                return

    def createSocket(self) -> None:
        """Connect, and set ``socket``.

        Raises:
            OSError: If that fails for ``(host, port)``; for a path ``socket`` stays unconnected.
        """
        address = self.address
        if isinstance(address, str):
            self.unixsocket: bool = True
            with contextlib.suppress(OSError):
                self._connect_unixsocket(address)
        else:
            self.unixsocket = False
            kind = socket.SOCK_DGRAM if self.socktype is None else self.socktype
            self.socket, self.socktype = _connected(self, *address, kind), kind
        remember_process(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*; call ``handleError`` on failure."""
        try:
            shown = record
            if (record.exc_info or record.exc_text) and not getattr(self, "send_exc_info", False):
                shown = copy.copy(record)
                shown.exc_info = shown.exc_text = None
            message = self.format(shown)
            if self.ident:
                message = self.ident + message
            if self.append_nul:
                message += "\0"
            priority = self.encodePriority(self.facility, self.mapPriority(record.levelname))
            send(self, f"<{priority:d}>{message}".encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        close(self, "socket")


def _connected(handler: Any, host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    failure: OSError | None = None
    for family, kind_, proto, _, address in socket.getaddrinfo(host, port, 0, kind):
        try:
            made = socket.socket(family, kind_, proto)
        except OSError as error:
            failure = error
            continue
        try:
            _limit(handler, made)
            if kind == socket.SOCK_STREAM:
                made.connect(address)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    try:
        raise failure or OSError("getaddrinfo returns an empty list")
    finally:
        # Its traceback refers to this frame: without this they form a cycle.
        del failure


def _limit(handler: Any, made: socket.socket) -> None:
    seconds = getattr(handler, "timeout", None)
    if seconds:
        made.settimeout(seconds)
    else:
        limit_sending(made)


def send(handler: Any, message: bytes) -> None:
    """Send *message* over the socket of *handler*, connecting if need be, and count the outcome.

    Raises:
        Exception: The failure.
    """
    reason = None
    try:
        sock = handler.socket
        if not sock:
            if _is_waiting(handler):
                reason = "backoff"
                kind, arguments = handler._outfall_failed[2:]
                raise kind(*arguments)
            _connect(handler)
            sock = handler.socket
        kind = handler.socktype
        if kind is None and isinstance(sock, socket.socket):
            # A subclass's createSocket may not set the attribute.
            kind = sock.type
        if kind == _STREAM:
            _send_over_stream(handler, sock, framed(message))
        elif _is_at_path(handler):
            try:
                sock.send(message)
            except OSError:
                _reconnect(handler)
                _put(handler, message)
        else:
            sock.sendto(message, resolved(handler, sock))
    except BaseException as error:
        handler._outfall_resolved = None
        if reason is None:
            count_failure(handler, error)
        else:
            account_of(handler)._ledger.drop(reason)
        raise
    account = getattr(handler, "_outfall_account", None) or account_of(handler)
    account._ledger.delivered += 1


def _send_over_stream(handler: Any, sock: Any, message: bytes) -> None:
    if sock and not is_usable(handler, sock):
        _reconnect(handler)
    try:
        handler.socket.sendall(message)
    except OSError:
        _reconnect(handler)
        handler.socket.sendall(message)


def _put(handler: Any, message: bytes) -> None:
    if handler.socktype == _STREAM:
        handler.socket.sendall(framed(message))
    else:
        handler.socket.send(message)


def _is_at_path(handler: Any) -> bool:
    # A subclass's createSocket may not set the attribute.
    return getattr(handler, "unixsocket", isinstance(handler.address, str))


def _reconnect(handler: Any) -> None:
    handler.socket.close()
    if _is_at_path(handler):
        handler._connect_unixsocket(handler.address)
        remember_process(handler)
    else:
        handler.socket = None
        _connect(handler)


def _connect(handler: Any) -> None:
    """Call ``createSocket``; after a failure double the wait before the next attempt."""
    wait = handler._outfall_failed[1] if getattr(handler, "_outfall_failed", None) else _FIRST_WAIT
    try:
        handler.createSocket()
    except OSError as error:
        handler._outfall_failed = monotonic() + wait, min(2 * wait, _LONGEST_WAIT), type(error), error.args
        raise
    handler._outfall_failed = None


def _is_waiting(handler: Any) -> bool:
    failed = getattr(handler, "_outfall_failed", None)
    return failed is not None and monotonic() < failed[0]


def framed(message: bytes) -> bytes:
    """Return *message* with one terminator, for a stream: another within it would split the message."""
    if message.endswith(b"\0"):
        return without_controls(message[:-1], controls=False) + b"\0"
    return message.removesuffix(b"\n").replace(b"\n", b"\\n") + b"\n"
