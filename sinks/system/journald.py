"""Events sent to systemd's journal: `JournaldSink`."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import struct
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.clock import now
from outfall.sinks.core.item import typed
from outfall.sinks.core.sink import Sink
from outfall.sinks.event.event import TextEvent, message_key
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import level_name, level_of
from outfall.sinks.network.peer import await_socket, checked_limit
from outfall.sinks.network.socket import SocketSink
from outfall.sinks.system import rfc5424
from outfall.sinks.system.priority import usual_priority
from outfall.sinks.system.syslog import SysLogSink, program_name, text_of_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.network.socket import RetryOptions

#: The number of fields that the journal accepts in one entry.
_MOST_FIELDS = 1024
#: The greatest length of a field's name.
_MOST_CHARACTERS = 64
#: The field for fields without one of their own.
_REST = "FIELDS"
#: Fields with a meaning to the journal, by the names of structlog's `CallsiteParameterAdder`.
_CALLSITE = {"pathname": "CODE_FILE", "lineno": "CODE_LINE", "func_name": "CODE_FUNC"}
#: Names that no field of an event may get.
_OWN = ("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID", _REST, *_CALLSITE.values())
_UNFIT = re.compile(r"[^A-Za-z0-9_]")
_LENGTH = struct.Struct("<Q")
_MOST_KNOWN = 4096


class JournaldSink(SocketSink):
    """Send each event to systemd's journal by its native protocol: each field of the event is a field of the entry.

    ==========================================  =======================================================================
    ``event``                                   ``MESSAGE``
    level                                       ``PRIORITY``, 7 (debug) to 0, and ``LEVEL`` as the event has it
    ``pathname``, ``lineno``, ``func_name``     ``CODE_FILE``, ``CODE_LINE``, ``CODE_FUNC``
    ``timestamp``                               ``TIMESTAMP``; the journal adds the time when it got the entry
    all others                                  by their names in capitals: text and bytes as they are, the rest as JSON
    ==========================================  =======================================================================

    Names consist of A to Z, 0 to 9 and ``_``, begin with a letter, and have at most 64 characters: the journal drops
    others silently. So invalid characters become ``_``, ``_`` at the beginning is removed, a digit there gets the
    prefix ``FIELD_``, and a longer name becomes its beginning, ``_`` and 12 digits of its SHA-256. A name that is
    already used, such as those in the table, gets a number: ``PRIORITY_2``.

    Args:
        path: The journal's socket. Default ``"/run/systemd/journal/socket"``; that of a namespace is
            ``"/run/systemd/journal.NAMESPACE/socket"``. It need not exist yet.
        identifier: ``SYSLOG_IDENTIFIER``, for ``journalctl -t``. Default None: the program's name.
        fields: The event's fields that become fields of the entry. The others become one field, ``FIELDS``, as JSON.
            Default None: all, up to the 1 024 that an entry may have. The journal indexes fields: with very many
            different names it begins new files often.
        message_id: ``MESSAGE_ID``, which names the kind of entry: a UUID as text for all, or a function that gets the
            event and returns one, or None. Other values are left out. Default None.
        max_entry_bytes: Size above which the longest text fields are shortened and the event gets ``"truncated":
            true``. Default 16 MiB; at least 512.
        timeout: Seconds, a timedelta or text such as ``"2s"``, to wait for the journal to make room. Default 1.0.
        renderer: The renderer of ``MESSAGE``. Default None: the text of ``event``.
        retry_start: Seconds, a timedelta or text such as ``"2s"``, to wait after the journal was not reachable.
            Default 1.0.
        retry_factor: The factor by which each further failure multiplies the wait. Default 2.0.
        retry_max: The longest wait in seconds. Default 30.0.
        clock: The clock of these waits, for tests. Default `time.monotonic`.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *path* is empty, *message_id* is not a UUID, *max_entry_bytes* or a duration is
            out of range, or the system has no Unix sockets.
        TypeError: If an argument is of another type.

    An entry is one datagram. If it is too large for that, it is written to a sealed file in memory, and the descriptor
    is passed. When `handle` returns, the journal's socket has the entry. The journal does not report what becomes of
    it: by default it accepts 10 000 entries in 30 seconds from one service, and drops the rest (``RateLimitBurst=``).

    If the journal is not reachable, the event is counted as ``dropped["error"]`` and reported; events until the next
    attempt are ``dropped["backoff"]``. After a restart of the journal the next event reaches it.

    Safe from any thread. A forked child opens its own socket. ``close`` has nothing to wait for.

    Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ and ``systemd.journal-fields(7)``.
    """

    _kind = socket.SOCK_DGRAM
    _ends = False
    _limited_by = "max_entry_bytes"

    def __init__(
        self,
        path: str | os.PathLike[str] = "/run/systemd/journal/socket",
        identifier: str | None = None,
        *,
        fields: Iterable[str] | None = None,
        message_id: str | Callable[[Mapping[str, Any]], str | None] | None = None,
        max_entry_bytes: Size = 16 * 1024 * 1024,
        timeout: Span = 1.0,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        **options: Unpack[RetryOptions],
    ) -> None:
        if identifier is not None and not isinstance(identifier, str):
            msg = f"identifier={identifier!r} is not text"
            raise TypeError(msg)
        #: ``SYSLOG_IDENTIFIER``; settable.
        self.identifier: str = identifier or program_name() or "python"
        self._chosen = _checked_fields(fields)
        self._message_id = message_id
        if message_id is not None and not callable(message_id) and _uuid(message_id) is None:
            msg = f"message_id={message_id!r} is neither a UUID as text nor a function that returns one"
            raise ValueError(msg)
        self.max_entry_bytes: int = checked_limit(max_entry_bytes, "max_entry_bytes")
        #: A cache of the names of the entry's fields, by the event's.
        self._names: dict[str, str] = {}
        super().__init__(
            path,
            None,
            timeout=timeout,
            renderer=text_of_event if renderer is None else renderer,
            **options,
        )

    # -- entries

    def make_frame(self, event: dict[str, Any]) -> bytes:
        """Return the entry of *event*, shortened if necessary. Called outside the sink's lock.

        Raises:
            PermanentDeliveryError: If it cannot be shortened enough.
        """
        return self._fitting(event, level_of(event), None)

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return *event* as a batch item: JSON, and the values that JSON cannot represent."""
        return typed(Sink.encode(self, event), event)

    def _frame_of(self, item: Encoded) -> bytes:
        return self._fitting(item.event, item.level, item.time)

    @property
    def needs_moment(self) -> bool:
        """See `Forwarding.needs_moment`: True, since an entry contains the event's level and time."""
        return True

    def _frames_together(self, batch: Sequence[Encoded]) -> None:
        return None

    @property
    def _limit(self) -> int:
        return self.max_entry_bytes

    def _fitting(self, event: dict[str, Any], level: float, when: float | None) -> bytes:
        make = partial(self._entry, level=level, when=when)
        made = make(event)
        return made if len(made) <= self._limit else self._shortened(event, make)

    def _entry(self, event: dict[str, Any], level: float, when: float | None) -> bytes:
        """Return the fields of *event* in the form of the protocol."""
        text = isinstance(event, TextEvent)
        plain = {} if text else rfc5424.plain_fields(event)
        # `text_of_event` gets plain fields, since the message may be any object. Other renderers get the event itself.
        message = self.render(plain if self._renderer is text_of_event and not text else event)
        parts = [
            _field("MESSAGE", message),
            b"PRIORITY=%d\n" % _priority(event, level),
            _field("SYSLOG_IDENTIFIER", self.identifier.encode("utf-8", "backslashreplace")),
        ]
        kind = self._message_id
        if kind is not None and (known := _uuid(kind(event) if callable(kind) else kind)):
            parts.append(b"MESSAGE_ID=%s\n" % known.encode())
        plain.pop(message_key(event), None)
        if when is not None and plain.get("timestamp") is None and not text:
            plain["timestamp"] = rfc5424.timestamp(when)
        for key, name in _CALLSITE.items():
            if (value := plain.pop(key, None)) is not None:
                parts.append(_field(name, _value(value)))
        chosen = [key for key in plain if self._chosen is None or key in self._chosen]
        if len(parts) + len(chosen) > _MOST_FIELDS:
            del chosen[_MOST_FIELDS - len(parts) - 1 :]
        taken = set(_OWN)
        for key in chosen:
            value, original = plain.pop(key), event.get(key)
            # The journal can store what JSON cannot represent.
            if isinstance(original, (bytes, bytearray, float)):
                value = original
            name = self._names.get(key) or self._named(key)
            if name in taken:
                name = _numbered(name, taken)
            taken.add(name)
            parts.append(_field(name, _value(value)))
        if plain:
            parts.append(_field(_REST, _json.render(plain)))
        return b"".join(parts)

    def _named(self, key: str) -> str:
        name = _UNFIT.sub("_", key).upper().lstrip("_")
        if not name or name[0].isdigit():
            name = f"FIELD_{name}".rstrip("_")
        if len(name) > _MOST_CHARACTERS:
            digits = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:12].upper()
            name = f"{name[: _MOST_CHARACTERS - 13]}_{digits}"
        if len(self._names) < _MOST_KNOWN:
            self._names[key] = name
        return name

    # -- sending

    def make_socket(self, timeout: float | None = None) -> socket.socket:
        """Return a connected socket; called by ``create_socket``.

        Args:
            timeout: Seconds. None stands for the sink's *timeout*.

        Raises:
            OSError: If the journal is not reachable.
        """
        made = super().make_socket(timeout)
        # Larger entries fit into one datagram then. The system limits the size by its own setting.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        return made

    def _push(self, data: bytes) -> None:
        try:
            super()._push(data)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS) or not hasattr(os, "memfd_create"):
                raise
            self._push_file(data)

    def _push_file(self, data: bytes) -> None:
        """Pass *data* in a sealed file in memory."""
        import fcntl

        sock = self.sock
        file = os.memfd_create("outfall-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
            deadline = now() + self.timeout
            while sock is not None:
                try:
                    sock.sendmsg([b""], passed)
                except BlockingIOError:
                    left = deadline - now()
                    if left <= 0 or not await_socket(sock, left, for_reading=False):
                        raise TimeoutError(errno.ETIMEDOUT, "the journal takes nothing more") from None
                else:
                    return
        finally:
            os.close(file)


_json = OrjsonRenderer()
_SEND_BUFFER_BYTES = 8 * 1024 * 1024
#: ``F_SEAL_SEAL``, ``F_SEAL_SHRINK``, ``F_SEAL_GROW`` and ``F_SEAL_WRITE`` of ``fcntl(2)``: the journal requires
#: them.
_SEALS = 1 | 2 | 4 | 8


def _field(name: str, value: bytes) -> bytes:
    # The length precedes a value that contains a line feed.
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), _LENGTH.pack(len(value)), value)
    return b"%s=%s\n" % (name.encode(), value)


def _value(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    text = value if isinstance(value, str) else repr(value) if type(value) is float else rfc5424.value_text(value)
    return text.encode("utf-8", "backslashreplace")


def _priority(event: Mapping[str, Any], level: float) -> int:
    named = event.get("level")
    if not isinstance(named, str) or "level_number" in event:
        named = level_name(level)
    return SysLogSink.priority_names[SysLogSink.priority_map.get(named.lower()) or usual_priority(named)]


def _numbered(name: str, taken: set[str]) -> str:
    number = 2
    while (made := f"{name[: _MOST_CHARACTERS - 5]}_{number}") in taken:
        number += 1
    return made


def _uuid(text: object) -> str | None:
    try:
        return uuid.UUID(str(text)).hex if text is not None else None
    except ValueError:
        return None


def _checked_fields(fields: Iterable[str] | None) -> frozenset[str] | None:
    if fields is None:
        return None
    if isinstance(fields, (str, bytes)):
        msg = f"fields={fields!r} is text: write [{fields!r}]"
        raise TypeError(msg)
    names = frozenset(fields)
    if not all(isinstance(name, str) for name in names):
        msg = f"fields={fields!r} are not names"
        raise TypeError(msg)
    return names
