"""Outfall among others: the how-to guides' own files, run by the frameworks they are about.

What a page runs by itself is tested with the page, in test_docs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import requests

from outfall import (
    BackgroundSink,
    CaptureSink,
    DatadogLogs,
    ElasticsearchBulk,
    Encoded,
    FallbackSink,
    FanoutSink,
    GELFMessage,
    HTTPSink,
    LokiStreams,
    OTLPLogs,
    SplunkEvents,
    SysLogSink,
)
from tests.code_blocks import blocks
from tests.sinks._http import Server
from tests.sinks._processes import PATIENCE_SECONDS, ROOT, events_of, until
from tests.sinks._wire import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOW_TO = ROOT / "docs" / "how-to"
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")


def files_of(page: str, where: Path) -> None:
    """Write the files that a how-to guide shows."""
    for block in blocks(HOW_TO / page):
        if block.caption:
            (where / block.caption).write_text(block.body, encoding="utf-8")


@contextlib.contextmanager
def running(where: Path, *arguments: str, group: bool = False, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program in *where* while the block lasts; show what it wrote if the block fails.

    Args:
        where: Its current directory.
        arguments: For the interpreter.
        group: Whether it gets a process group of its own, all of which is ended at the end.
        env: More of its environment.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    # A home of its own, since gunicorn puts a socket there.
    environ |= {"PYTHONUNBUFFERED": "1", "HOME": str(where), **env}
    with (where / "output").open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=where,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=group,
        )
    try:
        yield child
    except BaseException:
        print((where / "output").read_text(errors="replace"))  # noqa: T201 - for who reads the failure
        raise
    finally:
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        elif child.poll() is None:
            child.kill()
        child.wait(PATIENCE_SECONDS)


def accepts(port: int, child: subprocess.Popen[bytes]) -> bool:
    """Return True once *child* listens on *port*."""
    assert child.poll() is None, "it has ended"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS):
        return True
    return False


@forks
def test_gunicorns_workers_share_a_file_and_each_reaches_the_collector(tmp_path):
    """Two preforked workers: each request's event is once, and whole, in the file and at the collector."""
    files_of("gunicorn.md", tmp_path)
    port = free_port()
    with (
        Server() as collector,
        running(tmp_path, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", COLLECTOR_URL=collector.url) as gunicorn,
    ):
        until(lambda: accepts(port, gunicorn))
        answered: list[str] = []

        def request() -> bool:
            answer = requests.get(f"http://127.0.0.1:{port}/order/{len(answered)}", timeout=PATIENCE_SECONDS)
            answered.append(answer.text)
            return len(set(answered)) == 2 and len(answered) >= 40

        until(request)
        gunicorn.terminate()
        assert gunicorn.wait(PATIENCE_SECONDS) == 0

        expected = [(f"/order/{number}", int(pid)) for number, pid in enumerate(answered)]
        for events in (
            events_of(tmp_path / "shop.jsonl"),
            [event for each in collector.requests for event in each.lines],
        ):
            found = [(event["path"], event["process"]) for event in events if event["event"] == "request"]
            assert sorted(found) == sorted(expected)
            # gunicorn's own: the master's and the workers' ends, and a line of the access log for each request.
            loggers = [event["logger"] for event in events]
            assert loggers.count("gunicorn.access") == len(expected)
            assert sum(event["event"].startswith("Worker exiting") for event in events) == 2


def _uwsgi() -> str:
    """Return a uWSGI that has this Python in it, or skip the test."""
    found = shutil.which("uwsgi", path=os.environ.get("OUTFALL_UWSGI_PATH"))
    if found is None:
        pytest.skip("uWSGI is not installed")
    told = subprocess.run([found, "--python-version"], capture_output=True, text=True, timeout=60, check=False).stdout
    if told.split(".")[:2] != [str(number) for number in sys.version_info[:2]]:
        pytest.skip(f"uWSGI has Python {told.strip()} in it")
    return found


@forks
@pytest.mark.parametrize("option", ["", "--lazy-apps", "--py-call-osafterfork"])
def test_uwsgis_workers_deliver_what_they_log(tmp_path, option):
    """Workers that were forked in C: each request's event is once in the file, and once at each collector."""
    uwsgi = _uwsgi()
    files_of("uwsgi.md", tmp_path)
    port = free_port()
    settings = (tmp_path / "uwsgi.ini").read_text().replace("8000", str(port))
    (tmp_path / "uwsgi.ini").write_text(settings)
    packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("-packages"))])
    program = f"import os, sys; os.execve({uwsgi!r}, sys.argv[1:], dict(os.environ, PYTHONPATH={packages!r}))"
    with (
        Server() as collector,
        Server() as audit,
        running(
            tmp_path,
            *("-c", program, "uwsgi", "--ini", "uwsgi.ini", *filter(None, [option])),
            group=True,
            COLLECTOR_URL=collector.url,
            AUDIT_URL=audit.url,
        ) as master,
    ):
        until(lambda: accepts(port, master))
        answered: list[str] = []

        def request() -> bool:
            answer = requests.get(f"http://127.0.0.1:{port}/order/{len(answered)}", timeout=PATIENCE_SECONDS)
            answered.append(answer.text)
            return len(set(answered)) == 2 and len(answered) >= 40

        until(request)
        master.terminate()
        assert master.wait(PATIENCE_SECONDS) == 0
        expected = [(f"/order/{number}", int(pid)) for number, pid in enumerate(answered)]
        for events in (
            events_of(tmp_path / "shop.jsonl"),
            [event for each in collector.requests for event in each.lines],
            [event for each in audit.requests for event in each.lines],
        ):
            found = [(event["path"], event["process"]) for event in events if event["event"] == "request"]
            assert sorted(found) == sorted(expected)
            assert sum(event["event"] == "imported" for event in events) == (2 if option == "--lazy-apps" else 1)


