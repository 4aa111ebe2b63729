"""What the tests of rotating files share."""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import zstandard

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes of ``{"event":""}`` and the terminator.
_OVERHEAD = 13


def line(number: int, size: int = 20) -> dict[str, Any]:
    """Return an event that is *size* bytes long in the file, terminator included."""
    return {"event": f"{number:0{size - _OVERHEAD}d}"}


def numbers(path: Path) -> list[int]:
    """Return the numbers of the events in the file, compressed or not; a torn line is an assertion error."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert not data or data.endswith(b"\n"), f"half a line at the end of {path.name}: {data[-100:]!r}"
    found = []
    for text in data.splitlines():
        try:
            found.append(int(json.loads(text)["event"]))
        except ValueError:
            raise AssertionError(f"a torn line in {path.name}: {text[:200]!r}") from None
    return found


def by_name(directory: Path) -> dict[str, list[int]]:
    """Return the numbers of the events in each file of the directory."""
    return {path.name: numbers(path) for path in sorted(directory.iterdir())}


def in_order(path: Path) -> list[int]:
    """Return the numbers of all events in *path* and the files rotated from it by number, the oldest first."""
    rotated: list[tuple[int, Path]] = []
    for file in path.parent.iterdir():
        match = re.fullmatch(re.escape(path.name) + r"\.([0-9]+)(\.gz|\.zst)?", file.name)
        if match:
            rotated.append((int(match[1]), file))
    files = [file for _, file in sorted(rotated, reverse=True)]
    return [number for file in [*files, path] if file.exists() for number in numbers(file)]
