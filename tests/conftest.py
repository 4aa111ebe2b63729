"""What every test may use, and what every test is protected from."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests._state import State, find_logging, restore_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A busy machine is no failure, so no example has a deadline. The rest stays as hypothesis chooses it, which
# depends on whether CI is set.
# A search for what nobody has thought of is `make fuzz`; here a property is tried often enough to see it break.
hypothesis.settings.register_profile(
    "outfall", deadline=None, max_examples=int(os.environ.get("OUTFALL_EXAMPLES", "30"))
)
hypothesis.settings.load_profile("outfall")


#: What a test means to depend on, it sets: peers are on loopback, and output is as wide as it is by default.
_ODD = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "no_color", "force_color", "columns", "pythonwarnings"}
for name in [name for name in os.environ if name.lower() in _ODD]:
    del os.environ[name]
# What a shell starts in the background has it ignored, as have the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Programs that tests talk to, and the packages of Debian that bring them; .ci/run installs them.
_PACKAGES = {
    "rsyslogd": "rsyslog",
    "rsyslogd's TLS driver": "rsyslog-gnutls",
    "logrotate": "logrotate",
    "clickhouse-server": "clickhouse-server",
    "nginx": "nginx-light",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "redis-server": "redis-server",
    "rabbitmq-server": "rabbitmq-server",
}
_MISSING = " is not installed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was skipped, and how to have it run."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())]
    if not reasons:
        return
    missing = sorted({reason.removesuffix(_MISSING) for reason in reasons if reason.endswith(_MISSING)})
    parts = []
    if missing:
        parts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")
    if packages := [_PACKAGES[name] for name in missing if name in _PACKAGES]:
        parts.append(f"`sudo apt-get install {' '.join(packages)}`")
    if "syslog-ng" in missing:  # its package would take rsyslog's place
        parts.append("`sudo .ci/syslog-ng`")
    parts += sorted({reason for reason in reasons if not reason.endswith(_MISSING)})
    terminalreporter.write_line(f"{len(reasons)} skipped: {'; '.join(parts)}")


def _find_service(name: str) -> str:
    # Debian keeps daemons where the PATH of an ordinary user does not look.
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        reason = name + _MISSING
        if os.environ.get("OUTFALL_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{reason}, and OUTFALL_REQUIRE_SERVICES=1 allows no skipping", pytrace=False)
        pytest.skip(reason)
    return path


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage meanwhile: nearly all that is made stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Have programs that tests start import children/sitecustomize.py; leave what pytest has collected to itself."""
    # Not before: the processes of xdist are no such programs.
    tests = Path(__file__).parent
    path = [str(tests / "children"), str(tests.parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    # Thousands of tests, which nothing lets go of: to look through them takes a tenth of a second for each collection.
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one process of tests more than there are processors: some wait, for a time-out or for a daemon."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors + 1


@pytest.fixture(scope="session")
def require_service() -> Callable[[str], str]:
    """Give a function from a program's name to its path; it skips the test, or fails it, if there is none."""
    return _find_service


@pytest.fixture(autouse=True)
def _process_as_found(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves the process in another state than it found it in."""
    state, failed = State(), request.session.testsfailed
    yield
    if request.session.testsfailed > failed:  # and keeps the frames it failed in, and all they hold
        state.restore()
    elif left := state.left(request.node.funcargs):
        pytest.fail("\n".join(["the test leaves behind:", *left]), pytrace=False)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Let a test set up logging and structlog as it likes; put both back."""
    before = find_logging()
    yield
    if (module := sys.modules.get("outfall.adapters.setup")) is not None:
        while (left := module._outlet.setup) is not None:
            left.close(1)
    restore_logging(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a directory on a file system of 64 KiB of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no mounting here: {mounted.stderr.decode()}")
    yield directory
    subprocess.run([shutil.which("umount"), "-l", directory], check=True)
