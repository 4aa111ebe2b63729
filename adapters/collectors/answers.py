"""What the collectors' answers have in common: a page of HTML is none of any collector's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from outfall.sinks.errors import PausedDeliveryError
from outfall.sinks.http.answers import is_page, title_of
from outfall.sinks.http.bodies import BodyFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded


class CollectorFormat(BodyFormat):
    """A format whose collector answers in its own way: a login page, say, with status 200 is no success."""

    def read(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
        batch: Sequence[Encoded],
    ) -> BatchResult | None:
        """Make sure that the answer is no page of HTML.

        Raises:
            PausedDeliveryError: If it is one.
        """
        if is_page(response_headers, response_body):
            raise not_the_collector(response_status, title_of(response_body))
        return None


def not_the_collector(status: int, title: str = "") -> PausedDeliveryError:
    """Return the failure that an answer of 2xx is which the collector does not give."""
    what = f"a page, “{title}”" if title else "something else"
    msg = f"the answer, {status}, is not the collector's but {what}: look at the address, and what stands before it"
    return PausedDeliveryError(msg)


def parsed(body: bytes) -> Any:
    """Return *body*, parsed, or None if it is no JSON."""
    try:
        return orjson.loads(body)
    except ValueError:
        return None
