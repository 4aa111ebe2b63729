"""Sets up structlog and `logging` in one call: `configure`, `get_logger`, `Setup`.

structlog's loggers and `logging` both write to one outlet, which stays the same for the life of the process. A `Setup`
determines where the outlet leads. Another call of `configure` replaces the `Setup`, for existing bound loggers too.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Union

import structlog
from structlog.contextvars import get_contextvars
from structlog.processors import StackInfoRenderer

from outfall.adapters.stdlib.sinkhandler import SinkHandler
from outfall.adapters.structlog import SinkLoggerFactory, calling_module
from outfall.sinks.core.clock import now
from outfall.sinks.core.lifecycle import participants
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import SinkClosedError
from outfall.sinks.event.event import TextEvent
from outfall.sinks.event.levels import Level, level_of, parse_level
from outfall.sinks.event.record import utc_text
from outfall.sinks.files.console import StreamKind, console_renderer, streams_of
from outfall.sinks.files.file import FileSink
from outfall.sinks.files.stream import StreamSink
from outfall.sinks.routing.fanout import FanoutSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Self

    from outfall.sinks.core.ledger import SinkStats

#: What `configure` accepts as a sink: a sink, the path of a file for JSON lines, or a URL for `open_sink`.
Destination = Union[Sink, str, "os.PathLike[str]"]

#: The time limit for ending a set-up, in seconds: for events in flight and for closing its sinks.
REPLACE_SECONDS = 5.0

#: The logger's name of events for uncaught exceptions.
_UNCAUGHT = "outfall.uncaught"


class _Root(FanoutSink):
    """The fanout over a set-up's sinks, which first applies the logger's level, context variables and processors."""

    def __init__(self, *sinks: Sink, level: float, levels: Mapping[str, float], **options: Any) -> None:
        super().__init__(*sinks, **options)
        self._threshold = level
        self._levels = dict(levels)
        #: A cache: the threshold of each logger seen so far.
        self._known: dict[Any, float] = {}

    def handle(self, event: Any) -> None:
        """Filter *event* by its logger's level, add the context variables, and pass it to the sinks."""
        if isinstance(event, dict):
            if level_of(event) < self.threshold_of(event.get("logger")):
                self._ledger.filter()
                return
            context = get_contextvars()
            if context and not isinstance(event, TextEvent):
                event = {**context, **event}
        super().handle(event)

    def threshold_of(self, logger: Any) -> float:
        """Return the level below which events of the logger named *logger* are filtered."""
        known = self._known.get(logger) if isinstance(logger, str) else self._threshold
        if known is None:
            known, name = self._threshold, logger
            while name:
                if name in self._levels:
                    known = self._levels[name]
                    break
                name = name.rpartition(".")[0]
            if len(self._known) < _MAX_KNOWN_LOGGERS:
                self._known[logger] = known
        return known


_MAX_KNOWN_LOGGERS = 10_000


class _Outlet(Sink):
    """The sink that all loggers write to; it passes events to the current set-up."""

    delivers_through_loggers = False
    locks_emit = False

    def __init__(self) -> None:
        super().__init__(name="outfall.configure")
        self.setup: Setup | None = None

    def handle(self, event: Any) -> None:
        """Pass *event* to the current set-up."""
        while (setup := self.setup) is not None:
            setup._active.append(None)
            try:
                # Check again: a set-up that was replaced meanwhile may be closing its sinks.
                if setup is self.setup:
                    setup._root.handle(event)
                    return
            finally:
                setup._active.pop()
        super().handle(event)

    def emit(self, event: dict[str, Any]) -> None:
        """Raise `SinkClosedError`: there is no set-up."""
        msg = "the set-up was closed: call outfall.configure() again"
        raise SinkClosedError(msg)

    def _reads_metadata(self) -> bool:
        setup = self.setup
        return setup is not None and setup._root._reads_metadata()


