"""Events sent to syslog: `SysLogSink`."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from outfall.sinks.core.arguments import checked_choice
from outfall.sinks.core.bytesink import ByteSink
from outfall.sinks.core.item import Batch, Encoded
from outfall.sinks.core.sink import Sink
from outfall.sinks.event.event import NaiveTimestamps, TextEvent, checked_naive, message_key, timestamp_of
from outfall.sinks.event.fit import shortened
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import UNKNOWN, level_name, level_of
from outfall.sinks.network.frames import Frames
from outfall.sinks.network.peer import checked_limit, host_and_port, is_host
from outfall.sinks.network.socket import MakeFrame, SocketSink
from outfall.sinks.system import rfc5424
from outfall.sinks.system.priority import PRIORITY_NAMES, Facility, number_of, usual_priority

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.network.socket import RetryOptions


#: As a number, which ``in`` finds in bytes twenty times as fast as bytes of length one.
_DEL = 0x7F


def _message(sink: Any, event: Any, line: bytes) -> bytes:
    # JSON does not escape DEL and C1, which a message must not contain; C1 is not ASCII.
    if not line.isascii() or _DEL in line or "level_number" in event:
        raise LookupError
    level = event["level"]
    try:
        prefix = sink._prefixes[level]
    except KeyError:
        prefix = sink._prefix_of(level)
    message = prefix + line + sink._end
    if len(message) > sink.max_message_bytes:
        raise LookupError
    return message  # type: ignore[no-any-return]


class SysLogSink(SocketSink):
    r"""Send each event to a syslog daemon, over UDP, TCP, TLS or a Unix socket.

    Args:
        address: ``(host, port)``, IPv4 or IPv6, or the path of a Unix socket such as ``"/dev/log"``. Default
            ``("localhost", 514)``. The daemon need not run yet.
        facility: One of `facility_names` or its number, 0 to 23. Default ``"user"``. Settable.
        socktype: ``socket.SOCK_DGRAM`` or ``socket.SOCK_STREAM``. Default None: UDP for an address (TCP with *tls*); at
            a path a datagram socket, or a stream if that fails.
        timeout: Seconds, a timedelta or text such as ``"2s"``, that one attempt to connect or one send may take.
            Default 1.0.
        format: ``"rfc3164"`` (default): what `logging.handlers.SysLogHandler` sends, ``<PRI>``, *ident* and the
            rendered event; the daemon adds time and host. ``"rfc5424"``: a header with time, host, program and process,
            the event's fields as structured data, and its message.
        framing: The separation of messages in a stream: ``"octet"`` (the length precedes each message), ``"lf"`` or
            ``"nul"`` (a byte ends each message). Default None: ``"octet"`` for RFC 5424 and for TLS, else ``"lf"``. A
            datagram is always one message.
        ident: The text before each message of RFC 3164, such as ``"shop: "``, and the APP-NAME of RFC 5424, without a
            colon and spaces at its end; if empty, the program's name. Default ``""``. Settable.
        append_nul: Whether a NUL byte ends each message. Default None: only RFC 3164 in datagrams, as old daemons
            expect. Settable.
        structured_data_id: The name of the element that contains the fields: at most 32 printable ASCII characters
            without ``= ] "`` and space; by RFC 5424 a name, ``@`` and your private enterprise number. Default None:
            ``"outfall@32473"``, whose number is reserved for examples. RFC 5424 only.
        tls: An `ssl.SSLContext`, or True for ``ssl.create_default_context()``. Default None: no encryption. The
            registered port is 6514.
        max_message_bytes: Size above which a message is shortened; at least 480. Default None: 2 048 over UDP, which
            RFC 5424 asks every receiver to accept, else 8 096, rsyslogd's default limit.
        naive_timestamps: The zone of a ``timestamp`` of text without one: ``"utc"`` (default) or ``"local"``. RFC 5424
            only, whose header contains the event's time.
        max_connection_age: Seconds, a timedelta or text such as ``"10m"``, after which a new connection replaces the
            old one, and the name is resolved again, so that the sink follows a changed address. If no new connection
            can be made, the old one stays in use. Default None: a connection lasts as long as it works.
        renderer: The renderer of the MSG part. Default None: for RFC 3164 ``OrjsonRenderer()``, for RFC 5424 the text
            of ``event``. Text is UTF-8.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after a connection failed. Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        clock: The clock of these waits and ages, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *facility*, *socktype*, *format*, *framing*, *structured_data_id*, *max_message_bytes*, a port
            or a duration is not usable, or *tls* comes with a path or with datagrams, or *structured_data_id* with
            RFC 3164.
        TypeError: If *address*, *ident*, *append_nul* or *tls* is of another type.

    **No value can forge a message.** Control characters (C0, DEL and C1, including line breaks) are escaped as in JSON,
    ``\n`` or ``\u001b``. Octet framing over TCP and TLS does not need a byte to separate messages: there all but NUL
    are sent as they are, and the daemon escapes them (rsyslog does by default). So with LF and NUL framing, datagrams
    and Unix sockets, a control character in a text looks the same as its escape, except in JSON.

    **RFC 5424.** Structured data contains text as it is and other values as JSON; None is ``null``. ``event`` is the
    message, and ``timestamp`` the time in the header, in UTC with microseconds. If it cannot be parsed, it stays a
    field, and the header has the current time. A field name that is not an SD-NAME is percent-encoded. If it is then
    longer than 32 characters, it becomes its beginning, ``~`` and 12 digits of its SHA-256, and a second element,
    ``names@`` and the enterprise number, has the whole name. Names never collide. PROCID is the id of the process, and
    MSGID the result of `get_message_id`. No byte order mark precedes the message, although it is UTF-8: daemons would
    keep it as a part of the text.

    **A message that is too long** is shortened if its fields are known: the longest texts are cut, then the largest
    fields are left out, and ``truncated`` is true. So JSON and structured data stay valid. If only text is known
    (another renderer, text rendered before), its end is cut off. Characters are never cut apart.

    **What can get lost.** syslog has no acknowledgements. A datagram may be lost without a sign; if the host reports
    that nobody listens, the next datagram goes to the next address of the name. Over TCP and TLS `handle` returns when
    the operating system has the message. If the daemon dies, messages in the buffers of the sockets are lost, and
    counted as delivered. The sink notices before the next event that the daemon has closed the connection. An event
    whose send fails is sent once more over a new connection, and nothing follows a message that was sent in part.
    Without a daemon the event is ``dropped["error"]``, and events before the next attempt are ``dropped["backoff"]``;
    an event that is too large for the network is ``dropped["oversize"]``. ``on_error`` is called for each failed
    attempt with the number of events lost since the last call.

    It connects at the first event. `handle` takes three timeouts at most. Safe from any thread; an event from a signal
    handler that interrupts a send is sent right after it. A forked child opens its own connection. ``flush`` does
    nothing, and ``close`` waits only for a send in progress.

    Source: `logging.handlers.SysLogHandler`, whose `encode_priority` (``encodePriority``), `map_priority`
    (``mapPriority``) and ``create_socket`` (``createSocket``) may be overridden as there; RFC 3164, 5424, 5425 (TLS),
    6587 (TCP).
    """

    # The constants of `syslog.h`, as attributes like those of the handler.
    LOG_EMERG, LOG_ALERT, LOG_CRIT, LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO, LOG_DEBUG = range(8)
    LOG_KERN, LOG_USER, LOG_MAIL, LOG_DAEMON, LOG_AUTH, LOG_SYSLOG, LOG_LPR, LOG_NEWS = range(8)
    LOG_UUCP, LOG_CRON, LOG_AUTHPRIV, LOG_FTP, LOG_NTP, LOG_SECURITY, LOG_CONSOLE, LOG_SOLCRON = range(8, 16)
    LOG_LOCAL0, LOG_LOCAL1, LOG_LOCAL2, LOG_LOCAL3, LOG_LOCAL4, LOG_LOCAL5, LOG_LOCAL6, LOG_LOCAL7 = range(16, 24)

    #: Numbers of priorities (severities) by name.
    priority_names: ClassVar[Mapping[str, int]] = {
        **{name: number for number, name in enumerate(PRIORITY_NAMES)},
        "panic": LOG_EMERG,
        "critical": LOG_CRIT,
        "error": LOG_ERR,
        "warn": LOG_WARNING,
    }

    #: Numbers of facilities by name.
    facility_names: ClassVar[Mapping[str, int]] = {name: number for number, name in enumerate(get_args(Facility))}

    #: Names of priorities by lower-case name of the level; for other levels the number decides. A subclass may replace
    #: it.
    priority_map: ClassVar[Mapping[str, str]] = {
        "debug": "debug",
        "info": "info",
        "notice": "notice",
        "warning": "warning",
        "warn": "warning",
        "error": "error",
        "exception": "error",
        "critical": "critical",
        "fatal": "critical",
        "alert": "alert",
        "emerg": "emerg",
        "emergency": "emerg",
        "panic": "emerg",
    }

    def __init__(
        self,
        address: tuple[str, int] | Sequence[Any] | str | os.PathLike[str] = ("localhost", 514),
        facility: Facility | int = "user",
        socktype: int | None = None,
        *,
        timeout: Span = 1.0,
        format: Literal["rfc3164", "rfc5424"] = "rfc3164",  # noqa: A002 - what everybody calls it
        framing: Literal["octet", "lf", "nul"] | None = None,
        ident: str = "",
        append_nul: bool | None = None,
        structured_data_id: str | None = None,
        tls: ssl.SSLContext | Literal[True] | None = None,
        max_message_bytes: Size | None = None,
        naive_timestamps: NaiveTimestamps = "utc",
        max_connection_age: Span | None = None,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        **options: Unpack[RetryOptions],
    ) -> None:
        host, port = _checked_address(address)
        #: ``"rfc3164"`` or ``"rfc5424"``.
        self.format: Literal["rfc3164", "rfc5424"] = checked_choice(format, "format", ("rfc3164", "rfc5424"))
        #: ``socket.SOCK_DGRAM``, ``socket.SOCK_STREAM``, or None at a path where both are tried.
        self.socktype: int | None = _checked_socktype(socktype, port, tls)
        if framing is None:
            framing = "octet" if format == "rfc5424" or tls is not None else "lf"
        #: ``"octet"``, ``"lf"`` or ``"nul"``.
        self.framing: Literal["octet", "lf", "nul"] = checked_choice(framing, "framing", ("octet", "lf", "nul"))
        self._hostname = rfc5424.header_field(socket.gethostname(), 255)
        self._process_id = str(os.getpid())
        self._has_message_ids = type(self).get_message_id is not SysLogSink.get_message_id
        self._renders_as_usual = type(self).render is SysLogSink.render
        self.facility = facility
        self.ident = ident
        self._append_nul: bool | None = None
        #: The prefixes of messages by level; setters clear it.
        self._prefixes: dict[str, bytes] = {}
        #: The name of the element that contains the fields.
        self.structured_data_id: str = _checked_id(structured_data_id, structured=format == "rfc5424")
        if max_message_bytes is None:
            by_udp = port is not None and self.socktype == socket.SOCK_DGRAM
            max_message_bytes = _UDP_MESSAGE_BYTES if by_udp else _MESSAGE_BYTES
        #: The size above which a message is shortened, in bytes.
        self.max_message_bytes: int = checked_limit(max_message_bytes, "max_message_bytes", _LEAST_MESSAGE_BYTES)
        #: The zone of a ``timestamp`` of text without one.
        self.naive_timestamps: NaiveTimestamps = checked_naive(naive_timestamps)
        self._use(socket.SOCK_DGRAM if self.socktype is None else self.socktype)
        if renderer is None and format == "rfc5424":
            renderer = text_of_event
        super().__init__(
            host,
            port,
            tls=tls,
            timeout=timeout,
            max_connection_age=max_connection_age,
            renderer=renderer,
            **options,
        )
        self.append_nul = append_nul

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._process_id = str(os.getpid())
        self._set_origin()

    def _set_origin(self) -> None:
        self._origin = f"{self._hostname} {self._app_name} {self._process_id}"

    @property
    def facility(self) -> int:
        """The number of the facility; may be set to a name or a number at any time."""
        return self._facility

    @facility.setter
    def facility(self, facility: str | int) -> None:
        self._facility = number_of(facility, self.facility_names, "facility")
        self._numbers: dict[str, int] = {}
        self._prefixes = {}

    @property
    def ident(self) -> str:
        """The text before each message; settable."""
        return self._ident

    @ident.setter
    def ident(self, ident: str) -> None:
        if not isinstance(ident, str):
            msg = f"ident={ident!r} is not text"
            raise TypeError(msg)
        self._ident = ident
        self._ident_bytes = rfc5424.without_controls(ident.encode("utf-8", "backslashreplace"))
        self._prefixes = {}
        self._app_name = rfc5424.header_field(ident.rstrip(": ") or program_name(), 48)
        self._set_origin()

    @property
    def append_nul(self) -> bool | None:
        """Whether a NUL byte ends each message; None if that depends on format and framing. Settable."""
        return self._append_nul

    @append_nul.setter
    def append_nul(self, append_nul: bool | None) -> None:
        if append_nul is not None and not isinstance(append_nul, bool):
            msg = f"append_nul={append_nul!r} is not True, False or None"
            raise TypeError(msg)
        self._append_nul = append_nul
        self._changed()

    def _usual_frame(self) -> MakeFrame | None:
        return None if self.format == "rfc5424" or (self._ends and self.framing == "octet") else _message

    def _refresh(self) -> None:
        super()._refresh()
        #: The end of a message that `_message` returns.
        self._end = self._on_wire(b"")
        self._prefixes = {}

    def _adopt(self, made: socket.socket) -> None:
        super()._adopt(made)
        self._refresh()  # only now the kind of a socket at a path is known

    def _prefix_of(self, level: str) -> bytes:
        """Return the prefix of a message whose event has *level*."""
        number = self._priority(level)
        made = b"<%d>%s" % (number, self._ident_bytes)
        if level in self._numbers:
            self._prefixes[level] = made
        return made

    def _priority(self, level: str) -> int:
        """Return the number for PRI; cache it if no method is overridden and the level's name has one meaning."""
        known = self._numbers.get(level)
        if known is None:
            numbers = self._numbers
            known = self.encode_priority(self._facility, self.map_priority(level))
            own = type(self)
            if (
                own.map_priority is SysLogSink.map_priority
                and own.encode_priority is SysLogSink.encode_priority
                and self.priority_map is SysLogSink.priority_map
                and level in self.priority_map
            ):
                numbers[level] = known
        return known

    # -- the hooks

    def encode_priority(self, facility: str | int, priority: str | int) -> int:
        """Return *facility* and *priority* combined in one number, 0 to 191.

        Args:
            facility: One of `facility_names`, or 0 to 23.
            priority: One of `priority_names`, or 0 to 7.

        Raises:
            ValueError: If one of them is unknown.
        """
        return number_of(facility, self.facility_names, "facility") << 3 | number_of(
            priority, self.priority_names, "priority"
        )

    def map_priority(self, level: str) -> str:
        """Return the name of the priority for the level named *level*.

        The default looks in `priority_map` for the lower-case name. For any other level (one registered with
        `logging.addLevelName`, ``"level 35"``) the number decides: ``"debug"`` below 20, ``"info"`` from 20,
        ``"notice"`` from 25, ``"warning"`` from 30, ``"error"`` from 40, ``"critical"`` from 50. An unknown level is a
        ``"warning"``.
        """
        return self.priority_map.get(level) or self.priority_map.get(level.lower()) or usual_priority(level)

    def get_message_id(self, event: Mapping[str, Any]) -> str:
        """Return the MSGID of RFC 5424, which names the kind of event. Default: none."""
        return rfc5424.NIL

    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Return a connected socket; called by ``create_socket``.

        Args:
            timeout: Seconds for each address of the name. None stands for the sink's *timeout*.

        Raises:
            OSError: If none can be connected.
        """
        if self.socktype is not None:
            return super().make_socket(timeout)
        self._use(socket.SOCK_DGRAM)
        try:
            return super().make_socket(timeout)
        except OSError:
            self._use(socket.SOCK_STREAM)
            return super().make_socket(timeout)

    # -- messages

    def make_frame(self, event: dict[str, Any]) -> bytes:
        """Return the message of *event*; its framing in a stream is added when it is sent.

        Called outside the sink's lock.
        """
        level = event.get("level")
        if type(level) is not str or "level_number" in event:
            level = level_name(level_of(event))
        if self.format == "rfc5424":
            return self._structured(event, level, None)
        return self._traditional(self.render(event), level, None if isinstance(event, TextEvent) else event)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event* as a batch item: JSON for RFC 5424, which needs the fields, else as rendered."""
        return Sink.encode(self, event) if self.format == "rfc5424" else ByteSink.encode(self, event)

    def _frame_of(self, item: Encoded) -> bytes:
        level = level_name(item.level)
        if self.format == "rfc5424":
            event = item.event
            named = event.get("level")
            return self._structured(event, named if isinstance(named, str) and item.level == UNKNOWN else level, item)
        return self._traditional(item.data, level, item)

    @property
    def needs_moment(self) -> bool:
        """See `Forwarding.needs_moment`: True, since a message contains the event's level and time."""
        return True

    @property
    def plain(self) -> bool:
        """See `Forwarding.plain`: True without overridden hooks, if the item is the event's JSON."""
        own = type(self)
        renderer: Any = self._renderer
        return (
            own.encode is SysLogSink.encode
            and own.make_item is Sink.make_item
            and not self._processors
            and (
                self.format == "rfc5424"
                or (
                    own.render is ByteSink.render
                    and type(renderer) is OrjsonRenderer
                    and renderer.is_plain
                    and not self._terminator
                )
            )
        )

    def _frames_together(self, batch: Sequence[Encoded]) -> Frames | None:
        by_octets = self._counts_octets
        if self.framing == "octet" and self.socktype is None:
            return None  # whether it needs a length is known only after connecting
        frames = None
        if isinstance(batch, Batch) and self.format == "rfc3164" and type(self._renderer) is OrjsonRenderer:
            frames = self._usual_frames(batch, by_octets=by_octets)
        if frames is None:
            messages = map(self._frame_of, batch)
            frames = Frames(list(map(self._on_wire, messages) if by_octets else messages))
        return frames

    def _usual_frames(self, batch: Batch, *, by_octets: bool) -> Frames | None:
        """Return the frames of items whose data needs no change; None if one needs one."""
        data, levels = batch.data, batch.levels
        prefixes = {level: self._prefix_of(level_name(level)) for level in set(levels)}
        heads = list(map(prefixes.__getitem__, levels)) if len(prefixes) > 1 else next(iter(prefixes.values()), b"")
        frames = Frames(data, heads=heads)
        if frames.longest > self._limit:
            return None
        for first in range(0, len(data), _CHECKED_AT_ONCE):
            # Text that was passed instead of an event is not JSON, and may contain any control character.
            part = b"".join(data[first : first + _CHECKED_AT_ONCE])
            if rfc5424.without_controls(part) is not part:
                return None
        return Frames(list(map(self._on_wire, frames.each()))) if by_octets else frames

    def _push_together(self, frames: Frames) -> None:
        if not self._counts_octets:
            frames.end = self._on_wire(b"")  # for the kind of the current socket
        super()._push_together(frames)

    def _traditional(self, data: bytes, level: str, source: dict[str, Any] | Encoded | None) -> bytes:
        """Return the message of RFC 3164 with *data*, which *source* was rendered to; None for text."""
        prefix = self._prefix_of(level)
        message = prefix + self._shown(data)
        limit = self._limit
        if len(message) > limit:
            if source is not None and type(self._renderer) is OrjsonRenderer:
                event = source.event if isinstance(source, Encoded) else source
                message = shortened(event, lambda short: prefix + self._shown(self.render(short)), limit) or message
            message = rfc5424.cut(message, limit)
        return message

    def _structured(self, event: dict[str, Any], level: str, item: Encoded | None) -> bytes:
        """Return the message of RFC 5424 of *event*; *item* is its batch item, or None."""
        when = timestamp_of(event, self.naive_timestamps)
        head = rfc5424.header(
            self._priority(level),
            (time.time() if item is None else item.time) if when is None else when,
            self._origin,
            rfc5424.header_field(self.get_message_id(event), 32) if self._has_message_ids else rfc5424.NIL,
        )
        in_header = (message_key(event), None if when is None else "timestamp")
        escape_controls = not self._counts_octets

        def made(fields: Mapping[str, Any], message: bytes) -> bytes:
            data = rfc5424.structured_data(
                self.structured_data_id,
                [field for field in fields.items() if field[0] not in in_header],
                escape_controls=escape_controls,
            )
            try:
                start = f"{head} {data}".encode()
            except UnicodeEncodeError:  # a lone surrogate, which `rendered_fields` replaces
                return made(rfc5424.rendered_fields(fields), message)
            return b"%s %s" % (start, message) if message else start

        if isinstance(event, TextEvent):
            return rfc5424.cut(made({}, self._shown(self.render(event))), self._limit)
        plain = rfc5424.plain_fields(event)
        # `text_of_event` gets plain fields, since the message may be any object. Other renderers get the event itself.
        message = self._message_of(plain if self._renderer is text_of_event else event)
        whole = made(plain, message)
        limit = self._limit
        if len(whole) > limit:
            whole = shortened(event, lambda short: made(short, self._message_of(short)), limit) or rfc5424.cut(
                made({}, message), limit
            )
        return whole

    def _message_of(self, event: dict[str, Any]) -> bytes:
        if self._renderer is text_of_event and self._renders_as_usual:
            return self._shown(text_of_event(None, "", event).encode("utf-8", "backslashreplace"))
        return self._shown(self.render(event))

    def _shown(self, rendered: bytes) -> bytes:
        """Return *rendered* with the characters escaped that a message must not contain."""
        rendered = rendered.rstrip(b"\r\n")
        return rfc5424.without_controls(rendered, controls=not self._counts_octets)

    @property
    def _counts_octets(self) -> bool:
        # The kind of a socket at a path is unknown before connecting.
        return self.framing == "octet" and self.socktype == socket.SOCK_STREAM

    @property
    def _limit(self) -> int:
        return self.max_message_bytes - (self._ends_with_nul(datagram=self.socktype != socket.SOCK_STREAM))

    def _ends_with_nul(self, *, datagram: bool) -> bool:
        append = self._append_nul
        return (datagram and self.format == "rfc3164") if append is None else append

    # -- sending

    def _use(self, kind: int) -> None:
        """Send over sockets of *kind* from now on."""
        # Attributes of the instance, which are attributes of the class in its base.
        self._kind = socket.SocketKind(kind)  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
        self._ends = kind == socket.SOCK_STREAM  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]

    def _on_wire(self, data: bytes) -> bytes:
        if self._ends_with_nul(datagram=not self._ends):
            data += b"\0"
        if not self._ends:
            return data
        if self.framing == "octet":
            return b"%d %s" % (len(data), data)
        if self.framing == "lf":
            return data + b"\n"
        return data if data[-1:] == b"\0" else data + b"\0"