@pytest.fixture
def celery_worker(tmp_path):
    """Give a function that runs a worker with two preforked processes, by a broker of files, and asks for tasks."""
    files_of("celery.md", tmp_path)
    queue = tmp_path / "queue"
    queue.mkdir()
    (tmp_path / "celeryconfig.py").write_text(
        f"""
broker_url = "filesystem://"
broker_transport_options = {{
    "data_folder_in": {str(queue)!r}, "data_folder_out": {str(queue)!r}, "control_folder": {str(queue)!r},
    "polling_interval": 0.05,
}}
worker_max_tasks_per_child = 2
"""
    )
    # The page's sink behind one that keeps events in memory, for long enough to lose them at the process's end.
    (tmp_path / "buffering.py").write_text(
        """
import outfall
import shop
from celery import signals

file = outfall.RotatingFileSink("shop.jsonl", max_bytes=50_000_000, backup_count=10, multiprocess=True)
outfall.configure(outfall.BackgroundSink(file, linger=600), console=False)
app = shop.app


@signals.task_postrun.connect
def tick(**_):
    with open("done", "a") as done:
        done.write("a task\\n")
"""
    )
    (tmp_path / "ask.py").write_text(
        """
from shop import charge, deliver
from structlog.contextvars import bound_contextvars

for order in range(4):
    with bound_contextvars(request_id=f"r-{order}"):
        deliver.delay(order)
charge.delay(4)
"""
    )
    return tmp_path


