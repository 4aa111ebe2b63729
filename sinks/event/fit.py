"""Events made to fit into so many bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from outfall.sinks.event.event import MESSAGE_KEYS
from outfall.sinks.event.json import OrjsonRenderer, event_of

if TYPE_CHECKING:
    from collections.abc import Callable

#: The field that says that something is missing.
MARKER = "truncated"

#: What an event is worth nothing without; kept whatever else has to go.
_CORE = (*MESSAGE_KEYS, "level", "level_number", "logger", "timestamp")

#: Fields go before texts are cut to fewer characters than this.
_LEAST_CHARACTERS = 32


def shortened(event: dict[str, Any], encode: Callable[[dict[str, Any]], bytes], limit: int) -> bytes | None:
    """Return *event* as *encode* makes it in at most *limit* bytes, marked as truncated; None if nothing fits.

    The longest texts are cut first, nested ones too, all to one length and no shorter than it takes. Where that is not
    enough, the largest fields go, those last that every event has.

    *event* is not changed. *encode* is called some twenty times.
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
            # Sizes are those of JSON, of which *encode* may make something longer.
            excess = len(made(_LEAST_CHARACTERS)) - limit
    if excess > 0:
        # Only the core is left; what is no text there cannot be cut as it is.
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
    """Return *value* with each text in it cut to *length* characters; the keys stay whole."""
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