SysLogSink._hot_class = SysLogSink

#: How many items are checked for control characters at once, few enough for the processor's cache.
_CHECKED_AT_ONCE = 256

#: The sizes that every receiver must accept and should accept, by RFC 5424, section 6.1.
_LEAST_MESSAGE_BYTES, _UDP_MESSAGE_BYTES = 480, 2048

#: The part for the message of rsyslogd's ``maxMessageSize``, by default 8 KiB.
_MESSAGE_BYTES = 8096


def text_of_event(logger: object, name: str, event: Mapping[str, Any]) -> str:
    """Return the text of the message alone; the fields are elsewhere."""
    message = event.get(message_key(event), "")
    return message if isinstance(message, str) else rfc5424.value_text(message)


def program_name() -> str:
    """Return the name of the running program; empty if it has none."""
    path = PurePath(sys.argv[0] if sys.argv else "")
    # python -m package
    name = path.parent.name if path.name == "__main__.py" else path.name
    return "" if name.startswith("-") else name


def _checked_address(address: Sequence[Any] | str | os.PathLike[str]) -> tuple[str | os.PathLike[str], int | None]:
    if isinstance(address, (str, os.PathLike)):
        path = os.fsdecode(address)
        parts = host_and_port(path)
        if parts is not None:
            msg = f"address={address!r} would be the path of a Unix socket; write address={parts!r}"
            raise ValueError(msg)
        if not path or (is_host(path) and not os.path.lexists(path)):
            meant = f"; write address=({path!r}, 514)" if path else ""
            msg = f"address={address!r} is not the path of a socket{meant}"
            raise ValueError(msg)
        return address, None
    # Configuration files have lists for pairs.
    if not isinstance(address, (tuple, list)) or len(address) != 2 or not isinstance(address[0], str):
        msg = f"address={address!r} is neither (host, port) nor a path"
        raise TypeError(msg)
    host, port = address
    if port is None:
        msg = f"address={address!r} has no port"
        raise ValueError(msg)
    return host, port


