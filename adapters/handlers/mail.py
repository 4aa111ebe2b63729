"""The drop-in twin of the handler that sends mails: `SMTPHandler`."""

from __future__ import annotations

import logging
import logging.handlers
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers.base import Twin, account_of
from outfall.sinks.core.reporting import describe
from outfall.sinks.event.event import LevelledEvent
from outfall.sinks.mail.smtp import SMTPSink

if TYPE_CHECKING:
    import ssl

_SMTPHandler = logging.handlers.SMTPHandler

_TIMEOUT_SECONDS = 5.0


class _Mail(LevelledEvent):
    """An event that carries the subject and text a handler made of its record."""

    __slots__ = ("seconds", "subject", "text")

    def __init__(self, subject: str, text: str, seconds: float) -> None:
        super().__init__({}, None)
        self.subject, self.text, self.seconds = subject, text, seconds


class _MailSink(SMTPSink):
    def emit(self, event: dict[str, Any]) -> None:
        """Send the mail with the handler's subject and text."""
        from outfall.sinks.mail.message import one_line

        if isinstance(event, _Mail):
            self._send(one_line(event.subject), event.text, None, event.seconds)
        else:
            super().emit(event)

    def follow(self, handler: SMTPHandler) -> None:
        """Apply attributes of *handler* that have changed: checking addresses and loading certificates is slow."""
        self.mailhost, self.mailport = handler.mailhost, handler.mailport or None
        self.username = handler.username or None
        self.password = getattr(handler, "password", None)
        if self.fromaddr != handler.fromaddr:
            self.fromaddr = handler.fromaddr
        if self.toaddrs != list(handler.toaddrs):
            self.toaddrs = handler.toaddrs
        seconds = _TIMEOUT_SECONDS if handler.timeout is None else handler.timeout
        if self.timeout != seconds:
            self.timeout = seconds
        secure = None if handler.secure is None else tuple(handler.secure)
        context = None if secure is None else handler.ssl_context
        if (self.secure, self._ssl_context) != (secure, context):
            self._ssl_context = context
            self.secure = secure

    def put(self, handler: SMTPHandler, mail: _Mail) -> None:
        """Send *mail* with the settings of *handler*; record a failure in the ledger, and raise it."""
        try:
            # One lock for both steps: a copy of the handler shares the sink but may have other settings.
            with self._lock:
                self.follow(handler)
                self.deliver(mail)
        except Exception as error:
            self._ledger.last_error = describe(error)
            raise


class SMTPHandler(Twin, _SMTPHandler):
    """A drop-in twin of `logging.handlers.SMTPHandler`: send each record as a mail, by an `SMTPSink`.

    Args:
        mailhost: Name or address of the server, or ``(host, port)``; port 25 by default.
        fromaddr: The sender.
        toaddrs: The recipients, one text or several.
        subject: The subject.
        credentials: ``(username, password)``, or None for no login.
        secure: ``()``, ``(keyfile,)`` or ``(keyfile, certfile)`` for STARTTLS. Default None: no encryption.
        timeout: Seconds to connect, and to wait for each reply. Default 5.0; None means 5.0 too.

    Attributes:
        mailhost: The host. Each mail is sent with the attributes as they are then.
        mailport: The port, or None.
        username: The name to log in with, or None.
        password: The password; there is none without credentials.
        fromaddr: The sender.
        toaddrs: The recipients, a list.
        subject: The subject that ``getSubject`` returns.
        secure: As above.
        timeout: As above.
        ssl_context: An `ssl.SSLContext` for STARTTLS. Default None: the result of `ssl.create_default_context`. An
            addition of Outfall's.

    Override ``getSubject`` for a subject that depends on the record. Deliberate differences from its namesake:
    :doc:`/explanation/handlers`.

    Source: https://docs.python.org/3/library/logging.handlers.html#smtphandler
    """

    ssl_context: ssl.SSLContext | None = None

    def _outfall_make_sink(self) -> SMTPSink:
        # The original sends credentials without encryption too.
        return _MailSink(
            "localhost", "root", "root", "", allow_insecure=True, on_error="raise", name=type(self).__name__
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Send *record*; call ``handleError`` on failure."""
        try:
            mail = _Mail(self.getSubject(record), self.format(record), record.created)
            account_of(self, _MailSink, SMTPHandler._outfall_make_sink).put(self, mail)
        except Exception:
            self.handleError(record)
