"""An outage so long that a million events pile up: they are delivered in order, in little memory."""

from __future__ import annotations

import json
import os
import resource

from outfall import Sink, SpoolSink, TemporaryDeliveryError

#: What storing, and reading a segment and a batch at a time, may take. All events together are far more.
_MOST_BYTES = 48 * 2**20


class _Collector(Sink):
    """Away, or taking events and counting them."""

    def __init__(self, *, away):
        super().__init__()
        self.away = away
        self.taken = 0

    def emit_batch(self, batch):
        if self.away:
            raise TemporaryDeliveryError("away")
        for data in batch.data:
            assert json.loads(data)["n"] == self.taken, "out of order"
            self.taken += 1


def run(directory, events):
    """Have one process store so many events and another deliver them; return what was seen, in words."""

    def store():
        sink = SpoolSink(_Collector(away=True), directory, on_error=lambda _: None)
        for number in range(events):
            sink.handle({"event": "piling up", "timestamp": "2026-11-22T14:16:24Z", "n": number, "pad": "x" * 60})
        assert sink.close(0)
        assert sink.stats().spooled == events

    def deliver():
        target = _Collector(away=False)
        sink = SpoolSink(target, directory)
        sink.start()
        assert sink.flush(3600)
        assert target.taken == events, target.taken
        assert sink.close()

    grown = max(_in_fork(store), _in_fork(deliver))
    assert grown < _MOST_BYTES, f"{grown / 2**20:.0f} MiB of memory"
    return f"{events} events piled up and were delivered in order; memory grew by {grown / 2**20:.0f} MiB: passed"


def _in_fork(function):
    """Call *function* in a child; return by how many bytes the memory it uses has grown."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            function()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(writer, str(grown * 1024).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    told = os.read(reader, 100)
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the process failed"
    return int(told)