class Setup:
    """The result of `configure`: its sinks, their ledgers, and the means to undo it.

    As a context manager it restores the state before: structlog's configuration, the handlers and levels of `logging`,
    the hooks, and the set-up that it replaced, whose files and connections are opened again.
    """

    def __init__(
        self,
        destinations: tuple[Destination, ...],
        console: Callable[[], Sink] | None,
        root: Callable[[tuple[Sink, ...]], Any],
    ) -> None:
        self._destinations = destinations
        self._console = console
        self._make_root = root
        #: One item for each event in flight.
        self._active: deque[None] = deque()
        self._undo: list[Callable[[], None]] = []
        self._replaced: Setup | None = None
        self._open()

    def _open(self) -> None:
        """Open the sinks that this set-up owns, and make the root in front of all sinks.

        Raises:
            Exception: If one cannot be opened; those opened so far are closed.
        """
        self._owned: list[Sink] = []
        sinks: list[Sink] = []
        try:
            for destination in self._destinations:
                sink = _open_destination(destination)
                if sink is not destination:
                    self._owned.append(sink)
                sinks.append(sink)
            if self._console is not None:
                sinks.append(self._console())
                self._owned.append(sinks[-1])
            self._root: _Root = self._make_root(tuple(sinks))
        except BaseException:
            for sink in self._owned:
                sink.close(0)
            raise

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """The sinks that get the events; the console's is the last."""
        return self._root.sinks

    def stats(self) -> SinkStats:
        """Return the ledger of the set-up; its ``targets`` are those of the sinks.

        ``filtered`` counts the events that a level or one of the ``processors`` rejected.
        """
        return self._root.stats()

    def close(self, timeout: float | None = None) -> bool:
        """Restore the state before `configure`, and close the sinks that it opened.

        Args:
            timeout: The time limit in seconds. Default None: 5.

        Returns:
            False if a sink had to give up events. A set-up that is closed already, or that another one has replaced,
            does nothing and returns True.

        Sinks passed to `configure` are flushed and left open.
        """
        with _lock:
            if _outlet.setup is not self:
                return True
            while True:  # with a condition here, an interrupt could leave the lock held, from Python 3.12 on
                if not self._undo:
                    break
                self._undo.pop()()
            replaced, self._replaced = self._replaced, None
            if replaced is not None:
                replaced._open()
            _outlet.setup = replaced
        return self._close_sinks(REPLACE_SECONDS if timeout is None else timeout)

    def _close_sinks(self, seconds: float) -> bool:
        """Wait for events in flight, close the owned sinks and flush the others; return False if events were lost."""
        deadline = now() + seconds
        while self._active and now() < deadline:
            time.sleep(0.001)
        done = True
        for sink in self._root.sinks:
            end = sink.close if sink in self._owned else sink.flush
            done = end(max(0.0, deadline - now())) and done
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if _outlet.setup is self else " (not in force)"
        return f"<Setup to {', '.join(sink.name for sink in self.sinks)}{state}>"


#: Guards changes of the set-up; never held while an event is passed on.
_lock = threading.RLock()
_outlet = _Outlet()


