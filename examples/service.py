"""A small HTTP service that logs everything through Outfall.

It answers a few hundred real requests on loopback. Some requests fail, and some make a handler raise. The service logs
with structlog; its libraries (urllib3, http.server) log with the standard library. All events go to five sinks, each
with its own level, renderer and redaction. One sink is a file that rolls over. Another stores events on disk until a
collector in another process has them; that collector is killed midway and started again. At the end the program reads
the JSON file and the collector's file, and compares them with the ledgers.

Run it with ``make demo``, or ``python examples/service.py --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson
import requests
import structlog
from requests.adapters import HTTPAdapter
from structlog.contextvars import bound_contextvars, merge_contextvars
from urllib3.util import Retry

from outfall import (
    NDJSON,
    FanoutSink,
    FileSink,
    HTTPSink,
    OrjsonRenderer,
    RetryPolicy,
    RotatingFileSink,
    SinkHandler,
    SinkLoggerFactory,
    SpoolSink,
    StreamSink,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from structlog.typing import EventDict, Processor, WrappedLogger

    from outfall import SinkFailure, SinkStats

# -- Redaction. Each sink's processors get their own copy of the event, so one sink may show what another hides.

SECRET_FIELDS = frozenset({"password", "token", "card"})
SECRET_IN_QUERY = re.compile(r"\b(password|token)=([^&\s\"']+)")
QUERY = re.compile(r"\?[^\s\"']+")


def redact(hide: Callable[[str], str]) -> Processor:
    """Return a processor that replaces each secret, in nested fields and in query strings, by ``hide(secret)``."""

    def redacted(value: object, key: object = None) -> object:
        if isinstance(value, dict):
            return {name: redacted(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [redacted(item, key) for item in value]
        if isinstance(value, str):
            if key in SECRET_FIELDS:
                return hide(value)
            return SECRET_IN_QUERY.sub(lambda match: f"{match[1]}={hide(match[2])}", value)
        return value

    def redact_event(_logger: WrappedLogger, _method_name: str, event: EventDict) -> EventDict:
        return {key: redacted(value, key) for key, value in event.items()}

    return redact_event


def without_people(_logger: WrappedLogger, _method_name: str, event: EventDict) -> EventDict:
    """Remove personal data: the client's address, the order, and the values in query strings."""
    event.pop("client", None)
    event.pop("order", None)
    return {key: QUERY.sub("?...", value) if isinstance(value, str) else value for key, value in event.items()}


# -- Other processors

SHOP = "shop"  # the service's own logger


class AtMost:
    """A processor that passes the first *number* events of each kind, as a sample.

    A kind is the event's name and level if the service logs it, and the logger and level if a library does.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, _logger: WrappedLogger, _method_name: str, event: EventDict) -> EventDict:
        """Return *event*, or drop it."""
        logger = event.get("logger")
        kind = logger, event.get("level"), event["event"] if logger == SHOP else None
        with self._lock:
            self._seen[kind] += 1
            if self._seen[kind] > self._number:
                raise structlog.DropEvent
        return event


def error_in_one_line(_logger: WrappedLogger, _method_name: str, event: EventDict) -> EventDict:
    """Replace the exception by one line with its type and message."""
    if event.pop("exc_info", None):
        event["error"] = repr(sys.exc_info()[1])
    return event


# -- Logging: five destinations, and two ways in


def open_sinks(directory: Path, collector_url: str, outages: list[SinkFailure]) -> FanoutSink:
    """Return one sink for all five; failures of the collector are added to *outages*."""
    for left in archive_files(directory):  # of an earlier run; the other files are opened with mode="w"
        left.unlink()
    console = StreamSink(
        sys.stdout,
        name="console",
        level="info",
        processors=[AtMost(2), redact(lambda secret: "..." + secret[-4:])],
        renderer=structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
    )
    everything = FileSink(
        directory / "service.jsonl",
        mode="w",
        name="everything",
        level="debug",
        # The traceback is rendered first, so that it is redacted too.
        processors=[structlog.processors.format_exc_info, redact(lambda _secret: "***")],
        renderer=OrjsonRenderer(key_order=("timestamp", "level", "logger", "event")),
    )
    warnings = FileSink(
        directory / "warnings.log",
        mode="w",
        name="warnings",
        level="warning",
        processors=[error_in_one_line, without_people],
        renderer=structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "logger", "event"]),
    )
    archive = RotatingFileSink(
        directory / "archive.jsonl",
        max_bytes=32_000,
        backup_count=100,
        compression="gzip",  # in a background thread
        name="archive",
        level="info",
        processors=[structlog.processors.format_exc_info, redact(lambda _secret: "***")],
    )
    collector = SpoolSink(  # stores events on disk until the collector has them
        HTTPSink(collector_url, body=NDJSON(), compression="gzip"),
        directory / "spool",
        retry=RetryPolicy(max_seconds=0.5),  # for a demonstration; a real outage takes longer
        on_error=outages.append,  # shown in the report, not on stderr
        name="collector",
        level="info",
        processors=[structlog.processors.format_exc_info, redact(lambda _secret: "***"), without_people],
    )
    # This processor runs once for all five sinks. It adds the request's fields to the events of libraries too.
    return FanoutSink(console, everything, warnings, archive, collector, name="fanout", processors=[merge_contextvars])


def archive_files(directory: Path) -> list[Path]:
    """Return the files of the sink that rolls over, newest first."""
    return sorted(directory.glob("archive.jsonl*"), key=lambda path: int((re.findall(r"\d+", path.name) or [0])[0]))


def configure_logging(sink: FanoutSink) -> None:
    """Make structlog and the standard library log to *sink*."""
    structlog.configure(
        processors=[structlog.stdlib.add_logger_name, structlog.processors.TimeStamper(fmt="iso")],
        logger_factory=SinkLoggerFactory(sink),
        cache_logger_on_first_use=True,
    )
    # Not basicConfig, which would give the handler a formatter: events would become text.
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    root.addHandler(SinkHandler(sink))


# -- The service

log = structlog.get_logger(SHOP)
server_log = logging.getLogger("http.server")


class RefusedError(Exception):
    """The request cannot be answered; the client gets the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class HungUpError(Exception):
    """The connection has to be closed without a response."""


