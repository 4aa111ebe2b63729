"""``outfall verify``: checks that the lines of a chain are complete, unchanged and in order."""

from __future__ import annotations

import heapq
import itertools
import os
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from outfall.adapters.commandline.arguments import add_command, count, unusable
from outfall.sinks.errors import MissingDependencyError
from outfall.sinks.event.chained import NOTHING, ChainKey, SealedLine, sealed_line
from outfall.sinks.event.json import loads
from outfall.sinks.files.compression import open_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from outfall.adapters.commandline.arguments import Commands

_MOST_SHOWN = 50


def add(commands: Commands) -> None:
    """Add ``verify`` to the *commands*."""
    verify = add_command(
        commands,
        "verify",
        about="check whether lines of a ChainedRenderer are changed or missing",
        description=(
            "Read files that a sink with a ChainedRenderer has written, given in any order, compressed (.gz, .zst) or "
            "not. Print each line that is changed, missing or out of place. If retention has deleted files, print the "
            "number at which the lines begin. Half a line, as a killed process leaves it, is printed but no failure."
        ),
        example="outfall verify audit.jsonl* --key-file audit.key",
        epilog="exit codes: 0 all is as it was written; 1 it is not; 2 the arguments cannot be used",
    )
    verify.add_argument("files", nargs="+", metavar="FILE", help="a file of the chain")
    verify.add_argument(
        "--key-file", action="append", default=[], metavar="FILE", help="a file with the key; repeat it for each key"
    )
    verify.add_argument(
        "--key-env", action="append", default=[], metavar="NAME", help="a variable of the environment with the key"
    )
    verify.add_argument(
        "--expect", type=count, metavar="N", help="fail if the last number is below N, which you have kept elsewhere"
    )
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    keys = [*map(_key_in_file, options.key_file), *map(_key_in_environment, options.key_env)]
    if not keys:
        unusable("no key: write --key-file FILE or --key-env NAME")
    check = _Check(keys)
    for name in _in_order(options.files):
        check.file(name)
    check.end(options.expect)
    return 1 if check.failures else 0


def _key_in_file(name: str) -> ChainKey:
    try:
        key = Path(name).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        unusable(f"{name!r} cannot be read: {error.strerror}")
    return _key(key, f"--key-file {name}")


def _key_in_environment(name: str) -> ChainKey:
    value = os.environ.get(name)
    if not value:
        unusable(f"--key-env {name}: there is no such environment variable, or it is empty")
    return _key(os.fsencode(value), f"--key-env {name}")


def _key(key: bytes, source: str) -> ChainKey:
    try:
        return ChainKey(key)
    except ValueError as error:
        unusable(f"{source}: {error}")


def _lines(name: str) -> Iterator[bytes]:
    try:
        with open_lines(name) as lines:
            yield from lines
    except MissingDependencyError:
        unusable(f"{name!r} is compressed by zstd: pip install 'outfall[zstd]'")
    except OSError as error:
        unusable(f"{name!r} cannot be read: {error.strerror or error}")
    except Exception as error:  # EOFError, zlib.error, ZstdError
        unusable(f"{name!r} cannot be decompressed: {type(error).__name__}")


def _in_order(names: list[str]) -> list[str]:
    """Return *names*, the oldest file first: ordered by the line numbers of each chain, and by the chain it follows."""
    firsts: dict[str, dict[str, SealedLine]] = {name: {} for name in names}
    places: dict[str, str] = {}
    for name, chains in firsts.items():
        for line in _lines(name):
            found = _sealed(line)
            if found is not None:
                chains.setdefault(found.chain, found)
                places[found.code] = name
    rank = {name: min((each.number for each in chains.values()), default=0) for name, chains in firsts.items()}
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(firsts, ()))
    for chain in {chain for chains in firsts.values() for chain in chains}:
        files = sorted((name for name in firsts if chain in firsts[name]), key=lambda name: firsts[name][chain].number)
        for earlier, later in itertools.pairwise(files):
            order.add(later, earlier)
        before = places.get(firsts[files[0]][chain].previous, files[0])
        if before != files[0]:
            order.add(files[0], before)
    try:
        order.prepare()
    except CycleError:  # lines were moved from file to file
        return sorted(firsts, key=lambda name: rank[name])
    ordered: list[str] = []
    ready: list[tuple[int, int, str]] = []
    while order.is_active():
        for name in order.get_ready():
            heapq.heappush(ready, (rank[name], names.index(name), name))
        name = heapq.heappop(ready)[2]
        ordered.append(name)
        order.done(name)
    return ordered


def _sealed(line: bytes) -> SealedLine | None:
    return sealed_line(line.rstrip(b"\n"))


