"""A sink in one string."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
from importlib import metadata

import pytest

import outfall
from outfall.adapters.urls import is_url, open_sink, options_of, schemes
from outfall.adapters.urls.kinds import SCHEMES
from outfall.adapters.urls.values import converted
from tests.sinks._http import Server


@pytest.fixture
def opened():
    """Give a function that opens a URL, and close what it has opened."""
    sinks = []

    def make(url, **options):
        sinks.append(open_sink(url, **options))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close(1)


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("", outfall.FileSink),
        ("?buffer_bytes=64KiB", outfall.FileSink),
        ("?max_bytes=50MB&backup_count=5", outfall.RotatingFileSink),
        ("?max_bytes=50MB&compression=gzip", outfall.RotatingFileSink),
        ("?when=midnight", outfall.TimedRotatingFileSink),
        ("?max_age=10%20days", outfall.TimedRotatingFileSink),
        ("?when=h&max_bytes=1MB", outfall.TimedRotatingFileSink),
    ],
)
def test_a_file_is_plain_or_rotates_as_the_options_say(query, kind, opened, tmp_path):
    """By size, by time, or not at all."""
    sink = opened(f"file:{tmp_path}/app.jsonl{query}")
    sink.handle({"event": "x"})
    assert sink.flush()
    assert type(sink) is kind
    assert json.loads((tmp_path / "app.jsonl").read_text()) == {"event": "x"}


def test_options_become_values_of_the_parameters(opened, tmp_path):
    """Sizes, spans, whole numbers, truth, permissions and levels."""
    sink = opened(
        f"file:///{tmp_path}/a.jsonl?max_bytes=1.5MB&backup_count=7&permissions=640&level=WARN&delay=true&name=audit"
    )
    assert (sink.max_bytes, sink.backup_count, sink.permissions) == (1_500_000, 7, 0o640)
    assert (sink.level, sink.delay, sink.name) == (30, True, "audit")


def test_a_path_is_decoded_once(opened, tmp_path):
    """A percent sign in a name is written as %25; `..` is what the system makes of it."""
    (tmp_path / "d").mkdir()
    opened(f"file:{tmp_path}/d/../a%20b%2541.jsonl").handle({"event": "x"})
    assert (tmp_path / "a b%41.jsonl").exists()


def test_a_relative_path_is_relative_to_the_working_directory(opened, tmp_path, monkeypatch):
    """As with FileSink itself."""
    monkeypatch.chdir(tmp_path)
    opened("file:app.jsonl").handle({"event": "x"})
    assert (tmp_path / "app.jsonl").exists()


def test_console_and_nowhere(opened, capsys):
    """stderr, stdout and null take no path."""
    opened("stdout:").handle({"event": "x"})
    opened("null:").handle({"event": "y"})
    assert capsys.readouterr().out == '{"event":"x"}\n'
    with pytest.raises(ValueError, match="stderr: only options may follow"):
        open_sink("stderr://host")


def test_a_target_over_a_network_is_behind_a_thread(opened):
    """With the thread's options in the same query, unless background=false leaves it out."""
    with Server() as server:
        url = server.url.replace("http://", "http://ann:secret@")
        sink = opened(f"{url}?linger=0&capacity=50&timeout=3,10&query.api=v2&headers.X-Team=a%2Bb&body=json")
        assert isinstance(sink, outfall.BackgroundSink)
        sink.handle({"event": "x"})
        assert sink.flush(60)
        [request] = server.requests
        assert request.target.endswith("?api=v2")
        assert request.headers["x-team"] == "a+b"
        assert request.headers["authorization"].startswith("Basic ")
        assert "secret" not in repr(sink)
        assert isinstance(opened(f"{server.url}?background=false"), outfall.HTTPSink)


