"""The drop-in twin of the handler for syslog: `SysLogHandler`."""

from __future__ import annotations

import contextlib
import copy
import logging
import logging.handlers
import socket
from time import monotonic
from typing import Any

from outfall.adapters.handlers.base import Twin, account_of, count_failure
from outfall.adapters.handlers.socket import is_usable, limit_sending, made_here, part, resolved
from outfall.sinks.system.rfc5424 import without_controls

_SysLogHandler = logging.handlers.SysLogHandler

_STREAM = socket.SOCK_STREAM

#: Seconds between attempts to connect: the first wait, which doubles, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0


class SysLogHandler(Twin, _SysLogHandler):
    """A drop-in twin of `logging.handlers.SysLogHandler`: send each record to a syslog daemon.

    Args:
        address: ``(host, port)``, IPv4 or IPv6, or the path of a Unix socket. Default ``("localhost", 514)``.
        facility: One of ``facility_names`` or its number. Default ``LOG_USER``.
        socktype: ``socket.SOCK_DGRAM`` or ``socket.SOCK_STREAM``. Default None: datagrams, and at a path where that
            does not go a stream.
        timeout: Seconds for connecting and for each sending. Default None: a second, on a socket that blocks. On every
            version, as since Python 3.14.

    Attributes:
        address: As above; read for each datagram, and when a stream connects.
        facility: As above; read for each record, like the next two.
        ident: What comes before each message. Default ``""``.
        append_nul: Whether a NUL ends each message. Default True.
        send_exc_info: Whether the text of exceptions is sent too. Default False. What Outfall adds.
        socktype: The kind of socket that was asked for, or that was connected.
        socket: The socket, or None. Assign another to use it.
        unixsocket: True if the address is a path.
        timeout: As above.

    A message is ``<PRI>``, ``ident`` and the formatted record, in UTF-8. ``createSocket`` is called at construction; it
    is no error if nobody is there. A forked child opens its own connection when it sends; datagrams go over the socket
    that the parent made. Where it differs from its namesake on purpose: :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#sysloghandler
    """

    #: Whether the text of exceptions is sent too; settable. What Outfall adds.
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
        # It may be there when the first record comes.
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
        """Have a connection in ``socket``, if there can be one.

        Raises:
            OSError: If none can be had at an address that is no path.
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
        made_here(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*."""
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
        self.acquire()
        try:
            sock = self.socket
            if sock:
                self.socket = None
                part(sock)
            logging.Handler.close(self)
        finally:
            self.release()


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
        # Its traceback holds this frame.
        del failure


def _limit(handler: Any, made: socket.socket) -> None:
    seconds = getattr(handler, "timeout", None)
    if seconds:
        made.settimeout(seconds)
    else:
        limit_sending(made)


def send(handler: Any, message: bytes) -> None:
    """Send *message*, which `SysLogHandler.emit` has made, and count it, whatever becomes of it.

    Raises:
        Exception: Whatever befell it.
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
            # That of one that a subclass made may be nowhere but there.
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
    # A createSocket of a subclass's own may leave the attribute out.
    return getattr(handler, "unixsocket", isinstance(handler.address, str))


def _reconnect(handler: Any) -> None:
    handler.socket.close()
    if _is_at_path(handler):
        handler._connect_unixsocket(handler.address)
        made_here(handler)
    else:
        handler.socket = None
        _connect(handler)


def _connect(handler: Any) -> None:
    """Call ``createSocket``; where that fails over and over, the next attempts are farther and farther apart."""
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
    """Return *message* with one end, for a stream, whose reader would take another in it for the next message's."""
    if message.endswith(b"\0"):
        return without_controls(message[:-1], controls=False) + b"\0"
    return message.removesuffix(b"\n").replace(b"\n", b"\\n") + b"\n"