def configure(
    *sinks: Destination,
    console: Literal["auto"] | bool = "auto",
    console_level: Level | None = None,
    level: Level = "info",
    levels: Mapping[str, Level] | None = None,
    stdlib: bool = True,
    processors: Iterable[Callable[[Any, str, Any], Any]] = (),
    captures_warnings: bool = True,
    excepthook: bool = False,
    drain_on_sigterm: bool = False,
    env: bool = False,
) -> Setup:
    """Set up structlog and `logging`, so that the events of both go to the same *sinks* with the same fields.

    Each event has its ``level``, its ``logger`` (by default the calling module), its ``timestamp`` in UTC, the context
    variables bound by `structlog.contextvars`, and its exception. Files and collectors get JSON whatever the console
    shows.

    Args:
        *sinks: Sinks, paths of files to append JSON lines to, or URLs for `open_sink` (a text with ``://``, or that
            begins with a scheme such as ``file:``). The set-up opens and closes the sinks of paths and URLs.
        console: ``"auto"`` (default) writes to stderr: text for people on a terminal, with colours unless ``NO_COLOR``
            is set; JSON lines elsewhere, or coloured text if ``FORCE_COLOR`` is set; nothing if one of *sinks* writes
            to stderr or stdout itself. True: text for people anywhere. False: no console.
        console_level: The console's own level. Default None: that of the set-up.
        level: Events below it are filtered: a name in any case, or a number. Default ``"info"``.
        levels: Levels by the name of a logger, which apply to the loggers below it too: ``{"urllib3": "warning"}``. For
            loggers of structlog and of `logging`. Default: none.
        stdlib: Whether `logging`'s root logger writes to the sinks too. Plain stream handlers, such as
            `logging.basicConfig` makes, are removed from it; others stay. A later `logging.config.dictConfig` with a
            ``root`` removes the set-up's handler: call `configure` after it. Default True.
        processors: structlog processors for all events, applied after level, logger, time and context variables were
            added. An event that one drops counts as filtered. Default: none.
        captures_warnings: Whether Python's warnings become events of the logger ``py.warnings``; only with *stdlib*.
            Default True.
        excepthook: Whether uncaught exceptions become events: those of the main thread, of other threads, and those
            that Python cannot raise, as in ``__del__``. The exit status does not change. Default False.
        drain_on_sigterm: Whether SIGTERM drains all sinks of the process, for 5 s at most, before it ends the process
            as usual. Meanwhile the program continues, and a second signal ends it at once. Without this, Python ends at
            the first signal, and events in memory are lost. If the program has set a handler for the signal, the sinks
            are drained, and then the handler is called; from then on events are delivered in the thread that logs them.
            A process that ignores the signal still ignores it. Default False.
        env: Whether the environment variable ``OUTFALL_SINKS`` (URLs and paths, separated by blanks) adds sinks, and
            ``OUTFALL_LEVEL`` sets *level*. Default False.

    Returns:
        The `Setup`, with its sinks and their ledgers. As a context manager it restores the state before.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has no meaning, or if *drain_on_sigterm* is True in another thread than the main one.
            Nothing has changed then.

    It may be called again at any time, also under load. The new set-up replaces the old one first. Then it waits for
    events in flight, for 5 s at most, and closes the sinks that the old set-up had opened. Safe from any thread,
    except with *drain_on_sigterm*.
    """
    destinations = tuple(sinks)
    if env:
        destinations += tuple(os.environ.get("OUTFALL_SINKS", "").split())
        level = os.environ.get("OUTFALL_LEVEL") or level  # type: ignore[assignment]
    for destination in destinations:
        _check_destination(destination)
    number, by_logger, console_number = checked_arguments(console, console_level, level, levels)
    if drain_on_sigterm and threading.current_thread() is not threading.main_thread():
        msg = "drain_on_sigterm=True: Python lets only the main thread handle signals"
        raise ValueError(msg)
    chain = tuple(processors) if not callable(processors) else (processors,)

    def make_root(made: tuple[Sink, ...]) -> _Root:
        return _Root(*made, level=number, levels=by_logger, processors=chain, name="outfall")

    given = [destination for destination in destinations if isinstance(destination, Sink)]
    shown = console is True or (console == "auto" and not any(_writes_to_console(sink) for sink in given))
    if console == "auto" and destinations and sys.stderr is None:  # a Windows program without a console
        shown = False
    if not shown and not destinations:
        msg = "no sink is given, and console=False: events would go nowhere"
        raise ValueError(msg)
    style: StreamKind = "text" if console is True else "auto"
    with _lock:
        setup = Setup(destinations, (lambda: _console(style, console_number)) if shown else None, make_root)
        if shown and console == "auto" and any(_writes_to_console(sink) for sink in setup.sinks[:-1]):
            # The sink of a URL or path writes to the console itself.
            setup._root.sinks[-1].close(0)
            setup._owned.pop()
            setup._console = None
            setup._root = make_root(setup._root.sinks[:-1])
        replaced = _outlet.setup
        setup._replaced = replaced
        _install(setup, number, by_logger, stdlib=stdlib, warnings=stdlib and captures_warnings, hooks=excepthook)
        if drain_on_sigterm:
            from outfall.adapters import sigterm

            setup._undo.append(sigterm.drain_on_sigterm(lambda: _outlet.setup is setup))
        _outlet.setup = setup
    if replaced is not None:
        replaced._close_sinks(REPLACE_SECONDS)
    return setup


