"""What the factories of collectors have in common: the sinks around a format, and URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import urlsplit, urlunsplit

from outfall.sinks.delivery.background import BackgroundSink
from outfall.sinks.http.sink import HTTPSink
from outfall.sinks.spool.sink import SpoolSink

if TYPE_CHECKING:
    import datetime as dt
    import os
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    import requests

    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.event.fields import Fields, Projection
    from outfall.sinks.http.bodies import BodyFormat


class SinkOptions(TypedDict, total=False):
    """Options that every factory of a collector's sink passes on.

    To `HTTPSink`: ``fields``, ``headers``, ``auth``, ``timeout``, ``verify``, ``cert``, ``ssl_context``, ``proxies``,
    ``compression``, ``max_body_bytes``, ``session``, ``allow_insecure``. All others to the sink around it:
    `BackgroundSink`, or `SpoolSink` with ``spool``.
    """

    fields: Fields | Projection | None
    headers: Mapping[str, str] | None
    auth: tuple[str, str] | Callable[[Any], Any] | None
    timeout: float | dt.timedelta | tuple[float | dt.timedelta, float | dt.timedelta]
    verify: bool | str | os.PathLike[str]
    cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None
    ssl_context: ssl.SSLContext | None
    proxies: Mapping[str, str] | None
    compression: Literal["gzip", "zstd"] | None
    max_body_bytes: int
    session: requests.Session | None
    allow_insecure: bool
    level: str | float
    processors: Iterable[Callable[[Any, str, Any], Any]]
    on_error: OnError
    name: str | None
    batch_size: int
    linger: float | dt.timedelta
    retry: RetryPolicy | None
    dead_letter: Sink | None
    block_timeout: float | dt.timedelta
    # BackgroundSink
    capacity: int
    capacity_bytes: int
    overflow: Literal["block", "drop_newest", "drop_oldest"]
    keep_level: str | float
    # SpoolSink
    max_bytes: int
    segment_bytes: int | None
    on_full: Literal["block", "drop_newest", "drop_oldest"]
    fsync: Literal["never", "interval", "always"]
    fsync_interval: float | dt.timedelta


class TokenOptions(SinkOptions, total=False):
    """`SinkOptions`, and the ``token`` of `HTTPSink`, which is sent as ``Authorization: Bearer …``."""

    token: str | Callable[[], str] | None


#: What both take is the outer sink's.
_OUTER = frozenset({"level", "processors", "on_error", "name"})


def shipped(
    url: str,
    body: BodyFormat,
    options: Mapping[str, Any],
    *,
    spool: str | os.PathLike[str] | None,
    headers: Mapping[str, str] | None = None,
    token_scheme: str = "Bearer",
) -> Sink:
    """Return an `HTTPSink` for *url* in a `BackgroundSink`, or in a `SpoolSink` if *spool* names a directory.

    Args:
        url: Where to.
        body: The format.
        options: `SinkOptions`, divided between the two.
        spool: The directory, or None.
        headers: The collector's; those in *options* win.
        token_scheme: What stands before a token.
    """
    inner = {name: value for name, value in options.items() if name in _INNER}
    outer = {name: value for name, value in options.items() if name not in _INNER}
    inner["headers"] = {**(headers or {}), **(inner.get("headers") or {})}
    target = HTTPSink(url, body=body, token_scheme=token_scheme, name=options.get("name"), **inner)
    if spool is None:
        return BackgroundSink(target, **outer)
    return SpoolSink(target, spool, **outer)


_INNER = frozenset(HTTPSink.__init__.__kwdefaults__ or ()) - _OUTER


def with_path(url: str, path: str, *, only_without: bool = False) -> str:
    """Return *url* with *path* at the end of its own, unless it is there; what is no URL is left as it is.

    Args:
        url: The URL.
        path: With a slash before it.
        only_without: True to leave a URL that has a path alone.
    """
    try:
        parts = urlsplit(url)
    except (ValueError, AttributeError):
        return url  # HTTPSink says so, without repeating a secret in it
    own = parts.path.rstrip("/")
    return url if own.endswith(path) or (only_without and own) else urlunsplit(parts._replace(path=own + path))


def with_query(url: str, query: str) -> str:
    """Return *url* with *query* added to its own."""
    return f"{url}{'&' if '?' in url else '?'}{query}" if isinstance(url, str) else url
