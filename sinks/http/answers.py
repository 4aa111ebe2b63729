"""Interprets HTTP responses: pure functions of status, headers and body."""

from __future__ import annotations

import datetime as dt
import html
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from outfall.sinks.core.reporting import _MIN_LENGTH, _values
from outfall.sinks.errors import (
    LOST_ATTEMPTS,
    DeliveryError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: The upper limit for a ``Retry-After``.
MAX_RETRY_AFTER_SECONDS = 3600.0

_OK, _REDIRECT, _CLIENT, _SERVER = 200, 300, 400, 500

#: Statuses that are about the size of the body; if the events are in the URL, also those about URL and headers.
_SIZE, _SIZE_IN_URL = frozenset({413}), frozenset({413, 414, 431})

#: Statuses that may be about an event: it is malformed or cannot be processed.
_EVENT = frozenset({400, 422})

#: Statuses of a temporary state: timeout, the same request is in progress, too early, too many requests, the client
#: closed the connection.
_MOMENT = frozenset({408, 409, 425, 429, 460, 499})

#: The ``halve_after`` of statuses that the size of the batch may cause: timeouts, and failures behind a gateway.
_HALVE_AFTER = {408: 1, 502: LOST_ATTEMPTS, 504: 1}

#: Hints for errors of configuration, by status.
_HINTS = {
    401: "the credentials are missing or wrong",
    402: "the account is not paid for",
    403: "the credentials do not allow it, or something before the server forbids it",
    404: "the address has nothing at its path",
    405: "the address does not take this method",
    407: "the proxy wants credentials",
    410: "the address is no longer there",
    411: "something on the way wants the length of the body in front",
    414: "the address is too long for something on the way",
    415: "the address does not take this format",
    421: "the server does not answer for this host; look at the address and at TLS",
    426: "the port wants another protocol, such as https",
    431: "the headers are too large for something on the way",
    494: "the headers are too large for something on the way",
    495: "the client certificate is not good",
    496: "a client certificate is wanted",
    497: "the port wants https",
}

#: The number of characters of a response that are examined, and that are quoted.
_MAX_LOOKED_AT, _MAX_QUOTED = 4_000, 200

_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title)\b", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


class RefusedDeliveryError(PermanentDeliveryError):
    """The server refused a request; an event may be the cause, or the configuration. `Parts` finds out.

    Args:
        reason: Why, without event data and secrets.
        is_page: True if the response is a page of HTML, as gateways send.
    """

    def __init__(self, reason: str = "", *, is_page: bool = False) -> None:
        super().__init__(reason)
        self.is_page: bool = is_page


def failure_of(
    status: int, headers: Mapping[str, str], *, peer: str, now: float, in_url: bool = False
) -> DeliveryError | None:
    """Return the error for a response by its status; None if the events were taken.

    =======================  ==================  ======================================================================
    status                   cause               error
    =======================  ==================  ======================================================================
    2xx                      none                None
    400, 422                 an event, perhaps   `RefusedDeliveryError`; the event is the cause if others are taken
    413                      the batch's size    `OversizeDeliveryError`; also 414 and 431 if the body is in the URL
    408, 409, 425, 429,      a temporary state   `TemporaryDeliveryError`, with the ``Retry-After`` if there is one;
    460, 499, 5xx                                after 408 and 504 (timeouts) batches are split, and after several 502
    all other 4xx, 3xx       the configuration   `PausedDeliveryError`: address, credentials or format have to be
                                                 changed. A redirect is never followed: it would drop the body, or
                                                 send credentials to another host
    anything else            a temporary state   `TemporaryDeliveryError`: not a status of HTTP
    =======================  ==================  ======================================================================

    Args:
        status: The status code.
        headers: The headers, with names in any case.
        peer: The server, for the message: ``"host:port"``.
        now: The time in epoch seconds, for dates in ``Retry-After``.
        in_url: True if the events were in the URL.
    """
    if _OK <= status < _REDIRECT:
        return None
    message = f"{peer} answered {status}"
    wait = retry_after_seconds(headers, now)
    if _REDIRECT <= status < _CLIENT:
        return PausedDeliveryError(f"{message}, a redirect{_location(headers)}, which is not followed", wait)
    if status in (_SIZE_IN_URL if in_url else _SIZE):
        return OversizeDeliveryError(message)
    if status in _EVENT:
        return RefusedDeliveryError(message)
    if _CLIENT <= status < _SERVER and status not in _MOMENT:
        hint = _HINTS.get(status)
        return PausedDeliveryError(f"{message} ({hint})" if hint else message, wait)
    return TemporaryDeliveryError(message, wait, _HALVE_AFTER.get(status))