def checked_arguments(
    console: Any = "auto", console_level: Any = None, level: Any = "info", levels: Any = None
) -> tuple[float, dict[str, float], float | None]:
    """Check arguments of `configure`; return the levels as numbers: *level*, *levels* and *console_level*.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has no meaning.
    """
    number = parse_level(level, "level")
    by_logger = {name: parse_level(each, f"levels[{name!r}]") for name, each in _checked_levels(levels).items()}
    console_number = None if console_level is None else parse_level(console_level, "console_level")
    if console not in ("auto", True, False):
        msg = f"console={console!r} is none of 'auto', True, False"
        raise ValueError(msg)
    return number, by_logger, console_number


def get_logger(name: str | None = None, **context: Any) -> Any:
    """Return a structlog logger.

    Args:
        name: The ``logger`` of its events. Default None: the calling module's name.
        **context: Fields to bind to the logger.
    """
    return structlog.get_logger(calling_module() if name is None else name, **context)


def open_sinks() -> tuple[Sink, ...]:
    """Return the open sinks of the process that no other sink owns, including those of `configure`."""
    found = [sink for sink in participants() if isinstance(sink, Sink) and not sink.closed]
    of_set_ups = {id(sink) for root in found if isinstance(root, _Root) for sink in root.sinks}
    return tuple(
        sink
        for sink in found
        if (id(sink) in of_set_ups or not sink.has_owner) and not isinstance(sink, (_Outlet, _Root))
    )


def close_all(timeout: float | None = None) -> bool:
    """Close every open sink; return False if one had to give up events.

    Args:
        timeout: The time limit in seconds, for all sinks together. Default None: 5.
    """
    deadline = now() + (REPLACE_SECONDS if timeout is None else timeout)
    done = [sink.close(max(0.0, deadline - now())) for sink in open_sinks()]
    return all(done)


# -- destinations


def _open_destination(destination: Destination) -> Sink:
    if isinstance(destination, Sink):
        return destination
    if not isinstance(destination, (str, os.PathLike)):
        return destination.open()
    if isinstance(destination, str):
        from outfall.adapters.urls import is_url, misspelt, open_sink

        if is_url(destination):
            return open_sink(destination)
        scheme = misspelt(destination)
        if scheme is not None:
            msg = f"sinks: {destination!r}: did you mean {scheme}:…? The path of a file is written ./{destination}"
            raise ValueError(msg)
    return FileSink(destination)


def _check_destination(destination: Any) -> None:
    if isinstance(destination, (Sink, str, os.PathLike)):
        return
    from outfall.adapters.urls import Described

    if isinstance(destination, Described):
        return
    if isinstance(destination, type) and issubclass(destination, Sink):
        msg = f"sinks: {destination.__name__} is a class: pass an instance, {destination.__name__}(…)"
    else:
        msg = f"sinks: {destination!r} is neither a sink, nor a path, nor a URL"
    raise TypeError(msg)


def _checked_levels(levels: Any) -> Mapping[str, Any]:
    if levels is None:
        return {}
    if not isinstance(levels, Mapping) or not all(isinstance(name, str) for name in levels):
        msg = f"levels={levels!r} is not a mapping from names of loggers to levels"
        raise TypeError(msg)
    return levels


def _writes_to_console(sink: Sink) -> bool:
    """Return True if *sink*, or one behind it, writes to stderr or stdout."""
    shown = {id(stream) for stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__) if stream is not None}
    return any(id(stream) in shown or id(getattr(stream, "buffer", None)) in shown for stream in streams_of(sink))


def _console(style: StreamKind, level: float | None) -> Sink:
    renderer = console_renderer(sys.stderr, style)
    return StreamSink(renderer=renderer, level=0 if level is None else level, name="console")


# -- structlog, logging, hooks


