"""How an event travels in a frame: `JSONFrames`, `PickleFrames` and `SignedFrames`."""

from __future__ import annotations

import datetime as dt
import json
import logging
import struct
from typing import TYPE_CHECKING, Any, Protocol

from outfall.sinks.core.item import Encoded
from outfall.sinks.event.event import METADATA, TextEvent, message_key, timestamp_of
from outfall.sinks.event.json import OrjsonRenderer, loads
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTH = struct.Struct(">L")

#: Bytes of the length before each frame: big-endian, unsigned, itself not counted.
LENGTH_BYTES = _LENGTH.size

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


class Codec(Protocol):
    """What a sink and a listener need to know of frames; anything with these members will do."""

    #: True if a datagram carries the four bytes of the length too, though it needs none.
    length_in_datagrams: bool

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

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return *event* as JSON."""
        if isinstance(event, TextEvent):
            data = render(event)
            return data if _is_object(data) else _json.render(dict(event))
        return render(event)

    def encode_item(self, item: Encoded) -> bytes:
        """Return the item's data."""
        return item.data

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the event in *payload*, without metadata keys.

        Raises:
            FrameError: If it is not one JSON object in UTF-8.
        """
        event: Any = _loaded(payload)
        if type(event) is not dict:
            msg = f"a frame of {len(payload)} bytes is no JSON object"
            raise FrameError(msg)
        return _without_metadata(event)

    def __repr__(self) -> str:
        return "JSONFrames()"


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

    def encode(self, event: dict[str, Any], render: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Return the record that *event* stands for, pickled."""
        # By way of JSON: what is in an event may not be picklable, or only by a class that the receiver lacks.
        return _pickled(Encoded(_json.render(event), level_of(event), 0.0).event, level_of(event))

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
                return _event_of_record(attributes)
        except Exception:
            pass
        msg = f"a frame of {len(payload)} bytes is no pickled record"
        raise FrameError(msg) from None

    def __repr__(self) -> str:
        return "PickleFrames()"


class SignedFrames:
    """Frames of another codec, each with an HMAC-SHA256 before its payload: 32 bytes, then the payload.

    Who does not have the key can neither forge an event nor change one. Frames are not encrypted, and one that was
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

_json = OrjsonRenderer()


def _loaded(payload: bytes) -> Any:
    """Return what *payload* is as JSON; None if it is none."""
    try:
        return loads(payload)
    except (ValueError, RecursionError):
        return None


def _is_object(data: bytes) -> bool:
    return data[:1] == b"{" and isinstance(_loaded(data), dict)


def _without_metadata(event: dict[str, Any]) -> dict[str, Any]:
    # What these keys mean here is for nobody outside to say.
    for key in METADATA & event.keys():
        del event[key]
    return event


#: Event keys and the record attributes of the same meaning.
_CALLSITE = {
    "pathname": "pathname",
    "filename": "filename",
    "module": "module",
    "lineno": "lineno",
    "func_name": "funcName",
    "thread": "thread",
    "thread_name": "threadName",
    "process": "process",
    "process_name": "processName",
    "task_name": "taskName",
}
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLLISION = "extra_"


def _pickled(event: dict[str, Any], level: float) -> bytes:
    import pickle

    return pickle.dumps(_record_of(event, level), 1)


def _record_of(event: dict[str, Any], level: float) -> dict[str, Any]:
    """Return the attributes of the record that *event*, made of plain values, stands for."""
    number = int(level) if abs(level) < float("inf") else logging.INFO
    line = event.get("lineno")
    logger = event.get("logger")
    message = message_key(event)
    record = logging.LogRecord(
        name="root" if logger is None else str(logger),
        level=number,
        pathname=str(event.get("pathname", "")),
        lineno=line if isinstance(line, int) else 0,
        msg=_text(event.get(message, "")),
        args=None,
        exc_info=None,
    )
    attributes = vars(record)
    name = event.get("level")
    if isinstance(name, str) and name and level_of({"level": name}) in (level, float("inf")):
        attributes["levelname"] = name.upper()
    taken = {message, "level", "level_number", "logger", "exc_info"}
    created = timestamp_of(event)
    if created is not None:
        taken.add("timestamp")
        attributes["relativeCreated"] += (created - record.created) * 1000
        attributes["created"] = created
        attributes["msecs"] = float(int(created % 1 * 1000))
    for key, attribute in _CALLSITE.items():
        if key in event:
            taken.add(key)
            attributes[attribute] = event[key]
    for key, attribute in (("exception", "exc_text"), ("stack", "stack_info")):
        if key in event:
            taken.add(key)
            attributes[attribute] = _text(event[key])
    for key, value in event.items():
        if key not in taken:
            free = key
            while free in _OWN or free in attributes:
                free = _COLLISION + free
            attributes[free] = value
    return attributes


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _event_of_record(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return what a record with these *attributes* says, as an event."""
    record = logging.makeLogRecord(attributes)
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit; SocketHandler sends none
        message = str(record.msg)
    event: dict[str, Any] = {"event": message, "level": str(record.levelname).lower()}
    if level_of(event) != record.levelno:
        event["level_number"] = record.levelno
    if record.name is not None:
        event["logger"] = str(record.name)
    stamp = dt.datetime.fromtimestamp(record.created, dt.timezone.utc)
    event["timestamp"] = stamp.isoformat().replace("+00:00", "Z")
    for key, attribute in (*_CALLSITE.items(), ("exception", "exc_text"), ("stack", "stack_info")):
        value = attributes.get(attribute)
        if value:
            event[key] = value
    for attribute, value in attributes.items():
        if attribute not in _OWN:
            event.setdefault(_key_of(attribute), value)
    return _without_metadata(event)


def _key_of(attribute: str) -> str:
    bare = attribute
    while bare.startswith(_COLLISION):
        bare = bare[len(_COLLISION) :]
    return attribute[len(_COLLISION) :] if bare in _OWN else attribute
