"""The kinds of sinks that a URL can name: one table, an entry for each scheme.

To add a scheme, add an entry to `SCHEMES`. It needs an example, a description, a function that makes the sink (in most
cases from `at_host`, `at_path` or `without_place`), the names in `outfall` of the sinks that this makes, and
the parameters that come from the URL itself, not from its query.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outfall.adapters.urls.request import parameters_of
from outfall.adapters.urls.values import converted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from outfall.adapters.urls.request import Request
    from outfall.sinks.core.sink import Sink

    Maker = Callable[[Request], Sink]


@dataclass(frozen=True)
class Kind:
    """The kind of sink that a scheme names.

    Args:
        example: A URL of the scheme, with the required options.
        about: A description in one line.
        make: A function that makes the sink for a `Request`.
        sinks: The names in `outfall` of the classes or factories that *make* calls. Their parameters are the options.
        fixed: The parameters that come from the URL itself and are not options.
        choices: Options that name an object. For each, the parameter that gets the object, and the names in `outfall`
            of the classes by choice. The first is the default.
        extra: The extra of Outfall that it needs, or None.
        client: The module that the extra installs, or None.
    """

    example: str
    about: str
    make: Maker
    sinks: tuple[str, ...]
    fixed: frozenset[str] = field(default_factory=frozenset)
    choices: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    extra: str | None = None
    client: str | None = None

    def targets(self) -> tuple[Callable[..., Any], ...]:
        """Return the classes or factories of its sinks."""
        import outfall

        return tuple(getattr(outfall, name) for name in self.sinks)


# -- functions that make sinks


def without_place(name: str, stream: str | None = None) -> Maker:
    """Return a function that makes the sink *name* from a URL without host and path.

    Args:
        name: The name of the class in `outfall`.
        stream: The name in `sys` of its first argument. Default None: it has none.
    """

    def make(request: Request) -> Sink:
        request.refuse_place()
        return finished(request, _class(name), *(() if stream is None else (getattr(sys, stream),)))

    return make


def at_host(name: str, *, port: int | None = None, **defaults: Any) -> Maker:
    """Return a function that makes the sink *name* with host and port as its first arguments.

    Args:
        name: The name of the class in `outfall`.
        port: The default port. None: the URL must have one.
        **defaults: Arguments that options may replace.
    """

    def make(request: Request) -> Sink:
        host, number = request.needed_host, request.port or port
        request.refuse_path()
        if number is None:
            msg = f"{request.scheme}: the URL has no port: write {request.scheme}://host:port"
            raise ValueError(msg)
        return finished(request, _class(name), host, number, network=True, defaults=defaults)

    return make


def at_path(name: str, *more: Any) -> Maker:
    """Return a function that makes the sink *name*, of this machine, with a path and *more* as its first arguments."""
    return lambda request: finished(request, _class(name), request.file_path, *more)


def _class(name: str) -> Any:
    import outfall

    return getattr(outfall, name)


def finished(
    request: Request,
    kind: Callable[..., Sink],
    *places: Any,
    network: bool = False,
    defaults: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Sink:
    """Make a sink of *kind*, wrapped in a `BackgroundSink` or `SpoolSink` if *request* asks for one.

    Args:
        request: The request, which has the options.
        kind: The class of the sink.
        *places: Its positional arguments.
        network: Whether a background is the default.
        defaults: Arguments that options may replace.
        arguments: Arguments that options may not replace.

    Raises:
        ValueError: If an option is unknown, missing, or has no meaning.
    """
    from outfall import BackgroundSink, SpoolSink

    given = {**(defaults or {}), **request.chosen(), **request.take(kind), **(arguments or {})}
    request.refuse_credentials(not given.keys().isdisjoint({"token", "shared_key"}))
    _refuse_missing(request, kind, {*given, *list(parameters_of(kind))[: len(places)]})
    around = SpoolSink if request.spool is not None else BackgroundSink
    behind = request.spool is not None or (network if request.background is None else request.background)
    if not behind:
        request.refuse_rest((kind,))
        return kind(*places, **given)
    # Parameters that both sinks have are for the outer one.
    outer = {name: given.pop(name) for name in _OUTER if name in given}
    wrapper = request.take(around, "spool." if request.spool is not None else "")
    wrapper.pop("target", None)
    request.refuse_rest((kind, around))
    target = kind(*places, **given)
    if request.spool is not None:
        wrapper["directory"] = request.spool
    try:
        return around(target, **wrapper, **outer)
    except BaseException:
        target.close(0)
        raise


#: Parameters that the outermost sink gets, and the sink behind it does not.
_OUTER = ("level", "processors", "on_error", "name")


def _file(request: Request) -> Sink:
    """Make the file sink that has the options of the URL: plain, rotating by size, or rotating by time."""
    import outfall

    path = request.file_path
    names = {name.partition(".")[0] for name in (*request.texts, *request.values)}
    dated = "{date:" in path  # the date is in the name of the current file
    by_time = dated or names & _BY_TIME or ("max_age" in names and "max_bytes" not in names)
    kind: type[Sink] = (
        outfall.TimedRotatingFileSink
        if by_time
        else outfall.RotatingFileSink
        if names - set(parameters_of(outfall.FileSink))
        else outfall.FileSink
    )
    kept = names & {"compression", "backup_count", "max_total_bytes"}
    if kind is outfall.RotatingFileSink and kept and "max_bytes" not in names:
        msg = f"file: {min(kept)}= needs max_bytes= or when=, which say when another file begins"
        raise ValueError(msg)
    return finished(request, kind, path)


_BY_TIME = {"when", "interval", "at_time", "utc", "link"}


def _syslog(*, stream: bool = False, tls: bool = False) -> Maker:
    def make(request: Request) -> Sink:
        import socket

        local = not request.host
        address: Any = request.path if local else (request.host, request.port or (6514 if tls else 514))
        if local and not request.path:
            msg = f"{request.scheme}: the URL has neither host nor path: write {request.scheme}://host"
            raise ValueError(msg)
        if not local:
            request.refuse_path()
        defaults = ({"socktype": socket.SOCK_STREAM} if stream else {}) | ({"tls": True} if tls else {})
        return finished(request, _class("SysLogSink"), address, network=not local, defaults=defaults)

    return make


def _kafka(request: Request) -> Sink:
    servers, topic = request.netloc, request.path.strip("/")
    if not servers or not topic or "/" in topic:
        msg = f"{request.scheme}: the URL has to name a server and a topic: write {request.scheme}://host:9092/topic"
        raise ValueError(msg)
    return finished(request, _class("KafkaSink"), servers, topic, network=True)


def _http(request: Request) -> Sink:
    url = request.server_url(request.scheme)
    given = {"auth": request.login, "token": request.token}
    arguments = {name: value for name, value in given.items() if value is not None}
    return finished(request, _class("HTTPSink"), url, network=True, arguments=arguments)


def _mail(*, implicit_tls: bool) -> Maker:
    def make(request: Request) -> Sink:
        host = (request.needed_host, request.port or (465 if implicit_tls else 25))
        request.refuse_path()
        arguments = {} if request.login is None else {"credentials": request.login}
        defaults = {"implicit_tls": True} if implicit_tls else {}
        return finished(request, _class("SMTPSink"), host, network=True, defaults=defaults, arguments=arguments)

    return make


def _refuse_missing(request: Request, kind: Callable[..., Any], given: Collection[str]) -> None:
    """Raise a ValueError if *given* lacks a parameter that *kind* needs."""
    for name, parameter in parameters_of(kind).items():
        if parameter.default is parameter.empty and name not in given:
            msg = f"{request.scheme}: the option {name!r} is missing: write {name}=…"
            raise ValueError(msg)


def _collector(name: str, token: str | None) -> Maker:
    """Return a function that makes a collector's sink by its factory, which adds the background or spool itself."""

    def make(request: Request) -> Sink:
        import outfall

        factory = _class(name)
        place = "endpoint" if "endpoint" in parameters_of(factory) else "url"
        arguments = {place: request.server_url(request.scheme.partition("+")[2]), **request.take(factory)}
        if request.login is not None:
            arguments["auth"] = request.login
        if request.token is not None and token is not None:
            arguments[token] = request.token
        request.refuse_credentials(token is not None)
        if request.spool is not None:
            arguments["spool"] = request.spool
            for option, parameter in parameters_of(outfall.SpoolSink).items():
                text = request.texts.pop(f"spool.{option}", None)
                if text is not None:
                    arguments[option] = converted(f"spool.{option}", text, str(parameter.annotation))
        request.refuse_rest((factory, outfall.BackgroundSink))
        _refuse_missing(request, factory, arguments)
        try:
            sink: Sink = factory(**arguments)
        except TypeError as error:
            msg = f"{request.scheme}: {error}"
            raise ValueError(msg) from None
        return _unwrapped(sink) if request.background is False else sink

    return make