def test_a_spool_takes_the_place_of_the_thread(opened, tmp_path):
    """Its own options have `spool.` before them; level and name are the outermost sink's."""
    with Server() as server:
        sink = opened(f"{server.url}?spool={tmp_path}/spool&spool.max_bytes=1GB&level=error&name=audit&spool.linger=0")
        assert isinstance(sink, outfall.SpoolSink)
        assert (sink.name, sink.level, sink.target.level) == ("audit", 40, 0)
        sink.handle({"event": "x", "level": "error"})
        sink.handle({"event": "y", "level": "info"})
        assert sink.flush(60)
        assert [json.loads(request.raw_body) for request in server.requests] == [{"event": "x", "level": "error"}]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("loki+http://127.0.0.1:9?labels.app=shop", "LokiStreams"),
        ("otlp+http://127.0.0.1:9?resource.service.name=shop", "OTLPLogs"),
        ("elasticsearch+http://127.0.0.1:9?index=logs", "ElasticsearchBulk"),
        ("opensearch+http://127.0.0.1:9?index=logs", "ElasticsearchBulk"),
        ("gelf+http://127.0.0.1:9", "GELFMessage"),
    ],
)
def test_a_collector_has_a_scheme(url, body, opened):
    """Each with its own parameters, its token from the environment, and those of what is around it."""
    sink = opened(f"{url}{'&' if '?' in url else '?'}batch_size=10&linger=1s")
    assert isinstance(sink, outfall.BackgroundSink)
    assert body in repr(sink)
    assert body in repr(opened(f"{url}{'&' if '?' in url else '?'}background=false"))


def test_a_token_comes_from_the_environment(opened, monkeypatch):
    """It stands in no URL, no repr and no report."""
    monkeypatch.setenv("SPLUNK_TOKEN", "sesame-open")
    sink = opened("splunk+http://127.0.0.1:9?token_env=SPLUNK_TOKEN")
    assert "sesame" not in repr(sink)
    with pytest.raises(ValueError, match="token_env='NO_SUCH_VARIABLE'"):
        open_sink("splunk+http://127.0.0.1:9?token_env=NO_SUCH_VARIABLE")


def test_the_journal_needs_no_path(opened, tmp_path):
    """The system's, or that of a namespace; the options are the sink's."""
    assert opened("journald:").host == "/run/systemd/journal/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        journal.settimeout(60)
        sink = opened(f"journald://{tmp_path}/socket?identifier=shop&fields=order,user")
        sink.handle({"event": "x", "order": 17, "other": 1})
        data = journal.recv(1_000)
    assert isinstance(sink, outfall.JournaldSink)
    assert b"SYSLOG_IDENTIFIER=shop\n" in data
    assert b"ORDER=17\nFIELDS={" in data


def test_fluentd_has_a_tag_and_a_login(opened, monkeypatch, tmp_path):
    """The shared key from the environment, name and password from the URL, and none in a repr."""
    monkeypatch.setenv("FLUENT_KEY", "sesame-open")
    sink = opened("fluent+tls://ada:lovelace@127.0.0.1?tag=shop&token_env=FLUENT_KEY&max_chunk_bytes=1MB")
    assert isinstance(sink.target, outfall.FluentSink)
    assert (sink.target.tag, sink.target.port, sink.target.max_chunk_bytes) == ("shop", 24224, 1_000_000)
    assert not {"sesame", "lovelace"} & set(re.findall(r"\w+", repr(sink)))
    assert opened(f"fluent+unix:{tmp_path}/fluent?tag=shop").target.host == f"{tmp_path}/fluent"
    with pytest.raises(ValueError, match="'tag' is missing"):
        open_sink("fluent://127.0.0.1")
    assert "sesame" not in repr(opened("fluent://127.0.0.1?tag=a", shared_key="sesame-open"))


def test_graylog_has_sockets(opened):
    """By UDP, TCP and TLS, at its usual port, behind a thread."""
    sink = opened("gelf+udp://127.0.0.1?chunk_bytes=8192&compression=gzip")
    assert "127.0.0.1:12201" in repr(sink)
    assert isinstance(sink.target, outfall.GELFDatagramSink)
    assert (sink.target.chunk_bytes, sink.target.compression) == (8192, "gzip")
    for scheme in ("gelf+tcp", "gelf+tls"):
        sink = opened(f"{scheme}://127.0.0.1:9")
        assert isinstance(sink.target.codec, outfall.GELFFrames)
    with pytest.raises(ValueError, match="no option 'codec'"):
        open_sink("gelf+tcp://127.0.0.1?codec=x")


