"""`SMTPSink`: sends events as mails."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from outfall.sinks.core.arguments import MAX_PORT, checked_function, checked_seconds, is_loopback
from outfall.sinks.core.credentials import asked
from outfall.sinks.core.reporting import describe, report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.errors import DeliveryError, ReentrantEventError
from outfall.sinks.event.event import TextEvent, message_key, without_metadata
from outfall.sinks.event.levels import NOTSET, UNKNOWN, Level, level_name, level_of
from outfall.sinks.network.peer import checked_context, host_and_port, is_host

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.event.units import Span
    from outfall.sinks.mail.client import Connection, Route
    from outfall.sinks.mail.message import SubjectTemplate

_SMTP_PORT, _SMTPS_PORT = 25, 465

#: The separator between the events of a digest.
_RULE = "\n\n" + "-" * 72 + "\n\n"


class SMTPSink(Sink):
    """Send each event as a mail, and a batch of events as one mail.

    Use it with a high ``level``. Errors may come in storms: behind a wrapper that makes batches, such as
    `BackgroundSink`, `emit_batch` sends one digest, however many events there are.

    Args:
        mailhost: Name or address of the server, or ``(host, port)``. Default port: 25, with *implicit_tls* 465.
        fromaddr: The sender, ``"name@example.org"`` or ``"Shop <name@example.org>"``.
        toaddrs: One recipient, several separated by commas, or a sequence of either.
        subject: A text; a text with fields of the event in braces, such as ``"{level}: {event}"`` or
            ``"order {order.id}"``; or a callable that gets the event. A field that the event does not have is left as
            it is written, and so is a text that is not a valid format: braces need no escape unless they hold the name
            of a field. Line breaks become blanks, and a subject over 250 characters is truncated.
        credentials: User name and password; or user name and a callable that returns an access token, which Gmail and
            Exchange Online require (XOAUTH2). It is called for each mail. Default None: no login.
        secure: A tuple for STARTTLS, with or without credentials: ``()``; ``(keyfile,)``, a file with the client's
            private key and certificate; or ``(keyfile, certfile)``. If the files change, the next mail uses the new
            ones. Default None: no TLS, unless *ssl_context* or *implicit_tls* is given.
        timeout: The time limit to connect to one address of the host, and for each whole reply: seconds, a timedelta or
            text such as ``"2s"``, above 0. Default 5.0. Name resolution has its own limits, those of the system.
        ssl_context: A context for TLS, for example with a private certificate authority. Without *implicit_tls* it
            implies STARTTLS. Default None: the result of `ssl.create_default_context`.
        implicit_tls: True for TLS from the first byte on, as on port 465 (RFC 8314). Default False.
        allow_insecure: True to send credentials without TLS to a host other than this one. Default False.
        attach_json: Attach the event as ``event.json``; to a digest, its events as the lines of ``events.jsonl``.
            Default True.
        renderer: Renders the body: any structlog renderer ``(logger, name, event_dict) -> str | bytes`` (bytes are
            UTF-8); it gets a copy of the event. Default None: the message, the fields and the traceback as text for
            people. For mails that programs read, use ``OrjsonRenderer()`` with ``attach_json=False``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If an address is invalid or contains a line break, there is no recipient, *timeout* is not above 0,
            a port is out of range, *ssl_context* is given with files in *secure*, or credentials would cross the
            network in plain text and *allow_insecure* is not True.
        TypeError: If an argument has the wrong type.
        OSError: If a file of *secure* cannot be read; an `ssl.SSLError` if it cannot be used.

    Each mail uses one connection, which is opened in the thread that logs and always closed; put a `BackgroundSink` in
    front if that thread must not wait. When `handle` returns, the server has the mail. This sink does not retry. The
    errors tell a wrapper whether to do so:

    - `TemporaryDeliveryError`: the server cannot be reached, does not reply in time, closes the connection, or replies
      4xx (greylisting). The mail can be sent later.
    - `PausedDeliveryError`: the server would refuse every mail. It replied 5xx to the greeting, the login, the sender
      or every recipient, or TLS failed (an invalid certificate of either side, no STARTTLS though it was requested;
      then nothing is sent without it). All events are kept and attempts are rare, until the configuration or the server
      changes; the report says what to check.
    - `OversizeDeliveryError`: the mail is too large for the server (552, 5.3.4). Half of a batch may be accepted.
    - `PermanentDeliveryError`: the server has read the message and refused it with another 5xx. Only this error loses
      an event, which is found by halving the batch.

    If only some recipients are refused, the others get the mail, and ``on_error`` gets a failure with no event lost; a
    retry would send the others the mail twice. If a connection breaks after the message and before the reply, the
    server may have accepted the mail: a retry may send it twice.

    Errors quote the server's replies, but only codes of replies to login and message, since their words may repeat
    secrets. The password is in no repr, report or exception.

    The header Date has the time of the event (of the last event in a digest). Each mail has its own Message-ID. Headers
    are ASCII, with other characters in encoded words; bodies are UTF-8. Addresses that are not ASCII before the ``@``
    need a server with SMTPUTF8.

    Safe from any thread; mails are sent one after the other. A forked child shares only the arguments with its parent.
    ``close`` waits only for the mail in progress.

    Source: `logging.handlers.SMTPHandler`, whose attributes may be set at any time here too; RFC 5321, RFC 5322,
    RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 3834 (no automatic answers). ``smtplib.SMTP.starttls`` takes no key files
    since Python 3.12, and without a context it verifies nothing.
    """

    #: The host's name or address. This and the next three are read for each mail.
    mailhost: str
    #: The port, or None for the default one.
    mailport: int | None
    #: The user name for the login, or None for no login.
    username: str | None
    #: The password for the login, or a callable that returns an access token.
    password: str | Callable[[], str] | None

    def __init__(
        self,
        mailhost: str | tuple[str, int | None] | list[Any],
        fromaddr: str,
        toaddrs: str | Iterable[str],
        subject: str | Callable[[dict[str, Any]], str],
        credentials: tuple[str, str | Callable[[], str]] | list[str] | None = None,
        secure: Sequence[str | os.PathLike[str] | None] | None = None,
        timeout: Span = 5.0,
        *,
        ssl_context: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        allow_insecure: bool = False,
        attach_json: bool = True,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        #: The open connections, which a forked child closes.
        self._open: list[Connection] = []
        #: Failures without a lost event that are not yet reported, with the event.
        self._remarks: deque[tuple[Exception, object]] = deque()
        self.mailhost, self.mailport = _checked_host(mailhost)
        self.fromaddr = fromaddr
        self.toaddrs = toaddrs
        self.subject = subject
        self.username, self.password = _checked_credentials(credentials)
        self.timeout = timeout
        self._implicit_tls = bool(implicit_tls)
        self._ssl_context = checked_context(ssl_context)
        self.secure = secure
        self.allow_insecure: bool = bool(allow_insecure)
        self.attach_json: bool = bool(attach_json)
        self.renderer = renderer
        self._route()
        #: True while the callable for the token runs, in the thread that holds the lock.
        self._asking = False
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)

    # -- attributes, as the handler has them

    @property
    def fromaddr(self) -> str:
        """The sender; settable."""
        return self._fromaddr

    @fromaddr.setter
    def fromaddr(self, fromaddr: str) -> None:
        from outfall.sinks.mail.message import parse_addresses

        if not isinstance(fromaddr, str):
            msg = f"fromaddr={fromaddr!r} is not text"
            raise TypeError(msg)
        found = parse_addresses([fromaddr], "fromaddr")
        if len(found) != 1:
            msg = f"fromaddr={fromaddr!r} is more than one address"
            raise ValueError(msg)
        self._fromaddr, self._sender = fromaddr, found[0]

    @property
    def toaddrs(self) -> list[str]:
        """The recipients; settable, to one text or several."""
        return list(self._toaddrs)

    @toaddrs.setter
    def toaddrs(self, toaddrs: str | Iterable[str]) -> None:
        from outfall.sinks.mail.message import parse_addresses

        given: list[Any] = [toaddrs]
        if not isinstance(toaddrs, str) and hasattr(toaddrs, "__iter__"):
            given = list(toaddrs)
        if not all(isinstance(address, str) for address in given):
            msg = f"toaddrs={toaddrs!r} is neither an address such as 'ops@example.org' nor a sequence of them"
            raise TypeError(msg)
        self._recipients = parse_addresses(given, "toaddrs")
        self._toaddrs = given

    @property
    def subject(self) -> str | Callable[[dict[str, Any]], str]:
        """The text or callable for subjects; settable."""
        return self._subject

    @subject.setter
    def subject(self, subject: str | Callable[[dict[str, Any]], str]) -> None:
        from outfall.sinks.mail.message import SubjectTemplate

        self._template: SubjectTemplate | None = None
        if isinstance(subject, str):
            self._template = SubjectTemplate(subject)
        elif not callable(subject):
            msg = f"subject={subject!r} is neither text nor a callable"
            raise TypeError(msg)
        self._subject = subject

    @property
    def timeout(self) -> float:
        """Seconds to connect and to wait for each reply; settable."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: Span) -> None:
        seconds = checked_seconds(timeout, "timeout")
        if not 0 < seconds < float("inf"):
            msg = f"timeout={timeout!r} is not a number of seconds above 0"
            raise ValueError(msg)
        self._timeout = seconds

    @property
    def secure(self) -> tuple[Any, ...] | None:
        """The tuple for STARTTLS, or None; settable."""
        return self._secure

    @secure.setter
    def secure(self, secure: Sequence[str | os.PathLike[str] | None] | None) -> None:
        if secure is not None and (not isinstance(secure, (tuple, list)) or len(secure) > 2):
            msg = f"secure={secure!r} is not (), (keyfile,), (keyfile, certfile) or None"
            raise TypeError(msg)
        context = self._ssl_context
        files = [file for file in secure or () if file is not None]
        if context is not None and files:
            msg = f"secure={secure!r}: with ssl_context, load the certificate into the context"
            raise ValueError(msg)
        #: The files of the client's certificate, and their state when they were read.
        self._files, self._version = files, _version_of(files)
        if context is None and (secure is not None or self._implicit_tls):
            context = _context(secure or ())
        self._secure = None if secure is None else tuple(secure)
        self._context = context

    def _renew(self) -> None:
        """Load the client's certificate again if its files have changed; keep the old one if that fails."""
        if not self._files:
            return
        try:
            version = _version_of(self._files)
            if version != self._version:
                self._context = _context(self._secure or ())
                self._version = version
        except OSError as error:
            msg = f"the renewed certificate of secure cannot be used, the one before it still is: {describe(error)}"
            self._remarks.append((DeliveryError(msg), None))

    @property
    def renderer(self) -> Callable[[Any, str, Any], str | bytes] | None:
        """The renderer of the body, or None for text for people; settable."""
        return self._renderer

    @renderer.setter
    def renderer(self, renderer: Callable[[Any, str, Any], str | bytes] | None) -> None:
        self._renderer = None if renderer is None else checked_function(renderer, "renderer", "a renderer of structlog")

    # -- methods to override

    def get_subject(self, event: dict[str, Any]) -> str:
        """Return the subject for *event*; for a digest, *event* is the first of the most severe events.

        The default uses `subject`. Line breaks in the result become blanks. If an override raises, the mail is sent
        with the event's message as its subject, and the failure is reported.
        """
        if self._template is not None:
            return self._template.fill(event)
        assert callable(self._subject)
        return self._subject(event)

    # -- the sink

    def emit(self, event: dict[str, Any]) -> None:
        """Send one mail."""
        item = self.encode(event)
        if isinstance(event, TextEvent):
            text, attachment = _decoded(event.rendered()), None
        else:
            text = self._text(event, item)
            attachment = ("event.json", "json", item.data) if self.attach_json else None
        self._send(self._subject_of(event), text, attachment, item.time)

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send *batch* as one mail, which the server accepts or refuses as a whole.

        The subject is that of the first of the most severe events, followed by the number of the other events.
        """
        if not batch:
            return None
        with self._lock:
            self._send_digest(batch)
        self._report_remarks()
        return None

    def _send_digest(self, batch: Sequence[Encoded]) -> None:
        events = [item.event for item in batch]
        worst = max(range(len(batch)), key=lambda index: batch[index].level)
        subject = self._subject_of(events[worst])
        text = _RULE.join(self._text(event, item) for event, item in zip(events, batch, strict=True))
        attachment = ("event.json", "json", batch[0].data)
        if len(batch) > 1:
            levels = sorted({item.level for item in batch if item.level < UNKNOWN})
            named = ", ".join(level_name(level) for level in reversed(levels))
            text = f"{len(batch)} events{f' ({named})' if named else ''}{_RULE}{text}"
            subject = f"{subject[:200]} (and {len(batch) - 1} more)"
            attachment = ("events.jsonl", "x-ndjson", b"".join(item.data.rstrip(b"\n") + b"\n" for item in batch))
        self._send(subject, text, attachment if self.attach_json else None, max(item.time for item in batch))

    def _text(self, event: dict[str, Any], item: Encoded) -> str:
        if self._renderer is None:
            from outfall.sinks.mail.message import readable

            return readable(item.event)
        name = event.get("_name") or level_name(level_of(event))
        return _decoded(self._renderer(event.get("_logger"), name, without_metadata(event)))

    def _subject_of(self, event: dict[str, Any]) -> str:
        from outfall.sinks.mail.message import one_line

        try:
            return one_line(str(self.get_subject(event)))
        except Exception as error:
            self._remarks.append((error, event))
        message = event.get(message_key(event))
        return one_line(message if isinstance(message, str) else level_name(level_of(event)))

    def _send(self, subject: str, text: str, attachment: tuple[str, str, bytes] | None, seconds: float) -> None:
        from outfall.sinks.mail.client import submit
        from outfall.sinks.mail.message import compose

        self._renew()
        route = self._route(self._token())
        recipients = self._recipients
        message = compose(
            sender=self._sender,
            recipients=recipients,
            subject=subject,
            text=text,
            attachment=attachment,
            seconds=seconds,
        )
        addresses = list(dict.fromkeys(mailbox.address for mailbox in recipients))
        refused = submit(route, self._sender.address, addresses, message, self._watch)
        if refused:
            msg = f"the mail was sent, but not to {'; '.join(refused)}"
            self._remarks.append((DeliveryError(msg), None))

    def _token(self) -> str | None:
        """Return the access token for one mail; None if there is a password or no login."""
        if self.username is None or not callable(self.password):
            return None
        if self._asking:
            msg = f"{self.name}: the event was logged by the callable for the token"
            raise ReentrantEventError(msg)
        self._asking = True
        try:
            return asked(self.password)
        finally:
            self._asking = False

    def _route(self, token: str | None = None) -> Route:
        """Return the settings of a connection.

        Raises:
            ValueError: If credentials would cross the network in plain text.
        """
        from outfall.sinks.mail.client import Route

        by_token = callable(self.password)
        secret = token if callable(self.password) else self.password
        credentials = None if self.username is None else (self.username, secret or "")
        if (
            credentials is not None
            and self._context is None
            and not (self.allow_insecure or is_loopback(self.mailhost))
        ):
            msg = (
                f"credentials: they would cross the network to mailhost={self.mailhost!r} in plain text; "
                "use secure=() or implicit_tls=True, or allow_insecure=True if that is what you want"
            )
            raise ValueError(msg)
        return Route(self.mailhost, self._port, self._timeout, self._context, self._implicit_tls, credentials, by_token)

    @property
    def _port(self) -> int:
        return self.mailport or (_SMTPS_PORT if self._implicit_tls else _SMTP_PORT)

    def _watch(self, connection: Connection | None) -> None:
        if connection is None:
            self._open.pop()
        else:
            self._open.append(connection)

    def _put(self, event: dict[str, Any]) -> Exception | None:
        super()._put(event)
        if self._remarks and self.on_error == "raise":
            remark = self._remarks.popleft()[0]
            self._report_remarks()
            return remark
        self._report_remarks()
        return None

    def _report_remarks(self) -> None:
        """Report failures of mails that were sent nevertheless; called without the lock."""
        while self._remarks:
            try:
                error, event = self._remarks.popleft()
            except IndexError:  # another thread was faster
                return
            # Not raised: an exception from emit_batch would mean that no event of the batch was delivered.
            self._fail_unraised(error, event)

    def _describe(self) -> str:
        return f"to {', '.join(mailbox.address for mailbox in self._recipients)} via {self.mailhost}:{self._port}"

    def after_fork(self) -> None:
        """Reset the sink in a forked child; close the descriptor of a connection that the parent is using."""
        while self._open:
            sock = self._open.pop().sock
            if sock is not None:
                # Not the buffer above it: another thread may have held its lock.
                sock.close()
        self._remarks.clear()
        self._asking = False
        super().after_fork()


def _decoded(rendered: Any) -> str:
    """Return *rendered*, a renderer's result, as text."""
    if isinstance(rendered, str):
        return rendered
    if isinstance(rendered, (bytes, bytearray, memoryview)):
        return bytes(rendered).decode("utf-8", "backslashreplace")
    msg = f"the renderer returned {type(rendered).__name__}, not str or bytes"
    raise TypeError(msg)