def _unwrapped(sink: Any) -> Sink:
    """Return the target of *sink*, with the level, processors and error policy of *sink*."""
    inner: Sink = sink.target
    inner.level, inner.on_error = sink.level, sink.on_error
    inner._processors = sink.processors
    inner._wrappers = ()
    inner._changed()
    return inner


# -- the table

_HOST = frozenset({"host", "port"})
#: The default port of Graylog's inputs.
_GELF = 12201
#: The default port of the Forward protocol.
_FORWARD = 24224
_FLUENT: tuple[tuple[str], frozenset[str], dict[str, Any], str, str] = (
    ("FluentSink",),
    _HOST,
    {},
    "fluent",
    "msgpack",
)
_FRAMING = {"framing": ("codec", {"lines": "JSONLines", "frames": "JSONFrames"})}
_BODIES = {"ndjson": "NDJSON", "json": "JSONObject", "array": "JSONArray", "form": "FormURLEncoded"}
_STREAM = (("StreamSink",), frozenset({"stream"}))
_SYSLOG = (("SysLogSink",), frozenset({"address"}))
_MAIL = (("SMTPSink",), frozenset({"mailhost", "credentials"}))
_MAIL_OPTIONS = "?fromaddr=a@example.org&toaddrs=b@example.org&subject=Log"


