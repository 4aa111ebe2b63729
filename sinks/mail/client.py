"""Sends one mail over SMTP, within deadlines, and translates failures to delivery errors.

============================================  =====================================  ===========================
reply                                         cause                                  raised
============================================  =====================================  ===========================
2yz                                           none
4yz, 421, no reply, no connection             the server, for now                    `TemporaryDeliveryError`
552, 5.3.4 or 5.2.3 (unless a mailbox is      the size: half of a batch may pass     `OversizeDeliveryError`
full)
5yz to the message, after the server has      this mail                              `PermanentDeliveryError`
read it
5yz to an earlier command (greeting, EHLO,    the configuration: every mail would    `PausedDeliveryError`
STARTTLS, AUTH, MAIL, RCPT, DATA), and 5yz    fail
to the message if its code or status is
about the client, addresses or the server
============================================  =====================================  ===========================

Source: RFC 5321, section 4.2; RFC 1870 for sizes; RFC 3463 and RFC 7372 for statuses such as 5.7.1; RFC 7504 for 521
and 556; RFC 4954 and RFC 3207 for 530, 534, 535 and 538;
https://developers.google.com/workspace/gmail/imap/xoauth2-protocol for XOAUTH2.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import smtplib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import (
    LOST_ATTEMPTS,
    DeliveryError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)
from outfall.sinks.network.peer import heard_refusal, is_refused_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

#: The largest reply that is read.
_MAX_REPLY_BYTES = 65_536

#: The number of characters of a reply in error messages.
_MAX_QUOTED_CHARACTERS = 200

#: Seconds to wait for the reply to QUIT, which does not matter.
_QUIT_SECONDS = 0.5

#: Codes that are about the client or the server, after whatever command: unknown commands, credentials, encryption, a
#: host that accepts no mail.
_NOT_THE_MAIL = frozenset({500, 501, 502, 503, 504, 521, 530, 534, 535, 538, 555, 556})

#: The same for statuses: addresses, mailboxes, the system, routing, the protocol, and the part of 5.7 for
#: authentication.
_NOT_THE_MAIL_STATUS = re.compile(r"5\.(?:[1-5]\.\d+|7\.(?:[23489]|1\d|2\d))")
_STATUS = re.compile(r"(?:^|#)([245]\.\d{1,3}\.\d{1,3})(?!\S*\d)")
_TOO_LARGE = frozenset({"5.2.3", "5.3.4"})
_FULL = re.compile("quota|mailbox|full", re.IGNORECASE)

#: The stage of DATA, of the message and of the reply to it: if it fails, the size of the message may be the reason.
_DATA = "DATA"

#: The stage of a reply to the whole message.
_MESSAGE = "the message"

#: The advice for each stage when the server refuses everything.
_ADVICE = {
    "greeting": "check mailhost, and whether it takes mail from this host",
    "EHLO": "check mailhost, and whether it takes mail from this host",
    "STARTTLS": "check secure, ssl_context and the certificates of both sides",
    "AUTH": "check credentials",
    "MAIL": "check fromaddr, and whether the server asks for credentials or TLS",
    "RCPT": "check toaddrs, and whether the server relays for this host or asks for credentials",
    _DATA: "check fromaddr and toaddrs, and whether the server asks for credentials or TLS",
    _MESSAGE: "check fromaddr and toaddrs, and what the server asks of its senders (SPF, DKIM, credentials)",
}

#: Codes of success: only the first digit counts (RFC 5321, 4.2).
_COMPLETED = range(200, 300)

_READY = 220
_LOGGED_IN, _CHALLENGE = 235, 334


@dataclass(frozen=True, slots=True)
class Route:
    """The settings of a connection.

    Args:
        host: Name or address of the server.
        port: TCP port.
        timeout: Seconds to connect to one address, and to wait for each reply.
        context: The context for TLS, or None for no TLS.
        implicit: True for TLS from the first byte on, False for STARTTLS.
        credentials: User name and password, or None.
        by_token: True if the password is an access token.
    """

    host: str
    port: int
    timeout: float
    context: ssl.SSLContext | None
    implicit: bool
    credentials: tuple[str, str] | None = field(repr=False)
    by_token: bool = field(default=False, repr=False)


class Connection(smtplib.SMTP):
    """An SMTP connection with a deadline for each whole reply, however slowly its bytes arrive.

    Args:
        route: The settings.
        sock: The connected socket.
    """

    sock: socket.socket | ssl.SSLSocket | None
    helo_resp: bytes | None
    ehlo_resp: bytes | None

    def __init__(self, route: Route, sock: socket.socket) -> None:
        # With a name for EHLO: to find one, smtplib asks a name server, which may take without limit.
        super().__init__(local_hostname=_own_name(sock), timeout=route.timeout)
        self.sock = sock
        self.route = route
        #: The command in progress, for error messages.
        self.stage = "greeting"
        #: The deadline of the current reply, by the monotonic clock.
        self.due: float = 0.0
        #: The number of bytes that the current reply may still have.
        self.budget: int = 0
        self.reply_seconds: float = route.timeout

    def getreply(self) -> tuple[int, bytes]:
        """Read a whole reply within ``reply_seconds``."""
        if self.file is None:
            self.file = io.BufferedReader(_Replies(self))
        self.due = monotonic() + self.reply_seconds
        self.budget = _MAX_REPLY_BYTES
        return super().getreply()

    def send(self, s: Any) -> None:
        """Send data; if that fails because the server has refused TLS, raise its TLS alert instead."""
        sock = self.sock
        if sock is None:
            super().send(s)  # raises
            return
        # Reading a reply has set the timeout to the time that was left for it.
        sock.settimeout(self.route.timeout)
        try:
            sock.sendall(s.encode(self.command_encoding) if isinstance(s, str) else s)
        except OSError as error:
            raise heard_refusal(sock) or error from None

    def encrypt(self) -> None:
        """Start TLS, and forget everything that the server said before (RFC 3207, section 4.2)."""
        assert self.sock is not None
        assert self.route.context is not None
        self.sock.settimeout(self.route.timeout)
        self.sock = self.route.context.wrap_socket(self.sock, server_hostname=self.route.host)
        # Drop the buffer: an attacker may have injected plain text, to pass for replies of the encrypted server.
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
    """Send *message* to the server.

    Args:
        route: The settings of the connection.
        sender: The envelope's sender, to which bounces go.
        recipients: The envelope's recipients.
        message: The message, with lines ending in CRLF.
        opened: Called with the connection when it is open, and with None when it is closed.

    Returns:
        The refused recipients, each with the server's reply.

    Raises:
        TemporaryDeliveryError: If the server cannot be reached, does not reply in time, closes the connection, or
            replies that it cannot take the mail now. It is a `PausedDeliveryError` if the server refused TLS, the
            credentials, the sender, every recipient, or this client.
        PermanentDeliveryError: If the server refused the message; an `OversizeDeliveryError` if for its size.

    The error holds no credentials. It quotes no reply to the login or the message, which may repeat secrets.
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
    # Outside of the except block: the original error, which may hold secrets, must not become its context.
    failure.__cause__ = failure.__context__ = None
    try:
        raise failure
    finally:
        # Its traceback refers to this frame: without this they form a cycle.
        del failure