@pytest.mark.slow  # most of it is Celery's own waiting
@forks
def test_celerys_worker_processes_bind_the_task_and_lose_nothing_at_their_end(celery_worker):
    """What tasks log has the task and the request that asked for it, and is out when a pool's process has ended."""
    where = celery_worker
    asked = subprocess.run([sys.executable, "ask.py"], cwd=where, check=False, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    options = ["--pool=prefork", "--concurrency=3", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with running(where, "-m", "celery", "-A", "buffering", "worker", *options, group=True) as worker:

        def all_done() -> bool:
            assert worker.poll() is None, "it has ended"
            done = where / "done"
            return done.exists() and done.read_bytes().count(b"\n") == 5

        until(all_done)
        # After two tasks each process ends, and the three have five. One goes on, and any task may be its first: only
        # at the worker's end all processes have ended. A fourth would only come seconds later.
        worker.terminate()
        assert worker.wait(PATIENCE_SECONDS) == 0
    delivered = [event for event in events_of(where / "shop.jsonl") if event["event"] == "delivered"]
    events = sorted(delivered, key=lambda event: event["order"])
    assert [(event["order"], event["request_id"], event["task"]) for event in events] == [
        (order, f"r-{order}", "shop.deliver") for order in range(4)
    ]
    assert len({event["task_id"] for event in events}) == 4


def test_uvicorn_leaves_logging_alone_and_logs_to_the_sink(tmp_path):
    """With ``log_config=None`` uvicorn's own lines are in the file, and requests over the wire have their ids."""
    files_of("fastapi.md", tmp_path)
    port = free_port()
    (tmp_path / "serve.py").write_text(
        f"import uvicorn\nfrom shop import app\nuvicorn.run(app, port={port}, log_config=None)\n"
    )
    with running(tmp_path, "serve.py") as uvicorn:
        until(lambda: accepts(port, uvicorn))
        answers = [
            requests.get(f"http://127.0.0.1:{port}{path}", headers={"X-Request-ID": path}, timeout=PATIENCE_SECONDS)
            for path in ("/order/17", "/slow", "/broken")
        ]
        uvicorn.send_signal(signal.SIGINT)
        uvicorn.wait(PATIENCE_SECONDS)
    assert [(answer.status_code, answer.headers.get("X-Request-ID")) for answer in answers] == [
        (200, "/order/17"),
        (200, "/slow"),
        (500, None),  # Starlette's own answer, from outside all middleware
    ]
    events = events_of(tmp_path / "shop.jsonl")
    ours = [(event["event"], event["request_id"]) for event in events if event["logger"] == "shop"]
    assert ours == [
        ("order placed", "/order/17"),
        ("request", "/order/17"),
        ("in a thread", "/slow"),
        ("request", "/slow"),
        ("request failed", "/broken"),
        ("request", "/broken"),
    ]
    requested = [event for event in events if event["logger"] == "uvicorn.access"]
    assert [(event["method"], event["path"], event["http_version"], event["status"]) for event in requested] == [
        ("GET", "/order/17", "1.1", 200),
        ("GET", "/slow", "1.1", 200),
        ("GET", "/broken", "1.1", 500),
    ]
    assert all(event["client"].startswith("127.0.0.1:") for event in requested)
    assert not any("color_message" in event for event in events)


def test_the_command_uvicorn_hands_its_own_lines_over_as_the_page_says(tmp_path):
    """It sets its loggers up itself, before it imports the application: events of both are in the sinks."""
    files_of("fastapi.md", tmp_path)
    with (tmp_path / "shop.py").open("a") as file:
        file.write((tmp_path / "uvicorns_own.py").read_text())
    port = free_port()
    with running(tmp_path, "-m", "uvicorn", "shop:app", "--port", str(port)) as uvicorn:
        until(lambda: accepts(port, uvicorn))
        answer = requests.get(f"http://127.0.0.1:{port}/order/17", timeout=PATIENCE_SECONDS)
        uvicorn.send_signal(signal.SIGINT)
        uvicorn.wait(PATIENCE_SECONDS)
    assert answer.status_code == 200
    loggers = [event["logger"] for event in events_of(tmp_path / "shop.jsonl")]
    assert (loggers.count("shop"), loggers.count("uvicorn.access")) == (2, 1)
    assert "GET /order/17" not in (tmp_path / "output").read_text()


FRAMEWORKS = {
    "flask": """
import flask
{before}
app = flask.Flask("shop")
app.logger.setLevel("INFO")
app.logger.info("set up by flask")
{after}
app.logger.info("from the framework", extra={{"left": 3}})
""",
    "django": """
import django, logging
from django.conf import settings
{before}
settings.configure()
django.setup()
{after}
logging.getLogger("django.request").info("from the framework", extra={{"left": 3}})
""",
    "uvicorn": """
import logging, uvicorn
{before}
uvicorn.Config("shop:app")
{after}
logging.getLogger("fastapi").info("from the framework", extra={{"left": 3}})
""",
    "celery": """
import logging
from celery import Celery, signals
{before}
signals.setup_logging.connect(lambda **_: None, weak=False)
Celery("shop").log.setup("INFO")
{after}
logging.getLogger("celery.task").info("from the framework", extra={{"left": 3}})
""",
    "gunicorn": """
import logging
from gunicorn.config import Config
from gunicorn.glogging import Logger
{before}
Logger(Config())
{after}
logging.getLogger("gunicorn").setLevel("INFO")
logging.getLogger("gunicorn.other").info("from the framework", extra={{"left": 3}})
""",
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_configure_works_before_and_after_a_framework_sets_logging_up(tmp_path, framework, order):
    """Events of both kinds are in the file, once."""
    call = 'import outfall; outfall.configure("shop.jsonl", console=False)'
    program = FRAMEWORKS[framework].format(**{"before": "", "after": "", order: call})
    program += 'outfall.get_logger("shop").info("from the application", left=3)\n'
    with running(tmp_path, "-c", program) as child:
        assert child.wait(PATIENCE_SECONDS) == 0
    found = [(each["event"], each["left"]) for each in events_of(tmp_path / "shop.jsonl") if "left" in each]
    assert found == [("from the framework", 3), ("from the application", 3)]


@pytest.fixture
def add_trace_ids(tmp_path, monkeypatch):
    """Give the processor of the how-to guide."""
    files_of("trace-ids.md", tmp_path)
    namespace: dict[str, Any] = {}
    exec((tmp_path / "tracing.py").read_text(encoding="utf-8"), namespace)
    return namespace["add_trace_ids"]


def test_the_current_span_is_that_of_the_thread_that_logs(add_trace_ids):
    """A processor of the sink behind a background sink finds the span, though another thread delivers."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    with Server() as collector:
        with BackgroundSink(HTTPSink(collector.url, body=OTLPLogs(), processors=[add_trace_ids])) as sink:
            with tracer.start_as_current_span("checkout") as span:
                sink.handle({"event": "inside"})
            sink.handle({"event": "outside"})
        (batch,) = collector.wait(1)
    inside, outside = batch.json["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    context = span.get_span_context()
    assert (inside["traceId"], inside["spanId"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert not {"traceId", "spanId"} & outside.keys()


def test_without_opentelemetry_the_processor_leaves_events_alone(tmp_path, monkeypatch):
    """Where opentelemetry is not installed the guide's module imports, and adds nothing."""
    files_of("trace-ids.md", tmp_path)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    namespace: dict[str, Any] = {}
    exec((tmp_path / "tracing.py").read_text(encoding="utf-8"), namespace)
    assert namespace["add_trace_ids"](None, "info", {"event": "hello"}) == {"event": "hello"}


def _places() -> dict[str, object]:
    """Return what the page's table says, by format: the two ids as they are found in what each one sends."""
    item = Encoded(orjson.dumps({"event": "hello", "trace_id": TRACE_ID, "span_id": SPAN_ID}), 20, 0.0)

    def sent(body: Any) -> Any:
        return json.loads(body.encode([item]).splitlines()[-1])

    (record,) = sent(OTLPLogs())["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    datadog = sent(DatadogLogs())[0]["dd"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.settimeout(PATIENCE_SECONDS)
        daemon.bind(("127.0.0.1", 0))
        with SysLogSink(daemon.getsockname(), format="rfc5424", structured_data_id="app@32473") as syslog:
            syslog.handle(item.event)
        structured = daemon.recv(65_536).decode()
    return {
        "OTLPLogs": [record["traceId"], record["spanId"]],
        "LokiStreams": list(sent(LokiStreams())["streams"][0]["values"][0][2].values()),
        "ElasticsearchBulk": [sent(ElasticsearchBulk())[name] for name in ("trace.id", "span.id")],
        "SplunkEvents": [sent(SplunkEvents())["fields"][name] for name in ("trace_id", "span_id")],
        "DatadogLogs": [f"{int(datadog[name]):016x}" for name in ("trace_id", "span_id")],
        "GELFMessage": [sent(GELFMessage())[name] for name in ("_trace_id", "_span_id")],
        "SysLogSink": [re.search(f'{name}="(.*?)"', structured)[1] for name in ("trace_id", "span_id")],
    }


def test_each_format_has_the_ids_where_the_table_says():
    """The rows of the trace ids table are the formats there are, and each puts the ids there."""
    found = _places()
    page = (HOW_TO / "trace-ids.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \{py:class\}`~outfall\.(\w+)`", page, re.MULTILINE)) == found.keys()
    datadog = found.pop("DatadogLogs")
    assert datadog == [TRACE_ID[16:], SPAN_ID]
    assert {format_: ids for format_, ids in found.items() if ids != [TRACE_ID, SPAN_ID]} == {}


def _redact(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    event["password"] = "***"
    return event


def _queued(sink: BackgroundSink) -> bytes:
    return repr(sink._worker.items).encode()


@pytest.mark.parametrize(
    "around", [lambda target: target, FanoutSink, FallbackSink], ids=["alone", "fanout", "fallback"]
)
def test_what_a_target_redacts_is_in_no_queue(around):
    """The target's processors have run before the event is stored, through routers in between too."""
    target = CaptureSink(processors=[_redact])
    with BackgroundSink(around(target), linger=600) as sink:
        sink.handle({"event": "login", "password": "hunter2"})
        assert b"login" in _queued(sink)
        assert b"hunter2" not in _queued(sink)
    assert [event["password"] for event in target.events] == ["***"]
