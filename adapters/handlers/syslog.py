"""The drop-in twin of the handler for syslog: `SysLogHandler`."""

# Attributes of the original are properties here.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import copy
import logging
import logging.handlers
import socket
from typing import Any

from outfall.adapters.handlers.socket import HandlersSink
from outfall.adapters.handlers.twin import Twin
from outfall.sinks.system.rfc5424 import without_controls
from outfall.sinks.system.syslog import SysLogSink


class _MessagesSink(HandlersSink, SysLogSink):
    def connect(self) -> None:
        """Try to have a connection of the kind that the handler's attributes name."""
        owner = self.owner
        kind: socket.SocketKind | None = owner._asked
        if kind is None and not isinstance(owner.address, str):
            kind = socket.SOCK_DGRAM
        self.socktype = kind
        if kind is not None:
            self._use(kind)
        super().connect()

    def _adopt(self, made: Any) -> None:
        if isinstance(made, socket.socket):
            self._use(made.type)
        super()._adopt(made)

    def _back_off(self) -> None:
        # At a path there is an answer at once.
        if self.port is not None:
            super()._back_off()

    def _ends_with_nul(self, *, datagram: bool) -> bool:
        return False

    def _framed(self, data: bytes) -> bytes:
        """Return *data* with one end, for a stream, whose reader would take another in it for the next message's."""
        if data.endswith(b"\0"):
            return without_controls(data[:-1], controls=False) + b"\0"
        return data.removesuffix(b"\n").replace(b"\n", b"\\n") + b"\n"

    def _hand_over(self, foreign: Any, data: bytes) -> None:
        owner = self.owner
        if owner.unixsocket:
            foreign.send(data)
        elif owner.socktype == socket.SOCK_DGRAM:
            foreign.sendto(data, owner.address)
        else:
            foreign.sendall(data)


class SysLogHandler(Twin, logging.handlers.SysLogHandler):
    """A drop-in twin of `logging.handlers.SysLogHandler`: send each record to a syslog daemon.

    By a `SysLogSink`.

    Args:
        address: ``(host, port)``, IPv4 or IPv6, or the path of a Unix socket. Default ``("localhost", 514)``.
        facility: One of ``facility_names`` or its number. Default ``LOG_USER``.
        socktype: ``socket.SOCK_DGRAM`` or ``socket.SOCK_STREAM``. Default None: datagrams, and at a path where that
            does not go a stream.

    Attributes:
        address: As above; read for each datagram, and when a stream connects.
        facility: As above; read for each record, like the next two.
        ident: What comes before each message. Default ``""``.
        append_nul: Whether a NUL ends each message. Default True.
        send_exc_info: Whether the text of exceptions is sent too. Default False. What Outfall adds.
        socktype: The kind of socket that was asked for, else of the one there is.
        socket: The socket, or None. Assign another to use it.
        unixsocket: True if the address is a path.

    A message is ``<PRI>``, ``ident`` and the formatted record, in UTF-8. ``createSocket`` is called at construction; it
    is no error if nobody is there. ``createSocket``, ``encodePriority``, ``mapPriority`` and the maps may
    be overridden. A forked child opens its own connection. Where it differs from its namesake on purpose:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#sysloghandler
    """

    #: Whether the text of exceptions is sent too; settable. What Outfall adds.
    send_exc_info: bool = False

    def __init__(
        self,
        address: tuple[str, int] | str = ("localhost", logging.handlers.SYSLOG_UDP_PORT),
        facility: str | int = logging.handlers.SysLogHandler.LOG_USER,
        socktype: socket.SocketKind | None = None,
    ) -> None:
        Twin.__init__(self)
        self.address = address
        self.facility: Any = facility
        self._asked = socktype
        self.unixsocket = isinstance(address, str)
        self.createSocket()
        # It may be there when the first record comes.
        self.sink.retry_time = None

    def make_sink(self) -> HandlersSink:
        """Return the sink."""
        return _MessagesSink(on_error="raise", name=type(self).__name__)

    def lend(self, sink: HandlersSink) -> None:
        """Have *sink* go by the handler's address."""
        sink.follow(self.address)

    def sends_itself(self) -> bool:
        """Return True if a subclass sends over the socket by a method of its own."""
        return type(self).emit is not SysLogHandler.emit

    @property
    def socktype(self) -> Any:
        """The kind of socket that was asked for, else the one there is, or None; settable."""
        asked, sock = self._asked, self.sink.sock
        if asked is None:
            return sock.type if sock is not None else None if self.unixsocket else socket.SOCK_DGRAM
        return asked

    @socktype.setter
    def socktype(self, socktype: socket.SocketKind | None) -> None:
        self._asked = socktype

    @property
    def socket(self) -> Any:
        """The socket, or None; settable."""
        return self.sink.sock

    @socket.setter
    def socket(self, sock: Any) -> None:
        with self.at_work() as sink:
            sink.replace(sock)

    def createSocket(self) -> None:
        """Have a connection in ``socket``, if there can be one."""
        self.unixsocket: bool = isinstance(self.address, str)
        with self.at_work() as sink:
            sink.connect()

    def encodePriority(self, facility: int | str, priority: int | str) -> int:
        """Return *facility* and *priority*, names or numbers, in one number.

        Raises:
            KeyError: If a name is not known.
        """
        high = self.facility_names[facility] if isinstance(facility, str) else facility
        low = self.priority_names[priority] if isinstance(priority, str) else priority
        return high << 3 | low

    def mapPriority(self, levelName: str) -> str:
        """Return the name of the priority for a level's name: ``"warning"`` for one that ``priority_map`` lacks."""
        return self.priority_map.get(levelName, "warning")

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*."""
        try:
            shown = record
            if not self.send_exc_info and (record.exc_info or record.exc_text):
                shown = copy.copy(record)
                shown.exc_info = shown.exc_text = None
            number = self.encodePriority(self.facility, self.mapPriority(record.levelname))
            message = f"<{number}>{self.ident or ''}{self.format(shown)}{chr(0) if self.append_nul else ''}"
            with self.at_work() as sink:
                sink.put(message.encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        with self.at_work() as sink:
            sink.rest()
            logging.Handler.close(self)
