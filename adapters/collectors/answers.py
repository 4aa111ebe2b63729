"""Checks of responses that the collectors share: no collector responds with a page of HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from outfall.sinks.errors import PausedDeliveryError
from outfall.sinks.http.answers import is_page, title_of
from outfall.sinks.http.bodies import BodyFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded


class CollectorFormat(BodyFormat):
    """A format that checks that a response of 2xx is from the collector, and not a login page, for example."""

    def read(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
        batch: Sequence[Encoded],
    ) -> BatchResult | None:
        """Return the outcome of *batch* according to the response; None if the collector accepted all events.

        Raises:
            PausedDeliveryError: If the response is a page of HTML, or says that the collector accepts no events.
            DeliveryError: If the collector accepted none of the events.
        """
        if is_page(response_headers, response_body):
            raise not_the_collector(response_status, title_of(response_body))
        return self._outcome(Answer(response_status, response_headers, response_body), batch)

    def _outcome(self, answer: Answer, batch: Sequence[Encoded]) -> BatchResult | None:
        """Return the outcome of *batch* according to *answer*, which is not a page of HTML."""
        return None


class Answer(NamedTuple):
    """The parts of a response of 2xx."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def not_the_collector(status: int, title: str = "") -> PausedDeliveryError:
    """Return the error for a response that is not the collector's."""
    what = f"a page, “{title}”" if title else "something else"
    msg = f"the answer, {status}, is not the collector's but {what}: look at the address, and what stands before it"
    return PausedDeliveryError(msg)


def parsed(body: bytes) -> Any:
    """Parse *body*; return None if it is not JSON."""
    try:
        return orjson.loads(body)
    except ValueError:
        return None