def test_a_syslog_daemon_has_a_host_or_a_path(opened, tmp_path):
    """Over UDP unless the scheme says otherwise; a path is not behind a thread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        daemon.settimeout(60)
        sink = opened(f"syslog://{tmp_path}/log?facility=local3")
        sink.handle({"event": "x", "level": "error"})
        assert daemon.recv(1_000).startswith(b"<155>")
    assert isinstance(sink, outfall.SysLogSink)
    assert "127.0.0.1:6514" in repr(opened("syslog+tls://127.0.0.1"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("flie:app.jsonl", "'flie' is not known: did you mean 'file'"),
        ("loki://127.0.0.1", "did you mean 'loki+http' or 'loki+http+unix' or 'loki+https'?"),
        ("app.jsonl", "has no scheme: write file:app.jsonl"),
        (r"C:\logs\app.jsonl", "begins with a drive"),
        ("file:", "has no path"),
        ("file://elsewhere/app.jsonl", "a file on another host"),
        ("file:a?max_byte=3", "no option 'max_byte': did you mean 'max_bytes'"),
        ("http://h?spool=s&max_bytes=3", "no option 'max_bytes': did you mean 'spool.max_bytes'"),
        ("file:a?max_bytes=3&max_bytes=4", "'max_bytes' is given twice"),
        ("file:a?max_bytes", "'max_bytes' has no value"),
        ("file:a?max_bytes=many", "max_bytes='many'"),
        ("file:a?max_bytes=9&backup_count=many", "backup_count='many' is not a whole number"),
        ("file:a?delay=perhaps", "delay='perhaps' is neither true nor false"),
        ("file:a?renderer=json", "renderer: a URL cannot hold such a value"),
        ("file:a?filename=/etc/passwd", "no option 'filename'"),
        ("file:a#b", "'#' has no meaning"),
        ("tcp://127.0.0.1", "has no port"),
        ("tcp://:9", "has no host"),
        ("tcp://127.0.0.1:99999", "host or port"),
        ("https://127.0.0.1:0", "host or port"),
        (r"https://logs\example/", "host or port"),
        ("http://127.0.0.1:9?spool=", "directory='' is empty"),
        ("file:a?compression=gzip", "compression= needs max_bytes= or when="),
        ("file:a?backup_count=5", "backup_count= needs max_bytes= or when="),
        ("smtp://127.0.0.1?fromaddr=a@example.org", "'toaddrs' is missing"),
        ("elasticsearch+http://127.0.0.1:9", "'index' is missing"),
        ("http://127.0.0.1:9?body=xml", "body='xml' is none of"),
        ("http://127.0.0.1:9?spool=d&background=true", "leave background= out"),
        ("loki+http://127.0.0.1:9?api_key=x", "no option 'api_key'"),
    ],
)
def test_what_makes_no_sense_is_refused(url, message):
    """The message names the option and what would be right."""
    with pytest.raises(ValueError, match=r".") as caught:
        open_sink(url)
    assert message in str(caught.value)


def test_no_secret_is_repeated_in_an_error():
    """Neither the password of a URL that cannot be used nor a value of an option that is not known."""
    for url in ("http://ann:sesame@127.0.0.1:99999", "http://ann:sesame@127.0.0.1:9?nothing=sesame", "x@sesame"):
        with pytest.raises(ValueError, match=r".") as caught:
            open_sink(url)
        assert "sesame" not in str(caught.value)


def test_an_encoded_separator_is_part_of_the_value(opened, tmp_path):
    """No value can bring an option of its own."""
    sink = opened(f"file:{tmp_path}/a.jsonl?name=x%26level%3Derror")
    assert (sink.name, sink.level) == ("x&level=error", 0)


def test_options_may_be_python_values(opened, tmp_path):
    """What a URL cannot hold is an argument; one that is in both is given twice."""
    sink = opened(f"file:{tmp_path}/a.jsonl", processors=[lambda _logger, _name, event: event | {"more": 1}])
    sink.handle({"event": "x"})
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"event": "x", "more": 1}
    with pytest.raises(ValueError, match="'level' is given twice"):
        open_sink(f"file:{tmp_path}/a.jsonl?level=info", level="info")


def test_a_plug_in_has_a_scheme(monkeypatch, opened):
    """An entry point's callable gets the URL and the options, and returns a sink."""
    entry = metadata.EntryPoint("memo", "tests.adapters.urls.test_urls:made_by_plugin", "outfall.sinks")
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [entry] if group == "outfall.sinks" else [])
    assert opened("memo:there", name="n").name == "memo:there n"
    assert is_url("memo:there")
    assert schemes()["memo"] == "by tests.adapters.urls.test_urls:made_by_plugin"