class _Check:
    """Checks lines, in the order in which they were written, and prints what is wrong."""

    def __init__(self, keys: list[ChainKey]) -> None:
        self.failures = 0
        self._keys = keys
        self._fitting: dict[str, ChainKey] = {}
        #: The codes of lines that follow half of another line without a line break.
        self._glued: set[str] = set()
        #: The last line of each chain.
        self._last: dict[str, SealedLine] = {}
        #: The number of each line by its code: a new process continues from any of them.
        self._codes: dict[str, int] = {}
        self._first = self._highest = 0
        self._files = self._lines = 0

    def file(self, name: str) -> None:
        """Check the lines of a file."""
        self._files += 1
        for place, line in enumerate(_lines(name), 1):
            where = f"{name}:{place}"
            found = _sealed(line)
            if found is not None:
                self._lines += 1
                self._look(found, where)
            elif _is_half(line):
                print(f"{where}: half a line, as a kill leaves it")
            elif line.strip():
                self._fail(f"{where}: the line is not sealed, or was changed")

    def _look(self, line: SealedLine, where: str) -> None:
        if line.code in self._glued:
            return  # the writer has repeated it on a line of its own
        if not self._fits(line):
            if self._ends_whole(line):
                self._glued.add(line.code)
                print(f"{where}: half a line, as a kill leaves it, with number {line.number} behind it")
            else:
                self._fail(f"{where}: number {line.number} was changed, or made with another key ({line.key_id})")
        last = self._last.get(line.chain)
        if last is None:
            self._begin(line, where)
        elif line.number > last.number + 1:
            self._fail(f"{where}: number {line.number} follows {last.number}: {_between(last.number, line.number)}")
        elif line.number <= last.number:
            self._fail(f"{where}: number {line.number} follows {last.number}: out of place, or there twice")
        elif line.previous != last.code:
            self._fail(f"{where}: number {line.number} follows another line than the one before it")
        self._last[line.chain] = line
        self._codes[line.code] = line.number
        self._highest = max(self._highest, line.number)

    def _begin(self, line: SealedLine, where: str) -> None:
        """Check the first line of a chain: it continues another chain, begins at 1, or follows a deleted line."""
        followed = self._codes.get(line.previous)
        if followed is not None:
            if line.number != followed + 1:
                self._fail(f"{where}: number {line.number} goes on from {followed}")
        elif line.number == 1 and line.previous == NOTHING:
            if self._lines > 1:
                print(f"{where}: a chain begins anew at 1: the writer found no line before it")
        elif self._lines == 1 or (self._files == 1 and self._first > 1 and line.number <= self._highest):
            # The second condition: in the oldest file a second writer's chain may begin before it too.
            print(f"{where}: begins at {line.number}: what was before it is not among the files")
        else:
            self._fail(f"{where}: number {line.number} follows a line that is missing")
        self._first = self._first or line.number

    def _fits(self, line: SealedLine) -> bool:
        known = self._fitting.get(line.key_id)
        for key in self._keys if known is None else (known, *self._keys):
            if key.code(line.covered).decode("ascii") == line.code:
                self._fitting[line.key_id] = key
                return True
        return False

    def _ends_whole(self, line: SealedLine) -> bool:
        """Return True if the line is half of one, followed by a whole one without a line break between."""
        begin = line.covered.find(b'{"', 1)
        while begin >= 0:
            if self._fits(replace(line, covered=line.covered[begin:])):
                return True
            begin = line.covered.find(b'{"', begin + 1)
        return False

    def end(self, expected: int | None) -> None:
        """Check the last number, and print a summary."""
        if not self._lines:
            self._fail("there is no sealed line")
        elif expected is not None and self._highest < expected:
            self._fail(f"the lines end at {self._highest}, but {expected} is expected: lines were cut off")
        if self.failures > _MOST_SHOWN:
            print(f"… and {self.failures - _MOST_SHOWN} more")
        if self._lines and not self._fitting:
            print("no line fits any key that was given: is it the right one?")
        lines = f"{self._lines} lines in {self._files} files, numbers {self._first} to {self._highest}"
        print(f"{lines}: {'nothing is changed or missing' if not self.failures else f'{self.failures} failures'}")

    def _fail(self, message: str) -> None:
        self.failures += 1
        if self.failures <= _MOST_SHOWN:
            print(message)


def _between(last: int, number: int) -> str:
    return f"{number - last - 1} missing" if number - last > 2 else f"{last + 1} is missing"


def _is_half(line: bytes) -> bool:
    """Return True if *line* is the beginning of a JSON object, as an interrupted write leaves it."""
    if not line.startswith(b"{"):
        return False
    try:
        loads(line)
    except (ValueError, RecursionError):
        return True
    return False