def _install(
    setup: Setup, number: float, levels: Mapping[str, float], *, stdlib: bool, warnings: bool, hooks: bool
) -> None:
    """Make structlog, logging, warnings and hooks write to the outlet; record in *setup* how to undo each step."""
    undo = setup._undo
    configured = structlog.is_configured()
    before = structlog.get_config()
    undo.append(lambda: structlog.configure(**before) if configured else structlog.reset_defaults())
    structlog.configure(
        # The stack is rendered here, where the caller is on it. Sinks render exceptions.
        processors=[StackInfoRenderer()],
        # The outlet filters by level, so that existing bound loggers follow the levels of a later set-up.
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=SinkLoggerFactory(_outlet),
        context_class=dict,
        cache_logger_on_first_use=False,
    )
    if stdlib:
        _install_handler(undo, number, levels)
    if warnings:
        captured = getattr(logging, "_warnings_showwarning", None) is not None
        logging.captureWarnings(capture=True)
        undo.append(lambda: logging.captureWarnings(capture=captured))
    if hooks:
        _install_hooks(undo, lambda: _outlet.setup is setup)


def _install_handler(undo: list[Callable[[], None]], number: float, levels: Mapping[str, float]) -> None:
    root = logging.getLogger()
    handlers, root_level = root.handlers[:], root.level

    def restore() -> None:
        root.handlers[:] = handlers
        root.setLevel(root_level)

    undo.append(restore)
    kept = [
        each for each in handlers if type(each) is not logging.StreamHandler and not isinstance(each, _OutletHandler)
    ]
    root.handlers[:] = [*kept, _OutletHandler(_outlet)]
    root.setLevel(int(number))
    for name, level in levels.items():
        logger = logging.getLogger(name)
        undo.append(lambda logger=logger, level=logger.level: logger.setLevel(level))  # type: ignore[misc]
        logger.setLevel(int(level))


class _OutletHandler(SinkHandler):
    """The handler on the root logger."""

    def close(self) -> None:
        """Do nothing: `logging.config` closes handlers, but the sinks have to stay open."""


#: The hook that each hook of a set-up calls; hooks of other set-ups are left out.
_others: dict[Any, Any] = {}


def _install_hooks(undo: list[Callable[[], None]], in_force: Callable[[], bool]) -> None:
    """Log uncaught exceptions; then call the hook that was there before, unless it is Python's own."""
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    main, in_thread, unraisable = (_others.get(hook, hook) for hook in before)

    def restore() -> None:
        for hook in ours:
            _others.pop(hook, None)
        sys.excepthook, threading.excepthook, sys.unraisablehook = before

    undo.append(restore)

    def log(message: str, level: str, error: BaseException | None, **fields: Any) -> None:
        event = {"event": message, "level": level, "logger": _UNCAUGHT, "timestamp": utc_text(time.time())}
        _outlet.handle(event | fields | ({} if error is None else {"exc_info": error}))

    def on_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not in_force() or issubclass(kind, KeyboardInterrupt):
            main(kind, error, traceback)
            return
        log("uncaught exception", "critical", error)
        if main is not sys.__excepthook__:
            main(kind, error, traceback)

    def on_thread(arguments: threading.ExceptHookArgs) -> None:
        if not in_force() or arguments.exc_type is SystemExit:
            in_thread(arguments)
            return
        name = None if arguments.thread is None else arguments.thread.name
        log("uncaught exception in a thread", "critical", arguments.exc_value, thread_name=name)
        if in_thread is not threading.__excepthook__:
            in_thread(arguments)

    def on_unraisable(arguments: sys.UnraisableHookArgs) -> None:
        if not in_force():
            unraisable(arguments)
            return
        where = arguments.err_msg or "exception ignored in"
        log("unraisable exception", "error", arguments.exc_value, where=f"{where} {type(arguments.object).__name__}")
        if unraisable is not sys.__unraisablehook__:
            unraisable(arguments)

    ours = on_uncaught, on_thread, on_unraisable
    _others.update(zip(ours, (main, in_thread, unraisable), strict=True))
    sys.excepthook, threading.excepthook, sys.unraisablehook = ours
