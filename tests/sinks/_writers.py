"""Processes that write to one rotating file and are killed, and what has to be in its files afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import mmap
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outfall.sinks.files.by_size import RotatingFileSink
from outfall.sinks.files.by_time import TimedRotatingFileSink
from tests.sinks._processes import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

#: The calls of the system that rotation and compression are made of.
STEPS = ("open", "close", "stat", "lstat", "fstat", "replace", "unlink", "dup2", "chmod", "utime", "scandir")


class Progress:
    """For each writer how many of its events `handle` has returned for, in memory that outlives it."""

    def __init__(self, writers: int) -> None:
        # Set in one store, which no kill divides; struct.pack_into first makes it zero.
        self._counts = memoryview(mmap.mmap(-1, writers * 8)).cast("Q")

    def __getitem__(self, writer: int) -> int:
        return self._counts[writer]

    def __setitem__(self, writer: int, acknowledged: int) -> None:
        self._counts[writer] = acknowledged


@dataclass
class Crew:
    """Writers on one path, each a process of its own; events are ``{"w": writer, "n": number, "pad": ...}``."""

    path: Path
    make: Callable[..., Any]
    seed: int = 0
    pad: int = 60
    capacity: int = 4096
    #: At the end each has to have ended in good order; those killed are not among these.
    living: dict[int, int] = field(default_factory=dict)
    kills: int = 0
    writers: int = 0

    def __post_init__(self) -> None:
        self.progress = Progress(self.capacity)
        self.failures = self.path.with_name("failures")
        self.random = random.Random(self.seed)

    def note(self, failure: Any) -> None:
        """Keep what a sink reports, of whatever process."""
        descriptor = os.open(self.failures, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{failure.error!r}\n".encode())
        os.close(descriptor)

    def reported(self) -> list[str]:
        """Return what the sinks have reported so far."""
        return self.failures.read_text().splitlines() if self.failures.exists() else []

    def sink(self, **options: Any) -> Any:
        """Make a sink on the path."""
        return self.make(self.path, on_error=self.note, multiprocess=True, **options)

    def start(self, events: int, prepare: Callable[[], object] | None = None, work: Any = None) -> int:
        """Start a writer; return its process."""
        writer = self.writers
        self.writers += 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if prepare is not None:
                    prepare()
                sink = self.sink()
                (work or self.work)(sink, writer, events)
                status = 0 if sink.close(PATIENCE_SECONDS) else 3
            except BaseException as error:
                with contextlib.suppress(BaseException):
                    os.write(2, f"writer {writer}: {error!r}\n".encode())
            finally:
                os._exit(status)
        self.living[pid] = writer
        return pid

    def work(self, sink: Any, writer: int, events: int, first: int = 0) -> None:
        """Give *sink* so many events, noting each as soon as `handle` has returned."""
        pads = random.Random(f"{self.seed} {writer}")
        for number in range(first, first + events):
            sink.handle({"w": writer, "n": number, "pad": "x" * int(self.pad * pads.uniform(0.5, 1.5))})
            self.progress[writer] = number + 1

    def kill(self, pid: int) -> None:
        """Kill a writer, if it is still there."""
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self.wait(pid, killed=True)

    def wait(self, pid: int, *, killed: bool = False) -> None:
        """Wait for the end of a writer."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                del self.living[pid]
                raise AssertionError(f"seed {self.seed}: a writer hangs")
            time.sleep(0.001)
        del self.living[pid]
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert status == 0 or (killed and died), f"seed {self.seed}: a writer ended with {status}"

    def join(self) -> None:
        """Wait for all."""
        for pid in list(self.living):
            self.wait(pid)

    def end(self) -> None:
        """Let none live on."""
        for pid in list(self.living):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.living.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # -- looking

    def check(
        self,
        *,
        max_bytes: int = 0,
        complete: bool = True,
        torn: int | None = None,
        numbered: bool = True,
        **options: Any,
    ) -> list[Path]:
        """Start once more, so that what was left is finished, and look at every file; return them, oldest first."""
        where = f"seed {self.seed}"
        with self.sink(**options) as sink:
            assert sink.close(PATIENCE_SECONDS), where
            files = [Path(file.path) for file in reversed(sink.rotated_files())]
        if self.path.exists():
            files.append(self.path)
        left = {entry.name for entry in self.path.parent.iterdir()} - {file.name for file in files} - {"failures"}
        assert not left, f"{where}: left behind: {left}"
        assert self.reported() == [], where
        seen: dict[int, list[int]] = {writer: [] for writer in range(self.writers)}
        broken: list[bytes] = []
        blank = 0
        for file in files:
            data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            lines = data.split(b"\n")
            last = lines.pop()
            if last:
                broken.append(last)
            largest = 0
            for line in lines:
                if not line:  # one ended a half line just when another had
                    blank += 1
                    continue
                largest = max(largest, len(line) + 1)
                try:
                    event = json.loads(line)
                except ValueError:
                    broken.append(line)
                else:
                    seen[event["w"]].append(event["n"])
            if max_bytes:
                allowed = max_bytes + self.writers * largest
                assert len(data) <= allowed, f"{where}: {file.name} has {len(data)} bytes, {max_bytes} allowed"
        assert blank <= self.kills, f"{where}: {blank} blank lines"
        assert len(broken) <= (self.kills if torn is None else torn), f"{where}: torn: {broken[:3]}"
        for writer, numbers in seen.items():
            acknowledged = self.progress[writer]
            twice = [number for number, count in Counter(numbers).items() if count > 1]
            assert not twice, f"{where}: writer {writer}: twice: {twice[:5]} of {acknowledged}"
            if numbered:
                assert numbers == sorted(numbers), f"{where}: writer {writer}: out of order"
            expected = set(range(acknowledged))
            if not complete and numbers:  # the oldest were deleted
                expected = set(range(min(numbers), acknowledged))
            elif not complete:
                expected = set()
            missing = expected - set(numbers)
            assert not missing, (
                f"{where}: writer {writer}: {len(missing)} lost of {acknowledged}: {sorted(missing)[:5]}"
            )
            beyond = set(numbers) - set(range(acknowledged + 1))
            assert not beyond, f"{where}: writer {writer}: never handled: {beyond}"
        numbers_of_files = Counter(re.sub(r"\.(gz|zst)$", "", file.name) for file in files)
        assert max(numbers_of_files.values(), default=1) == 1, f"{where}: plain and compressed: {numbers_of_files}"
        return files