def _connect(route: Route) -> Connection:
    sock = socket.create_connection((route.host, route.port), route.timeout)
    try:
        # Each small command waits for its reply, so delaying it by Nagle's algorithm only costs time.
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
        raise _refusal(connection, code, text)
    connection.stage = "EHLO"
    connection.ehlo_or_helo_if_needed()
    if route.context is not None and not route.implicit:
        _start_tls(connection)
    if route.credentials is not None:
        connection.stage = "AUTH"
        (_log_in_by_token if route.by_token else _log_in)(connection, *route.credentials)
    options = [f"SIZE={len(message)}"] if connection.has_extn("size") else []
    if not all(address.isascii() for address in (sender, *recipients)):
        options += ["SMTPUTF8", "BODY=8BITMIME"]
        if not connection.has_extn("smtputf8"):
            msg = f"{_peer(route)} offers no SMTPUTF8; it takes ASCII alone in fromaddr and toaddrs"
            raise _quit_with(connection, PausedDeliveryError(msg))
    connection.stage = "MAIL"
    code, text = connection.mail(sender, options)
    if code not in _COMPLETED:
        raise _quit_with(connection, _refusal(connection, code, text))
    refused = _name_recipients(connection, recipients)
    connection.stage = _DATA
    try:
        code, text = connection.data(message)
        connection.stage = _MESSAGE
    except smtplib.SMTPDataError as error:
        # The server has not requested the message, so the message was not sent, even after a code of success.
        code, text = error.smtp_code, _as_bytes(error.smtp_error)
    if connection.stage != _MESSAGE or code not in _COMPLETED:
        raise _quit_with(connection, _refusal(connection, code, text))
    # The server has accepted the mail: a failure from here on does not matter.
    connection.reply_seconds = min(_QUIT_SECONDS, route.timeout)
    with contextlib.suppress(OSError):
        connection.docmd("QUIT")
    return refused


