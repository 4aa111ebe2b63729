"""A sink in one string: `open_sink` makes the sink that a URL names.

The scheme is the kind of sink, and the query has its arguments, by the names of the sink's own parameters. Each text is
converted as the parameter's annotation asks: numbers, sizes such as ``50MB``, spans such as ``1h30m``, ``true`` and
``false``, lists by commas, mappings by dots (``labels.app=shop``), another sink as an encoded URL.
"""

from __future__ import annotations

import datetime as dt
import difflib
import inspect
import os
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from outfall.sinks.core.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: The group of entry points whose names are schemes, each a callable ``(url, **options) -> Sink``.
ENTRY_POINTS = "outfall.sinks"

#: Options that are not parameters of a sink.
_OWN = ("spool", "background", "token_env")


def open_sink(url: str, **options: Any) -> Sink:
    """Return the sink that *url* names.

    Args:
        url: For example ``"file:app.jsonl?max_bytes=50MB&backup_count=5"``, ``"stderr:"``, ``"syslog://127.0.0.1"`` or
            ``"loki+https://host?labels.app=shop"``. Percent signs are decoded once. The query has the sink's parameters
            by name. A sink whose target is over a network gets a `BackgroundSink` around it, whose parameters may stand
            there too. ``background=false`` leaves it out; ``spool=DIRECTORY`` puts a `SpoolSink` there instead, whose
            own parameters are ``spool.max_bytes`` and so on. ``token_env=NAME`` takes a token from the environment. A
            user and password in the URL are HTTP's basic authentication.
        **options: More parameters, as Python values; one that a URL cannot hold (a processor, a TLS context) goes here.

    Raises:
        ValueError: If the scheme or an option is not known, comes twice, or has no meaning; the message names the
            nearest one, and never a value that may be a secret.
        TypeError: If *url* is no text.

    A scheme that is not built in is looked up among the entry points of the group ``outfall.sinks``.
    """
    if not isinstance(url, str):
        msg = f"url={url!r} is not text"
        raise TypeError(msg)
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    kind = _SCHEMES.get(scheme)
    if kind is None:
        plugin = _plugins().get(scheme)
        if plugin is not None:
            return _checked_sink(plugin.load()(url, **options), scheme)
        raise ValueError(_unknown_scheme(url, scheme))
    return kind.make(_Request(scheme, rest, options))


