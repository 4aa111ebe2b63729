"""Describes the machine and the software of a measurement, on which the results depend."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

#: The measured libraries, and those they depend on.
LIBRARIES = (
    *("outfall", "orjson", "structlog", "requests"),
    *("loguru", "python-json-logger", "concurrent-log-handler", "opentelemetry-sdk", "python-logstash-async"),
)


def describe(directory: Path) -> dict[str, Any]:
    """Return date, machine, Python and library versions; *directory* is where the files are written."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": _file_system(directory),
        # Other programs on the machine affect the results.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _file_system(directory: Path) -> str | None:
    """Return the type of the file system of *directory*, on Linux; else None."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    resolved = directory.resolve()
    # Of nested mounts take the longest path, of mounts at the same path the last.
    found = [(len(mount), kind) for _, mount, kind, *_ in mounts if resolved.is_relative_to(mount)]
    return max(reversed(found), key=lambda each: each[0])[1] if found else None
