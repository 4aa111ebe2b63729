"""Kill writers until told to stop: ``python -m tests.crash --kills 5000``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time

from tests.crash import _backlog as backlog
from tests.crash import _calls as calls
from tests.crash import _harness as harness


def main():
    """Run the harness in rounds, each with a seed of its own, and print what they show."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000, help="how many, in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="the first round's; the others count up from it")
    parser.add_argument("--round", type=int, default=200, help="kills in a round (default %(default)s)")
    parser.add_argument(
        "--calls", type=int, default=1, help="try each so many-th system call (default %(default)s: all; 0: none)"
    )
    parser.add_argument(
        "--backlog",
        type=int,
        default=1_000_000,
        metavar="N",
        help="pile up so many events (default %(default)s; 0: none)",
    )
    arguments = parser.parse_args()
    seed = random.randrange(10**9) if arguments.seed is None else arguments.seed
    sys.stdout.write(f"seed {seed}\n")
    sys.stdout.flush()
    started = time.monotonic()
    failed = False
    if arguments.calls:
        with tempfile.TemporaryDirectory() as directory:
            sys.stdout.write(f"{calls.run(directory, seed, arguments.calls)}\n")
    if arguments.backlog:
        with tempfile.TemporaryDirectory() as directory:
            sys.stdout.write(f"{backlog.run(directory, arguments.backlog)}\n")
    done = 0
    while done < arguments.kills:
        with tempfile.TemporaryDirectory() as directory:
            report = harness.run(min(arguments.round, arguments.kills - done), seed, directory)
        sys.stdout.write(f"{report}\n")
        sys.stdout.flush()
        failed = failed or bool(report.problems)
        done += report.kills
        seed += 1
    sys.stdout.write(f"{done} kills in {time.monotonic() - started:.1f} s: {'FAILED' if failed else 'passed'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