def is_url(text: str) -> bool:
    """Return True if *text* is a URL and not a path: it has ``://``, or begins with a known scheme and a colon.

    One letter and a colon is a drive.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or len(scheme) < 2 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return False
    return rest.startswith("//") or scheme.lower() in _SCHEMES or scheme.lower() in _plugins()


def schemes() -> dict[str, str]:
    """Return what each scheme stands for, those of installed plug-ins included."""
    return {name: kind.about for name, kind in _SCHEMES.items()} | {
        name: f"by {entry.value}" for name, entry in _plugins().items() if name not in _SCHEMES
    }


def parameters_of(scheme: str) -> dict[str, str]:
    """Return the options that URLs of a built-in *scheme* take, each with its annotation."""
    kind = _SCHEMES[scheme]
    names = {name: each for target in kind.targets() for name, each in _parameters(target).items()}
    return {name: str(each.annotation) for name, each in names.items() if name not in kind.fixed}


# -- a URL taken apart


class _Request:
    """A URL and the options given with it, from which sinks take what is theirs."""

    def __init__(self, scheme: str, rest: str, options: dict[str, Any]) -> None:
        self.scheme = scheme
        rest, self.fragment_mark, _ = rest.partition("#")
        where, _, query = rest.partition("?")
        self.where = where
        self.texts: dict[str, str] = {}
        for part in filter(None, query.split("&")):
            name, equals, text = part.partition("=")
            name = unquote(name)
            if not equals:
                msg = f"{scheme}: the option {name!r} has no value: write {name}=…"
                raise ValueError(msg)
            if name in self.texts or name in options:
                msg = f"{scheme}: the option {name!r} is given twice"
                raise ValueError(msg)
            self.texts[name] = unquote(text)
        if self.fragment_mark:
            msg = f"{scheme}: a '#' has no meaning here: write %23"
            raise ValueError(msg)
        self.values = dict(options)
        self.spool = self._own("spool", str)
        self.background = self._own("background", lambda text: _boolean("background", text))
        if self.spool is not None and self.background is not None:
            msg = f"{scheme}: spool= takes the place of a background: leave background= out"
            raise ValueError(msg)
        token_env = self._own("token_env", str)
        self.token: str | None = None
        if token_env is not None:
            self.token = os.environ.get(token_env)
            if not self.token:
                msg = f"{scheme}: token_env={token_env!r} names a variable that the environment does not have"
                raise ValueError(msg)
        try:
            parts = urlsplit(f"x:{where}")
            self.host, self.port = parts.hostname, parts.port
        except ValueError:
            msg = f"{scheme}: the host or port of the URL is not usable"
            raise ValueError(msg) from None
        self.user = None if parts.username is None else unquote(parts.username)
        self.password = None if parts.password is None else unquote(parts.password)
        self.path = unquote(parts.path)
        self.netloc = parts.netloc.rpartition("@")[2]

    def _own(self, name: str, convert: Callable[[str], Any]) -> Any:
        if name in self.values:
            return self.values.pop(name)
        return convert(self.texts.pop(name)) if name in self.texts else None

    def take(self, target: Callable[..., Any], prefix: str = "") -> dict[str, Any]:
        """Return the keyword arguments that *target* takes of what is left."""
        taken: dict[str, Any] = {}
        fixed = _SCHEMES[self.scheme].fixed
        for name, parameter in _parameters(target).items():
            if name in fixed:
                continue
            full = prefix + name
            if full in self.values:
                taken[name] = self.values.pop(full)
            elif full in self.texts:
                taken[name] = _converted(full, self.texts.pop(full), str(parameter.annotation))
            elif "Mapping" in str(parameter.annotation):
                dotted = {key: self.texts.pop(key) for key in list(self.texts) if key.startswith(f"{full}.")}
                if dotted:
                    taken[name] = {key[len(full) + 1 :]: text for key, text in dotted.items()}
        return taken

    def refuse_rest(self, targets: Iterable[Callable[..., Any]]) -> None:
        """Raise a ValueError if an option is left that nobody has taken."""
        left = [*self.texts, *self.values]
        if left:
            known = {*_OWN, *(name for target in targets for name in _parameters(target))}
            near = difflib.get_close_matches(left[0], sorted(known), 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            msg = f"{self.scheme}: there is no option {left[0]!r}{hint}"
            raise ValueError(msg)

    def refuse_place(self) -> None:
        """Raise a ValueError if there is anything between the scheme and the query."""
        if self.where not in ("", "//"):
            msg = f"{self.scheme}: nothing may stand behind the colon but options"
            raise ValueError(msg)

    @property
    def needed_host(self) -> str:
        """The host; a ValueError without one."""
        if not self.host:
            msg = f"{self.scheme}: the URL has no host: write {self.scheme}://host"
            raise ValueError(msg)
        return self.host

    @property
    def file_path(self) -> str:
        """The path of ``file:app.jsonl``, ``file:/var/log/app.jsonl`` or ``file:///var/log/app.jsonl``."""
        where = self.where
        if where.startswith("//"):
            host, slash, path = where[2:].partition("/")
            if host not in ("", "localhost"):
                msg = f"{self.scheme}: a file on another host cannot be opened: write {self.scheme}:///path"
                raise ValueError(msg)
            where = slash + path
        path = unquote(where)
        if not path:
            msg = f"{self.scheme}: the URL has no path: write {self.scheme}:app.jsonl"
            raise ValueError(msg)
        return path


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the named parameters of *target*, those of a typed mapping of options too."""
    found: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            options = re.search(r"Unpack\[(\w+)\]", str(parameter.annotation))
            if options is not None:
                found |= _options_of(getattr(sys.modules["outfall.adapters.collectors"], options[1]))
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL and name != "self":
            found[name] = parameter
    return found


def _options_of(mapping: Any) -> dict[str, inspect.Parameter]:
    """Return the keys of a TypedDict as parameters."""
    made: dict[str, inspect.Parameter] = {}
    for base in reversed(getattr(mapping, "__orig_bases__", ())):
        made |= _options_of(base)
    for name, annotation in getattr(mapping, "__annotations__", {}).items():
        text = getattr(annotation, "__forward_arg__", annotation)
        made[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=text)
    return made


# -- text to values


def _converted(name: str, text: str, annotation: str) -> Any:
    """Return *text* as a value for a parameter with *annotation*.

    Raises:
        ValueError: If it is none, or such a value cannot stand in a URL.
    """
    if text.lower() == "none" and "None" in annotation:
        return None
    for pattern, convert in _CONVERTERS if not re.match(r"(Iterable\[)?Callable|OnError", annotation) else ():
        if re.search(pattern, annotation):
            made = convert(name, text, annotation)
            if made is not _NOT_THIS:
                return made
    msg = f"{name}: such a value cannot stand in a URL: give it to open_sink() as an argument"
    raise ValueError(msg)


_NOT_THIS = object()


def _boolean(name: str, text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    msg = f"{name}={text!r} is neither true nor false"
    raise ValueError(msg)


def _maybe_boolean(name: str, text: str, annotation: str) -> Any:
    if re.fullmatch(r"bool( \| None)?", annotation) or text.lower() in ("true", "false"):
        return _boolean(name, text)
    return _NOT_THIS


def _span(_name: str, text: str, annotation: str) -> Any:
    if "tuple" in annotation and "," in text:
        return tuple(_number(part) for part in text.split(","))
    return _number(text)


def _number(text: str) -> Any:
    """Return *text* as a number if it is one, else as it is, for a sink to read as a span, a size or a name."""
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
    except ValueError:
        return text


def _whole(name: str, text: str, annotation: str) -> Any:
    if name.endswith("permissions"):
        if re.fullmatch(r"(0o)?[0-7]{3,4}", text):
            return int(text.removeprefix("0o"), 8)
    elif re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    elif name.endswith("bytes") or not re.fullmatch(r"int( \| None)?", annotation):
        return text
    msg = f"{name}={text!r} is not a whole number"
    raise ValueError(msg)


def _float(name: str, text: str, annotation: str) -> Any:
    made = _number(text)
    if isinstance(made, str) and "str" not in annotation and "Level" not in annotation:
        msg = f"{name}={text!r} is not a number"
        raise ValueError(msg)
    return made


def _time(name: str, text: str, _annotation: str) -> Any:
    try:
        return dt.time.fromisoformat(text)
    except ValueError:
        msg = f"{name}={text!r} is not a time of day such as 03:30"
        raise ValueError(msg) from None


def _pair(_name: str, text: str, _annotation: str) -> Any:
    return tuple(text.split(",", 1)) if "," in text else _NOT_THIS


#: By what stands in an annotation, in this order.
_CONVERTERS: tuple[tuple[str, Callable[[str, str, str], Any]], ...] = (
    (r"\bbool\b", _maybe_boolean),
    (r"\bSpan\b|timedelta", _span),
    (r"\bSize\b|\bint\b", _whole),
    (r"\bfloat\b|\bLevel\b", _float),
    (r"dt\.time\b", _time),
    (r"\bSink\b", lambda _name, text, _annotation: open_sink(text)),
    (r"tuple\[", _pair),
    (r"(Iterable|Collection|Sequence|list)\[str", lambda _name, text, _annotation: text.split(",")),
    (r"\bstr\b|PathLike|Literal|\b(Level|Mode|When|Method)\b|NaiveTimestamps", lambda _name, text, _annotation: text),
)


# -- schemes


@dataclass(frozen=True)
class _Kind:
    """What a scheme stands for.

    Args:
        about: One line for people.
        make: Makes the sink.
        targets: Returns the callables whose parameters may stand in the URL.
        fixed: Parameters that the rest of the URL gives.
    """

    about: str
    make: Callable[[_Request], Sink]
    targets: Callable[[], tuple[Callable[..., Any], ...]]
    fixed: frozenset[str] = field(default_factory=frozenset)


def _file(request: _Request) -> Sink:
    """Return the file sink whose parameters the URL has: plain, by size or by time."""
    import outfall

    path = request.file_path
    names = {name.partition(".")[0] for name in (*request.texts, *request.values)}
    by_time = names & {"when", "interval", "at_time", "utc"} or ("max_age" in names and "max_bytes" not in names)
    kind: type[Sink] = (
        outfall.TimedRotatingFileSink
        if by_time
        else outfall.RotatingFileSink
        if names - set(_parameters(outfall.FileSink))
        else outfall.FileSink
    )
    arguments = request.take(kind)
    return _finished(request, kind, path, arguments=arguments)


def _stream(name: str) -> Callable[[_Request], Sink]:
    def make(request: _Request) -> Sink:
        from outfall import StreamSink

        request.refuse_place()
        arguments = request.take(StreamSink)
        # Without a stream a StreamSink follows sys.stderr.
        given = () if name == "stderr" else (getattr(sys, name),)
        return _finished(request, StreamSink, *given, arguments=arguments)

    return make


def _null(request: _Request) -> Sink:
    from outfall import NullSink

    request.refuse_place()
    arguments = request.take(NullSink)
    return _finished(request, NullSink, arguments=arguments)


def _socket(*, datagrams: bool = False, tls: bool = False, unix: bool = False) -> Callable[[_Request], Sink]:
    def make(request: _Request) -> Sink:
        from outfall import DatagramSink, SocketSink

        kind: Any = DatagramSink if datagrams else SocketSink
        if unix:
            place: tuple[Any, Any] = (request.file_path, None)
        elif request.port is None:
            msg = f"{request.scheme}: the URL has no port: write {request.scheme}://host:port"
            raise ValueError(msg)
        else:
            place = (request.needed_host, request.port)
        arguments = request.take(kind)
        if tls:
            arguments.setdefault("tls", True)
        return _finished(request, kind, *place, arguments=arguments, network=not unix)

    return make


def _syslog(*, stream: bool = False, tls: bool = False) -> Callable[[_Request], Sink]:
    def make(request: _Request) -> Sink:
        import socket

        from outfall import SysLogSink

        local = not request.host
        address: Any = request.path if local else (request.host, request.port or (6514 if tls else 514))
        if local and not request.path:
            msg = f"{request.scheme}: the URL has neither host nor path: write {request.scheme}://host"
            raise ValueError(msg)
        arguments = request.take(SysLogSink)
        if stream:
            arguments.setdefault("socktype", socket.SOCK_STREAM)
        if tls:
            arguments.setdefault("tls", True)
        return _finished(request, SysLogSink, address, arguments=arguments, network=not local)

    return make


def _http(request: _Request) -> Sink:
    from outfall import NDJSON, FormURLEncoded, HTTPSink, JSONArray, JSONObject

    bodies = {"ndjson": NDJSON, "json": JSONObject, "array": JSONArray, "form": FormURLEncoded}
    name = request.texts.pop("body", "ndjson") if "body" not in request.values else None
    if name is not None and name not in bodies:
        msg = f"{request.scheme}: body={name!r} is none of {', '.join(bodies)}"
        raise ValueError(msg)
    url = _target_url(request, request.scheme)
    arguments = request.take(HTTPSink)
    if name is not None:
        arguments["body"] = bodies[name]()
    arguments |= _credentials(request)
    return _finished(request, HTTPSink, url, arguments=arguments, network=True)


def _target_url(request: _Request, scheme: str) -> str:
    """Return the URL to send to: without the credentials and options, with ``query.NAME`` as its own query."""
    if not scheme.endswith("unix"):
        _ = request.needed_host
    queries = {name: request.texts.pop(name) for name in list(request.texts) if name.startswith("query.")}
    query = "&".join(f"{quote(name[6:], safe='')}={quote(text, safe='')}" for name, text in queries.items())
    path = request.where.removeprefix("//").partition("/")
    return f"{scheme}://{request.netloc}{path[1]}{path[2]}{'?' if query else ''}{query}"


def _credentials(request: _Request) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if request.user is not None:
        made["auth"] = (request.user, request.password or "")
    if request.token is not None:
        made["token"] = request.token
    return made


def _collector(name: str, token: str | None = "token") -> Callable[[_Request], Sink]:
    """Return what makes a collector's sink by its factory, which puts a background or a spool around it."""

    def make(request: _Request) -> Sink:
        import outfall

        factory = getattr(outfall, name)
        place = "endpoint" if name == "otlp_sink" else "url"
        url = _target_url(request, request.scheme.partition("+")[2])
        arguments = request.take(factory)
        if request.user is not None:
            arguments["auth"] = (request.user, request.password or "")
        if request.token is not None:
            if token is None:
                msg = f"{request.scheme}: it has no token, so token_env has no meaning"
                raise ValueError(msg)
            arguments[token] = request.token
        if request.spool is not None:
            arguments["spool"] = request.spool
            for option in _parameters(outfall.SpoolSink):
                full = f"spool.{option}"
                if full in request.texts:
                    annotation = str(_parameters(outfall.SpoolSink)[option].annotation)
                    arguments[option] = _converted(full, request.texts.pop(full), annotation)
        request.refuse_rest((factory, outfall.BackgroundSink))
        needed = [
            option
            for option, parameter in inspect.signature(factory).parameters.items()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
        for option in needed:
            if option not in {place, *arguments}:
                msg = f"{request.scheme}: the option {option!r} is missing"
                raise ValueError(msg)
        sink: Sink = factory(**{place: url}, **arguments)
        if request.background is False:
            inner: Sink = sink.target  # type: ignore[attr-defined]
            inner.level = sink.level
            return inner
        return sink

    return make


def _mail(*, implicit_tls: bool) -> Callable[[_Request], Sink]:
    def make(request: _Request) -> Sink:
        from outfall import SMTPSink

        host = (request.needed_host, request.port or (465 if implicit_tls else 25))
        arguments = request.take(SMTPSink)
        missing = [name for name in ("fromaddr", "toaddrs", "subject") if name not in arguments]
        if missing:
            msg = f"{request.scheme}: the option {missing[0]!r} is missing"
            raise ValueError(msg)
        if implicit_tls:
            arguments.setdefault("implicit_tls", True)
        if request.user is not None:
            arguments["credentials"] = (request.user, request.password or "")
        return _finished(request, SMTPSink, host, arguments=arguments, network=True)

    return make


def _finished(
    request: _Request, kind: Callable[..., Sink], *places: Any, arguments: dict[str, Any], network: bool = False
) -> Sink:
    """Return a sink of *kind*, with the background or the spool around it that *request* asks for."""
    from outfall import BackgroundSink, SpoolSink

    around = SpoolSink if request.spool is not None else BackgroundSink
    behind = request.spool is not None or (network if request.background is None else request.background)
    if not behind:
        request.refuse_rest((kind,))
        return kind(*places, **arguments)
    # What both take is the outer sink's.
    outer = {name: arguments.pop(name) for name in _SHARED if name in arguments}
    wrapper = request.take(around, "spool." if request.spool is not None else "")
    wrapper.pop("target", None)
    request.refuse_rest((kind, around))
    target = kind(*places, **arguments)
    if request.spool is not None:
        wrapper["directory"] = request.spool
    try:
        return around(target, **wrapper, **outer)
    except BaseException:
        target.close(0)
        raise


#: What the outermost sink has, and nobody behind it.
_SHARED = ("level", "processors", "on_error", "name")


def _checked_sink(made: Any, scheme: str) -> Sink:
    if not isinstance(made, Sink):
        msg = f"{scheme}: what the entry point returned is no sink, but a {type(made).__name__}"
        raise TypeError(msg)
    return made


def _unknown_scheme(url: str, scheme: str) -> str:
    known = sorted({*_SCHEMES, *_plugins()})
    if ":" not in url:
        return f"url={url!r} has no scheme: write file:{url}" if "@" not in url else "the URL has no scheme"
    if len(scheme) == 1:
        return f"the URL begins with a drive: write file:{url}"
    near = difflib.get_close_matches(scheme, known, 1)
    return f"the scheme {scheme!r} is not known" + (f": did you mean {near[0]!r}?" if near else "")


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _named(*names: str) -> Callable[[], tuple[Callable[..., Any], ...]]:
    def targets() -> tuple[Callable[..., Any], ...]:
        import outfall

        return tuple(getattr(outfall, name) for name in names)

    return targets


_NETWORK = ("host", "port")
_SCHEMES: dict[str, _Kind] = {
    "file": _Kind(
        "lines of JSON in a file, plain or rotated as the options say",
        _file,
        _named("FileSink", "RotatingFileSink", "TimedRotatingFileSink"),
        frozenset({"filename"}),
    ),
    "stderr": _Kind("the process's stderr", _stream("stderr"), _named("StreamSink"), frozenset({"stream"})),
    "stdout": _Kind("the process's stdout", _stream("stdout"), _named("StreamSink"), frozenset({"stream"})),
    "null": _Kind("nowhere", _null, _named("NullSink")),
    "tcp": _Kind("frames over TCP", _socket(), _named("SocketSink"), frozenset(_NETWORK)),
    "tls": _Kind("frames over TLS", _socket(tls=True), _named("SocketSink"), frozenset(_NETWORK)),
    "unix": _Kind("frames over a Unix socket", _socket(unix=True), _named("SocketSink"), frozenset(_NETWORK)),
    "udp": _Kind("datagrams", _socket(datagrams=True), _named("DatagramSink"), frozenset(_NETWORK)),
    "syslog": _Kind(
        "a syslog daemon over UDP, or at a path such as syslog:///dev/log",
        _syslog(),
        _named("SysLogSink"),
        frozenset({"address"}),
    ),
    "syslog+tcp": _Kind("a syslog daemon over TCP", _syslog(stream=True), _named("SysLogSink"), frozenset({"address"})),
    "syslog+tls": _Kind(
        "a syslog daemon over TLS", _syslog(stream=True, tls=True), _named("SysLogSink"), frozenset({"address"})
    ),
    "http": _Kind("an HTTP server; body=ndjson, json, array or form", _http, _named("HTTPSink"), frozenset({"url"})),
    "https": _Kind("the same over TLS", _http, _named("HTTPSink"), frozenset({"url"})),
    "http+unix": _Kind("the same over a Unix socket", _http, _named("HTTPSink"), frozenset({"url"})),
    "smtp": _Kind("mails", _mail(implicit_tls=False), _named("SMTPSink"), frozenset({"mailhost", "credentials"})),
    "smtps": _Kind("mails, TLS", _mail(implicit_tls=True), _named("SMTPSink"), frozenset({"mailhost", "credentials"})),
}
for _name, _factory, _token in (
    ("loki", "loki_sink", "token"),
    ("otlp", "otlp_sink", "token"),
    ("elasticsearch", "elasticsearch_sink", "api_key"),
    ("opensearch", "opensearch_sink", None),
    ("splunk", "splunk_sink", "token"),
    ("datadog", "datadog_sink", "api_key"),
    ("gelf", "gelf_sink", "token"),
):
    for _transport in ("http", "https", "http+unix"):
        _SCHEMES[f"{_name}+{_transport}"] = _Kind(
            f"{_name}, over {_transport.upper().replace('+UNIX', ' and a Unix socket')}",
            _collector(_factory, _token),
            _named(_factory),
            frozenset({"url", "endpoint", "spool"}),
        )