def is_page(headers: Mapping[str, str], body: bytes) -> bool:
    """Return True if *body* is a page of HTML; no collector documents such a response."""
    kind = (header(headers, "content-type") or "").lower()
    return bool(body.strip()) and ("html" in kind or _PAGE.match(body[:_MAX_LOOKED_AT]) is not None)


def title_of(body: bytes) -> str:
    """Return the title of a page of HTML, unchanged; "" if it has none."""
    title = _TITLE.search(body[:_MAX_LOOKED_AT].decode("utf-8", "replace"))
    return html.unescape(title[1]) if title else ""


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Return the value of ``Retry-After`` (RFC 9110, 10.2.3) in seconds, from 0 to an hour; None if there is none.

    Args:
        headers: The headers, with names in any case.
        now: The time in epoch seconds, for a value that is a date.
    """
    value = header(headers, "retry-after")
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value, re.ASCII):
        # min() also limits the infinity that very many digits give.
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(value)
        # All dates are in GMT (RFC 9110, 5.6.7), so assume GMT if a date has no zone.
        date = date if date.tzinfo is not None else date.replace(tzinfo=dt.timezone.utc)
        seconds = date.timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def told_limit_bytes(headers: Mapping[str, str]) -> int | None:
    """Return the largest body that the server accepts, according to its response; None if it does not say, or says 0.

    Source: the field ``Upload-Limit`` of the IETF draft "Resumable Uploads for HTTP", ``Upload-Limit: max-size=1000``.
    """
    value = header(headers, "upload-limit")
    found = re.search(r"(?:^|[,\s])max-size=([0-9]{1,15})(?=$|[,;\s])", value, re.ASCII) if value else None
    # A limit of 0 is ignored: it would refuse all events for ever.
    return (int(found[1]) or None) if found else None


def header(headers: Mapping[str, str], name: str) -> str | None:
    """Return the value of the header *name* (in lower case), in whatever case the server wrote it."""
    for given, value in headers.items():
        if given.lower() == name:
            return value
    return None


def _location(headers: Mapping[str, str]) -> str:
    """Return the target of a redirect, only up to the port: its path may repeat values of the events."""
    try:
        parts = urlsplit(header(headers, "location") or "")
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not host or not host.isprintable() or len(host) > _MAX_QUOTED:
        return ""
    return f" to {parts.scheme}://{host}" + (f":{port}" if port else "")


def quote(body: bytes, headers: Mapping[str, str], secrets: Iterable[str], events: Iterable[object]) -> str:
    """Return the text of a response as one short line that repeats neither values of the events nor secrets.

    Of a page of HTML only the title is quoted. The result is empty if the body is not text. A value, a secret, or a
    word of one with four characters or more, is replaced by ``…``.

    Args:
        body: The body.
        headers: The headers.
        secrets: Texts that must not be repeated.
        events: The events that were sent.
    """
    if is_page(headers, body):
        said = clean(title_of(body), secrets, events)
        return f"a page, “{said}”" if said else "a page of HTML"
    kind = (header(headers, "content-type") or "text/plain").lower()
    if not ("json" in kind or kind.startswith("text/")) or body.lstrip()[:1] == b"<":
        return ""
    return clean(body[:_MAX_LOOKED_AT].decode("utf-8", "replace"), secrets, events)


def clean(text: str, secrets: Iterable[str], events: Iterable[object]) -> str:
    """Return *text* as one short line that repeats neither values of the events nor secrets; see `quote`."""
    # Resolve escapes of JSON and line breaks, so that values can be found.
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), text[:_MAX_LOOKED_AT])
    text = " ".join(text.split())
    values = {secret for secret in secrets if secret}
    for event in events:
        values |= _values(event)
    values |= {folded for value in values if len(folded := " ".join(value.split())) >= _MIN_LENGTH}
    for value in sorted(values, key=len, reverse=True):
        if value in text:
            text = text.replace(value, "…")
    # Find words too, since a server may truncate, fold or split a value.
    words = "\n".join(values).lower()
    text = re.sub(r"\w{4,}", lambda word: "…" if word[0].lower() in words else word[0], text)
    text = re.sub(r"…(?:\W*…)+", "…", text)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…"
