"""One mail handed to a server: the SMTP dialogue, its deadlines, and what its failures mean."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import smtplib
import socket
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import DeliveryError, PermanentDeliveryError, TemporaryDeliveryError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

#: What a server may say in one reply.
_MAX_REPLY_BYTES = 65_536

#: What is repeated of a reply.
_MAX_QUOTED_CHARACTERS = 200

#: How long to wait for an answer to QUIT, which changes nothing.
_QUIT_SECONDS = 0.5

#: Replies that speak of the client's credentials or encryption, whatever command they answer (RFC 4954, RFC 3207).
_ABOUT_THE_CLIENT = frozenset({530, 534, 535, 538})

_READY, _COMPLETED, _GO_AHEAD = 220, 250, 354


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a server.

    Args:
        host: Name or address.
        port: TCP port.
        timeout: Seconds for connecting to one address, and for each reply.
        context: For TLS, or None.
        implicit: True for TLS from the first byte on, False for STARTTLS.
        credentials: User name and password, or None.
    """

    host: str
    port: int
    timeout: float
    context: ssl.SSLContext | None
    implicit: bool
    credentials: tuple[str, str] | None = field(repr=False)


class Connection(smtplib.SMTP):
    """A connection whose replies have to be there in time as a whole, however slowly their bytes come.

    Args:
        route: Where it goes.
        sock: The connected socket.
    """

    sock: socket.socket | ssl.SSLSocket | None
    helo_resp: bytes | None
    ehlo_resp: bytes | None

    def __init__(self, route: Route, sock: socket.socket) -> None:
        # smtplib's own way of finding a name for EHLO may wait for a name server without limit.
        super().__init__(local_hostname=_own_name(sock), timeout=route.timeout)
        self.sock = sock
        self.route = route
        #: What is being done, for messages.
        self.stage = "greeting"
        #: When the reply has to be there.
        self.due: float = 0.0
        #: How many bytes more it may have.
        self.budget: int = 0
        self.reply_seconds: float = route.timeout

    def getreply(self) -> tuple[int, bytes]:
        """Read a reply, as a whole within ``reply_seconds``."""
        if self.file is None:
            self.file = io.BufferedReader(_Replies(self))
        self.due = monotonic() + self.reply_seconds
        self.budget = _MAX_REPLY_BYTES
        return super().getreply()

    def send(self, s: Any) -> None:
        """Send data; reading has set the socket's timeout to what was left for the reply."""
        if self.sock is not None:
            self.sock.settimeout(self.route.timeout)
        super().send(s)

    def encrypt(self) -> None:
        """Go on in TLS, and forget what was said before (RFC 3207, section 4.2)."""
        assert self.sock is not None  # noqa: S101 - for the type checker
        assert self.route.context is not None  # noqa: S101
        self.sock.settimeout(self.route.timeout)
        self.sock = self.route.context.wrap_socket(self.sock, server_hostname=self.route.host)
        # What somebody in between sent in plain text, to be taken for the encrypted server's, goes with the buffer.
        self.file = None
        self.helo_resp = self.ehlo_resp = None
        self.esmtp_features: dict[str, str] = {}
        self.does_esmtp = False


class _Replies(io.RawIOBase):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        connection = self._connection
        sock = connection.sock
        left = connection.due - monotonic()
        late = TimeoutError(f"no answer within {connection.reply_seconds:g} s")
        if left <= 0 or sock is None:
            raise late
        sock.settimeout(left)
        try:
            size = sock.recv_into(buffer)
        except TimeoutError:
            raise late from None
        connection.budget -= size
        if connection.budget < 0:
            msg = f"a reply of more than {_MAX_REPLY_BYTES} bytes"
            raise OSError(msg)
        return size


