"""The event that every row logs: a web service's request log, eleven fields, about 250 bytes as a line of JSON.

=============  ==========================================================================
``timestamp``  ISO 8601 text, as structlog's ``TimeStamper(fmt="iso")`` makes it
``level``      ``"info"``
``logger``     a dotted name
``event``      the message, two words
``request_id`` a UUID as text, which a middleware would bind for each request
``method``     text
``path``       text
``status``     an integer
``duration_ms`` a float
``client``     an IPv4 address as text
``order_id``   an integer that changes from event to event, so that no two lines are the same
=============  ==========================================================================

Each event is a new dict, made within the timed code, as in applications. It is written out in each loop rather than
made by a function: the call would count as a cost of the floor, and make every ratio look better.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TIMESTAMP = "2026-03-14T15:09:26.535897Z"
REQUEST_ID = "0b7c1f5e-8a4d-4c58-9f0e-6a2d31c4e7b9"

#: The texts that a line must contain, whatever the library's format is.
PROOF = (b"request finished", REQUEST_ID.encode(), b"/api/v1/orders", b"203.0.113.7", b"200", b"12.345")


def drive(
    handle: Callable[[dict[str, Any]], object], after: Callable[[], object] | None = None
) -> Callable[[int], None]:
    """Return a function that passes a number of events to *handle*, and then calls *after*; all of it is timed."""

    def run(events: int) -> None:
        for number in range(events):
            handle(
                {
                    "timestamp": TIMESTAMP,
                    "level": "info",
                    "logger": "shop.orders",
                    "event": "request finished",
                    "request_id": REQUEST_ID,
                    "method": "GET",
                    "path": "/api/v1/orders",
                    "status": 200,
                    "duration_ms": 12.345,
                    "client": "203.0.113.7",
                    "order_id": number,
                }
            )
        if after is not None:
            after()

    return run


def drive_logging(handler: logging.Handler) -> Callable[[int], None]:
    """Return a function that logs a number of events by `logging`, to *handler* alone."""
    # A logger of getLogger would stay in the process, and propagate to configured handlers.
    log = logging.Logger("shop.orders", logging.INFO)  # noqa: LOG001
    log.addHandler(handler)

    def run(events: int) -> None:
        for number in range(events):
            log.info(
                "request finished",
                extra={
                    "request_id": REQUEST_ID,
                    "method": "GET",
                    "path": "/api/v1/orders",
                    "status": 200,
                    "duration_ms": 12.345,
                    "client": "203.0.113.7",
                    "order_id": number,
                },
            )

    return run


def drive_loguru(logger: Any) -> Callable[[int], None]:
    """Return a function that logs a number of events by loguru's *logger*."""

    def run(events: int) -> None:
        for number in range(events):
            logger.bind(
                request_id=REQUEST_ID,
                method="GET",
                path="/api/v1/orders",
                status=200,
                duration_ms=12.345,
                client="203.0.113.7",
                order_id=number,
            ).info("request finished")

    return run
