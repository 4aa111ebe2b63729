"""The cost of imports, in new interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Group, Row, nothing_written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness import Run, SetUp

_ROOT = Path(__file__).parents[2]

# Timed within the new interpreter, since starting it takes longer than the imports.
_CODE = """\
{before}
from time import perf_counter
begin = perf_counter()
{timed}
print(perf_counter() - begin)
"""


def _imported(timed: str, before: str = "") -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        # Use compiled modules, as an installation has them. The warm-up round makes them, even if the environment
        # forbids to write any.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(directory)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(times: int) -> float:
            code = _CODE.format(before=before, timed=timed)
            return sum(_seconds_printed(code, environment) for _ in range(times))

        yield run

    return setup


def _seconds_printed(code: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,  # so that it works without an installation
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    return float(done.stdout)


GROUP = Group(
    "startup",
    "imports, each time in a new interpreter",
    (
        Row("import structlog, orjson", _imported("import structlog, orjson"), proof=nothing_written),
        Row(
            "from outfall import FileSink, after those",
            _imported("from outfall import FileSink", before="import structlog, orjson"),
            budget=25,
            proof=nothing_written,
        ),
    ),
    rounds=9,
    events=1,
    unit="ms",
)