def _own_name(sock: socket.socket) -> str:
    name = socket.gethostname()
    if "." in name and re.fullmatch(r"[A-Za-z0-9.-]+", name):
        return name
    # An address literal, RFC 5321, section 4.1.3.
    address = str(sock.getsockname()[0]).partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def submit(
    route: Route,
    sender: str,
    recipients: Sequence[str],
    message: bytes,
    opened: Callable[[Connection | None], None],
) -> list[str]:
    """Hand *message* to the server; return what it said of each recipient whom it refused.

    Args:
        route: How to reach the server.
        sender: The envelope's address for bounces.
        recipients: The envelope's recipients.
        message: The message as it is sent, lines ending in CRLF.
        opened: Is told of the connection, and by None of its end.

    Raises:
        TemporaryDeliveryError: If the server could not be reached, did not keep its time, hung up, refused TLS or the
            credentials, or said that it cannot take the mail now.
        PermanentDeliveryError: If the server refused the sender, every recipient, or the message.

    What is raised holds neither the credentials nor what the server said once it knew them or the message.
    """
    failure: DeliveryError
    connection: Connection | None = None
    try:
        connection = _connect(route)
        opened(connection)
        try:
            return _converse(connection, sender, recipients, message)
        finally:
            connection.close()
            opened(None)
    except DeliveryError as error:
        failure = error
    except Exception as error:
        failure = _translated(error, route, connection)
    # Outside the except clause, so that nothing hangs on to the original, whose arguments may hold anything.
    failure.__cause__ = failure.__context__ = None
    try:
        raise failure
    finally:
        # Its traceback holds this frame, and the frames of who calls.
        del failure


def _connect(route: Route) -> Connection:
    sock = socket.create_connection((route.host, route.port), route.timeout)
    try:
        # Commands are small and each waits for its reply: nothing is won by holding the end of one back.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if route.implicit and route.context is not None:
            sock = route.context.wrap_socket(sock, server_hostname=route.host)
        return Connection(route, sock)
    except BaseException:
        sock.close()
        raise


def _converse(connection: Connection, sender: str, recipients: Sequence[str], message: bytes) -> list[str]:
    route = connection.route
    code, text = connection.getreply()
    if code != _READY:
        raise _refusal(connection, code, text, about_the_mail=False)
    connection.stage = "EHLO"
    connection.ehlo_or_helo_if_needed()
    if route.context is not None and not route.implicit:
        _start_tls(connection)
    if route.credentials is not None:
        connection.stage = "AUTH"
        _log_in(connection, *route.credentials)
    options = [f"SIZE={len(message)}"] if connection.has_extn("size") else []
    if not all(address.isascii() for address in (sender, *recipients)):
        options += ["SMTPUTF8", "BODY=8BITMIME"]
        if not connection.has_extn("smtputf8"):
            msg = f"{_peer(route)} takes no address that is not ASCII: it offers no SMTPUTF8"
            raise PermanentDeliveryError(msg)
    connection.stage = "MAIL"
    code, text = connection.mail(sender, options)
    if code != _COMPLETED:
        raise _quit_with(connection, _refusal(connection, code, text))
    refused = _name_recipients(connection, recipients)
    connection.stage = "DATA"
    try:
        code, text = connection.data(message)
    except smtplib.SMTPDataError as error:
        code, text = error.smtp_code, _as_bytes(error.smtp_error)
    if code != _COMPLETED:
        raise _quit_with(connection, _refusal(connection, code, text))
    # The server has it: whatever happens now is no failure of the mail.
    connection.reply_seconds = min(_QUIT_SECONDS, route.timeout)
    with contextlib.suppress(OSError):
        connection.docmd("QUIT")
    return refused


def _start_tls(connection: Connection) -> None:
    connection.stage = "STARTTLS"
    if not connection.has_extn("starttls"):
        msg = f"{_peer(connection.route)} offers no STARTTLS; nothing was sent in plain text"
        raise TemporaryDeliveryError(msg)
    code, text = connection.docmd("STARTTLS")
    if code != _READY:
        raise _refusal(connection, code, text, about_the_mail=False)
    connection.encrypt()
    connection.ehlo_or_helo_if_needed()


