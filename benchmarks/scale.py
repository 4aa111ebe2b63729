"""The command ``python -m benchmarks.scale``: how cost grows with the number of sinks and files, and with bytes.

Each result comes from a process of its own; opening and closing are measured in CPU time. A cost that should grow in
proportion is shown with the cost of a tenth and of a hundredth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MIB = 1 << 20
_LINE = b'{"event":"request finished","level":"info","timestamp":"2026-03-14T15:09:26.535897Z","path":"/%s"}\n' % (
    b"x" * 152
)


def _resident() -> int:
    """Return the memory of the process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def open_sinks(directory: Path, number: int, kind: str) -> dict[str, float]:
    """Open *number* sinks of *kind*, use each once, and close all."""
    import outfall

    make: Callable[[int], outfall.Sink] = {
        "FileSink": lambda each: outfall.FileSink(directory / f"{each}.jsonl"),
        "RotatingFileSink": lambda each: outfall.RotatingFileSink(directory / f"{each}.jsonl", max_bytes=_MIB),
        "BackgroundSink(FileSink)": lambda each: outfall.BackgroundSink(
            outfall.FileSink(directory / f"{each}.jsonl"), linger=0
        ),
    }[kind]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with make(number) as first:  # imports the modules
        first.handle({"event": "x", "level": "info"})
    before = _resident()
    begin = process_time()
    sinks = [make(each) for each in range(number)]
    made = process_time()
    for sink in sinks:
        sink.handle({"event": "x", "level": "info"})
        assert sink.flush(10)
    memory = _resident() - before
    close = process_time()
    for sink in sinks:
        assert sink.close(10)
    return {
        "open µs each": (made - begin) / number * 1e6,
        "close µs each": (process_time() - close) / number * 1e6,
        "KiB each": memory / number / 1024,
    }


def exit_of_sinks(directory: Path, number: int, kind: str) -> dict[str, float]:
    """Leave *number* open sinks to the exit of the process, each with a waiting event."""
    program = f"""
import sys, time
from pathlib import Path
import outfall
sinks = []
for each in range({number}):
    target = outfall.FileSink(Path({str(directory)!r}) / f"exit-{{each}}.jsonl")
    sinks.append(outfall.BackgroundSink(target) if {kind.startswith("Background")} else target)
for sink in sinks:
    sink.handle({{"event": "x", "level": "info"}})
print(time.time(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    ended = time.time()
    assert sum(path.stat().st_size > 0 for path in directory.glob("exit-*.jsonl")) == number
    return {"exit ms": (ended - float(done.stdout)) * 1e3}


def rotated_files(directory: Path, number: int) -> dict[str, float]:
    """Roll over a file that has *number* rotated files."""
    import outfall

    for each in range(number):
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(1_700_000_000 + each))
        (directory / f"app.jsonl.{stamp}").write_bytes(b"{}\n")
    with outfall.TimedRotatingFileSink(directory / "app.jsonl", when="S", backup_count=number, utc=True) as sink:
        sink.handle({"event": "x"})
        taken = []
        for _ in range(3):
            begin = perf_counter()
            sink.do_rollover()
            taken.append(perf_counter() - begin)
            sink.handle({"event": "x"})
    return {"rollover ms": sorted(taken)[1] * 1e3}


def large_events(directory: Path, size: int) -> dict[str, float]:
    """Write events of *size* bytes."""
    import outfall

    event = {"event": "x", "level": "info", "body": "y" * size}
    figures = {}
    for name, sink in (
        ("FileSink ms", outfall.FileSink(directory / "large.jsonl")),
        ("BackgroundSink(FileSink) ms", outfall.BackgroundSink(outfall.FileSink(directory / "large.jsonl"))),
    ):
        number = max(3, 20 * _MIB // size)
        begin = perf_counter()
        with sink:
            for _ in range(number):
                sink.handle(event)
            assert sink.flush(60), sink.stats()
        figures[name] = (perf_counter() - begin) / number * 1e3
    return figures


def large_spool(directory: Path, size: int) -> dict[str, float]:
    """Start with a spool of *size* bytes that a dead process has left, and read its status."""
    import outfall

    number = max(1, size // len(_LINE))
    program = f"""
import os, outfall
class Away(outfall.Sink):
    def emit_batch(self, batch):
        raise outfall.TemporaryDeliveryError("away")
