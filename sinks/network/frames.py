"""How an event travels over a socket: `JSONFrames`, `JSONLines`, `PickleFrames` and `SignedFrames`."""

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

#: Bytes of the length before each frame: big-endian, unsigned, itself not counted.
LENGTH_BYTES = _LENGTH.size

#: How long a frame may be by default, at either end.
MAX_FRAME_BYTES = 1024 * 1024

#: Puts a payload's length before it.
pack_length: Callable[[int], bytes] = _LENGTH.pack


def length_of(prefix: bytes | bytearray | memoryview, offset: int = 0) -> int:
    """Return the length that stands in *prefix* at *offset*."""
    length: int = _LENGTH.unpack_from(prefix, offset)[0]
    return length


class FrameError(ValueError):
    """A payload that is no event. Its message holds nothing of the payload.

    Args:
        message: What is wrong with it.
        reason: The key under which `SocketListener` counts it: ``"garbage"`` (default) or ``"signature"``.
    """

    def __init__(self, message: str, reason: str = "garbage") -> None:
        super().__init__(message)
        self.reason = reason


class Frames:
    """The frames of a batch, made when they are sent: each is its head, its data and its end.

    Args:
        data: The data of each frame. Not changed.
        end: What ends each frame. Default nothing.
        heads: What comes before the data: the same bytes for all, those of each, or None for the length of the data.
            Default nothing.
    """

    end: bytes

    __slots__ = ("_data", "_heads", "end")

    def __init__(self, data: list[bytes], end: bytes = b"", heads: bytes | list[bytes] | None = b"") -> None:
        self._data, self.end, self._heads = data, end, heads

    def __len__(self) -> int:
        return len(self._data)

    @property
    def longest(self) -> int:
        """The number of bytes that no frame is longer than."""
        heads = self._heads
        if heads is None:
            head = LENGTH_BYTES
        else:
            head = len(heads) if isinstance(heads, bytes) else max(map(len, heads), default=0)
        return max(map(len, self._data), default=0) + head + len(self.end)

    def joined(self) -> bytes:
        """Return all frames, one after the other."""
        data, end, heads = self._data, self.end, self._heads
        if isinstance(heads, bytes):
            return b"".join((heads, (end + heads).join(data), end)) if data else b""
        parts = (self._each_head(), data, repeat(end)) if end else (self._each_head(), data)
        return b"".join(chain.from_iterable(zip(*parts, strict=False)))

    def each(self) -> list[bytes]:
        """Return the frames."""
        data, end, heads = self._data, self.end, self._heads
        if isinstance(heads, bytes):
            return [heads + each + end for each in data] if heads or end else data
        return [head + each + end for head, each in zip(self._each_head(), data, strict=True)]

    def _each_head(self) -> Iterable[bytes]:
        heads: Any = self._heads
        return map(pack_length, map(len, self._data)) if heads is None else heads

    def chunks(self, most_bytes: int) -> Iterator[Frames]:
        """Give parts with so many bytes of data at most, or one frame."""
        heads, first = self._heads, 0
        ends = list(accumulate(map(len, self._data)))
        while first < len(ends):
            last = bisect_right(ends, most_bytes + (ends[first - 1] if first else 0), first + 1)
            yield Frames(self._data[first:last], self.end, heads[first:last] if isinstance(heads, list) else heads)
            first = last

    def drop(self, number: int) -> None:
        """Forget the first frames, so many of them."""
        self._data = self._data[number:]
        if isinstance(self._heads, list):
            self._heads = self._heads[number:]

    def drop_bytes(self, size: int) -> None:
        """Forget the frames that are whole within the first bytes, so many of them."""
        self.drop(bisect_right(list(accumulate(map(len, self.each()))), size))


class Codec(Protocol):
    """What a sink and a listener need to know of frames; anything with these members will do."""

    #: True if a datagram carries the four bytes of the length too, though it needs none.
    length_in_datagrams: bool
    #: One byte that ends each payload, in streams and datagrams, and is in none; or empty, if on a stream the length
    #: stands before each payload. A codec without the attribute counts as one where it is empty.
    delimiter: bytes

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the payload for *event*; *render* makes JSON of an event."""
        ...

    def encode_item(self, item: Encoded) -> bytes:
        """Return the payload for a batch item, whose data *render* has made."""
        ...

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload*.

        Raises:
            ValueError: If there is none; a `FrameError` tells why.
        """
        ...


