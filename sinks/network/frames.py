"""The forms of an event on a socket: `JSONFrames`, `JSONLines`, `PickleFrames` and `SignedFrames`."""

from __future__ import annotations

import json
import logging
import struct
from bisect import bisect_right
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING, Any, Protocol

from outfall.sinks.core.item import Encoded
from outfall.sinks.event.event import METADATA, TextEvent, message_key, timestamp_of
from outfall.sinks.event.json import line_to_send, loads
from outfall.sinks.event.levels import level_of
from outfall.sinks.event.record import CALLSITE, RecordReader, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LENGTH = struct.Struct(">L")

#: The bytes of the length before each frame: big-endian, unsigned, without itself.
LENGTH_BYTES = _LENGTH.size

#: The default limit of a frame's length, at both ends.
MAX_FRAME_BYTES = 1024 * 1024

#: Returns a payload's length as these bytes.
pack_length: Callable[[int], bytes] = _LENGTH.pack


def length_of(prefix: bytes | bytearray | memoryview, offset: int = 0) -> int:
    """Return the length in *prefix* at *offset*."""
    length: int = _LENGTH.unpack_from(prefix, offset)[0]
    return length


class FrameError(ValueError):
    """A payload that is not an event. The message contains nothing of the payload.

    Args:
        message: What is wrong with it.
        reason: The key under which `SocketListener` counts it: ``"garbage"`` (default) or ``"signature"``.
    """

    def __init__(self, message: str, reason: str = "garbage") -> None:
        super().__init__(message)
        self.reason = reason


class Frames:
    """The frames of a batch; each is a head, data and an end. They are joined when they are sent.

    Args:
        data: The data of each frame. The list is not changed.
        end: The end of each frame. Default: empty.
        heads: The head of all frames, the heads of each, or None for the length of the data. Default: empty.
    """

    end: bytes

    __slots__ = ("_data", "_heads", "end")

    def __init__(self, data: list[bytes], end: bytes = b"", heads: bytes | list[bytes] | None = b"") -> None:
        self._data, self.end, self._heads = data, end, heads

    def __len__(self) -> int:
        return len(self._data)

    @property
    def longest(self) -> int:
        """An upper bound of the length of a frame, in bytes."""
        heads = self._heads
        if heads is None:
            head = LENGTH_BYTES
        else:
            head = len(heads) if isinstance(heads, bytes) else max(map(len, heads), default=0)
        return max(map(len, self._data), default=0) + head + len(self.end)

    def joined(self) -> bytes:
        """Return all frames, concatenated."""
        data, end, heads = self._data, self.end, self._heads
        if isinstance(heads, bytes):
            return b"".join((heads, (end + heads).join(data), end)) if data else b""
        parts = (self._each_head(), data, repeat(end)) if end else (self._each_head(), data)
        return b"".join(chain.from_iterable(zip(*parts, strict=False)))

    def each(self) -> list[bytes]:
        """Return each frame."""
        data, end, heads = self._data, self.end, self._heads
        if isinstance(heads, bytes):
            return [heads + each + end for each in data] if heads or end else data
        return [head + each + end for head, each in zip(self._each_head(), data, strict=True)]

    def _each_head(self) -> Iterable[bytes]:
        heads: Any = self._heads
        return map(pack_length, map(len, self._data)) if heads is None else heads

    def chunks(self, most_bytes: int) -> Iterator[Frames]:
        """Yield parts of at most *most_bytes* of data; a longer frame is a part of its own."""
        heads, first = self._heads, 0
        ends = list(accumulate(map(len, self._data)))
        while first < len(ends):
            last = bisect_right(ends, most_bytes + (ends[first - 1] if first else 0), first + 1)
            yield Frames(self._data[first:last], self.end, heads[first:last] if isinstance(heads, list) else heads)
            first = last

    def drop(self, number: int) -> None:
        """Remove the first *number* frames."""
        self._data = self._data[number:]
        if isinstance(self._heads, list):
            self._heads = self._heads[number:]

    def drop_bytes(self, size: int) -> None:
        """Remove the frames that end within the first *size* bytes."""
        self.drop(bisect_right(list(accumulate(map(len, self.each()))), size))


class Codec(Protocol):
    """What a sink and a listener need from a codec; any object with these members will do."""

    #: True if a datagram contains the four bytes of the length too.
    length_in_datagrams: bool
    #: One byte that ends each payload, in streams and datagrams, and occurs in none. Empty if the length precedes each
    #: payload of a stream; a codec without this attribute is treated as if it were empty.
    delimiter: bytes

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the payload of *event*; *render* returns an event as JSON."""
        ...

    def encode_item(self, item: Encoded) -> bytes:
        """Return the payload of a batch item, whose data *render* has returned."""
        ...

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload*.

        Raises:
            ValueError: If it is not an event; a `FrameError` says why.
        """
        ...