sink = outfall.SpoolSink(Away(), {str(directory / "spool")!r}, max_bytes=1 << 40, on_error=[].append)
event = {{"event": "request finished", "level": "info", "timestamp": "2026-03-14T15:09:26.535897Z"}}
event["path"] = "/" + "x" * 152
for _ in range({number}):
    sink.handle(event)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    begin = perf_counter()
    status = outfall.SpoolStatus.read(directory / "spool")
    looked = perf_counter() - begin
    assert status.events >= number - 1, status.events

    class First(outfall.Sink):
        at = 0.0

        def emit_batch(self, batch: Sequence[Any]) -> None:
            self.at = self.at or perf_counter()
            msg = "one is enough"
            raise outfall.PausedDeliveryError(msg)

    target = First()
    before = _resident()
    begin = perf_counter()
    sink = outfall.SpoolSink(target, directory / "spool", max_bytes=1 << 40, on_error=[].append, linger=0)
    started = perf_counter() - begin
    sink.handle({"event": "y", "level": "info"})
    while not target.at:
        time.sleep(0.001)
    first = target.at - begin
    memory = _resident() - before
    sink.close(0)
    return {
        "status ms": looked * 1e3,
        "start ms": started * 1e3,
        "first delivery ms": first * 1e3,
        "MiB of memory": memory / _MIB,
    }


def _families(options: argparse.Namespace) -> list[tuple[str, str, Sequence[int], tuple[str, ...]]]:
    """Return the measurements: a description, the function, the numbers, and further arguments of the function."""
    families: list[tuple[str, str, Sequence[int], tuple[str, ...]]] = [
        (f"open {kind}s", "open_sinks", options.sinks, (kind,))
        for kind in ("FileSink", "RotatingFileSink", "BackgroundSink(FileSink)")
    ]
    families += [
        (f"{kind}s left open at the exit", "exit_of_sinks", options.sinks, (kind,))
        for kind in ("FileSink", "BackgroundSink(FileSink)")
    ]
    return [
        *families,
        ("rotated files kept", "rotated_files", options.files, ()),
        ("bytes an event", "large_events", options.event_bytes, ()),
        ("bytes of a spool", "large_spool", options.spool_bytes, ()),
    ]


def _rounded(number: int) -> str:
    for size, name in ((1 << 30, "GiB"), (_MIB, "MiB"), (1 << 10, "KiB")):
        if number % size == 0:
            return f"{number // size} {name}"
    return f"{number:,}"


def _table(what: str, numbers: Sequence[int], found: Sequence[dict[str, float]]) -> list[str]:
    """Return the lines of a table with a column for each of the *numbers*."""
    head = [what, *map(_rounded, numbers)]
    rows = [[name, *(f"{figures[name]:,.1f}" for figures in found)] for name in found[0]]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * len(numbers)], *rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each number in a process of its own, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sinks", type=int, nargs="*", default=[10, 100, 1_000], help="how many open sinks")
    parser.add_argument("--files", type=int, nargs="*", default=[100, 1_000, 10_000], help="how many rotated files")
    parser.add_argument("--event-bytes", type=int, nargs="*", default=[10 << 10, 100 << 10, _MIB])
    parser.add_argument("--spool-bytes", type=int, nargs="*", default=[10 * _MIB, 100 * _MIB, 1 << 30])
    parser.add_argument("--publish", type=Path, metavar="FILE", help="write the tables there as well")
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, *given = options.one
        with tempfile.TemporaryDirectory(dir="/var/tmp" if os.path.isdir("/var/tmp") else None) as made:  # noqa: S108
            print(json.dumps(globals()[name](Path(made), *(int(each) if each.isdigit() else each for each in given))))
        return 0
    report = describe(Path(tempfile.gettempdir()))
    print(f"{report['machine']}; {report['python']}; load {report['load']}")
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    lines = [f"Measured on {today} on the machine above, with CPython {platform.python_version()}."]
    for what, function, numbers, more in _families(options):
        found = []
        for number in numbers:
            command = [sys.executable, "-m", "benchmarks.scale", "--one", function, str(number), *more]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found.append(json.loads(done.stdout))
            print(
                f"{_rounded(number):>8} {what:48}", ", ".join(f"{key} {value:,.1f}" for key, value in found[-1].items())
            )
            sys.stdout.flush()
        if found:
            lines += ["", *_table(what, numbers, found)]
    if options.publish is not None:
        options.publish.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