class JSONFrames:
    """Events as JSON, one object in UTF-8 for each; the default.

    On a stream each is preceded by its length, four bytes, big-endian. A datagram is the JSON alone. What a sink's
    renderer makes is sent as it is. Text that somebody else rendered is sent as it is if it is a JSON object, and as
    ``{"event": text}`` if not.

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
    r"""Events as lines of JSON, each ended by a line feed: what Logstash, Vector, syslog-ng and others read.

    The codec ``json_lines`` of Logstash, ``newline_delimited`` of Vector, and whatever takes a line for a message. In a
    datagram the line feed ends the line too.

    What a sink's renderer makes is sent as it is, if it has no line break. JSON over several lines becomes one line; in
    other text a line break becomes the two characters ``\n``. Text that somebody else rendered is sent as it is if it
    is a JSON object, and as ``{"event": text}`` if not.

    A `SocketListener` takes lines that end with ``\r\n`` too, and skips blank ones. A line that is no JSON object, or
    is too long, costs that line alone. When a peer ends the connection, a last line without an end counts if it is a
    whole JSON object.

    Lines are not acknowledged: what a peer had not read when it went away is lost, and counted as delivered.

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

    For receivers that exist already: the payload is a pickle, protocol 1, of a record's attributes, for
    `logging.makeLogRecord`: the message merged, ``args`` and ``exc_info`` None, the traceback as ``exc_text``, each
    further field an attribute; one that a record has for itself gets ``extra_`` before its name. Values are reduced to
    what JSON has, so that any Python can load them. The length stands before each payload, in datagrams too.

    Warning:
        Unpickling runs whatever code the sender chose. Whoever can connect to a listener with ``PickleFrames()`` owns
        its process. Use it for receiving on a network that you trust wholly, or as ``SignedFrames(key,
        PickleFrames())``; between Outfall's own ends there is no reason to use it at all.

    Safe from any thread; holds no state.

    Source: `logging.handlers.SocketHandler`; "Sending and receiving logging events across a network" in Python's
    logging cookbook.
    """

    length_in_datagrams = True
    delimiter = b""

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the record that *event* stands for, pickled."""
        # By way of JSON: what is in an event may not be picklable, or only by a class that the receiver lacks.
        return _pickled(Encoded(line_to_send(event), level_of(event), 0.0).event, level_of(event))

    def encode_item(self, item: Encoded) -> bytes:
        """Return the record that the item stands for, pickled."""
        event = item.event
        if timestamp_of(event) is None:
            event["timestamp"] = item.time
        return _pickled(event, item.level)

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Unpickle *payload*, which may run any code, and return the record in it as an event.

        Raises:
            FrameError: If it is no pickle of a dict.
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
    """Frames of another codec, each with an HMAC-SHA256 before its payload: 32 bytes, then the payload.

    Nobody without the key can forge an event or change one. Frames are not encrypted, and one that was
    recorded can be sent again: where that matters, use TLS.

    Args:
        key: The secret that both ends share: 16 bytes or more, such as ``secrets.token_bytes(32)``. It is in no repr.
        codec: What makes the payload. Default ``JSONFrames()``.

    Raises:
        TypeError: If *key* is not bytes.
        ValueError: If *key* is shorter than 16 bytes.

    Signatures are compared in constant time, and a payload is looked at only after its signature has been found good.
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
        """Return the payload for *event*, signed."""
        return self._signed(self.codec.encode(event, render))

    def encode_item(self, item: Encoded) -> bytes:
        """Return the payload for *item*, signed."""
        return self._signed(self.codec.encode_item(item))

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload* if its signature is good.

        Raises:
            FrameError: If it is not, or there is none, with the reason ``"signature"``; or what the codec raises.
        """
        signature, content = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
        if not self._equal(signature, self._signature(content)):
            msg = f"a frame of {len(payload)} bytes is not signed with the key"
            raise FrameError(msg, "signature")
        return self.codec.decode(content)

    def _signed(self, payload: bytes) -> bytes:
        return self._signature(payload) + payload

    def _signature(self, payload: bytes) -> bytes:
        # A copy of what has digested the key already: half the work, and safe from any thread.
        keyed = self._keyed.copy()
        keyed.update(payload)
        return keyed.digest()

    def __repr__(self) -> str:
        return f"SignedFrames(<key>, {self.codec!r})"


#: Bytes of an HMAC-SHA256.
SIGNATURE_BYTES = 32
_MIN_KEY_BYTES = 16


def _loaded(payload: bytes) -> Any:
    """Return what *payload* is as JSON; None if it is none."""
    try:
        return loads(payload)
    except (ValueError, RecursionError):
        return None


def _is_object(data: bytes) -> bool:
    return data[:1] == b"{" and isinstance(_loaded(data), dict)


def as_json(event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
    """Return what *render* makes of *event*; text that somebody else rendered as JSON, if it is none."""
    data = render(event)
    return line_to_send(dict(event)) if isinstance(event, TextEvent) and not _is_object(data) else data


def has_line_breaks(data: bytes) -> bool:
    """Return True if *data* is more than one line."""
    return b"\n" in data or b"\r" in data


def _one_line(data: bytes) -> bytes:
    """Return *data* without line breaks."""
    if not has_line_breaks(data):
        return data
    data = data.rstrip(b"\r\n")
    # Between the tokens of JSON a line break is white space, and in its strings there is none.
    feed, back = (b" ", b" ") if _is_object(data.lstrip()) else (b"\\n", b"\\r")
    return data.replace(b"\n", feed).replace(b"\r", back)


def _event_in(payload: bytes, what: str) -> dict[str, Any]:
    event: Any = _loaded(payload)
    if type(event) is not dict:
        msg = f"a {what} of {len(payload)} bytes is no JSON object"
        raise FrameError(msg)
    return _without_metadata(event)


def delimiter_of(codec: Codec) -> bytes:
    """Return what ends each payload of *codec*; empty if a length stands before it."""
    # Somebody's codec may have been written before there were delimiters.
    return getattr(codec, "delimiter", b"")


def _without_metadata(event: dict[str, Any]) -> dict[str, Any]:
    # What these keys mean here is for nobody outside to say.
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
