"""``outfall relay``: a process that takes events from brokers and delivers them to targets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from outfall.adapters.brokers.listeners import open_listener
from outfall.adapters.commandline.arguments import DONE, NOT_ALL_DELIVERED, add_command, handled, seconds, unusable
from outfall.adapters.commandline.terminal import complain, counted, say
from outfall.adapters.urls import open_sink
from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.core.clock import now
from outfall.sinks.errors import SinkError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Generator, Sequence

    from outfall.adapters.brokers.listener import BrokerListener
    from outfall.adapters.commandline.arguments import Commands
    from outfall.sinks.core.sink import Sink

_TIMEOUT_SECONDS = 30.0
_STATUS_SECONDS = 60.0

#: How often it looks whether all listeners have reached their brokers, before it says that it is ready.
_LOOK_SECONDS = 0.05


def add(commands: Commands) -> None:
    """Add ``relay`` to the *commands*."""
    relay = add_command(
        commands,
        "relay",
        about="take events from a broker and deliver them, for as long as it runs",
        description=(
            "Take events from a broker and deliver them to each target. A message is acknowledged once each target has "
            "it, or has it in a spool: a kill loses nothing. Any number of relays share the work. SIGTERM and SIGINT "
            "deliver what was read and end it; SIGHUP reads the file of --config again."
        ),
        example=(
            "outfall relay 'redis://queue/0?key=logs' 'loki+https://logs.example.org?labels.app=shop'\n"
            "outfall relay --config /etc/outfall/relay.toml --metrics :9464"
        ),
        epilog="exit codes: 0 all that was read is delivered; 1 something was given up, and the broker has it still",
    )
    relay.add_argument("source", nargs="?", metavar="FROM", help="the broker: redis://host/0?key=logs and its like")
    relay.add_argument(
        "targets", nargs="*", metavar="TO", help="where to: any URL of open_sink's, without a background"
    )
    relay.add_argument(
        "--from", action="append", default=[], dest="sources", metavar="URL", help="one more broker; may be repeated"
    )
    relay.add_argument(
        "--config",
        metavar="FILE",
        help='TOML in the place of FROM and TO: [relay] from = "URL", or a list; a [sinks.NAME] for each target',
    )
    relay.add_argument(
        "--timeout",
        type=seconds,
        metavar="SPAN",
        help=f"how long it delivers at the end before it gives up (default {_TIMEOUT_SECONDS:.0f} s)",
    )
    relay.add_argument(
        "--metrics", type=_address, metavar="[HOST]:PORT", help="serve metrics for Prometheus there, at /metrics"
    )
    relay.add_argument(
        "--status",
        type=seconds,
        default=_STATUS_SECONDS,
        metavar="SPAN",
        help="how often it writes a line of numbers; 0 for never (default 1m)",
    )
    relay.set_defaults(run=_relay)


def _address(text: str) -> tuple[str, int]:
    import argparse

    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not int(port) <= 65_535:
        msg = f"{text!r} is not [HOST]:PORT"
        raise argparse.ArgumentTypeError(msg)
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - asked for: Prometheus is elsewhere


@dataclass
class _Plan:
    """What a relay reads from and delivers to.

    Args:
        sources: The URLs of the brokers.
        targets: Functions that open the targets, one each.
        timeout: How many seconds the relay may deliver after it was asked to stop.
    """

    sources: list[str] = field(repr=False)
    targets: Sequence[Callable[[], Sink]]
    timeout: float


def _plan_of(options: argparse.Namespace) -> _Plan:
    """Return the plan that the command line gives, or the file of ``--config``.

    Raises:
        ValueError: If the plan is invalid.
        OSError: If the file cannot be read.
    """
    if options.config is None:
        sources = [*([options.source] if options.source else []), *options.sources]
        if not sources or not options.targets:
            msg = "give a broker and at least one target, FROM TO, or --config FILE"
            raise ValueError(msg)
        opens = [partial(_opened, partial(open_sink, url), url) for url in options.targets]
        return _Plan(sources, opens, options.timeout or _TIMEOUT_SECONDS)
    if options.source or options.sources:
        msg = "--config takes the place of FROM and TO: give one of them"
        raise ValueError(msg)
    from outfall.adapters import toml

    path = options.config
    tables = toml.tables(path, ("relay", "sinks"))
    relay = toml.table(path, tables, "relay", ("from", "timeout"))
    given = relay.get("from", [])
    sources = [given] if isinstance(given, str) else given
    if not isinstance(sources, list) or not sources or not all(isinstance(url, str) for url in sources):
        msg = f"{path}: [relay] from = {'…' if given else given!r} is no URL and no list of them"
        raise ValueError(msg)
    described = toml.sinks(path, tables)
    if not described:
        msg = f"{path}: there is no target: write [sinks.NAME] and below it url = …"
        raise ValueError(msg)
    timeout = options.timeout or checked_seconds(relay.get("timeout", _TIMEOUT_SECONDS), f"{path}: [relay] timeout")
    return _Plan(sources, [partial(_opened, each.open, each.url, each.options) for each in described], timeout)


def _opened(opens: Callable[..., Sink], url: str, options: Collection[str] = ()) -> Sink:
    """Open a sink with *opens*, without a background sink, but with a spool if *url* or *options* have one."""
    spooled = "spool" in options or re.search(r"[?&]spool=", url)
    try:
        sink = opens() if spooled else opens(background=False)
    except ValueError as error:
        if "'background'" not in str(error):
            raise
        msg = f"a relay has no background, in which a kill would lose what was acknowledged: {error}"
        raise ValueError(msg) from None
    if sink.keeps_in_memory or bool(getattr(sink, "buffer_bytes", 0)):
        sink.close(0)
        msg = f"{sink.name} keeps events in memory, where a kill would lose what was acknowledged: use spool="
        raise ValueError(msg)
    return sink


class _Relay:
    """The listeners of a plan, and the sinks that they deliver to."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.sinks: list[Sink] = []
        self.listeners: list[BrokerListener] = []
        try:
            for opens in plan.targets:
                self.sinks.append(opens())
            for url in plan.sources:
                # By default a target's level applies: its URL asks for it.
                more = {} if "respect_sink_level=" in url else {"respect_sink_level": True}
                self.listeners.append(open_listener(url, *self.sinks, **more))
        except BaseException:
            for sink in self.sinks:
                sink.close(0)
            raise

    def start(self) -> None:
        for listener in self.listeners:
            listener.start()

    @property
    def ready(self) -> bool:
        """Whether each listener has reached its broker."""
        return all(listener.connected for listener in self.listeners)

    def end(self) -> bool:
        """Deliver what was read, within the plan's timeout; return False if the broker keeps some of it."""
        deadline = now() + self.plan.timeout
        done: list[bool] = []

        def stop(listener: BrokerListener) -> None:
            done.append(listener.stop(self.plan.timeout))

        threads = [threading.Thread(target=stop, args=(each,), daemon=True) for each in self.listeners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - now()) + 1)
        closed = [sink.close(max(0.5, deadline - now())) for sink in self.sinks]
        return len(done) == len(threads) and all(done) and all(closed)

    def numbers(self) -> tuple[int, int, int, int]:
        """Return how many events were delivered, are pending, were dropped, and went to dead letters."""
        every = [listener.stats() for listener in self.listeners]
        behind = [target for stats in every for target in stats.targets]
        dropped = sum(sum(stats.dropped.values()) for stats in (*every, *behind))
        dead = sum(stats.dead_lettered for stats in (*every, *behind))
        return sum(stats.delivered for stats in every), sum(stats.pending for stats in every), dropped, dead