def _gelf(**defaults: Any) -> Maker:
    def make(request: Request) -> Sink:
        from outfall import GELFFrames

        return at_host("SocketSink", port=_GELF, codec=GELFFrames(), **defaults)(request)

    return make


def _fluent(*, unix: bool = False, **defaults: Any) -> Maker:
    def make(request: Request) -> Sink:
        given = dict(defaults)
        if request.login is not None:
            given["username"], given["password"] = request.login
        if request.token is not None:
            given["shared_key"] = request.token
        if not unix:
            request.refuse_path()
        places = (request.file_path, None) if unix else (request.needed_host, request.port or _FORWARD)
        return finished(request, _class("FluentSink"), *places, network=True, defaults=given)

    return make


def _journald(request: Request) -> Sink:
    places = () if request.where in ("", "//") else (request.file_path,)
    return finished(request, _class("JournaldSink"), *places)


def _at_broker(extra: str, name: str, options: str, about: str, client: str) -> dict[str, Kind]:
    """Return two entries, plain and over TLS, for the sink *name*, whose argument is the URL without the query."""

    def make(request: Request) -> Sink:
        _ = request.login
        return finished(request, _class(name), f"{request.scheme}:{request.where}", network=True)

    return {
        scheme: Kind(f"{scheme}://host{options}", shown, make, (name,), frozenset({"url"}), {}, extra, client)
        for scheme, shown in ((extra, about), (f"{extra}s", "the same over TLS"))
    }


def _over_http(name: str, about: str, token: str | None, options: str = "") -> dict[str, Kind]:
    """Return the entries of a collector, whose factory is *name*_sink, one for each transport."""
    factory, fixed = f"{name}_sink", frozenset({"url", "endpoint", "spool"})
    return {
        f"{name}+{transport}": Kind(
            f"{name}+{transport}://{place}{options}",
            f"{about}, over {shown}",
            _collector(factory, token),
            (factory,),
            fixed,
        )
        for transport, place, shown in (
            ("http", "host", "HTTP"),
            ("https", "host", "HTTPS"),
            ("http+unix", "/run/collector.sock", "HTTP and a Unix socket"),
        )
    }