def made_by_plugin(url, name):
    """Be what an entry point names."""
    return outfall.CaptureSink(name=f"{url} {name}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:app.jsonl", True),
        ("stderr:", True),
        ("future+https://host", True),
        ("app.jsonl", False),
        ("/var/log/app.jsonl", False),
        (r"C:\logs\app.jsonl", False),
        ("c:app.jsonl", False),
        ("12:30.jsonl", False),
        ("notes: today.jsonl", False),
    ],
)
def test_a_url_is_told_from_a_path(text, expected):
    """By two slashes or a known scheme; one letter and a colon is a drive."""
    assert is_url(text) is expected


def test_every_parameter_that_a_url_can_hold_is_accepted_by_name():
    """The registry and the signatures of the sinks are one."""
    for scheme in schemes():
        names = options_of(scheme)
        assert {"level", "name"} <= names.keys(), scheme


#: Sinks that no URL names: they go around others, are bases or for tests, or need an object.
NO_SCHEME = {
    "BackgroundSink",
    "BaseRotatingFileSink",
    "BufferingSink",
    "ByteSink",
    "CaptureSink",
    "FallbackSink",
    "FanoutSink",
    "HandlerSink",
    "MemorySink",
    "NTEventLogSink",
    "QueueSink",
    "Sink",
    "SpoolSink",
    "WatchedFileSink",
}


def test_each_sink_has_a_scheme_or_is_known_to_have_none():
    """A new sink gets an entry in the table."""
    public = {name for name in outfall.__all__ if isinstance(getattr(outfall, name), type)}
    sinks = {name for name in public if issubclass(getattr(outfall, name), outfall.Sink)}
    named = {name for kind in SCHEMES.values() for name in kind.sinks}
    assert sinks - named == NO_SCHEME
    assert named <= set(outfall.__all__)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_options_of_a_scheme_are_the_parameters_of_its_sinks(scheme):
    """But for those that the URL itself gives; each value has a kind, or says that it cannot stand there."""
    kind = SCHEMES[scheme]
    signatures = [
        target.parameters() if isinstance(target, type) else inspect.signature(target).parameters
        for target in kind.targets()
    ]
    names = {name for each in signatures for name, it in each.items() if it.kind is not it.VAR_KEYWORD}
    offered = options_of(scheme)
    assert names - kind.fixed - {"sinks"} <= offered.keys()
    assert kind.fixed - {"endpoint", "url", "spool"} <= names
    assert not kind.fixed & offered.keys()
    for parameter, _ in kind.choices.values():
        assert parameter in names
    told = {}
    for name, annotation in offered.items():
        try:
            converted(name, "5", annotation)
        except ValueError as error:
            told[name] = str(error)
    assert all(name in message for name, message in told.items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_example_of_a_scheme_makes_a_sink(scheme, tmp_path, monkeypatch, opened):
    """With what it needs, and all that is needed; nothing is connected to yet."""
    monkeypatch.chdir(tmp_path)
    for name in ("SPLUNK_TOKEN", "DD_API_KEY"):
        monkeypatch.setenv(name, "tok")
    example = SCHEMES[scheme].example.replace(":port", ":9").replace("unix:/path", "unix:path")
    sink = opened(
        re.sub(r"(?<=//)host(?=[:/?]|$)", "127.0.0.1", example),
        **({"allow_insecure": True} if "+http" in scheme and "token_env" in example else {}),
    )
    assert isinstance(sink, outfall.Sink)
    assert scheme.partition("+")[0] in schemes() or scheme in schemes()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tcp://127.0.0.1:9/path", "only options may follow the host and port"),
        ("tcp://ann:sesame@127.0.0.1:9", "it takes no user and password"),
        ("tcp://127.0.0.1:9?token_env=TOKEN", "it takes no token"),
        ("tcp://127.0.0.1:9?framing=xml", "framing='xml' is none of lines, frames"),
        ("tcp://127.0.0.1:9?codec=JSONLines", "codec: a URL cannot hold such a value"),
        ("file:a?token_env=TOKEN", "it takes no token"),
        ("http://127.0.0.1:9?headers=x", "headers is a mapping: write headers.KEY=VALUE"),
        ("tcp://127.0.0.1:9?tls=maybe", "tls='maybe' is neither true nor false"),
        ("http://127.0.0.1:9?dead_letter=flie%3Aa", "dead_letter: the scheme 'flie' is not known"),
        ("file:a?spool.max_bytes=5", "no option 'spool.max_bytes'"),
        ("syslog://127.0.0.1/dev/log", "only options may follow"),
        ("http://127.0.0.1:9?url=http://elsewhere", "no option 'url'"),
        ("http://127.0.0.1:9?query.a", "'query.a' has no value"),
        ("loki+http://127.0.0.1:9?max_bytes=1MB", "unless spool="),
        ("loki+http://127.0.0.1:9?__class__=x", "no option '__class__'"),
        ("file:a?self=x", "no option 'self'"),
        ("file:a?%66ilename=/etc/passwd", "no option 'filename'"),
        ("file:a?level=info&%6Cevel=error", "'level' is given twice"),
        ("stderr:?stream=x", "no option 'stream'"),
        ("http://127.0.0.1:9?body=json&body.x=1", "no option 'body.x'"),
    ],
)
def test_a_hostile_url_gets_nothing_through(url, message, monkeypatch):
    """Neither an argument that the URL itself gives, by any spelling, nor one that nobody reads."""
    monkeypatch.setenv("TOKEN", "sesame")
    with pytest.raises(ValueError, match=r".") as caught:
        open_sink(url)
    assert message in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_sockets_speak_lines_unless_frames_are_asked_for(opened):
    """As Logstash, Vector and others read them; a codec given in Python counts alone."""
    assert isinstance(opened("tcp://127.0.0.1:9?background=false").codec, outfall.JSONLines)
    assert isinstance(opened("udp://127.0.0.1:9?background=false&framing=frames").codec, outfall.JSONFrames)
    codec = outfall.SignedFrames(b"k" * 32)
    assert opened("tcp://127.0.0.1:9", background=False, codec=codec).codec is codec
    with pytest.raises(ValueError, match="framing= stands for codec="):
        open_sink("tcp://127.0.0.1:9?framing=lines", codec=codec)


