"""The tests of other projects, with the drop-in handlers in the place of the originals.

``.ci/suites <folder>`` brings them, and OUTFALL_SUITES names the folder; without it they are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import outfall

FOLDER = os.environ.get("OUTFALL_SUITES")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="OUTFALL_SUITES names no folder with the tests of others"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

#: What those tests expect, and the twins do otherwise on purpose, with the reason. None does.
DIFFERENT: dict[str, str] = {}

#: What concurrent-log-handler is asked to do: its sdist brings no tests.
CONCURRENT = """
import logging, os, sys
if sys.argv[1] == "twins":
    import outfall_in_place
    outfall_in_place.pytest_load_initial_conftests()
from concurrent_log_handler import ConcurrentRotatingFileHandler, ConcurrentTimedRotatingFileHandler

os.chdir(sys.argv[2])
failures = []
logging.Handler.handleError = lambda handler, record: failures.append(repr(sys.exc_info()[1]))

def children(handler, number):
    for child in range(2):
        if os.fork() == 0:
            for each in range(number):
                handler.handle(logging.makeLogRecord({"msg": f"child {child} {each:03}"}))
            handler.close()
            os._exit(len(failures))
    for _ in range(2):
        assert os.wait()[1] == 0

sized = ConcurrentRotatingFileHandler("sized.log", maxBytes=300, backupCount=99)
for each in range(40):
    sized.handle(logging.makeLogRecord({"msg": f"parent {each:03}"}))
children(sized, 40)
sized.close()
kept = ConcurrentRotatingFileHandler("kept.log", "a", 100, 2, keep_file_open=False, umask=0o077)
for each in range(40):
    kept.handle(logging.makeLogRecord({"msg": f"parent {each:03}"}))
kept.close()
timed = ConcurrentTimedRotatingFileHandler("timed.log", when="D", backupCount=3, maxBytes=200)
for each in range(40):
    timed.handle(logging.makeLogRecord({"msg": f"parent {each:03}"}))
timed.close()
lines = sorted(line for name in os.listdir(".") if name.startswith("sized.log") for line in open(name))
print(lines, len(open("kept.log").read()) < 101, len(os.listdir(".")) > 10, failures)
print(len([name for name in os.listdir(".") if name.startswith("kept.log")]))
print(max(os.path.getsize(name) for name in os.listdir(".") if name.startswith("sized.log")) <= 300)
"""


def run(folder, *arguments):
    """Return what Python prints, run in *folder*, where it finds the plug-in and what the tests need."""
    here = Path(__file__).parent
    path = [Path(outfall.__file__).parents[1], here / "in_place", Path(FOLDER) / "lib"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.stdout + done.stderr


def failures_of(project, *arguments):
    """Return the names of the tests of *project* that fail, and how many pass."""
    [folder] = Path(FOLDER).glob(f"{project}-*/")
    printed = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", *arguments, "tests")
    lines = printed.splitlines()
    passed = next((line for line in reversed(lines) if " passed" in line), "")
    assert passed, printed[-3000:]
    return {line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))}, passed


@pytest.mark.parametrize("project", ["structlog", "python_json_logger"])
def test_their_tests_pass_over_the_twins(project):
    """All that pass over the originals, but those that expect what the twins do otherwise on purpose."""
    without, _ = failures_of(project)
    over_twins, passed = failures_of(project, "-p", "outfall_in_place")
    unexpected = {name for name in over_twins - without if not any(part in name for part in DIFFERENT)}
    assert unexpected == set(), passed


def test_the_handlers_of_concurrent_log_handler_work_on_the_twins(tmp_path):
    """Processes that share a file, rotation by size and time, a file that is closed after each record."""
    printed = []
    for which in ("originals", "twins"):
        directory = tmp_path / which
        directory.mkdir()
        printed.append(run(tmp_path, "-c", CONCURRENT, which, directory))
    assert printed[1] == printed[0]
    assert "'child 1 039\\n'" in printed[0], printed[0]
