"""The kinds of sinks that a URL can name: one table, an entry for each scheme.

To add a scheme, add an entry to `SCHEMES`. It needs a line for people, an example, what makes the sink (one of
`at_host`, `at_path`, `anywhere`, `by_url` in most cases), the names of what is called in `outfall`, and the
parameters that the URL itself gives and its query may not.
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
    """What a scheme stands for.

    Args:
        example: A URL of the scheme, with the options that it needs.
        about: One line for people.
        make: Makes the sink of a `Request`.
        sinks: The names, in `outfall`, of what may be made: its parameters are the options.
        fixed: Those parameters that the URL itself gives.
        choices: Options that stand for an object: for each, the parameter that gets it, and the names, in `outfall`, of
            what its choices make. The first is the default.
        extra: The extra of Outfall that it needs, or None.
        client: The module that this extra installs, or None.
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
        """Return what makes its sinks."""
        import outfall

        return tuple(getattr(outfall, name) for name in self.sinks)


# -- what makes a sink


def anywhere(name: str) -> Maker:
    """Return what makes a sink that has no place: nothing stands behind the colon but options."""

    def make(request: Request) -> Sink:
        request.refuse_place()
        return finished(request, _class(name))

    return make


def at_host(name: str, *, port: int | None = None, **defaults: Any) -> Maker:
    """Return what makes a sink of *name* with a host and a port first; *port* is for URLs without one."""

    def make(request: Request) -> Sink:
        host, number = request.needed_host, request.port or port
        request.refuse_path()
        if number is None:
            msg = f"{request.scheme}: the URL has no port: write {request.scheme}://host:port"
            raise ValueError(msg)
        return finished(request, _class(name), host, number, network=True, defaults=defaults)

    return make


def at_path(name: str, *more: Any) -> Maker:
    """Return what makes a sink of *name* with a path first, and *more* behind it; nothing crosses a network."""
    return lambda request: finished(request, _class(name), request.file_path, *more)


def by_url(name: str, *, network: bool = True) -> Maker:
    """Return what makes a sink of *name* with the URL itself first, credentials included and options not."""

    def make(request: Request) -> Sink:
        _ = request.login
        return finished(request, _class(name), f"{request.scheme}:{request.where}", network=network)

    return make


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
    """Return a sink of *kind*, with the background or the spool around it that *request* asks for.

    Args:
        request: What has the options.
        kind: What makes the sink.
        *places: Its positional arguments.
        network: Whether it gets a background unless the URL says otherwise.
        defaults: Arguments that options may replace.
        arguments: Arguments that they may not.

    Raises:
        ValueError: If an option is not known or has no meaning.
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
    # What both take is the outer sink's.
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


#: What the outermost sink has, and none behind it.
_OUTER = ("level", "processors", "on_error", "name")


def _file(request: Request) -> Sink:
    """Return the file sink whose parameters the URL has: plain, by size or by time."""
    import outfall

    path = request.file_path
    names = {name.partition(".")[0] for name in (*request.texts, *request.values)}
    dated = "{date:" in path  # the name of the file that is written has its date
    by_time = dated or names & _BY_TIME or ("max_age" in names and "max_bytes" not in names)
    kind: type[Sink] = (
        outfall.TimedRotatingFileSink
        if by_time
        else outfall.RotatingFileSink
        if names - set(parameters_of(outfall.FileSink))
        else outfall.FileSink
    )
    return finished(request, kind, path)


_BY_TIME = {"when", "interval", "at_time", "utc", "link"}


def _stream(name: str) -> Maker:
    def make(request: Request) -> Sink:
        request.refuse_place()
        # Without a stream a StreamSink follows sys.stderr.
        given = () if name == "stderr" else (getattr(sys, name),)
        return finished(request, _class("StreamSink"), *given)

    return make


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
    """Return what makes a collector's sink by its factory, which puts a background or a spool around it."""

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
        return _bare(sink) if request.background is False else sink

    return make


def _bare(sink: Any) -> Sink:
    """Return the sink behind *sink*, without the thread, with what the outer one had of its own."""
    inner: Sink = sink.target
    inner.level, inner.on_error = sink.level, sink.on_error
    inner._processors = sink.processors
    inner._wrappers = ()
    inner._changed()
    return inner


# -- the table

_HOST = frozenset({"host", "port"})
#: The port that Graylog's inputs have unless they are given another.
_GELF = 12201
#: The port of the Forward protocol.
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


def _over_http(name: str, about: str, token: str | None, options: str = "") -> dict[str, Kind]:
    """Return the entries of a collector, whose factory is *name*_sink, by the transports it has."""
    factory, fixed = f"{name}_sink", frozenset({"url", "endpoint", "spool"})
    return {
        f"{name}+{transport}": Kind(
            f"{name}+{transport}://{place}{options}",
            f"{about}, over {told}",
            _collector(factory, token),
            (factory,),
            fixed,
        )
        for transport, place, told in (
            ("http", "host", "HTTP"),
            ("https", "host", "HTTPS"),
            ("http+unix", "/run/collector.sock", "HTTP and a Unix socket"),
        )
    }


#: Each scheme, and what it stands for.
SCHEMES: dict[str, Kind] = {
    "file": Kind(
        "file:app.jsonl",
        "lines of JSON in a file, plain or rotated as the options say",
        _file,
        ("FileSink", "RotatingFileSink", "TimedRotatingFileSink"),
        frozenset({"filename"}),
    ),
    "stderr": Kind("stderr:", "the process's stderr", _stream("stderr"), ("StreamSink",), frozenset({"stream"})),
    "stdout": Kind("stdout:", "the process's stdout", _stream("stdout"), ("StreamSink",), frozenset({"stream"})),
    "null": Kind("null:", "nowhere", anywhere("NullSink"), ("NullSink",)),
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
    **{
        scheme: Kind(
            f"{scheme}://host?key=logs",
            about,
            by_url("RedisSink"),
            ("RedisSink",),
            frozenset({"url"}),
            extra="redis",
            client="redis",
        )
        for scheme, about in (("redis", "a stream of Redis, or a list"), ("rediss", "the same over TLS"))
    },
    **{
        scheme: Kind(
            f"{scheme}://host?routing_key=logs",
            about,
            by_url("AMQPSink"),
            ("AMQPSink",),
            frozenset({"url"}),
            extra="amqp",
            client="pika",
        )
        for scheme, about in (("amqp", "an exchange or a queue of RabbitMQ"), ("amqps", "the same over TLS"))
    },
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
