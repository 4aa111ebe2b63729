"""Write sealed lines to a file, for a renderer with ``seal`` such as `ChainedRenderer`."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from itertools import accumulate
from os import write as _os_write
from time import monotonic
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.lifecycle import here
from outfall.sinks.event.chained import sealed_line
from outfall.sinks.files.compression import ENDINGS, open_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: How much of a file's end is read first to find its last line.
_TAIL_BYTES = 65_536


def write_sealed_line(sink: Any, data: bytes) -> bool:
    """Seal and write *data*, a line; return False if the pipeline has to. Used as a sink's ``_write_line``."""
    if monotonic() >= sink._verify_at or sink._sealing or sink._buffer.lines or sink._fd < 0 or not here[0]:
        return False
    renderer = sink._sealer
    before = renderer.state
    # From here on, events of signal handlers go to the buffer: their numbers follow this one.
    sink._sealing = sink._mid_line = True
    try:
        line = renderer.seal(data, sink._last_line)
        written = _os_write(sink._fd, line)
        if written != len(line):
            sink._finish(line, written)
    except Exception:
        renderer.state = before
        raise
    except BaseException:
        renderer.state = None  # the file says whether the line was written
        raise
    finally:
        sink._sealing = sink._mid_line = False
    if sink._buffer.lines:
        with contextlib.suppress(Exception):  # counted, and reported with the next failure
            sink._write_buffer()
    return True


def write_sealed(sink: Any, data: bytes, ends: Sequence[int]) -> None:
    """Seal and write the lines of *data*, which end at *ends*; the numbers of unwritten lines are used again."""
    renderer = sink._sealer
    states: list[Any] = []
    lines: list[bytes] = []
    start = sink._kept = 0
    sink._sealing = sink._mid_line = True
    try:
        for end in ends:
            states.append(renderer.state)
            lines.append(renderer.seal(data[start:end], sink._last_line))
            start = end
        sink._write_whole(b"".join(lines), tuple(accumulate(map(len, lines))))
    except Exception:
        if sink._kept < len(states):
            renderer.state = states[sink._kept]
        raise
    except BaseException:
        renderer.state = None
        raise
    finally:
        sink._sealing = sink._mid_line = False


def last_sealed_line(path: str, rotated: Sequence[str]) -> bytes | None:
    """Return the last line of a chain in the file at *path*, else in the first of *rotated* that has any."""
    for each in (path, *rotated):
        with contextlib.suppress(OSError, EOFError):
            lines = _lines_backwards(each) if not each.endswith(ENDINGS) else reversed(_lines_of(each))
            for line in lines:
                if sealed_line(line) is not None:
                    return line
    return None


def _lines_of(path: str) -> list[bytes]:
    """Return the last lines of a compressed file, which can only be read from its beginning."""
    with open_lines(path) as lines:
        return [line.rstrip(b"\n") for line in deque(lines, maxlen=100)]


def _lines_backwards(path: str) -> Iterator[bytes]:
    """Yield the lines of the file at *path*, the last one first."""
    with open(path, "rb") as file:
        position = file.seek(0, os.SEEK_END)
        rest = b""
        size = _TAIL_BYTES
        while position:
            size = min(size * 2, position)
            position -= size
            file.seek(position)
            first, *others = (file.read(size) + rest).split(b"\n")
            yield from reversed(others)
            rest = first
        if rest:
            yield rest