def _relay(options: argparse.Namespace) -> int:
    with _metrics(options.metrics):
        signals: SimpleQueue[int] = SimpleQueue()
        with handled(lambda number, _frame: signals.put(number), "SIGTERM", "SIGINT", "SIGHUP"):
            try:
                relay = _Relay(_plan_of(options))
            except (ValueError, TypeError, SinkError) as error:
                unusable(f"relay: {error}")
            relay.start()
            say(f"relay: {', '.join(map(repr, relay.listeners))}")
            relay = _run(relay, options, signals)
        # The old signal handlers are restored: a second signal ends the process at once.
        _notify("STOPPING=1")
        complete = relay.end()
    delivered, _, dropped, dead = relay.numbers()
    rest = "" if complete else "; the rest is left to the broker"
    say(f"relay: ended, {_told(delivered, 0, dropped, dead)}{rest}")
    return DONE if complete else NOT_ALL_DELIVERED


def _run(relay: _Relay, options: argparse.Namespace, signals: SimpleQueue[int]) -> _Relay:
    """Serve until a signal asks to stop; return the relay that runs then: SIGHUP replaces *relay* by a new one."""
    ready = False
    before, since = 0, now()
    due = since + options.status if options.status else float("inf")
    while True:
        if not ready and relay.ready:
            ready = True
            _notify("READY=1")
        try:
            number = signals.get(timeout=_LOOK_SECONDS if not ready else min(3_600.0, max(0.0, due - now())))
        except Empty:
            number = None
        if number == getattr(signal, "SIGHUP", 0):
            _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}")
            relay, before, ready = _again(relay, options), 0, False
        elif number is not None:
            break
        if now() >= due:
            delivered, pending, dropped, dead = relay.numbers()
            rate = max(0, delivered - before) / max(0.001, now() - since)
            line = f"{_told(delivered, pending, dropped, dead)}, {rate:,.0f} a second"
            say(f"relay: {line}")
            _notify(f"STATUS={line}")
            before, since = delivered, now()
            due = since + options.status
    return relay


def _told(delivered: int, pending: int, dropped: int, dead: int) -> str:
    return f"{counted(delivered, 'event')} delivered, {pending:,} under way, {dropped:,} dropped, {dead:,} dead letters"


def _again(relay: _Relay, options: argparse.Namespace) -> _Relay:
    """Return the relay that SIGHUP asks for: a new one as the file says now, or *relay* if the file is invalid."""
    if options.config is None:
        complain("relay: SIGHUP reads --config again, and there is none")
        return relay
    try:
        made = _Relay(_plan_of(options))
    except (ValueError, TypeError, SinkError, OSError) as error:
        complain(f"relay: {error}; it goes on as before")
        return relay
    if not relay.end():
        complain("relay: not all was delivered in time; the rest is left to the broker")
    made.start()
    say(f"relay: read {options.config} again: {', '.join(map(repr, made.listeners))}")
    return made


@contextlib.contextmanager
def _metrics(address: tuple[str, int] | None) -> Generator[None]:
    """Serve metrics at *address* while the context is active; do nothing if it is None."""
    if address is None:
        yield
        return
    from outfall.adapters.metrics import register

    try:
        import prometheus_client

        registry = prometheus_client.CollectorRegistry()
        register(registry)
        server, thread = prometheus_client.start_http_server(address[1], address[0], registry)
    except (ImportError, OSError) as error:
        unusable(f"--metrics: {error}; the extra 'prometheus' has what it needs")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _notify(text: str) -> None:
    """Send *text* to systemd if it started this process with ``Type=notify``; see sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path or not hasattr(socket, "AF_UNIX"):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
        notifying.sendto(text.encode(), address)