def _log_in(connection: Connection, user: str, password: str) -> None:
    code, text = 0, b""
    peer = _peer(connection.route)
    if not connection.has_extn("auth"):
        msg = f"{peer} offers no AUTH"
        raise TemporaryDeliveryError(msg)
    if user.isascii() and password.isascii():
        try:
            connection.login(user, password)
        except smtplib.SMTPAuthenticationError as error:
            code, text = error.smtp_code, _as_bytes(error.smtp_error)
        finally:
            # smtplib keeps them.
            vars(connection).pop("user", None)
            vars(connection).pop("password", None)
    elif "PLAIN" in connection.esmtp_features["auth"].upper().split():
        # smtplib encodes credentials as ASCII; RFC 4616 has UTF-8.
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        code, text = connection.docmd("AUTH", f"PLAIN {secret}")
        if code == 235:
            return
    else:
        msg = f"{peer} offers no AUTH PLAIN, which credentials that are not ASCII need"
        raise TemporaryDeliveryError(msg)
    if code:
        raise _refusal(connection, code, text, about_the_mail=False)


def _name_recipients(connection: Connection, recipients: Sequence[str]) -> list[str]:
    connection.stage = "RCPT"
    refused: list[str] = []
    temporary = False
    for address in recipients:
        code, text = connection.rcpt(address)
        if code in (250, 251, 252):
            continue
        refusal = _refusal(connection, code, text)
        if code == 421:
            raise refusal
        temporary = temporary or isinstance(refusal, TemporaryDeliveryError)
        refused.append(f"{address}: {_quoted(connection, code, text)}")
    if len(refused) == len(recipients):
        msg = f"{_peer(connection.route)} refused every recipient: {'; '.join(refused)}"
        raise _quit_with(connection, TemporaryDeliveryError(msg) if temporary else PermanentDeliveryError(msg))
    return refused


def _quit_with(connection: Connection, failure: DeliveryError) -> DeliveryError:
    """Take leave without waiting for the answer, and return *failure*."""
    with contextlib.suppress(OSError):
        connection.putcmd("QUIT")
    return failure


# -- what failures mean


def _peer(route: Route) -> str:
    return f"{route.host}:{route.port}"


def _as_bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")


def _quoted(connection: Connection, code: int, text: bytes) -> str:
    """Return a reply, without the words where they might repeat what the server should not tell on."""
    if code < 0:
        return "a reply that is none"
    words = " ".join(text.decode("utf-8", "replace").split())
    credentials = connection.route.credentials
    if connection.stage in ("AUTH", "DATA") or (credentials is not None and credentials[1] in words):
        status = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)", words)
        words = status[0] if status else ""
    return f"{code} {words[:_MAX_QUOTED_CHARACTERS]}".rstrip()


def _refusal(connection: Connection, code: int, text: bytes, *, about_the_mail: bool = True) -> DeliveryError:
    msg = f"{_peer(connection.route)} refused {connection.stage}: {_quoted(connection, code, text)}"
    # No mail is at fault if the server wants nothing of this client: others would fare no better, and all can wait.
    if about_the_mail and 500 <= code < 600 and code not in _ABOUT_THE_CLIENT:
        return PermanentDeliveryError(msg)
    return TemporaryDeliveryError(msg)


def _translated(error: Exception, route: Route, connection: Connection | None) -> DeliveryError:
    peer = _peer(route)
    if connection is None:
        return TemporaryDeliveryError(f"no connection to {peer}: {describe(error)}")
    if isinstance(error, smtplib.SMTPResponseException):
        return _refusal(connection, error.smtp_code, _as_bytes(error.smtp_error), about_the_mail=False)
    if isinstance(error, smtplib.SMTPServerDisconnected):
        reason = error.__context__
        why = describe(reason) if isinstance(reason, OSError) else "the server hung up"
        return TemporaryDeliveryError(f"{peer} was lost at {connection.stage}: {why}")
    if isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException):
        return TemporaryDeliveryError(f"{peer} was lost at {connection.stage}: {describe(error)}")
    return TemporaryDeliveryError(f"{peer} failed at {connection.stage}: {type(error).__name__}")
