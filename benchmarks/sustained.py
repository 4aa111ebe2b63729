"""The command ``python -m benchmarks.sustained``: for a minute, sends events to a collector at a fixed rate.

Each way runs in a process of its own, which ends when its time is over, even if it has not sent all events.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.collector import Collector, collector
from benchmarks.machine import describe
from benchmarks.shippers import SHIPPERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.shippers import Shipper

#: Events are logged in portions; this is the number of portions per second.
_PORTIONS_PER_SECOND = 50

#: How long events may take to arrive after the last call.
_GRACE_SECONDS = 15.0


def sustain(shipper: Shipper, peer: Collector, seconds: float, rate: int) -> dict[str, Any]:
    """Log *rate* events per second for *seconds*, or as many as the shipper can; return the results."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:

        def tell(made: dict[str, Any]) -> None:
            os.write(writer, json.dumps(made).encode())
            # Exit without waiting for other threads.
            os._exit(0)

        try:
            _measure(shipper, Collector(peer.port), seconds, rate, tell)
        except ImportError as error:
            tell({"missing": f"{error.name or error} is not installed"})
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"{shipper.name} failed"
    peer.counts(forget=True)
    made: dict[str, Any] = json.loads(told)
    return {"name": shipper.name, **made}


def _measure(
    shipper: Shipper, peer: Collector, seconds: float, rate: int, tell: Callable[[dict[str, Any]], None]
) -> None:
    portion = max(1, rate // _PORTIONS_PER_SECOND)
    with shipper.open(peer.url) as (log, drain):
        portions: list[float] = []
        begin = perf_counter()
        while (now := perf_counter()) - begin < seconds:
            log(portion)
            portions.append(perf_counter() - now)
            # Sleep until the next portion is due; a late portion follows at once.
            time.sleep(max(0.0, begin + len(portions) * portion / rate - perf_counter()))
        end = perf_counter()
        logged = len(portions) * portion
        # In a thread, since draining may take longer than the time that is left.
        threading.Thread(target=drain, daemon=True).start()
        arrived, last = peer.wait(logged, _GRACE_SECONDS, at_most_seconds=_GRACE_SECONDS)
        portions.sort()
        tell(
            {
                "logged_per_second": logged / (end - begin),
                "caller_us": sum(portions) / logged * 1e6,
                "caller_us_worst": portions[-1] / portion * 1e6,
                "arrived": arrived / logged,
                "last_after_seconds": max(0.0, last - end),
            }
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each way, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sustained", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each way logs (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=10_000, help="events a second (default: %(default)s)")
    parser.add_argument("--only", action="append", metavar="PART", help="ways whose name has this; may be repeated")
    options = parser.parse_args(arguments)
    report = describe(Path(tempfile.gettempdir()))
    print(f"{report['machine']}; {report['python']}; load {report['load']}")
    print(f"{options.rate} events a second for {options.seconds:g} s; what arrives {_GRACE_SECONDS:.0f} s later counts")
    chosen = [each for each in SHIPPERS if not options.only or any(part in each.name for part in options.only)]
    width = max((len(each.name) for each in chosen), default=0)
    print(f"\n  {'':{width}} {'logged/s':>9} {'µs':>8} {'worst µs':>9} {'arrived':>8} {'last after s':>13}")
    with collector() as peer:
        for shipper in chosen:
            made = sustain(shipper, peer, options.seconds, options.rate)
            if "missing" in made:
                print(f"  {shipper.name:{width}} {made['missing']}")
                continue
            print(
                f"  {shipper.name:{width}} {made['logged_per_second']:>9.0f} {made['caller_us']:>8.2f}"
                f" {made['caller_us_worst']:>9.1f} {made['arrived']:>8.1%} {made['last_after_seconds']:>13.2f}"
            )
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