def test_a_socket_speaks_tls_by_scheme_or_by_option(opened):
    """tls=true says what tls:// says."""
    by_scheme, by_option, plain = (
        opened(f"{url}background=false")
        for url in ("tls://127.0.0.1:9?", "tcp://127.0.0.1:9?tls=true&", "tcp://127.0.0.1:9?tls=false&")
    )
    assert (by_scheme._tls is None, by_option._tls is None, plain._tls is None) == (False, False, True)


def test_a_path_may_have_any_bytes(opened, tmp_path):
    """As the system has them, whatever they are in UTF-8."""
    opened(f"file:{tmp_path}/a%FF%C3%A9").handle({"event": "x"})
    assert os.path.exists(os.fsencode(tmp_path) + b"/a\xff\xc3\xa9")


def test_what_a_collector_gets_in_python_holds_without_a_background(opened):
    """Its processors, its policy, its level."""
    failures = []
    sink = opened(
        "loki+http://127.0.0.1:9?background=false&level=error",
        processors=[lambda _logger, _name, event: event],
        on_error=failures.append,
    )
    assert (len(sink.processors), sink.level, sink.has_owner) == (1, 40, False)
    sink.handle({"event": "x", "level": "error"})
    assert len(failures) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:sesame@127.0.0.1:9/hooks/sesame?query.key=sesame&headers.X-Key=sesame",
        "loki+http://ann:sesame@127.0.0.1:9?token_env=TOKEN&labels.app=shop",
        "smtp://ann:sesame@127.0.0.1:9?fromaddr=a@example.org&toaddrs=b@example.org&subject=x",
    ],
)
def test_no_secret_is_in_a_repr_or_a_report(url, monkeypatch, opened):
    """Neither the user's, nor the token, nor the path of a webhook."""
    monkeypatch.setenv("TOKEN", "sesame")
    if "token_env" in url:
        url = url.replace("ann:sesame@", "")
    failures = []
    sink = opened(f"{url}&background=false", on_error=failures.append)
    sink.handle({"event": "x"})
    assert failures
    for text in (repr(sink), repr(failures), str(failures[0].error), repr(sink.stats())):
        assert "sesame" not in text