def _start_tls(connection: Connection) -> None:
    connection.stage = "STARTTLS"
    if not connection.has_extn("starttls"):
        msg = f"{_peer(connection.route)} offers no STARTTLS; nothing was sent in plain text; check secure and mailhost"
        raise _quit_with(connection, PausedDeliveryError(msg))
    code, text = connection.docmd("STARTTLS")
    if code != _READY:
        raise _refusal(connection, code, text)
    connection.encrypt()
    connection.ehlo_or_helo_if_needed()


def _log_in(connection: Connection, user: str, password: str) -> None:
    code, text = 0, b""
    peer = _peer(connection.route)
    if not connection.has_extn("auth"):
        msg = f"{peer} offers no AUTH; check credentials, and whether it asks for TLS first"
        raise _quit_with(connection, PausedDeliveryError(msg))
    if user.isascii() and password.isascii():
        try:
            connection.login(user, password)
        except smtplib.SMTPAuthenticationError as error:
            code, text = error.smtp_code, _as_bytes(error.smtp_error)
        finally:
            # smtplib stores both.
            vars(connection).pop("user", None)
            vars(connection).pop("password", None)
    elif "PLAIN" in connection.esmtp_features["auth"].upper().split():
        # smtplib encodes credentials as ASCII, but RFC 4616 says UTF-8.
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        code, text = connection.docmd("AUTH", f"PLAIN {secret}")
        if code == _LOGGED_IN:
            return
    else:
        msg = f"{peer} offers no AUTH PLAIN, which credentials that are not ASCII need"
        raise _quit_with(connection, PausedDeliveryError(msg))
    if code:
        raise _quit_with(connection, _refusal(connection, code, text))


def _log_in_by_token(connection: Connection, user: str, token: str) -> None:
    """Log in by the mechanism XOAUTH2, which Gmail and Exchange Online require."""
    peer = _peer(connection.route)
    offered = connection.esmtp_features.get("auth", "").upper().split()
    if "XOAUTH2" not in offered:
        others = f", but {', '.join(offered)}" if offered else "; check whether it asks for TLS first"
        raise _quit_with(connection, PausedDeliveryError(f"{peer} offers no AUTH XOAUTH2{others}"))
    secret = base64.b64encode(f"user={user}\1auth=Bearer {token}\1\1".encode()).decode()
    code, text = connection.docmd("AUTH", f"XOAUTH2 {secret}")
    if code == _CHALLENGE:
        # The challenge is an error as JSON. The server sends the refusal after an empty answer.
        code, text = connection.docmd("")
        if code == _LOGGED_IN:
            code, text = 535, b""
    if code != _LOGGED_IN:
        raise _quit_with(connection, _refusal(connection, code, text))


