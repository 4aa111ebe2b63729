"""Code that the factories of collectors share: it makes the sinks around a format, and completes URLs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import urlsplit, urlunsplit

from outfall.sinks.delivery.background import BackgroundSink
from outfall.sinks.http.endpoint import with_socket_as_host
from outfall.sinks.http.sink import HTTPSink
from outfall.sinks.spool.sink import SpoolSink

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    import requests

    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.event.fields import Fields, Projection
    from outfall.sinks.event.levels import Level
    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.http.bodies import BodyFormat


class SinkOptions(TypedDict, total=False):
    """Options of every factory of a collector's sink.

    These are arguments of `HTTPSink`: ``fields``, ``headers``, ``auth``, ``timeout``, ``verify``, ``cert``,
    ``ssl_context``, ``proxies``, ``compression``, ``max_body_bytes``, ``session``, ``allow_insecure``,
    ``naive_timestamps``, ``max_connection_age``. All others are arguments of the wrapper: `BackgroundSink`, or
    `SpoolSink` with ``spool``.
    """

    fields: Fields | Projection | None
    headers: Mapping[str, str] | None
    auth: tuple[str, str] | Callable[[Any], Any] | None
    timeout: Span | tuple[Span, Span]
    verify: bool | str | os.PathLike[str]
    cert: str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]] | None
    ssl_context: ssl.SSLContext | None
    proxies: Mapping[str, str] | None
    compression: Literal["gzip", "zstd"] | None
    max_body_bytes: Size
    session: requests.Session | None
    allow_insecure: bool
    naive_timestamps: Literal["utc", "local"]
    max_connection_age: Span | None
    level: Level
    processors: Iterable[Callable[[Any, str, Any], Any]]
    on_error: OnError
    name: str | None
    batch_size: int
    linger: Span
    retry: RetryPolicy | None
    dead_letter: Sink | None
    block_timeout: Span
    # BackgroundSink
    capacity: int
    capacity_bytes: Size
    overflow: Literal["block", "drop_newest", "drop_oldest"]
    keep_level: Level
    # SpoolSink
    max_bytes: Size
    segment_bytes: Size | None
    on_full: Literal["block", "drop_newest", "drop_oldest"]
    fsync: Literal["never", "interval", "always"]
    fsync_interval: Span


class TokenOptions(SinkOptions, total=False):
    """`SinkOptions`, and the ``token`` of `HTTPSink`, which is sent as ``Authorization: Bearer …``."""

    token: str | Callable[[], str] | None


#: Arguments that both sinks have are for the wrapper.
_OUTER = frozenset({"level", "processors", "on_error", "name"})


def shipped(
    factory: Callable[..., Sink],
    url: str,
    body: BodyFormat,
    options: Mapping[str, Any],
    *,
    spool: str | os.PathLike[str] | None,
    headers: Mapping[str, str] | None = None,
    token_scheme: str = "Bearer",
) -> BackgroundSink | SpoolSink:
    """Make an `HTTPSink` for *url* in a `BackgroundSink`, or in a `SpoolSink` if *spool* names a directory.

    Args:
        factory: The factory that was called, for error messages.
        url: The URL.
        body: The format.
        options: `SinkOptions`, for both sinks.
        spool: The directory, or None.
        headers: Headers that the collector needs; those in *options* override them.
        token_scheme: The word before a token.

    Raises:
        TypeError: If *options* has an unknown option.
    """
    outer_class = BackgroundSink if spool is None else SpoolSink
    _refuse_unknown(factory, outer_class, options)
    inner = {name: value for name, value in options.items() if name in _INNER}
    outer = {name: value for name, value in options.items() if name not in _INNER}
    inner["headers"] = {**(headers or {}), **(inner.get("headers") or {})}
    target = HTTPSink(url, body=body, token_scheme=token_scheme, name=options.get("name"), **inner)
    return BackgroundSink(target, **outer) if spool is None else SpoolSink(target, spool, **outer)


_INNER = frozenset(HTTPSink.__init__.__kwdefaults__ or ()) - _OUTER


def _refuse_unknown(factory: Callable[..., Sink], outer: type[Sink], options: Mapping[str, Any]) -> None:
    """Raise a TypeError for an unknown option, with the nearest known one."""
    own = {name for name, each in inspect.signature(factory).parameters.items() if each.kind is not each.VAR_KEYWORD}
    known = own | (_INNER - {"method", "body", "token_scheme", "clock"}) | _options_of(outer)
    for name in options:
        if name in known or name in _INNER:
            continue
        msg = f"{factory.__name__}() has no argument {name!r}"
        if name in _options_of(SpoolSink):
            msg += ", unless spool= names a directory"
        elif name in _options_of(BackgroundSink):
            msg += " with spool=, where events wait on disk"
        else:
            import difflib

            near = difflib.get_close_matches(name, sorted(known), 1)
            msg += f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(msg)


def _options_of(sink: type[Sink]) -> set[str]:
    return {name for name, each in inspect.signature(sink).parameters.items() if each.kind is each.KEYWORD_ONLY}


def with_path(
    url: str, path: str, *, also: tuple[str, ...] = (), others: tuple[str, ...] = (), only_without: bool = False
) -> str:
    """Return *url* with the collector's path for events; a text that is not a URL is returned unchanged.

    *path* is appended to the path of the URL, unless that ends with it or with one of *also*. If the URL has only the
    beginning of *path*, the rest is added. A trailing slash is removed.

    Args:
        url: The URL.
        path: The path, with a leading slash.
        also: Other paths of the collector that accept the same.
        others: Paths of the collector that accept something else.
        only_without: True to leave a URL with any other path unchanged.

    Raises:
        ValueError: If the URL's path is one of *others*.
    """
    try:
        url = with_socket_as_host(url)
        parts = urlsplit(url)
    except (ValueError, AttributeError):
        return url  # HTTPSink raises the error, without repeating a secret
    own = parts.path.rstrip("/")
    for other in others:
        if own.endswith(other):
            msg = f"url: its path, …{other}, is not the one for events, …{path}; leave it out"
            raise ValueError(msg)
    if not own.endswith((path, *also)):
        if own and only_without:
            return url
        segments = path.split("/")
        # A single segment may be the prefix of a gateway.
        begun = ["/".join(segments[:count]) for count in range(len(segments) - 1, 2, -1)]
        found = next((each for each in begun if own.endswith(each)), "")
        own = own.removesuffix(found) + path
    return urlunsplit(parts._replace(path=own))


def with_query(url: str, query: str) -> str:
    """Return *url* with *query* added to its own."""
    return f"{url}{'&' if '?' in url else '?'}{query}" if isinstance(url, str) else url