class Shop(BaseHTTPRequestHandler):
    """Routes for items, orders, a login, a slow report, and one that answers only the second request."""

    wbufsize = -1  # each response is sent as a whole
    items = frozenset({"1", "2", "3"})
    password = "correct-horse"  # noqa: S105 - a demonstration's
    request_ids = itertools.count(1)
    visits: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        """Answer a GET request."""
        self.respond()

    def do_POST(self) -> None:
        """Answer a POST request."""
        self.respond()

    def respond(self) -> None:
        """Answer one request; all events logged meanwhile get its fields."""
        with bound_contextvars(
            request_id=f"r{next(self.request_ids):04}",
            method=self.command,
            path=self.path,
            client=self.client_address[0],
        ):
            started = time.perf_counter()
            try:
                answer, status = self.answer(), HTTPStatus.OK
            except HungUpError:
                log.warning("hung up")
                return
            except RefusedError as refusal:
                answer, status = {"error": str(refusal)}, refusal.status
            except Exception:
                log.exception("handler raised")
                answer, status = {"error": "internal"}, HTTPStatus.INTERNAL_SERVER_ERROR
            # Log before the response: a client that has the response then finds all events of its request.
            log.log(
                logging.WARNING if status >= HTTPStatus.BAD_REQUEST else logging.INFO,
                "request finished",
                status=status.value,
                duration_ms=round((time.perf_counter() - started) * 1000, 2),
            )
            self.send(status, answer)

    def answer(self) -> dict[str, Any]:
        """Return the answer to the request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        match self.command, *url.path.strip("/").split("/"):
            case "GET", "items", number:
                if number not in self.items:
                    raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no item {number}")
                return {"item": number}
            case "POST", "login":
                if query["password"] != self.password:
                    raise RefusedError(HTTPStatus.UNAUTHORIZED, "wrong password")
                log.info("logged in", user=query["user"])
                return {"token": "tok-5d41402a"}
            case "POST", "orders":
                order = orjson.loads(body)
                log.info("order received", order=order)
                return {"total": 12 * order["quantity"]}  # raises a KeyError if the client omits it
            case "GET", "report":
                time.sleep(int(query["rows"]) / 10_000)
                return {"rows": query["rows"]}
            case "GET", "flaky":
                self.visits[query["visit"]] += 1
                if self.visits[query["visit"]] == 1:
                    raise HungUpError
                return {"visit": query["visit"]}
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def send(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        """Send *answer* as JSON."""
        body = orjson.dumps(answer)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log the server's own messages by `logging`, not to stderr."""
        server_log.info(format, *args)


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the service on a free port of the loopback interface; yield its URL."""
    Shop.visits.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.daemon_threads = False  # closing the server waits for requests in progress, and for their events
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- The collector, in a process of its own


class CollectorProcess:
    """A collector that appends events to *file*. It can be killed, and started again at the same address."""

    def __init__(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        self._file = file
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("collector.py"), self._file]
        if self.url:
            command.append(str(urlsplit(self.url).port))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    close = kill


# -- The client

CARD = "4111-1111-1111-1111"


def request(session: requests.Session, url: str, number: int) -> int:
    """Make request *number*, which determines one of ten kinds; return its status."""
    order = {"item": 2, "quantity": 1 + number % 3, "payment": {"card": CARD, "token": "tok-9a0364b9"}}
    kinds: list[tuple[str, str, Any]] = [
        ("GET", "/items/1", None),
        ("GET", "/items/2", None),
        ("GET", "/items/9", None),  # not found
        ("POST", "/login?user=u17&password=correct-horse", None),
        ("POST", "/login?user=u18&password=guessed-wrong", None),  # unauthorized
        ("POST", "/orders", order),
        ("POST", "/orders", {"item": 2, "payment": order["payment"]}),  # no quantity: the handler raises
        ("GET", f"/report?rows={number % 7 * 50}", None),  # slow
        ("GET", f"/flaky?visit={number}", None),  # urllib3 has to retry, and logs a warning
        ("GET", "/nowhere", None),  # not found
    ]
    method, path, body = kinds[number % len(kinds)]
    return session.request(method, url + path, json=body, timeout=10).status_code


def make_requests(url: str, numbers: range, clients: int = 4) -> Counter[int]:
    """Make requests, several at the same time; return the number of each status."""

    def client(first: int) -> list[int]:
        with requests.Session() as session:
            session.trust_env = False  # no proxy for loopback
            session.mount("http://", HTTPAdapter(max_retries=Retry(total=2, backoff_factor=0)))
            return [request(session, url, number) for number in numbers[first::clients]]

    with ThreadPoolExecutor(clients) as pool:
        return Counter(itertools.chain.from_iterable(pool.map(client, range(clients))))


# -- The report


class Summary(NamedTuple):
    """The content of the JSON files."""

    lines: int
    by_logger_and_level: Counter[tuple[str, str]]
    finished: list[dict[str, Any]]
    #: The size in bytes and the number of events of each file of the archive.
    archive: dict[str, tuple[int, int]]
    #: The number of events at the collector, by level.
    collected: Counter[str]


def read_back(directory: Path) -> Summary:
    """Read the JSON files, one event a line."""
    events = [orjson.loads(line) for line in (directory / "service.jsonl").read_bytes().splitlines()]
    archive: dict[str, tuple[int, int]] = {}
    for path in archive_files(directory):
        written = path.read_bytes()
        text = gzip.decompress(written) if path.suffix == ".gz" else written
        archive[path.name] = len(written), len([orjson.loads(line) for line in text.splitlines()])
    # The batch in flight when the collector was killed may be there twice.
    lines = dict.fromkeys((directory / "collected.jsonl").read_bytes().splitlines())
    collected = [orjson.loads(line) for line in lines]
    return Summary(
        lines=len(events),
        by_logger_and_level=Counter((event["logger"], event["level"]) for event in events),
        finished=[event for event in events if event["event"] == "request finished"],
        archive=archive,
        collected=Counter(event["level"] for event in collected),
    )


def what_is_wrong(summary: Summary, statuses: Counter[int], fanout: SinkStats) -> list[str]:
    """Compare file, client and ledgers; return the differences."""
    wrong = [
        f"{sink.name} accepted {sink.accepted} events and delivered {sink.delivered}"
        for sink in (fanout, *fanout.targets)
        if sink.accepted != sink.delivered
    ]
    for sink in fanout.targets:
        if sink.accepted + sink.filtered != fanout.delivered:
            wrong.append(f"{sink.name} did not see each of {fanout.delivered} events")
        if sink.name == "everything" and sink.delivered != summary.lines:
            wrong.append(f"{sink.name} delivered {sink.delivered} events; the file has {summary.lines} lines")
        archived = sum(lines for _, lines in summary.archive.values())
        if sink.name == "archive" and sink.delivered != archived:
            wrong.append(f"{sink.name} delivered {sink.delivered} events; its files have {archived} lines")
        arrived = summary.collected.total()
        if sink.name == "collector" and sink.delivered != arrived:
            wrong.append(f"{sink.name} delivered {sink.delivered} events; {arrived} arrived")
    logged = Counter(event["status"] for event in summary.finished)
    if logged != statuses:
        wrong.append(f"the client got statuses {dict(statuses)}; the file has {dict(logged)}")
    return wrong


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print *rows* below *columns*, with numbers aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}\n")
    for row in [list(columns), ["-" * width for width in widths], *cells]:
        texts = [
            cell.rjust(width) if re.fullmatch(r"[\d.]+", cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        print("  " + "  ".join(texts).rstrip())


def print_report(summary: Summary, fanout: SinkStats) -> None:
    """Print what the file contains, and the ledger of each sink."""
    print_table(
        "Events in service.jsonl",
        ["logger", "level", "events"],
        [(*kind, count) for kind, count in sorted(summary.by_logger_and_level.items())],
    )
    print_table(
        "Files of the archive, which rolls over at 32 000 bytes",
        ["file", "bytes", "events"],
        [(name, size, lines) for name, (size, lines) in summary.archive.items()],
    )
    print_table(
        "Arrived at the collector, over HTTP",
        ["level", "events"],
        sorted(summary.collected.items()),
    )
    slowest = sorted(summary.finished, key=lambda event: -event["duration_ms"])[:5]
    print_table(
        "Slowest requests",
        ["ms", "status", "request", "id"],
        [(e["duration_ms"], e["status"], f"{e['method']} {e['path']}", e["request_id"]) for e in slowest],
    )
    print_table(
        "Ledger of each sink",
        ["sink", "accepted", "filtered", "delivered", "dropped", "pending"],
        [
            (s.name, s.accepted, s.filtered, s.delivered, sum(s.dropped.values()), s.pending)
            for s in (fanout, *fanout.targets)
        ],
    )


class Outage(NamedTuple):
    """The results of killing the collector."""

    killed_after: int
    started_after: int
    waiting: int
    failures: list[SinkFailure]  # the first failure, if there is one


def request_through_an_outage(
    url: str, count: int, collector: CollectorProcess, sink: FanoutSink, failures: list[SinkFailure]
) -> tuple[Counter[int], Outage]:
    """Make *count* requests; kill the collector after a third of them, and start it again after the second third."""
    third = count // 3
    statuses = make_requests(url, range(third))
    sink.flush(30)  # so that the disk later holds only events of the outage
    collector.kill()
    statuses += make_requests(url, range(third, 2 * third))
    waiting = sum(target.spooled for target in sink.stats().targets)
    # On a fast machine all requests are finished before the spool tries to deliver one of the events.
    while waiting and not failures:
        time.sleep(0.01)
    collector.start()
    statuses += make_requests(url, range(2 * third, count))
    return statuses, Outage(third, 2 * third, waiting, failures[:1])


def print_outage(outage: Outage) -> None:
    """Print what happened while the collector did not run."""
    print("\nThe collector's outage\n")
    print(f"  It was killed after {outage.killed_after} requests, and started again after {outage.started_after}.")
    print(f"  {outage.waiting} events were on disk by then. All have arrived since.")
    for failure in outage.failures:
        print(f"  What the sink had to say meanwhile: {failure.error}")


def run(directory: Path, count: int) -> int:
    """Serve, send requests, and report; return the exit code."""
    print(f"A sample of what the console sink shows of {count} requests:\n")
    failures: list[SinkFailure] = []
    with (
        contextlib.closing(CollectorProcess(directory / "collected.jsonl")) as collector,
        open_sinks(directory, collector.url, failures) as sink,
    ):
        configure_logging(sink)
        with serving() as url:
            statuses, outage = request_through_an_outage(url, count, collector, sink, failures)
        # urllib3 logs an event while the last batch is sent. Flush it before the sinks are closed.
        sink.flush(30)
    # The sinks are closed: every accepted event has an outcome.
    summary = read_back(directory)
    print_report(summary, sink.stats())
    wrong = what_is_wrong(summary, statuses, sink.stats())
    for line in wrong:
        print(f"\nDOES NOT BALANCE: {line}")
    if not wrong:
        print_outage(outage)
        print("\nThe files, the collector, the client and the ledgers agree.")
    return 1 if wrong else 0


def main() -> int:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(description="Run a service, request it, and show what its sinks received.")
    parser.add_argument("--directory", type=Path, help="where to keep the log files (default: nowhere)")
    parser.add_argument("--requests", type=int, default=400, help="how many to make (default: %(default)s)")
    arguments = parser.parse_args()
    # The collector is on loopback: use no proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    if arguments.directory is None:
        with tempfile.TemporaryDirectory(prefix="outfall-demo-") as directory:
            return run(Path(directory), arguments.requests)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    code = run(arguments.directory, arguments.requests)
    print(f"\nThe log files are in {arguments.directory}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
