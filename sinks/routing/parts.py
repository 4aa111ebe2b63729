"""An event for several sinks: the part of each sink, and which sinks have taken it."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from outfall.sinks.core.item import Batch, Encoded, usable
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.errors import PermanentDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.jsonable import cut
from outfall.sinks.event.levels import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outfall.sinks.core.item import BatchResult
    from outfall.sinks.core.sink import Sink

#: orjson turns integers beyond 64 bits into floats.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


@dataclass(frozen=True, slots=True)
class Routed(Encoded):
    """A batch item that contains an item for each sink of a router.

    Its ``data`` is one JSON object, for example ``{"fanout":[{"level":20,"time":1.5,"event":{…}},null]}``: for each
    sink an object, null if the sink filtered the event, or a text that says why it failed. The object has ``event`` for
    data that is a JSON object, ``text`` for other text and ``base64`` for other bytes.

    Args:
        parts: The item of each sink, in the order of the sinks; None if the sink filtered the event.
        refused: Why a sink does not take it, by the sink's index.
    """

    parts: tuple[Encoded | None, ...] = ()
    refused: dict[int, str] = field(default_factory=dict[int, str], compare=False)

    @property
    def event(self) -> dict[str, Any]:
        """The event as the first sink that does not filter it sees it."""
        for part in self.parts:
            if part is not None:
                return part.event
        return Encoded(self.data, self.level, self.time).event


def routed(kind: str, parts: Sequence[Encoded | None], refused: dict[int, str], whole: Encoded) -> Routed:
    """Return the item of *parts*, with the level and time of *whole*."""
    written = [refused.get(place) if part is None else _written(part) for place, part in enumerate(parts)]
    data = orjson.dumps({kind: written})
    return Routed(data, whole.level, whole.time, tuple(parts), dict(refused))


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
    """Return what `routed` returned for *data*; None if *data* is of another kind, or for other sinks."""
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
    return Routed(data, level, time, tuple(parts), refused)


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
    """A sink's answer to some items.

    Args:
        waiting: The indexes of the items to try again.
        refused: Why the sink refuses an item for good, by index.
        unknown: How many more items it refused without saying which.
        error: The error because of which items wait; None if none does.
        retry_after: Seconds to wait before the next attempt; None if the sink did not say.
    """

    waiting: list[int] = field(default_factory=list[int])
    refused: dict[int, str] = field(default_factory=dict[int, str])
    unknown: int = 0
    error: Exception | None = None
    retry_after: float | None = None


@dataclass(slots=True)
class Note:
    """What a router notes about an item that its sinks share, after one of them has failed.

    Args:
        done: The indexes of the sinks that do not need it again.
        refused: Why a sink does not take it, by the sink's index.
    """

    done: set[int] = field(default_factory=set[int])
    refused: dict[int, str] = field(default_factory=dict[int, str])


def offer(sink: Sink, items: Batch) -> Answer:
    """Pass *items* to *sink* once; divide a part that the sink refuses because of one item."""
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
    result = usable(result, len(indexes))
    answer.waiting += [indexes[place] for place in result.retry]
    answer.refused.update((indexes[place], reason) for place, reason in result.rejected.items())
    answer.unknown += result.rejected_unknown
    if result.retry:
        answer.error = TemporaryDeliveryError("the target took a part of a batch", result.retry_after)
        answer.retry_after = result.retry_after


def _reason(error: Exception, item: Encoded) -> str:
    return error.reason if isinstance(error, PermanentDeliveryError) else describe(cleaned(error, item.event))


def part_of(item: Any, number: int) -> Any:
    """Return the part of *item* for the sink with this *number*, or *item* itself if all sinks share it."""
    return item.parts[number] if isinstance(item, Routed) else item


def share(batch: Batch, indexes: Sequence[int], number: int, *, mixed: bool = True) -> Batch:
    """Return the batch for the sink with this *number*. Its keys are the same at every retry.

    Args:
        batch: The router's batch.
        indexes: Which of its items the sink gets.
        number: The place of the sink among the router's.
        mixed: Whether items may have a part for each sink. Default True.
    """
    chosen = batch if len(indexes) == len(batch) else batch.part(indexes)
    return chosen.under(str(number), partial(part_of, number=number) if mixed else None)
