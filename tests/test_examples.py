"""The example service: it runs, it redacts, and it fails when its accounts do not balance."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from outfall import SinkStats
from outfall.adapters.commandline.relay import _plan_of

if TYPE_CHECKING:
    from types import ModuleType

SERVICE = Path(__file__).parents[1] / "examples" / "service.py"
SECRETS = ("correct-horse", "guessed-wrong", "4111-1111-1111-1111", "tok-9a0364b9")
#: The same number of each of the ten kinds in each third.
REQUESTS = 60


@dataclasses.dataclass
class Run:
    """What one run of the service left."""

    code: int
    output: str
    errors: str
    directory: Path

    @property
    def console(self) -> str:
        """Everything before the report."""
        return self.output.partition("Events in service.jsonl")[0]

    @property
    def events(self) -> list[dict[str, object]]:
        """The events of the JSON file."""
        return [json.loads(line) for line in self._text("service.jsonl").splitlines()]

    @property
    def warnings(self) -> str:
        """The file of warnings."""
        return self._text("warnings.log")

    @property
    def archive(self) -> str:
        """All files of the sink that rolls over, as one text."""
        files = (path.read_bytes() for path in self.directory.glob("archive.jsonl*"))
        return b"".join(gzip.decompress(file) if file[:2] == b"\x1f\x8b" else file for file in files).decode()

    @property
    def collected(self) -> list[dict[str, object]]:
        """The events that the collector has."""
        return [json.loads(line) for line in self._text("collected.jsonl").splitlines()]

    def _text(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the service once for all tests."""
    directory = tmp_path_factory.mktemp("service") / "made" / "by it"
    result = subprocess.run(
        [sys.executable, SERVICE, "--directory", directory, "--requests", str(REQUESTS)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    return Run(result.returncode, result.stdout, result.stderr, directory)


@pytest.fixture
def service() -> ModuleType:
    """Give the example as a module."""
    spec = importlib.util.spec_from_file_location("example_service", SERVICE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_service_runs_and_its_accounts_balance(run):
    """It ends well, says so, and writes nothing to stderr."""
    assert (run.code, run.errors) == (0, "")
    assert "The files, the collector, the client and the ledgers agree." in run.output


def test_nothing_is_lost_while_the_collector_is_away(run):
    """It is killed midway and started again: what was logged meanwhile was on disk, and has arrived."""
    told = re.search(r"It was killed after (\d+) requests, and started again after (\d+)\.\n  (\d+) events", run.output)
    killed, started, waiting = map(int, told.groups())
    assert (killed, started) == (REQUESTS // 3, 2 * (REQUESTS // 3))
    assert re.search(r"meanwhile: 127\.0\.0\.1:\d+ could not be reached: Connection refused\n", run.output)
    logged = [event for event in run.events if event["level"] != "debug"]
    # Each third has as many requests of each kind.
    assert waiting * 3 == len(logged)
    assert len({json.dumps(event) for event in run.collected}) == len(logged)


def test_the_file_has_the_events_of_the_service_and_of_its_libraries(run):
    """Events of structlog and records of urllib3 and http.server end in one file, each under its own logger."""
    loggers = {event["logger"] for event in run.events}
    assert {"shop", "http.server", "urllib3.connectionpool"} <= loggers
    assert {event["level"] for event in run.events} == {"debug", "info", "warning", "error"}


def test_every_request_is_in_the_file_once_and_with_its_fields(run):
    """What was bound for a request is in each of its events, the server's own included."""
    finished = [event for event in run.events if event["event"] == "request finished"]
    assert len(finished) == REQUESTS
    assert len({event["request_id"] for event in finished}) == REQUESTS
    for event in run.events:
        if event["logger"] in ("shop", "http.server"):
            assert {"request_id", "method", "path", "client"} <= event.keys()


def test_some_requests_fail_and_some_handlers_raise(run):
    """The input is not only fair weather: refusals, exceptions with their traceback, and a connection hung up."""
    statuses = Counter(event["status"] for event in run.events if event["event"] == "request finished")
    assert {200, 401, 404, 500} == statuses.keys()
    raised = [event for event in run.events if event["event"] == "handler raised"]
    assert len(raised) == statuses[500]
    assert all("KeyError: 'quantity'" in str(event["exception"]) for event in raised)
    assert any("RemoteDisconnected" in str(event["event"]) for event in run.events)


def test_no_secret_is_in_any_of_the_outputs(run):
    """Passwords, tokens and card numbers reach none of the sinks whole."""
    files = json.dumps([run.events, run.collected], ensure_ascii=False)
    everything = run.output + run.warnings + run.archive + files
    assert [secret for secret in SECRETS if secret in everything] == []


def test_the_archive_rolls_over_and_is_compressed(run):
    """It has everything from info up, in files of the size that was asked for."""
    kept = [event for event in run.events if event["level"] != "debug"]
    assert len(run.archive.splitlines()) == len(kept)
    assert (run.directory / "archive.jsonl").stat().st_size <= 32_000
    assert list(run.directory.glob("archive.jsonl.*.gz"))


def test_the_collector_has_every_event_from_info_up(run):
    """Once each, without whom it was about; and the report says how many."""
    kept = [event for event in run.events if event["level"] != "debug"]
    # Threads may come to two sinks in different orders.
    assert Counter(event["timestamp"] for event in run.collected) == Counter(event["timestamp"] for event in kept)
    assert not any("client" in event or "order" in event for event in run.collected)
    assert any("?..." in str(event.get("path")) for event in run.collected)
    (ledger,) = [line.split() for line in run.output.splitlines() if line.startswith("  collector ")]
    assert (int(ledger[1]), int(ledger[3])) == (len(kept), len(kept))
    arrived = run.output.partition("Arrived at the collector")[2].partition("Slowest")[0]
    assert sum(map(int, re.findall(r"\d+", arrived))) == len(kept)


def test_each_sink_has_its_own_redaction(run):
    """The file masks secrets, the console shows their end, the warnings say nothing of who it was."""
    assert any("password=***" in str(event.get("path")) for event in run.events)
    (payment, *_) = [event["order"]["payment"] for event in run.events if event["event"] == "order received"]
    assert payment == {"card": "***", "token": "***"}
    assert "***" not in run.console
    assert "password=..." in run.console
    assert "client=" in run.console
    assert "client=" not in run.warnings
    assert "password" not in run.warnings
    assert "/login?..." in run.warnings


def test_each_sink_has_its_own_level_and_renderer(run):
    """The file has all levels as JSON, the console no debug events, the warnings file logfmt from warning up."""
    assert "[debug" not in run.console
    assert "[info" in run.console
    lines = run.warnings.splitlines()
    assert lines
    assert all("level=warning" in line or "level=error" in line for line in lines)
    noteworthy = [event for event in run.events if event["level"] in ("warning", "error")]
    assert len(lines) == len(noteworthy)


def test_the_console_shows_a_sample_that_does_not_grow(run):
    """However many requests are made, two events of each kind are shown: seven kinds of two loggers have requests."""
    assert sum("request_id=" in line for line in run.console.splitlines()) == 14


def _ledger(lines: int, **changes: object) -> SinkStats:
    """Return the fanout's ledger after *lines* events, with *changes* in that of the sink for everything."""
    everything = dataclasses.replace(SinkStats("everything", accepted=lines, delivered=lines), **changes)
    warnings = SinkStats("warnings", accepted=lines - 7, delivered=lines - 7, filtered=7)
    return SinkStats("fanout", accepted=lines, delivered=lines, targets=(everything, warnings))


def test_a_balance_that_is_off_is_found(run, service):
    """A missing line, a lost event, an event not handed on and an answer not logged: each is named."""
    summary = service.read_back(run.directory)
    lines, statuses = summary.lines, Counter(event["status"] for event in summary.finished)
    assert service.what_is_wrong(summary, statuses, _ledger(lines)) == []

    (wrong,) = service.what_is_wrong(summary._replace(lines=lines - 1), statuses, _ledger(lines))
    assert f"the file has {lines - 1} lines" in wrong
    lost = _ledger(lines, delivered=lines - 1, dropped={"error": 1})
    (wrong,) = service.what_is_wrong(summary._replace(lines=lines - 1), statuses, lost)
    assert f"everything accepted {lines} events and delivered {lines - 1}" in wrong
    skipped = _ledger(lines, accepted=lines - 1, delivered=lines - 1)
    (wrong,) = service.what_is_wrong(summary._replace(lines=lines - 1), statuses, skipped)
    assert "everything did not see each of" in wrong
    archive = SinkStats("archive", accepted=lines, delivered=lines)
    short = dataclasses.replace(_ledger(lines), targets=(*_ledger(lines).targets, archive))
    (wrong,) = service.what_is_wrong(summary, statuses, short)
    assert f"archive delivered {lines} events; its files have" in wrong
    collector = SinkStats("collector", accepted=lines, delivered=lines)
    sent = dataclasses.replace(_ledger(lines), targets=(*_ledger(lines).targets, collector))
    (wrong,) = service.what_is_wrong(summary, statuses, sent)
    assert f"collector delivered {lines} events; {len({json.dumps(event) for event in run.collected})} arrived" in wrong
    (wrong,) = service.what_is_wrong(summary, statuses + Counter({200: 1}), _ledger(lines))
    assert "the client got statuses" in wrong


@pytest.mark.usefixtures("own_logging")
def test_the_exit_code_says_that_something_is_wrong(service, tmp_path, monkeypatch, capsys):
    """A file that somebody cut short while the service ran ends in exit code 1 and a line that says why."""
    genuine = service.read_back

    def cut(directory: Path) -> object:
        path = directory / "service.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        return genuine(directory)

    monkeypatch.setattr(service, "read_back", cut)
    assert service.run(tmp_path, 10) == 1
    assert "DOES NOT BALANCE: everything delivered" in capsys.readouterr().out


@pytest.fixture
def collector(tmp_path):
    """Give the URL of the example's collector, and its file."""
    file = tmp_path / "collected.jsonl"
    command = [sys.executable, SERVICE.with_name("collector.py"), file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip(), file
        process.terminate()


def test_the_collector_takes_all_lines_or_none(collector):
    """Compressed or not; a request with a line that is no JSON is refused, and costs no other."""
    url, file = collector
    body = b'{"a":1}\n{"a":2}\n'
    with requests.Session() as session:
        session.trust_env = False
        assert session.post(url, body, timeout=30).status_code == 204
        packed = session.post(url, gzip.compress(body), headers={"Content-Encoding": "gzip"}, timeout=30)
        assert packed.status_code == 204
        assert session.post(url, body + b"{", timeout=30).status_code == 400
    assert file.read_bytes() == body * 2


@pytest.mark.service
@pytest.mark.slow
def test_the_fleet_loses_nothing(require_service):
    """A relay and Redis are killed, and each event arrives."""
    require_service("redis-server")
    fleet = SERVICE.parent / "fleet" / "fleet.py"
    environment = {**os.environ, "PYTHONPATH": str(SERVICE.parents[1])}
    command = [sys.executable, str(fleet), "--events", "2000"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8,000 of 8,000 events have arrived" in result.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads TOML with the extra toml alone")
def test_the_fleets_file_is_one_that_a_relay_reads():
    """Its broker and its targets are known."""
    path = SERVICE.parent / "fleet" / "relay.toml"
    plan = _plan_of(Namespace(config=str(path), source=None, sources=[], targets=[], timeout=None))
    assert (len(plan.targets), plan.timeout) == (2, 30)
