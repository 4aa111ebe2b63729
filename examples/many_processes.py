"""Many processes, one file: each process sends its events to a listener in the parent, which writes them.

Run it as ``python examples/many_processes.py events.jsonl``. Only the parent opens the file, so no lock is needed, and
the file may rotate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import structlog

from outfall import RotatingFileSink, SocketListener, SocketSink


def work(address: tuple[str, int], worker: int, events: int) -> None:
    """Log *events* events; each process runs this function."""
    sink = SocketSink(*address)
    add_time = structlog.processors.TimeStamper(fmt="iso")
    structlog.configure(processors=[structlog.processors.add_log_level, add_time, sink])
    log = structlog.get_logger().bind(worker=worker, pid=os.getpid())
    for number in range(events):
        log.info("item done", number=number)
    sink.close()


def main() -> None:
    """Start the listener and the processes, wait for them, and print what the file contains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--events", type=int, default=1000, help="logged by each process")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    with (
        RotatingFileSink(options.file, max_bytes=10_000_000, backup_count=3) as sink,
        SocketListener(("127.0.0.1", 0), sink) as listener,
    ):
        arguments = [(listener.address, worker, options.events) for worker in range(options.processes)]
        processes = [context.Process(target=work, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        listener.stop()
        print(f"received {listener.stats().events} events over {listener.stats().accepted} connections")

    with options.file.open(encoding="utf-8") as lines:
        workers = Counter(json.loads(line)["worker"] for line in lines)
    for worker, count in sorted(workers.items()):
        print(f"worker {worker}: {count} lines in {options.file.name}")


if __name__ == "__main__":
    main()
