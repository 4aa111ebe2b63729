"""What every test may use, and what every test is protected from."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A busy machine is no failure, so no example has a deadline. The rest stays as hypothesis chooses it, which
# depends on whether CI is set.
# A search for what nobody has thought of is `make fuzz`; here a property is tried often enough to see it break.
hypothesis.settings.register_profile(
    "outfall", deadline=None, max_examples=int(os.environ.get("OUTFALL_EXAMPLES", "30"))
)
hypothesis.settings.load_profile("outfall")


def _find_service(name: str) -> str:
    # Debian keeps daemons where the PATH of an ordinary user does not look.
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("OUTFALL_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{reason}, and OUTFALL_REQUIRE_SERVICES=1 allows no skipping", pytrace=False)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def require_service() -> Callable[[str], str]:
    """Give a function from a program's name to its path; it skips the test, or fails it, if there is none."""
    return _find_service


@pytest.fixture(autouse=True)
def _global_state_as_found() -> Iterator[None]:
    """Undo what a test configured for the whole process."""
    root = logging.getLogger()
    handlers, filters, level, disabled = root.handlers[:], root.filters[:], root.level, root.manager.disable
    raise_exceptions = logging.raiseExceptions
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.filters[:] = filters
    root.setLevel(level)
    root.manager.disable = disabled
    logging.raiseExceptions = raise_exceptions


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
