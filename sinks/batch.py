"""What travels in batches: an encoded event, and what became of a batch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LONG_NUMBER = re.compile(rb"[0-9]{19}")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One event, encoded in the thread that logged it.

    Args:
        data: What the sink it is meant for puts out: a line of JSON, or the bytes of the sink's own renderer.
        level: The level number.
        time: When it happened, in seconds since the epoch: its ``timestamp``, else when it was handled.
    """

    data: bytes
    level: float
    time: float

    @property
    def event(self) -> dict[str, Any]:
        """The event as a dict, decoded anew at each access; text that is no JSON object is ``{"event": text}``."""
        try:
            # orjson makes floats of integers beyond 64 bits; json keeps their digits.
            decoded = json.loads(self.data) if _LONG_NUMBER.search(self.data) else orjson.loads(self.data)
        except (ValueError, RecursionError):
            decoded = None
        if isinstance(decoded, dict):
            return decoded
        return {"event": self.data.decode("utf-8", "backslashreplace").rstrip("\r\n")}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch that was not taken whole.

    Indexes count from 0 in the batch handed to ``emit_batch``. What is named nowhere was delivered.

    Args:
        retry: Indexes of the items that should be tried again.
        rejected: Why the target refused an item for good, by index.
        rejected_unknown: How many more it refused without saying which.
        retry_after: Seconds to wait before the retry, or None when the target did not say.
    """

    retry: Sequence[int] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    rejected_unknown: int = 0
    retry_after: float | None = None