def _checked_host(mailhost: Any) -> tuple[str, int | None]:
    host, port = mailhost if isinstance(mailhost, (tuple, list)) and len(mailhost) == 2 else (mailhost, None)
    if not isinstance(host, str):
        msg = f"mailhost={mailhost!r} is not a name, nor (name, port)"
        raise TypeError(msg)
    if not is_host(host):
        msg = f"mailhost={mailhost!r} is not the name or address of a host"
        raise ValueError(msg)
    parts = host_and_port(host)
    if parts is not None:
        msg = f"mailhost={mailhost!r} has a port in it; write mailhost={parts!r}"
        raise ValueError(msg)
    if port is not None and (not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= MAX_PORT):
        msg = f"mailhost={mailhost!r}: {port!r} is not a port from 1 to 65535, or 0 or None for the default one"
        raise ValueError(msg)
    return host, port or None


def _checked_credentials(credentials: Any) -> tuple[str | None, str | Callable[[], str] | None]:
    if credentials is None:
        return None, None
    if (
        not isinstance(credentials, (tuple, list))
        or len(credentials) != 2
        or not isinstance(credentials[0], str)
        or not (isinstance(credentials[1], str) or callable(credentials[1]))
    ):
        # Without the value, which may hold a password.
        msg = "credentials=… is not (username, password), two texts, nor a name and a callable that returns a token"
        raise TypeError(msg)
    return credentials[0], cast("Any", credentials[1])


def _version_of(files: Sequence[Any]) -> list[tuple[int, ...]]:
    statuses = [os.stat(file) for file in files]
    return [(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size) for status in statuses]


def _context(secure: Sequence[Any]) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context()
    keyfile, certfile = (*secure, None, None)[:2]
    if certfile is not None:
        context.load_cert_chain(certfile, keyfile)
    elif keyfile is not None:
        context.load_cert_chain(keyfile)
    return context
