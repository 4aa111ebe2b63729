"""The socket of a listener, and its address."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any

from outfall.sinks.core.arguments import MAX_PORT
from outfall.sinks.network.peer import host_and_port


class BoundSocket:
    """A non-blocking socket of *kind*, bound to *address*.

    Args:
        address: (host, port), or the path of a Unix socket. A socket without a listener at the path is replaced.
        kind: ``socket.SOCK_STREAM`` or ``socket.SOCK_DGRAM``.
        backlog: How many connections may wait to be accepted, for streams.

    Raises:
        OSError: If the address cannot be bound.
    """

    sock: socket.socket

    def __init__(self, address: tuple[str, int] | str, kind: socket.SocketKind, backlog: int) -> None:
        family: int = socket.AF_UNIX
        where: Any = address
        if not isinstance(address, str):
            family, _, _, _, where = socket.getaddrinfo(*address, 0, kind, 0, socket.AI_PASSIVE)[0]
        self.sock = socket.socket(family, kind)
        self._path = address if isinstance(address, str) and not address.startswith("\0") else None
        #: Of the bound path, so that `close` removes no other file.
        self._inode: tuple[int, int] | None = None
        try:
            if isinstance(address, str):
                _remove_stale(address, kind)
            elif os.name == "posix" and kind == socket.SOCK_STREAM:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind(where)
            if self._path is not None:
                self._inode = _inode_of(self._path)
            if kind == socket.SOCK_STREAM:
                self.sock.listen(backlog)
            else:
                with contextlib.suppress(OSError):
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            self.sock.setblocking(False)
        except BaseException:
            self.sock.close()
            raise

    @property
    def address(self) -> tuple[str, int] | None:
        """The bound host and port; None for a path, and after `close`."""
        try:
            bound = self.sock.getsockname()
        except OSError:
            return None
        return (bound[0], bound[1]) if isinstance(bound, tuple) else None

    def close(self) -> None:
        """Close the socket, and remove its path unless another socket has taken it."""
        self.sock.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                if self._inode == _inode_of(self._path):
                    os.unlink(self._path)


def checked_address(address: tuple[str, int] | str | os.PathLike[str]) -> tuple[str, int] | str:
    """Return *address*, (host, port) or a path.

    Raises:
        ValueError: If host or port is not valid.
        TypeError: If it is something else.
    """
    if isinstance(address, (tuple, list)):
        if len(address) == 2 and isinstance(address[0], str):
            host, port = address
            if isinstance(port, int) and not isinstance(port, bool) and 0 <= port <= MAX_PORT:
                return host, port
        msg = f"address={address!r} is not (host, port) with a port from 0 to {MAX_PORT}"
        raise ValueError(msg)
    try:
        path = os.fsdecode(address)
    except TypeError:
        msg = f"address={address!r} is neither (host, port) nor a path"
        raise TypeError(msg) from None
    parts = host_and_port(path)
    if parts is not None:
        msg = f"address={address!r} would be the path of a Unix socket; write address={parts!r}"
        raise ValueError(msg)
    return path


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Remove a Unix socket that has no listener."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except (OSError, ValueError):
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


def _inode_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