#: The kind of sink of each scheme.
SCHEMES: dict[str, Kind] = {
    "file": Kind(
        "file:app.jsonl",
        "lines of JSON in a file, plain or rotated as the options say",
        _file,
        ("FileSink", "RotatingFileSink", "TimedRotatingFileSink"),
        frozenset({"filename"}),
    ),
    "stderr": Kind("stderr:", "the process's stderr", without_place("StreamSink"), *_STREAM),
    "stdout": Kind("stdout:", "the process's stdout", without_place("StreamSink", "stdout"), *_STREAM),
    "null": Kind("null:", "nowhere", without_place("NullSink"), ("NullSink",)),
    "tcp": Kind("tcp://host:port", "lines of JSON over TCP", at_host("SocketSink"), ("SocketSink",), _HOST, _FRAMING),
    "tls": Kind(
        "tls://host:port", "the same over TLS", at_host("SocketSink", tls=True), ("SocketSink",), _HOST, _FRAMING
    ),
    "unix": Kind(
        "unix:/path", "the same over a Unix socket", at_path("SocketSink", None), ("SocketSink",), _HOST, _FRAMING
    ),
    "udp": Kind("udp://host:port", "datagrams", at_host("DatagramSink"), ("DatagramSink",), _HOST, _FRAMING),
    "fluent": Kind("fluent://host?tag=app", "Fluentd or Fluent Bit", _fluent(), *_FLUENT),
    "fluent+tls": Kind("fluent+tls://host?tag=app", "the same over TLS", _fluent(tls=True), *_FLUENT),
    "fluent+unix": Kind("fluent+unix:/path?tag=app", "the same over a Unix socket", _fluent(unix=True), *_FLUENT),
    "journald": Kind("journald:", "systemd's journal", _journald, ("JournaldSink",), frozenset({"path"})),
    "syslog": Kind("syslog://host", "a syslog daemon over UDP, or at a path: syslog:///dev/log", _syslog(), *_SYSLOG),
    "syslog+tcp": Kind("syslog+tcp://host", "a syslog daemon over TCP", _syslog(stream=True), *_SYSLOG),
    "syslog+tls": Kind("syslog+tls://host", "a syslog daemon over TLS", _syslog(stream=True, tls=True), *_SYSLOG),
    **{
        scheme: Kind(example, about, _http, ("HTTPSink",), frozenset({"url"}), {"body": ("body", _BODIES)})
        for scheme, example, about in (
            ("http", "http://host/path", "an HTTP server"),
            ("https", "https://host/path", "the same over TLS"),
            ("http+unix", "http+unix:///run/collector.sock", "the same over a Unix socket"),
        )
    },
    "smtp": Kind(f"smtp://host{_MAIL_OPTIONS}", "mails", _mail(implicit_tls=False), *_MAIL),
    "smtps": Kind(f"smtps://host{_MAIL_OPTIONS}", "mails, over TLS", _mail(implicit_tls=True), *_MAIL),
    **_at_broker("redis", "RedisSink", "?key=logs", "a stream of Redis, or a list", "redis"),
    **_at_broker("amqp", "AMQPSink", "?routing_key=logs", "an exchange or a queue of RabbitMQ", "pika"),
    "kafka": Kind(
        "kafka://host:9092/topic",
        "a topic of Kafka; config.NAME= is librdkafka's configuration",
        _kafka,
        ("KafkaSink",),
        frozenset({"servers", "topic"}),
        extra="kafka",
        client="confluent_kafka",
    ),
    **_over_http("loki", "Grafana Loki", "token"),
    **_over_http("otlp", "an OpenTelemetry collector", "token"),
    **_over_http("elasticsearch", "Elasticsearch", "api_key", "?index=logs"),
    **_over_http("opensearch", "OpenSearch", None, "?index=logs"),
    **_over_http("splunk", "Splunk's HTTP Event Collector", "token", "?token_env=SPLUNK_TOKEN"),
    **_over_http("datadog", "Datadog", "api_key", "?token_env=DD_API_KEY"),
    **_over_http("gelf", "Graylog", "token"),
    "gelf+udp": Kind(
        "gelf+udp://host", "Graylog, by UDP", at_host("GELFDatagramSink", port=_GELF), ("GELFDatagramSink",), _HOST
    ),
    "gelf+tcp": Kind("gelf+tcp://host", "Graylog, by TCP", _gelf(), ("SocketSink",), _HOST | {"codec"}),
    "gelf+tls": Kind("gelf+tls://host", "Graylog, by TLS", _gelf(tls=True), ("SocketSink",), _HOST | {"codec"}),
}
