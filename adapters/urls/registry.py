"""Looks up schemes of URLs: `open_sink`, `schemes`, `options_of`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outfall.adapters.urls.kinds import SCHEMES
from outfall.adapters.urls.request import Request, parameters_of
from outfall.sinks.core.arguments import nearest
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import SinkError

#: The group of entry points that add schemes: the name is the scheme, the object a ``(url, **options) -> Sink``.
ENTRY_POINTS = "outfall.sinks"


def open_sink(url: str, **options: Any) -> Sink:
    """Open the sink that *url* names.

    Args:
        url: For example ``"file:app.jsonl?max_bytes=50MB&backup_count=5"``, ``"stderr:"``, ``"syslog://127.0.0.1"`` or
            ``"loki+https://host?labels.app=shop"``. Percent-encoding is decoded once. The query has the sink's
            parameters by name. A sink that sends over a network is wrapped in a `BackgroundSink`, whose parameters the
            query may have too. ``background=false`` leaves the wrapper out. ``spool=DIRECTORY`` uses a `SpoolSink`
            instead, whose own parameters are ``spool.max_bytes`` and so on. ``token_env=NAME`` takes a token from the
            environment. User and password in the URL are the sink's credentials; over HTTP, basic authentication.
        **options: Further parameters as Python values, also those that a URL cannot hold (a processor, a TLS context).

    Raises:
        ValueError: If the scheme or an option is unknown, given twice, or has no meaning. The message suggests the
            nearest known name, and never contains a value that may be a secret.
        TypeError: If *url* is not text.

    A scheme that is not built in is looked up among the entry points of the group ``outfall.sinks``.
    """
    return _open(url, options, {})


def _open(url: str, options: Mapping[str, Any], texts: Mapping[str, str]) -> Sink:
    if not isinstance(url, str):
        msg = f"url={url!r} is not text"
        raise TypeError(msg)
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    kind = SCHEMES.get(scheme)
    if kind is None:
        plugin = _plugins().get(scheme)
        if plugin is not None:
            return _checked_sink(plugin.load()(url, **texts, **options), scheme)
        raise ValueError(_not_openable(url, scheme))
    return kind.make(Request(scheme, kind, rest, options, texts))


@dataclass(frozen=True)
class Described:
    """A sink described by URL and options, as in a settings file.

    Args:
        url: The URL, as `open_sink` takes it.
        options: The options that the query may have. Text is converted as in a query, other values are used as they
            are. A mapping stands for options with a dot; the mapping ``spool`` has the ``directory`` too.
        name: The name of the sink.
        place: The place of the description, for error messages.
    """

    url: str = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    name: str
    place: str

    def open(self, **more: Any) -> Sink:
        """Open the sink.

        Args:
            **more: Further options, as Python values.

        Raises:
            ValueError: If the URL or an option has no meaning.
        """
        texts: dict[str, str] = {}
        values: dict[str, Any] = dict(more)
        for option, value in self.options.items():
            if option in ("spool", "query") and isinstance(value, Mapping):
                for key, each in value.items():
                    dotted = option if (option, key) == ("spool", "directory") else f"{option}.{key}"
                    texts[dotted] = each if isinstance(each, str) else str(each).lower()
            elif isinstance(value, str):
                texts[option] = value
            else:
                values[option] = value
        try:
            sink = _open(self.url, values, texts)
        except (ValueError, TypeError, SinkError) as error:
            msg = f"{self.place}: {error}"
            raise ValueError(msg) from None
        if "name" not in self.options:
            sink.name = self.name
        return sink


def is_url(text: str) -> bool:
    """Return True if *text* is a URL and not a path: it has ``://``, or begins with a known scheme and a colon.

    A single letter and a colon is a drive of Windows.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or len(scheme) < 2 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return False
    return rest.startswith("//") or scheme.lower() in SCHEMES or scheme.lower() in _plugins()


def misspelt(text: str) -> str | None:
    """Return the scheme that *text*, no URL by `is_url`, was probably meant to begin with, or None."""
    scheme, colon, _ = text.partition(":")
    return nearest(scheme, SCHEMES) if colon and re.fullmatch(r"[A-Za-z]{3,}", scheme) else None


def schemes() -> dict[str, str]:
    """Return the description of each scheme, including those of installed plug-ins."""
    return {name: kind.about for name, kind in SCHEMES.items()} | {
        name: f"by {entry.value}" for name, entry in _plugins().items() if name not in SCHEMES
    }


def options_of(scheme: str) -> dict[str, str]:
    """Return the options for URLs of a built-in *scheme*, each with its annotation or its choices."""
    kind = SCHEMES[scheme]
    names = {name: str(each.annotation) for target in kind.targets() for name, each in parameters_of(target).items()}
    chosen = {name: " | ".join(choices) for name, (_, choices) in kind.choices.items()}
    return {name: text for name, text in names.items() if name not in kind.fixed} | chosen


def _checked_sink(made: Any, scheme: str) -> Sink:
    if not isinstance(made, Sink):
        msg = f"{scheme}: the entry point returned {type(made).__name__}, not a sink"
        raise TypeError(msg)
    return made


def _not_openable(url: str, scheme: str) -> str:
    if ":" not in url:
        return f"url={url!r} has no scheme: write file:{url}" if "@" not in url else "the URL has no scheme"
    if len(scheme) == 1:
        return f"the URL begins with a drive: write file:{url}"
    return unknown_scheme(scheme)


def unknown_scheme(scheme: str) -> str:
    """Return the message that *scheme* is unknown, with the nearest known one."""
    known = sorted({*SCHEMES, *_plugins()})
    near = nearest(scheme, known)
    # A collector's name alone lacks the transport: suggest all schemes of the collector.
    meant = [near] if near else [name for name in known if name.partition("+")[0] == scheme.partition("+")[0]]
    return f"the scheme {scheme!r} is not known" + (f": did you mean {' or '.join(map(repr, meant))}?" if meant else "")


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