class JSONFrames:
    """Each event is one JSON object in UTF-8; the default.

    On a stream the length precedes each object, in four bytes, big-endian. A datagram is the JSON alone. The output of
    the sink's renderer is sent as it is. Text that was rendered before it came to the sink is sent as it is if it is a
    JSON object, else as ``{"event": text}``.

    Safe from any thread; holds no state.
    """

    length_in_datagrams = False
    delimiter = b""

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return *event* as JSON."""
        return as_json(event, render)

    def encode_item(self, item: Encoded) -> bytes:
        """Return the item's data."""
        return item.data

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload*, without metadata keys.

        Raises:
            FrameError: If it is not one JSON object in UTF-8.
        """
        return _event_in(payload, "frame")

    def __repr__(self) -> str:
        return "JSONFrames()"


class JSONLines:
    r"""Each event is a line of JSON with a line feed at its end, as Logstash, Vector, syslog-ng and others read it.

    The codec ``json_lines`` of Logstash and ``newline_delimited`` of Vector read it. In a datagram the line feed ends
    the line too.

    The output of the sink's renderer is sent as it is if it has no line break. JSON over several lines becomes one
    line; in other text a line break becomes the two characters ``\n``. Text that was rendered before it came to the
    sink is sent as it is if it is a JSON object, else as ``{"event": text}``.

    A `SocketListener` also accepts lines that end with ``\r\n``, and skips blank ones. It rejects a line that is too
    long or not a JSON object, and continues with the next. When a peer closes the connection, an unterminated last line
    counts if it is a whole JSON object.

    Lines are not acknowledged: lines that the peer had not read when it closed are lost, and counted as delivered.

    Safe from any thread; holds no state.

    Source: https://jsonlines.org;
    https://www.elastic.co/guide/en/logstash/current/plugins-codecs-json_lines.html
    """

    length_in_datagrams = False
    delimiter = b"\n"

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return *event* as a line, without its end."""
        return _one_line(as_json(event, render))

    def encode_item(self, item: Encoded) -> bytes:
        """Return the item's data as a line, without its end."""
        return _one_line(item.data)

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload*, a line, without metadata keys.

        Raises:
            FrameError: If it is not one JSON object in UTF-8.
        """
        return _event_in(payload, "line")

    def __repr__(self) -> str:
        return "JSONLines()"


class PickleFrames:
    """Events as `logging.handlers.SocketHandler` and `~logging.handlers.DatagramHandler` send records.

    For existing receivers: the payload is a pickle, protocol 1, of a record's attributes, for `logging.makeLogRecord`.
    The message is merged, ``args`` and ``exc_info`` are None, the traceback is ``exc_text``, and each other field is an
    attribute; a name that a record uses itself gets the prefix ``extra_``. Values are converted to those of JSON, so
    that any Python can load them. The length precedes each payload, in datagrams too.

    Warning:
        Unpickling runs code of the sender's choice. Anyone who can connect to a listener with ``PickleFrames()``
        controls its process. Receive with it only on a network that you trust completely, or use ``SignedFrames(key,
        PickleFrames())``. Between Outfall's own sinks and listeners there is no reason to use it.

    Safe from any thread; holds no state.

    Source: `logging.handlers.SocketHandler`; "Sending and receiving logging events across a network" in Python's
    logging cookbook.
    """

    length_in_datagrams = True
    delimiter = b""

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the pickled record of *event*."""
        # Values are converted to those of JSON: others may not be picklable, or need a class that the receiver lacks.
        return _pickled(Encoded(line_to_send(event), level_of(event), 0.0).event, level_of(event))

    def encode_item(self, item: Encoded) -> bytes:
        """Return the pickled record of the item."""
        event = item.event
        if timestamp_of(event) is None:
            event["timestamp"] = item.time
        return _pickled(event, item.level)

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Unpickle *payload*, which may run any code, and return the record in it as an event.

        Raises:
            FrameError: If it is not the pickle of a dict.
        """
        import pickle

        try:
            attributes: Any = pickle.loads(payload)  # noqa: S301 - what this class is for, and warns of
            if type(attributes) is dict and all(type(key) is str for key in attributes):
                return _without_metadata(_reader.event(logging.makeLogRecord(attributes)))
        except Exception:
            pass
        msg = f"a frame of {len(payload)} bytes is no pickled record"
        raise FrameError(msg) from None

    def __repr__(self) -> str:
        return "PickleFrames()"


class SignedFrames:
    """Frames of another codec with an HMAC-SHA256, 32 bytes, before each payload.

    Nobody without the key can forge or change an event. Frames are not encrypted, and an attacker can send a recorded
    frame again: use TLS if that matters.

    Args:
        key: The secret that both ends share: 16 bytes or more, such as ``secrets.token_bytes(32)``. No repr shows it.
        codec: The codec of the payload. Default ``JSONFrames()``.

    Raises:
        TypeError: If *key* is not bytes.
        ValueError: If *key* is shorter than 16 bytes.

    Signatures are compared in constant time, and a payload is decoded only after its signature has been verified.
    Safe from any thread.

    Source: RFC 2104; `hmac.compare_digest`.
    """

    length_in_datagrams = False
    delimiter = b""

    def __init__(self, key: bytes, codec: Codec | None = None) -> None:
        import hashlib
        import hmac

        if not isinstance(key, (bytes, bytearray)):
            msg = f"key is {type(key).__name__}, not bytes"
            raise TypeError(msg)
        if len(key) < _MIN_KEY_BYTES:
            msg = f"key has {len(key)} bytes; {_MIN_KEY_BYTES} are the least"
            raise ValueError(msg)
        self.codec: Codec = JSONFrames() if codec is None else codec
        self._keyed = hmac.new(bytes(key), digestmod=hashlib.sha256)
        self._equal = hmac.compare_digest

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the signed payload of *event*."""
        return self._signed(self.codec.encode(event, render))

    def encode_item(self, item: Encoded) -> bytes:
        """Return the signed payload of *item*."""
        return self._signed(self.codec.encode_item(item))

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload* if its signature is valid.

        Raises:
            FrameError: If the signature is invalid or missing, with the reason ``"signature"``; or of the codec.
        """
        signature, content = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
        if not self._equal(signature, self._signature(content)):
            msg = f"a frame of {len(payload)} bytes is not signed with the key"
            raise FrameError(msg, "signature")
        return self.codec.decode(content)

    def _signed(self, payload: bytes) -> bytes:
        return self._signature(payload) + payload

    def _signature(self, payload: bytes) -> bytes:
        # A copy of the digest that has the key already: it takes half the time, and is safe from any thread.
        keyed = self._keyed.copy()
        keyed.update(payload)
        return keyed.digest()

    def __repr__(self) -> str:
        return f"SignedFrames(<key>, {self.codec!r})"


#: The bytes of an HMAC-SHA256.
SIGNATURE_BYTES = 32
_MIN_KEY_BYTES = 16


def _loaded(payload: bytes) -> Any:
    """Return the value of *payload*, JSON; None if it is not JSON."""
    try:
        return loads(payload)
    except (ValueError, RecursionError):
        return None


def _is_object(data: bytes) -> bool:
    return data[:1] == b"{" and isinstance(_loaded(data), dict)


def as_json(event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
    """Return ``render(event)``; text that is not a JSON object becomes ``{"event": text}``."""
    data = render(event)
    return line_to_send(dict(event)) if isinstance(event, TextEvent) and not _is_object(data) else data


def has_line_breaks(data: bytes) -> bool:
    """Return True if *data* contains a line break."""
    return b"\n" in data or b"\r" in data


def _one_line(data: bytes) -> bytes:
    """Return *data* without line breaks."""
    if not has_line_breaks(data):
        return data
    data = data.rstrip(b"\r\n")
    # Between the tokens of JSON a line break is white space, and its strings contain none.
    feed, back = (b" ", b" ") if _is_object(data.lstrip()) else (b"\\n", b"\\r")
    return data.replace(b"\n", feed).replace(b"\r", back)


def _event_in(payload: bytes, what: str) -> dict[str, Any]:
    event: Any = _loaded(payload)
    if type(event) is not dict:
        msg = f"a {what} of {len(payload)} bytes is no JSON object"
        raise FrameError(msg)
    return _without_metadata(event)


def delimiter_of(codec: Codec) -> bytes:
    """Return the delimiter of *codec*; empty if the length precedes each payload."""
    # Codecs of users may have been written before delimiters existed.
    return getattr(codec, "delimiter", b"")


def _without_metadata(event: dict[str, Any]) -> dict[str, Any]:
    # A peer must not set these keys, which have a meaning here.
    for key in METADATA & event.keys():
        del event[key]
    return event


#: With every call-site field.
_reader = RecordReader(tuple(CALLSITE))


def _pickled(event: dict[str, Any], level: float) -> bytes:
    import pickle

    said = message_key(event)
    if said in event and not isinstance(event[said], str):
        event = {**event, said: json.dumps(event[said], ensure_ascii=False)}
    return pickle.dumps(vars(record_of(event, level)), 1)