def _checked_socktype(socktype: int | None, port: int | None, tls: object) -> int | None:
    if socktype not in (None, socket.SOCK_DGRAM, socket.SOCK_STREAM):
        msg = f"socktype={socktype!r} is not socket.SOCK_DGRAM, socket.SOCK_STREAM or None"
        raise ValueError(msg)
    if tls is not None:
        if port is None:
            msg = f"tls={tls!r}: a Unix socket is not encrypted"
            raise ValueError(msg)
        if socktype == socket.SOCK_DGRAM:
            msg = f"tls={tls!r} with socktype={socktype!r}: datagrams are not encrypted"
            raise ValueError(msg)
        return socket.SOCK_STREAM
    return socket.SOCK_DGRAM if socktype is None and port is not None else socktype


def _checked_id(structured_data_id: str | None, *, structured: bool) -> str:
    if structured_data_id is None:
        return "outfall@32473"
    if not structured:
        msg = f"structured_data_id={structured_data_id!r} has no meaning with format='rfc3164'"
        raise ValueError(msg)
    if not isinstance(structured_data_id, str) or not rfc5424.is_name(structured_data_id):
        msg = (
            f"structured_data_id={structured_data_id!r} is not 1 to 32 printable ASCII characters without "
            "'=', ']', '\"' and space"
        )
        raise ValueError(msg)
    return structured_data_id
