"""What an HTTP server's answer means for the events that were sent: pure functions of status, headers and body."""

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

#: A ``Retry-After`` beyond this is taken for this.
MAX_RETRY_AFTER_SECONDS = 3600.0

_OK, _REDIRECT, _CLIENT, _SERVER = 200, 300, 400, 500

#: Statuses that are about the body's size; with a body in the URL, those about the URL's and the headers' too.
_SIZE, _SIZE_IN_URL = frozenset({413}), frozenset({413, 414, 431})

#: Statuses that may be about an event: what was sent is malformed, or cannot be processed.
_EVENT = frozenset({400, 422})

#: Statuses of a state that passes: timeout, the same request is being worked on, too early, too many requests, the
#: client hung up.
_MOMENT = frozenset({408, 409, 425, 429, 460, 499})

#: The request did not come in time, or a gateway speaks of what is behind it: by whose fault may depend on the size.
_HALVE_AFTER = {408: 1, 502: LOST_ATTEMPTS, 504: 1}

#: What to look at where the set-up is at fault.
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

#: What is looked at of an answer's text, and what is repeated of it, in characters.
_MAX_LOOKED_AT, _MAX_QUOTED = 4_000, 200

_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|title)\b", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


class RefusedDeliveryError(PermanentDeliveryError):
    """The server refused it, for a reason that may be the events' or nobody's in particular; see `Parts`.

    Args:
        reason: Why, without event data and secrets.
        is_page: True if the answer is a page of HTML, as gateways write them.
    """

    def __init__(self, reason: str = "", *, is_page: bool = False) -> None:
        super().__init__(reason)
        self.is_page: bool = is_page


def failure_of(
    status: int, headers: Mapping[str, str], *, peer: str, now: float, in_url: bool = False
) -> DeliveryError | None:
    """Return the failure that an answer stands for, None if the events were taken: whose fault it is, by its status.

    =======================  ==================  ======================================================================
    2xx                      nobody's            None
    400, 422                 perhaps an event's  `RefusedDeliveryError`: where others are taken meanwhile, the event's
    413                      the batch's size    `OversizeDeliveryError`; 414 and 431 too where the body is in the URL
    408, 409, 425, 429,      a state's that      `TemporaryDeliveryError`, with the ``Retry-After`` if there is one;
    460, 499, 5xx            passes              after 408 and 504, which speak of time, less is sent at once, and after
                                                 several 502 too
    all other 4xx, 3xx       the set-up's        `PausedDeliveryError`: address, credentials or format have to be
                                                 changed first, whatever the event. A redirect is never followed: it
                                                 would drop the body, or bring credentials to another host
    anything else            a state's that      `TemporaryDeliveryError`: no answer that HTTP knows
                             passes
    =======================  ==================  ======================================================================

    Args:
        status: The status code.
        headers: The headers; names in any case.
        peer: Who answered, for the message: ``"host:port"``.
        now: Seconds since the epoch, for dates in ``Retry-After``.
        in_url: True if the events were in the URL.
    """
    if _OK <= status < _REDIRECT:
        return None
    told = f"{peer} answered {status}"
    wait = retry_after_seconds(headers, now)
    if _REDIRECT <= status < _CLIENT:
        return PausedDeliveryError(f"{told}, a redirect{_location(headers)}, which is not followed", wait)
    if status in (_SIZE_IN_URL if in_url else _SIZE):
        return OversizeDeliveryError(told)
    if status in _EVENT:
        return RefusedDeliveryError(told)
    if _CLIENT <= status < _SERVER and status not in _MOMENT:
        hint = _HINTS.get(status)
        return PausedDeliveryError(f"{told} ({hint})" if hint else told, wait)
    return TemporaryDeliveryError(told, wait, _HALVE_AFTER.get(status))


def is_page(headers: Mapping[str, str], body: bytes) -> bool:
    """Return True if *body* is a page of HTML, which no collector's documented answer is."""
    kind = (header(headers, "content-type") or "").lower()
    return bool(body.strip()) and ("html" in kind or _PAGE.match(body[:_MAX_LOOKED_AT]) is not None)


def title_of(body: bytes) -> str:
    """Return the title of a page of HTML, as it is in it; empty if it has none."""
    title = _TITLE.search(body[:_MAX_LOOKED_AT].decode("utf-8", "replace"))
    return html.unescape(title[1]) if title else ""


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Return what ``Retry-After`` says (RFC 9110, 10.2.3) in seconds, from 0 to an hour; None if it says nothing.

    Args:
        headers: The headers; names in any case.
        now: Seconds since the epoch, for the form that is a date.
    """
    value = header(headers, "retry-after")
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value, re.ASCII):
        # So many digits that they are infinite are clamped as well.
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(value)
        # All of its dates are in GMT (RFC 9110, 5.6.7); one that does not say so is taken for one too.
        date = date if date.tzinfo is not None else date.replace(tzinfo=dt.timezone.utc)
        seconds = date.timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def told_limit_bytes(headers: Mapping[str, str]) -> int | None:
    """Return the largest body that the server says it takes, None if it does not say, or says that it takes nothing.

    Source: the field ``Upload-Limit`` of the IETF draft "Resumable Uploads for HTTP", ``Upload-Limit: max-size=1000``.
    """
    value = header(headers, "upload-limit")
    found = re.search(r"(?:^|[,\s])max-size=([0-9]{1,15})(?=$|[,;\s])", value, re.ASCII) if value else None
    # Kept, a limit of 0 would refuse all that ever comes.
    return (int(found[1]) or None) if found else None


def header(headers: Mapping[str, str], name: str) -> str | None:
    """Return the value of the header *name*, which is in lower case, however the server wrote it."""
    for given, value in headers.items():
        if given.lower() == name:
            return value
    return None


def _location(headers: Mapping[str, str]) -> str:
    """Return where a redirect leads, no more than the host: what comes after it may repeat what was sent."""
    try:
        parts = urlsplit(header(headers, "location") or "")
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not host or not host.isprintable() or len(host) > _MAX_QUOTED:
        return ""
    return f" to {parts.scheme}://{host}" + (f":{port}" if port else "")


def quote(body: bytes, headers: Mapping[str, str], secrets: Iterable[str], events: Iterable[object]) -> str:
    """Return an answer's text in one short line that repeats no value of the events and no secret.

    Of a page of HTML it has the title; what is no text gives an empty one. Where the text repeats a value, a secret, or
    a word of one that is four characters or longer, it has ``…`` instead.

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
    """Return *text* in one short line that repeats no value of the events and no secret; see `quote`."""
    # As values are in a message: without the escapes of JSON, and in one line.
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), text[:_MAX_LOOKED_AT])
    text = " ".join(text.split())
    values = {secret for secret in secrets if secret}
    for event in events:
        values |= _values(event)
    values |= {folded for value in values if len(folded := " ".join(value.split())) >= _MIN_LENGTH}
    for value in sorted(values, key=len, reverse=True):
        if value in text:
            text = text.replace(value, "…")
    # What a server cuts, folds or takes apart is found by its words.
    words = "\n".join(values).lower()
    text = re.sub(r"\w{4,}", lambda word: "…" if word[0].lower() in words else word[0], text)
    text = re.sub(r"…(?:\W*…)+", "…", text)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…"
