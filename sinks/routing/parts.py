"""An event on its way to several sinks: what each of them wants of it, and who has it already."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from outfall.sinks.core.item import Batch, Encoded
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.errors import PermanentDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.jsonable import cut
from outfall.sinks.event.levels import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outfall.sinks.core.item import BatchResult
    from outfall.sinks.core.sink import Sink

#: orjson makes floats of integers beyond 64 bits.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


@dataclass(frozen=True, slots=True)
class Routed(Encoded):
    """A batch item that holds an item for each sink of a router.

    Its ``data`` is one JSON object, for example ``{"fanout":[{"level":20,"time":1.5,"event":{…}},null]}``: for each
    sink an object, null where the sink filtered the event, or a text that says why it failed. The object has ``event``
    for data that is a JSON object, ``text`` for other text and ``base64`` for all else.

    Args:
        parts: What each sink wants, in the order of the sinks; None where it wants nothing.
        done: The places of the sinks that need not be given it again.
        refused: Why a sink does not take it, by the sink's place.
    """

    parts: tuple[Encoded | None, ...] = ()
    done: set[int] = field(default_factory=set[int], compare=False)
    refused: dict[int, str] = field(default_factory=dict[int, str], compare=False)

    @property
    def event(self) -> dict[str, Any]:
        """The event as the first of the sinks that want it sees it."""
        for part in self.parts:
            if part is not None:
                return part.event
        return Encoded(self.data, self.level, self.time).event


def routed(kind: str, parts: Sequence[Encoded | None], refused: dict[int, str], whole: Encoded) -> Routed:
    """Return the item for *parts*, with the level and time of *whole*."""
    written = [refused.get(place) if part is None else _written(part) for place, part in enumerate(parts)]
    data = orjson.dumps({kind: written})
    return Routed(data, whole.level, whole.time, tuple(parts), set(), dict(refused))


def _written(part: Encoded) -> dict[str, Any]:
    content: dict[str, Any] = {"level": part.level, "time": part.time}
    data = part.data
    if data[:1] == b"{" and data[-1:] == b"}" and b"\n" not in data and not _LONG_NUMBER.search(data):
        try:
            orjson.loads(data)
        except ValueError:
            pass
        else:
            content["event"] = orjson.Fragment(data)
            return content
    try:
        content["text"] = data.decode()
    except UnicodeDecodeError:
        content["base64"] = b64encode(data).decode()
    return content


def restored(kind: str, data: bytes, level: float, time: float, sinks: Sequence[Sink]) -> Routed | None:
    """Return again what `routed` made; None if *data* was made of something else, or for other sinks."""
    try:
        written: Any = orjson.loads(data)[kind]
        if not isinstance(written, list) or len(written) != len(sinks):
            return None
        parts: list[Encoded | None] = []
        refused: dict[int, str] = {}
        for place, sink in enumerate(sinks):
            content = written[place]
            if isinstance(content, str):
                refused[place] = content
            parts.append(_part(content, sink) if isinstance(content, dict) else None)
    except (KeyError, TypeError, ValueError):
        return None
    return Routed(data, level, time, tuple(parts), set(), refused)


def _part(content: dict[str, Any], sink: Sink) -> Encoded:
    if "event" in content:
        data = orjson.dumps(cut(content["event"]))
    elif "text" in content:
        data = str.encode(content["text"])
    else:
        data = b64decode(content["base64"], validate=True)
    level = content["level"]
    return sink.restore_item(data, UNKNOWN if level is None else float(level), float(content["time"]))


@dataclass(slots=True)
class Answer:
    """What a sink made of some items.

    Args:
        waiting: Which should be tried again.
        refused: Why the sink refuses an item for good, by index.
        unknown: How many more it refused without saying which.
        error: What it raised at the last, where something waits.
        retry_after: Seconds to wait before the next attempt, or None when it did not say.
    """

    waiting: list[int] = field(default_factory=list[int])
    refused: dict[int, str] = field(default_factory=dict[int, str])
    unknown: int = 0
    error: Exception | None = None
    retry_after: float | None = None


@dataclass(slots=True)
class Note:
    """What a router remembers about an item that all of its sinks share, once one of them has failed.

    Args:
        done: The places of the sinks that need not be given it again.
        refused: Why a sink does not take it, by the sink's place.
    """

    done: set[int] = field(default_factory=set[int])
    refused: dict[int, str] = field(default_factory=dict[int, str])


def offer(sink: Sink, items: Batch) -> Answer:
    """Give *items* to *sink* once, in smaller parts where it refuses a part for one of them."""
    answer = Answer()
    whole = items
    left: deque[Sequence[int]] = deque([range(len(items))] if len(items) else [])
    while left:
        indexes = left.popleft()
        try:
            result = sink.emit_batch(whole if len(indexes) == len(items) else whole.part(indexes))
        except (TemporaryDeliveryError, OSError) as error:
            for each in (indexes, *left):
                answer.waiting += each
            answer.error, answer.retry_after = error, getattr(error, "retry_after", None)
            break
        except Exception as error:
            if len(indexes) == 1:
                answer.refused[indexes[0]] = _reason(error, items[indexes[0]])
            else:
                middle = len(indexes) // 2
                left.extendleft((indexes[middle:], indexes[:middle]))
        else:
            if result is not None:
                _add(result, indexes, answer)
    return answer


def _add(result: BatchResult, indexes: Sequence[int], answer: Answer) -> None:
    places = range(len(indexes))
    retry = sorted({place for place in result.retry if place in places})
    rejected = {place: reason for place, reason in result.rejected.items() if place in places and place not in retry}
    answer.waiting += [indexes[place] for place in retry]
    answer.refused.update((indexes[place], reason) for place, reason in rejected.items())
    answer.unknown += max(0, min(result.rejected_unknown, len(indexes) - len(retry) - len(rejected)))
    if retry:
        answer.error = TemporaryDeliveryError("the target took a part of a batch", result.retry_after)
        answer.retry_after = result.retry_after


def _reason(error: Exception, item: Encoded) -> str:
    return error.reason if isinstance(error, PermanentDeliveryError) else describe(cleaned(error, item.event))


def key_for(batch: Sequence[Encoded], indexes: Sequence[int], place: int) -> str:
    """Return the key under which the sink at *place* gets the items at *indexes*: the same for the same items."""
    if not isinstance(batch, Batch):
        return Batch(()).key
    keys = batch.item_keys
    from hashlib import blake2b

    return blake2b(repr((place, [keys[index] for index in indexes])).encode(), digest_size=16).hexdigest()
