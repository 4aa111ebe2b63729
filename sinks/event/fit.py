"""Shortens events to a maximum size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from outfall.sinks.event.event import MESSAGE_KEYS
from outfall.sinks.event.json import OrjsonRenderer, event_of

if TYPE_CHECKING:
    from collections.abc import Callable

#: The field that marks a shortened event.
MARKER = "truncated"

#: The essential fields, which are never removed.
_CORE = (*MESSAGE_KEYS, "level", "level_number", "logger", "timestamp")

#: Fields are removed rather than texts cut to fewer characters than this.
_LEAST_CHARACTERS = 32


def shortened(event: dict[str, Any], encode: Callable[[dict[str, Any]], bytes], limit: int) -> bytes | None:
    """Return *event* encoded in at most *limit* bytes and marked as truncated; None if that is impossible.

    All texts, nested ones too, are cut to the same maximum length, the longest that fits. If that is not enough, the
    largest fields are removed, except the essential ones.

    Args:
        event: The event. It is not changed.
        encode: Encodes an event; it is called some twenty times.
        limit: The maximum number of bytes.
    """
    plain = event_of(_json.render(event))
    plain[MARKER] = True

    def made(length: int) -> bytes:
        return encode({key: _cut(value, length) for key, value in plain.items()})

    excess = len(made(_LEAST_CHARACTERS)) - limit
    if excess > 0:
        sizes = {key: len(json.dumps([key, _cut(value, _LEAST_CHARACTERS)])) for key, value in plain.items()}
        largest_last = sorted(sizes.keys() - {*_CORE, MARKER}, key=lambda key: (sizes[key], key))
        while excess > 0 and largest_last:
            while excess > 0 and largest_last:
                key = largest_last.pop()
                del plain[key]
                excess -= sizes[key]
            # The sizes are those of JSON; the result of *encode* may be longer.
            excess = len(made(_LEAST_CHARACTERS)) - limit
    if excess > 0:
        # Only essential fields are left. Make their other values texts, which can be cut.
        for key in plain:
            text = json.dumps(plain[key], ensure_ascii=False)
            if not isinstance(plain[key], str) and len(text) > _LEAST_CHARACTERS:
                plain[key] = text
    longest = max((_longest(value) for value in plain.values()), default=0)
    fitting: bytes | None = None
    low, high = 0, longest
    while low <= high:
        middle = (low + high) // 2
        data = made(middle)
        if len(data) <= limit:
            fitting, low = data, middle + 1
        else:
            high = middle - 1
    return fitting


def _cut(value: Any, length: int) -> Any:
    """Return *value* with each text in it cut to *length* characters; keys are not cut."""
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, list):
        return [_cut(item, length) for item in value]
    if isinstance(value, dict):
        return {key: _cut(item, length) for key, item in value.items()}
    return value


def _longest(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    if isinstance(value, dict):
        return max(map(_longest, value.values()), default=0)
    return 0


_json = OrjsonRenderer()