def die_at(step: int, *, after: bool, names: tuple[str, ...] = STEPS, half: bool = False) -> Callable[[], int]:
    """Have this process killed at the so-manyth call of those named; return how to ask for how many there were."""
    count = 0

    def counted(call: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = count
            if mine == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if mine == step and after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return called

    for name in names:
        setattr(os, name, counted(getattr(os, name)))
    fcntl.flock = counted(fcntl.flock)
    return lambda: count


def storm(
    path: Path,
    seed: int,
    *,
    seconds: float = 5.0,
    processes: int = 8,
    make: Callable[..., Any] | None = None,
    max_bytes: int = 4096,
    half_lines: bool = False,
    complete: bool = True,
    **options: Any,
) -> Crew:
    """Have processes write, be killed at random instants and chosen steps, and be replaced, for so long; then check."""
    from outfall.sinks.files import file as file_module

    made = make or RotatingFileSink
    chance = random.Random(seed)

    def sink(path: Path, **more: Any) -> Any:
        return made(path, max_bytes=max_bytes, **{"compression": "gzip", "backup_count": 1_000_000, **options, **more})

    def doom() -> Callable[[], object] | None:
        kind = chance.random()
        step, after = chance.randrange(1, chance.choice((20, 100, 400, 2000))), chance.random() < 0.5
        if kind < 0.5:
            return None
        if half_lines and kind < 0.7:

            def halved() -> None:
                write = file_module._os_write
                left = [step]

                def torn(descriptor: int, data: bytes) -> int:
                    left[0] -= 1
                    if left[0] == 0:
                        write(descriptor, bytes(data)[: len(data) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    return write(descriptor, data)

                file_module._os_write = torn

            return halved
        names = chance.choice((STEPS, ("replace", "unlink"), ("replace", "unlink", "dup2", "open"), ("utime", "chmod")))
        return lambda: die_at(step, after=after, names=names)

    with Crew(path, sink, seed=seed, pad=chance.choice((20, 60, 200))) as crew:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while len(crew.living) < processes and crew.writers < crew.capacity:
                crew.start(10**9, doom())
            time.sleep(chance.uniform(0, 0.05))
            for pid in list(crew.living):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    crew.kills += 1
                    del crew.living[pid]
                    assert os.WIFSIGNALED(status), f"seed {seed}: ended with {status}"
            if chance.random() < 0.5 and crew.living:
                crew.kill(chance.choice(list(crew.living)))
        for pid in list(crew.living):
            crew.kill(pid)
        crew.check(max_bytes=max_bytes, complete=complete, numbered=made is RotatingFileSink)
    return crew


def main(argv: list[str]) -> None:
    """Run storms with one seed after the other: ``python -m tests.sinks._writers FIRST_SEED SECONDS [DIRECTORY]``."""
    import shutil
    import tempfile

    first, until = int(argv[0]), time.monotonic() + float(argv[1])
    seed = first
    total = Counter[str]()
    while time.monotonic() < until:
        directory = Path(tempfile.mkdtemp(dir=argv[2] if len(argv) > 2 else None))
        chance = random.Random(seed)
        options: dict[str, Any] = {
            "max_bytes": chance.choice((1024, 2048, 8192, 65536, 300_000)),
            "processes": chance.choice((2, 4, 8)),
            "seconds": chance.choice((1, 3, 6)),
            "compression": chance.choice(("gzip", "gzip", None)),
            "half_lines": chance.random() < 0.3,
        }
        if chance.random() < 0.25:
            options |= {"make": TimedRotatingFileSink, "when": "S", "backup_count": 0}
            options["max_bytes"] = chance.choice((0, 8192, 65536))
        elif chance.random() < 0.3:
            options |= {"backup_count": chance.choice((5, 20)), "complete": False}
        try:
            crew = storm(directory / "app.log", seed, **options)
        except BaseException:
            print(f"FAILED seed {seed} {options} in {directory}", flush=True)  # noqa: T201
            raise
        events = sum(crew.progress[writer] for writer in range(crew.writers))
        print(seed, options, f"{crew.writers} writers, {crew.kills} kills, {events} events", flush=True)  # noqa: T201
        total.update(runs=1, writers=crew.writers, kills=crew.kills, events=events)
        shutil.rmtree(directory)
        seed += 1
    print(dict(total))  # noqa: T201


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
