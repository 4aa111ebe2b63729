"""What an HTTP server's answer means for the events that were sent: pure functions of status, headers and body."""

from __future__ import annotations

import datetime as dt
import re
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

_OK, _MULTIPLE_CHOICES, _BAD_REQUEST, _SERVER_ERROR, _END = 200, 300, 400, 500, 600

_TOO_LARGE = 413

#: Timeout, too early, too many requests.
_TEMPORARY = frozenset({408, 425, 429})

#: The request did not come in time, or a gateway speaks of what is behind it: by whose fault may depend on the size.
_HALVE_AFTER = {408: 1, 502: LOST_ATTEMPTS, 504: 1}

#: Credentials, permission, address, method or media type are not what they should be: any event would meet the same.
_PAUSED = frozenset({401, 402, 403, 404, 405, 407, 410, 415, 451})

#: What is looked at of an answer's text, and what is repeated of it, in characters.
_MAX_LOOKED_AT, _MAX_QUOTED = 4_000, 200


def failure_of(status: int, headers: Mapping[str, str], *, peer: str, now: float) -> DeliveryError | None:
    """Return the failure that an answer stands for, None if the events were taken.

    ========================  ====================================================================================
    2xx                       None
    408, 425, 429, 5xx        `TemporaryDeliveryError`, with the ``Retry-After`` if there is one; after 408 and 504,
                              which speak of time, less is sent at once, and after several 502 too
    401 to 405, 407, 410,     `PausedDeliveryError`: credentials, permission, address or format have to be changed
    415, 451, 3xx             first, whatever the event. A redirect is never followed: it would drop the body, or bring
                              credentials to another host
    413                       `OversizeDeliveryError`
    400, 422, all other 4xx   `PermanentDeliveryError`
    anything else             `TemporaryDeliveryError`: no answer that HTTP knows
    ========================  ====================================================================================

    Args:
        status: The status code.
        headers: The headers; names in any case.
        peer: Who answered, for the message: ``"host:port"``.
        now: Seconds since the epoch, for dates in ``Retry-After``.
    """
    if _OK <= status < _MULTIPLE_CHOICES:
        return None
    told = f"{peer} answered {status}"
    wait = retry_after_seconds(headers, now)
    if status in _PAUSED:
        return PausedDeliveryError(told, wait)
    if _MULTIPLE_CHOICES <= status < _BAD_REQUEST:
        return PausedDeliveryError(f"{told}, a redirect{_location(headers)}, which is not followed", wait)
    if status == _TOO_LARGE:
        return OversizeDeliveryError(told)
    if _BAD_REQUEST <= status < _SERVER_ERROR and status not in _TEMPORARY:
        return PermanentDeliveryError(told)
    return TemporaryDeliveryError(told, wait, _HALVE_AFTER.get(status))


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
    from email.utils import parsedate_to_datetime

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

    Pages of HTML and what is no text give an empty one. Where the text repeats a value, a secret, or a word of one
    that is four characters or longer, it has ``…`` instead.

    Args:
        body: The body.
        headers: The headers.
        secrets: Texts that must not be repeated.
        events: The events that were sent.
    """
    kind = (header(headers, "content-type") or "text/plain").lower()
    if "html" in kind or not ("json" in kind or kind.startswith("text/")) or body.lstrip()[:1] == b"<":
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
