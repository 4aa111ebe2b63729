"""The command ``python -m benchmarks.walks``: counts the calls on the path of an event, and the changes of module.

A *call* is a call of a Python function of the package, in any thread. A *jump* is a call of a function in another
module than the thread's previous call. The counts do not depend on the machine: they say how far a reader has to follow
the code. Imports are not counted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import outfall
from benchmarks.collector import collector
from outfall import NDJSON, BackgroundSink, FileSink, HTTPSink, RotatingFileSink, Sink, SpoolSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

_ROOT = Path(outfall.__file__).resolve().parent.parent
_FOLDERS = tuple(f"{_ROOT / folder}{os.sep}" for folder in ("sinks", "adapters", "outfall"))

_EVENT = {"event": "request finished", "level": "info", "timestamp": "2026-03-14T15:09:26.535897Z", "status": 200}


@dataclass
class Walk:
    """The counts.

    Args:
        calls: Calls of functions of the package.
        jumps: Calls into another module than the thread's previous call.
    """

    calls: int = 0
    jumps: int = 0
    _last: dict[int, str] = field(default_factory=dict)

    def note(self, frame: FrameType, what: str, _argument: object) -> None:
        """Count one event of the interpreter's profiler."""
        if what != "call":
            return
        path = frame.f_code.co_filename
        real = _REAL.get(path)
        if real is None:
            real = _REAL[path] = os.path.realpath(path)
        if not real.startswith(_FOLDERS) or frame.f_code.co_name == "<module>":
            return
        self.calls += 1
        me = threading.get_ident()
        self.jumps += self._last.get(me, real) != real
        self._last[me] = real


_REAL: dict[str, str] = {}


@contextmanager
def counted() -> Iterator[Walk]:
    """Count the calls within the context, in this thread and in those that start meanwhile."""
    walk = Walk()
    threading.setprofile(walk.note)
    sys.setprofile(walk.note)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


class _Taking(Sink):
    """A target that takes each batch."""

    def emit_batch(self, batch: Sequence[Any]) -> None:
        """Take *batch*."""


def walks(directory: Path) -> Iterator[tuple[str, Walk]]:
    """Count each path; *directory* is an empty directory."""
    with FileSink(directory / "file.jsonl") as sink:
        sink.handle(_EVENT)
        with counted() as walk:
            sink.handle(_EVENT)
        yield "an event into a file", walk
    with RotatingFileSink(directory / "rotating.jsonl", max_bytes=300, backup_count=2) as sink:
        for _ in range(8):
            sink.handle(_EVENT)
        while Path(directory / "rotating.jsonl").stat().st_size < 200:
            sink.handle(_EVENT)
        with counted() as walk:
            sink.handle(_EVENT)
        yield "an event that rolls the file over", walk
    for name, target in (("takes everything", _taking), ("writes a file", _file), ("posts NDJSON", _http)):
        with ExitStack() as stack:
            yield (
                f"ten events behind a thread, whose target {name}, from start to close",
                _lived(stack, directory, target, lambda made, _directory: BackgroundSink(made)),
            )
        with ExitStack() as stack:
            yield (
                f"ten events through a spool, whose target {name}, from start to close",
                _lived(stack, directory, target, lambda made, where: SpoolSink(made, where / "spool")),
            )


def _lived(
    stack: ExitStack,
    directory: Path,
    target: Callable[[ExitStack, Path], Sink],
    around: Callable[[Sink, Path], Sink],
) -> Walk:
    """Count the whole life of a worker that delivers ten events: its start, the batch, and its end."""
    own = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
    sink = around(target(stack, own), own)
    with counted() as walk:
        for _ in range(10):
            sink.handle(_EVENT)
        assert sink.close(10), sink.stats()
    assert sink.stats().delivered == 10, sink.stats()
    return walk


def _taking(_stack: ExitStack, _directory: Path) -> Sink:
    return _Taking()


def _file(_stack: ExitStack, directory: Path) -> Sink:
    return FileSink(directory / "target.jsonl")


def _http(stack: ExitStack, _directory: Path) -> Sink:
    url = stack.enter_context(collector()).url
    with HTTPSink(url, body=NDJSON()) as first:
        first.handle(_EVENT)  # imports the modules
    return HTTPSink(url, body=NDJSON())


def main() -> int:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        rows = list(walks(Path(directory)))
    width = max(len(name) for name, _ in rows)
    print(f"  {'':{width}} {'calls':>6} {'jumps':>6}")
    for name, walk in rows:
        print(f"  {name:{width}} {walk.calls:>6} {walk.jumps:>6}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