def _name_recipients(connection: Connection, recipients: Sequence[str]) -> list[str]:
    """Send the *recipients*; return the refused ones with the server's replies, or raise if all were refused."""
    connection.stage = "RCPT"
    refused: list[str] = []
    kinds: set[type[DeliveryError]] = set()
    for address in recipients:
        code, text = connection.rcpt(address)
        if code in _COMPLETED:
            continue
        refusal = _refusal(connection, code, text)
        if code == 421:
            raise refusal
        kinds.add(type(refusal))
        refused.append(f"{address}: {_quoted(connection, code, text)}")
    if len(refused) == len(recipients):
        msg = f"{_peer(connection.route)} refused every recipient: {'; '.join(refused)}"
        # Try again if one of them may accept the mail later, or a smaller one.
        for kind in (TemporaryDeliveryError, OversizeDeliveryError):
            if kind in kinds:
                raise _quit_with(connection, kind(msg))
        raise _quit_with(connection, PausedDeliveryError(f"{msg}; {_ADVICE['RCPT']}"))
    return refused


def _quit_with(connection: Connection, failure: DeliveryError) -> DeliveryError:
    """Send QUIT without waiting for the reply, and return *failure*."""
    with contextlib.suppress(OSError):
        connection.putcmd("QUIT")
    return failure


# -- translation of failures


def _peer(route: Route) -> str:
    return f"{route.host}:{route.port}"


def _as_bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")


def _quoted(connection: Connection, code: int, text: bytes) -> str:
    """Return a reply for an error message; only code and status if its words may repeat secrets."""
    if code < 0:
        return "a malformed reply"
    words = " ".join(text.decode("utf-8", "replace").split())
    credentials = connection.route.credentials
    if connection.stage in ("AUTH", _MESSAGE) or (credentials is not None and credentials[1] in words):
        status = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)", words)
        words = status[0] if status else ""
    return f"{code} {words[:_MAX_QUOTED_CHARACTERS]}".rstrip()


def _refusal(connection: Connection, code: int, text: bytes) -> DeliveryError:
    """Return the error for a reply, by the table at the top of the module."""
    stage = connection.stage
    msg = f"{_peer(connection.route)} refused {stage}: {_quoted(connection, code, text)}"
    if not 500 <= code < 600:
        return TemporaryDeliveryError(msg)
    words = " ".join(text.decode("utf-8", "replace").split())
    found = _STATUS.search(words)
    status = found[1] if found else ""
    if status in _TOO_LARGE or (code == 552 and not (status == "5.2.2" or _FULL.search(words))):
        return OversizeDeliveryError(msg)
    if stage == _MESSAGE and not (code in _NOT_THE_MAIL or _NOT_THE_MAIL_STATUS.fullmatch(status)):
        return PermanentDeliveryError(msg)
    return PausedDeliveryError(f"{msg}; {_ADVICE[stage]}")


def _lost(what: str, error: Exception, halve_after: int | None = None) -> DeliveryError:
    msg = f"{what}: {describe(error)}"
    if is_refused_tls(error):
        return PausedDeliveryError(f"{msg}; {_ADVICE['STARTTLS']}")
    return TemporaryDeliveryError(msg, halve_after=halve_after)


def _translated(error: Exception, route: Route, connection: Connection | None) -> DeliveryError:
    peer = _peer(route)
    if connection is None:
        # With TLS from the first byte on, an invalid certificate is among these errors.
        return _lost(f"no connection to {peer}", error)
    stage = connection.stage
    if isinstance(error, smtplib.SMTPResponseException):
        return _refusal(connection, error.smtp_code, _as_bytes(error.smtp_error))
    if isinstance(error, smtplib.SMTPServerDisconnected):
        reason = error.__context__
        if not isinstance(reason, OSError):
            halve_after = LOST_ATTEMPTS if stage == _DATA else None
            return TemporaryDeliveryError(f"{peer} was lost at {stage}: the server hung up", halve_after=halve_after)
        error = reason
    if isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException):
        halve_after = None
        if stage == _DATA:
            halve_after = 1 if isinstance(error, TimeoutError) else LOST_ATTEMPTS
        return _lost(f"{peer} was lost at {stage}", error, halve_after)
    msg = f"{peer} failed at {stage}: {type(error).__name__}"
    # At AUTH: client and server have no mechanism in common.
    return PausedDeliveryError(f"{msg}; {_ADVICE[stage]}") if stage == "AUTH" else TemporaryDeliveryError(msg)
