"""A sink that appends events to a file: `FileSink`."""

# `event.__class__ is dict` does not narrow a type for pyright, and WriteLock reads `holding` from the frame.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportUnusedVariable=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import accumulate
from os import write as _os_write
from sys import is_finalizing
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from orjson import dumps

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_seconds, checked_size
from outfall.sinks.core.bytesink import ByteSink, RenderOptions
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import BatchResult, Ends, data_of
from outfall.sinks.core.lock import HAND_TAKEN, HAS_GLOBAL_LOCK, TURN
from outfall.sinks.event.chained import ChainedRenderer
from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.event import TextEvent, as_event
from outfall.sinks.event.json import LINE, OrjsonRenderer
from outfall.sinks.event.levels import NUMBERS, UNKNOWN, Level, level_of, parse_level
from outfall.sinks.files.buffer import Buffer, append_to_buffer
from outfall.sinks.files.listing import kept_up
from outfall.sinks.files.output import NotInTimeError, Output
from outfall.sinks.files.sealing import write_sealed_line
from outfall.sinks.files.shortcut import Begun, BegunError, line_by_chain, line_by_screen

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.files.opening import Mode


def append_line(sink: Any, data: bytes) -> None:
    """Append *data*, a line, to the file of *sink*.

    Raises:
        Exception: If the pipeline has to write the line: also while another thread holds the lock.
        BaseException: An interrupt. If it came before the write, the event is counted here.
    """
    # Taking the lock by hand: see WriteLock.
    turn = sink._turn
    del turn[0]
    holding = True
    try:
        write = sink._write_line
        if write is None:
            if monotonic() >= sink._verify_at:
                raise LookupError
            written = _os_write(sink._fd, data)
            if written != len(data):
                sink._finish(data, written)
        elif not write(sink, data):
            raise LookupError
        sink._ledger.delivered += 1
    except Exception:
        raise
    except BaseException:
        sink._count_dropped("interrupted")
        raise
    finally:
        try:
            holding = False
            turn += TURN
        finally:
            pass


HAND_TAKEN.add(append_line.__code__)


class FileOptions(RenderOptions, total=False):
    """Arguments that subclasses of `FileSink` pass on to it; its docstring describes them."""

    permissions: int | None
    buffer_bytes: Size
    flush_interval: Span
    flush_level: Level
    timeout: Span
    terminator: str


class FileSink(Output):
    r"""Append each event to a file, one line each.

    Each event reaches the operating system before `handle` returns. So it survives the death of the process, but not a
    loss of power. With *buffer_bytes*, up to that many bytes wait in memory.

    Args:
        filename: Path of the file; a relative one is resolved now. Kept as ``base_filename``.
        mode: ``"a"`` to append (default), ``"w"`` to truncate at the first opening, ``"x"`` to fail if the file exists.
            In every mode each write appends, even while others write to or truncate the same file.
        encoding: The encoding of text. Default UTF-8. A byte order mark is written only at the start of an empty file.
        delay: Open at the first event instead of now. Default False.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        permissions: Permission bits for a file that is created here, such as ``0o640``, whatever the umask. Default
            None: ``0o666`` minus the umask. An existing file keeps its own.
        buffer_bytes: Size of the buffer in memory, in bytes or as text such as ``"64 KiB"``. Default 0: none. The
            buffer is written when it is full, at an event of *flush_level* or above, at the first event
            *flush_interval* after the last write, and by `flush`, `close` and at exit. A kill loses its content.
        flush_interval: Seconds, a timedelta, or text such as ``"500 ms"``. Default 1.0. Only events check it; there is
            no thread for it.
        flush_level: The level at which an event, and those before it, are written at once. Default ``"error"``.
        timeout: How long an event waits, as a span like *flush_interval*, for the reader of a pipe or terminal that is
            full. Default 5.0. After one such timeout, events are dropped at once until the reader reads again. A line
            that is half written by then stays ``pending``, and its rest is written first.
        terminator: The text after each event. Default ``"\n"``. Settable.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *mode*, *encoding*, *errors*, *permissions*, *buffer_bytes*, *flush_interval* or *flush_level*
            is not usable.
        TypeError: If *filename* is not a path: an open file or a descriptor is for `StreamSink`.

    If the file cannot be opened, the error goes to ``on_error``, and each event tries again. A write that fails or is
    incomplete (disk full) is undone, so that no half line remains; the event is counted as ``dropped["error"]``, and
    writing resumes as soon as there is room. If a killed process left half a line, a terminator is written before the
    first event. If a pipe is full, `handle` waits for its reader, at most *timeout*. If other code has closed the
    sink's descriptor, the sink notices within a second and opens the path again; until then it may write to another
    file that has got the same number.

    Safe from any thread and from signal handlers; any number of processes may append to one file. Sinks of one process
    that write to one file, even by links, share a lock; when one of them opens the path again, the others follow. A
    forked child writes to the same open file, and leaves the buffer to the parent. A named pipe without a reader counts
    as a file that cannot be opened. On NFS, appends of several hosts may overwrite each other.

    Source: `logging.FileHandler`; POSIX ``open(2)`` on O_APPEND.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: Mode = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
        *,
        permissions: int | None = None,
        buffer_bytes: Size = 0,
        flush_interval: Span = 1.0,
        flush_level: Level = "error",
        timeout: Span = 5.0,
        terminator: str = "\n",
        **options: Unpack[RenderOptions],
    ) -> None:
        self.delay: bool = bool(delay)
        self.buffer_bytes: int = checked_size(buffer_bytes, "buffer_bytes")
        self._flush_level = parse_level(flush_level, "flush_level")
        #: Lines that wait to be written; there is no buffer at exit.
        self._buffer = Buffer(
            0 if lifecycle.exiting() else self.buffer_bytes, checked_seconds(flush_interval, "flush_interval")
        )
        super().__init__(
            filename,
            mode,
            permissions=permissions,
            timeout=timeout,
            encoding=encoding,
            errors=errors,
            terminator=terminator,
            **options,
        )
        self._place.join(self)
        if not self.delay:
            try:
                with self._lock, kept_up(self.base_filename):
                    self._install(*self._open_file())
            except OSError as error:
                self._fail(error, None, events=0)

    #: The class whose pipeline the shortcut replaces, and the methods that turn it off if they are overridden.
    _hot_class: ClassVar[type[FileSink]]
    _hot_hooks: ClassVar[tuple[str, ...]] = ("deliver", "emit", "render", "write", "_put", "_write_whole")

    # -- the shortcut

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event has reached the operating system, or the buffer if there is one.
        """
        # Unusual events and all failures take the pipeline, which is exact: before the write nothing has happened, and
        # a failed write is undone. For the usual event of a plain file, the code of `plain_line` and `append_line` is
        # repeated here: the two calls would cost a tenth more.
        append = self._append
        rest: Any = event
        if append is not None:
            data = None
            try:
                make = self._make_line
                if make is not None:
                    data = make(self, event)
                elif not (
                    event.__class__ is not dict
                    or "exc_info" in event
                    or "_record" in event
                    or "_logger" in event
                    or "_name" in event
                    or "_from_structlog" in event
                    or (is_tracked(event) and too_deep(event))
                ):
                    passing = self._passing_levels
                    if passing is None or (event["level"] in passing and "level_number" not in event):
                        data = dumps(event, None, LINE)
                    elif "level_number" not in event and NUMBERS[event["level"]] < self._level:
                        self._ledger.filtered += 1
                        return
                if data:
                    if append is not append_line:
                        append(self, data)
                        return
                    turn = self._turn
                    del turn[0]  # IndexError: another thread has it
                    holding = True
                    try:
                        write = self._write_line
                        if write is None or self._counts_here:
                            if monotonic() >= self._verify_at:
                                raise LookupError
                            size = len(data)
                            if write is not None:
                                # No call from here to the write, so no signal handler counts in between.
                                own: Any = self
                                file = self._shared_file
                                if file.size is None or file.size + size > own.max_bytes:
                                    raise LookupError
                                file.size += size
                            written = _os_write(self._fd, data)
                            if written != size:
                                self._finish(data, written)
                        elif not write(self, data):
                            raise LookupError
                        self._ledger.delivered += 1
                    except Exception:
                        raise
                    except BaseException:
                        self._count_dropped("interrupted")
                        raise
                    finally:
                        try:
                            holding = False
                            turn += TURN
                        finally:
                            pass
                    return
                if data is not None:
                    self._ledger.filtered += 1
                    return
            except BegunError as error:
                rest = error.begun
            except Exception:
                if data:
                    rest = Begun(event, data=data)
            except BaseException:
                # Once the line is rendered, the code that writes it counts it. Python 3.10 also runs signal handlers
                # when that code returns.
                if not data:
                    self._count_dropped("interrupted")
                raise
        super().handle(rest)

    def _refresh(self) -> None:
        self._turn = self._lock.turn
        own = type(self)
        renderer = self._renderer
        usual = (
            all(getattr(own, hook) is getattr(self._hot_class, hook) for hook in self._hot_hooks)
            and not (self._closed or self._reporting or self._may_block)
            # If a sink counts the size of the same file, it has to see every write.
            and (self._counts_size or not self._place.counts_size)
            # Filtered events are counted without a lock.
            and (HAS_GLOBAL_LOCK or not (self._level or self._processors))
        )
        #: True if a plain event is rendered as by `plain_line`, apart from the terminator.
        self._renders_plain = isinstance(renderer, (OrjsonRenderer, ChainedRenderer)) and renderer.is_plain
        plain = self._renders_plain and self._terminator == "\n"
        processors = self._processors
        #: The method `screen` of the first processor, if it does not change events: see `outfall.sinks.shaping`.
        first: Any = processors[0] if processors else None
        self._screen: Callable[[Any, float], Any] | None = getattr(first, "screen", None)
        self._screen_usual: Callable[[Any], Any] | None = getattr(first, "screen_usual", None)
        by_screen = plain and len(processors) == 1 and self._screen_usual is not None
        plain = plain and not processors
        self._line_end = self._terminator_bytes
        #: The levels, in all usual spellings, of events that are neither filtered nor flush the buffer; None: all.
        self._passing_levels: frozenset[str] | None = None
        if self._level or self._buffer.limit:
            highest = self._flush_level if self._buffer.limit else UNKNOWN
            self._passing_levels = frozenset(n for n, number in NUMBERS.items() if self._level <= number < highest)
        #: Writes a line; called with the sink, since a bound method would keep the sink alive. None: take the pipeline.
        self._append: Callable[[Any, bytes], None] | None = None
        #: Renders the line; called with the sink and the event. None: `handle` renders it.
        self._make_line: Callable[[Any, Any], bytes | None] | None = None
        #: True if `handle` counts the size of the file, up to `max_bytes`.
        self._counts_here = self._sealer is None and self._rolls_by_size_alone()
        #: Writes the line if that takes more than one system call; returns False for the pipeline. None: one is enough.
        self._write_line: Callable[[Any, bytes], bool] | None = self._line_writer()
        if self._sealer is not None:
            usual = usual and self._write_line is None
            self._write_line = write_sealed_line
        if usual and self._buffer.limit:
            if plain and HAS_GLOBAL_LOCK:
                self._append = append_to_buffer
        elif usual:
            self._append = append_line
            self._make_line = None if plain else line_by_screen if by_screen else line_by_chain

    @property
    def line_appender(self) -> Callable[[Any, bytes], None] | None:
        """See `Forwarding.line_appender`: for a file without a buffer and without a level and processors of its own."""
        return self._append if self._make_line is None and self._passing_levels is None else None

    def _rolls_by_size_alone(self) -> bool:
        """Return True if a line may be written to the file unless it exceeds `max_bytes`."""
        return False

    def _line_writer(self) -> Callable[[Any, bytes], bool] | None:
        """Return the function that writes a line if that takes more than one system call, or None."""
        return None

    def _admit(self, event: object) -> Any:
        if event.__class__ is not Begun:
            return super()._admit(event)
        begun: Any = event
        if begun.error is not None:
            raise begun.error
        if begun.data is not None:
            return begun
        made = as_event(begun.processed)
        if isinstance(made, TextEvent) and made.carried_level is None:
            made.carried_level = level_of(begun.event)
        return made

    def _fail(self, error: Exception, event: object, *, events: int = 1, suppressed: int = 0) -> None:
        event = event.event if isinstance(event, Begun) else event
        super()._fail(error, event, events=events, suppressed=suppressed)

    # -- the pipeline

    def _put(self, event: dict[str, Any]) -> Exception | None:
        if type(self).emit is not ByteSink.emit:
            return super()._put(event)
        begun: Any = event if isinstance(event, Begun) else None
        data = self.render(event) if begun is None else begun.data
        settled = False
        try:
            with self._lock:
                self._check_open()
                if not (self._buffer.limit or self._buffer.lines or self._mid_line):
                    try:
                        self.write(data)
                    except NotInTimeError as error:
                        if not self._torn:
                            raise
                        # A part of the line is in the pipe. The rest is written before anything else.
                        self._put_back([data])
                        return error
                    self._ledger.delivered += 1
                    settled = True
                    if self._buffer.lines:  # added by a signal handler meanwhile
                        self._write_buffer(counted_elsewhere=1)
                    return self._take_notice()
                size = len(data)
                self._buffer.lines += (data,)
                settled = True
                self._buffer.size += size
                if not self._mid_line and (
                    self._buffer.size >= self._buffer.limit
                    or level_of(event if begun is None else begun.event) >= self._flush_level
                    or monotonic() >= self._buffer.due
                ):
                    # If the write fails, this event is one of the lost ones, and the pipeline counts it.
                    settled = False
                    try:
                        self._write_buffer(counted_elsewhere=1)
                        if self._buffer.lines and self._may_block:  # added by a signal handler meanwhile
                            self._write_buffer(counted_elsewhere=1)
                    except NotInTimeError as error:
                        if self._buffer.size > self._buffer.limit and self._buffer.withdraw(data):
                            raise
                        return error
                    settled = True
        except Exception:
            raise
        except BaseException:
            if settled:  # interrupted after the write, and counted as interrupted
                self._ledger.delivered -= 1
            raise
        return self._take_notice()

    def _take_notice(self) -> Exception | None:
        notice, self._notice = self._notice, None
        return notice

    def _tell_notice(self, *, raises: bool = True) -> None:
        """Report what has happened to the file."""
        notice = self._take_notice()
        if notice is not None:
            (self._fail if raises else self._fail_unraised)(notice, None, events=0)

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Write all items by one system call; items that a full disk does not take are left for a retry."""
        taken = len(batch)
        try:
            with self._lock:
                self._check_open()
                self._flush()
                ends = Ends(data_of(batch), self._item_end)
                try:
                    self._write_lines(self._joined(batch), ends)
                except OSError as error:
                    taken = self._kept
                    if isinstance(error, NotInTimeError) and self._torn:
                        self._put_back([data_of(batch)[taken] + self._item_end])
                        taken += 1
                    if not taken:
                        raise
        finally:
            # An exception from here would mean that no event of the batch was written.
            self._tell_notice(raises=False)
        return BatchResult(retry=range(taken, len(batch))) if taken < len(batch) else None

    # -- the buffer

    def _write_buffer(self, counted_elsewhere: int = 0) -> None:
        """Write the buffer; if that fails, count the lines not in the file as lost, less *counted_elsewhere*."""
        buffer = self._buffer
        buffer.wind()
        count = self._kept = 0
        # Empty the buffer first: events of signal handlers meanwhile must neither be written twice nor be lost. No call
        # comes between the exchange and the `try`, so no interrupt does either.
        chunk, buffer.lines = buffer.lines, []
        try:
            buffer.size = 0
            count = buffer.in_flight = len(chunk)
            if chunk:
                self._write_lines(b"".join(chunk), tuple(accumulate(map(len, chunk))))
        except NotInTimeError:
            self._ledger.delivered += self._kept
            self._put_back(chunk[self._kept :])
            raise
        except BaseException as error:
            self._ledger.delivered += self._kept
            lost = len(chunk) - self._kept - counted_elsewhere
            self._count_dropped("error" if isinstance(error, Exception) else "interrupted", lost)
            self._lost += lost
            raise
        else:
            self._ledger.delivered += count
        finally:
            buffer.in_flight = 0

    def _put_back(self, chunk: list[bytes]) -> None:
        """Put the lines of *chunk* that were not written in time back into the buffer, without the written part."""
        if self._given_up:
            self._count_dropped("closed", len(chunk))
            lost = len(chunk)
            self._lost += lost
            return
        self._buffer.put_back(chunk, self._torn)

    def _flush(self) -> None:
        # In a signal handler during a write: the interrupted write writes the buffer next.
        if self._buffer.lines and not self._mid_line:
            self._write_buffer()

    def _drop_buffer(self) -> int:
        """Disable the buffer, count its lines as lost to `close`, and return their number."""
        left = self._buffer.stop()
        if left:
            self._count_dropped("closed", left)
        return left

    def _give_up(self) -> None:
        self._given_up = True
        lost = self._drop_buffer()
        if lost:
            why = "closed while another thread was still writing"
            self._fail(NotInTimeError(errno.ETIMEDOUT, why, self.base_filename), None, events=lost)

    def drain(self, timeout: float) -> None:
        """Write the buffer at exit, and write each later event at once."""
        self._buffer.limit = 0
        self._changed()
        super().drain(timeout)

    def _stats(self) -> SinkStats:
        stats = super()._stats()
        pending = self._buffer.pending
        return replace(stats, pending=pending, accepted=stats.accepted + pending) if pending else stats

    # -- opening and closing

    def reopen(self) -> None:
        """Open the path again, for a SIGHUP handler after ``logrotate`` has renamed the file.

        The buffer is written to the old file. If the path cannot be opened, the error goes to ``on_error`` and the sink
        keeps the old file. Never truncates.
        """
        errors: list[OSError] = []
        with self._lock:
            if self._closed:
                return
            for step in (self._flush, self._exchange):
                try:
                    step()
                except OSError as error:
                    errors.append(error)
            lost, self._lost = self._lost, 0
        for failure in errors:
            self._fail(failure, None, events=lost)
            lost = 0
        self._tell_notice()

    def flush(self, timeout: float | None = None) -> bool:
        """Write the buffer; see `Sink.flush`."""
        done = super().flush(timeout)
        self._tell_notice()
        return done

    def close(self, timeout: float | None = None) -> bool:
        """Write the buffer and close the file; see `Sink.close`."""
        done = super().close(timeout)
        self._tell_notice()
        return done

    def _release(self) -> None:
        lost = self._drop_buffer()
        self._lost += lost
        super()._release()

    def after_fork(self) -> None:
        """Reset the sink in a forked child: it keeps the open file and drops the parent's buffer."""
        self._buffer.clear()
        super().after_fork()

    def __del__(self) -> None:
        # The sink was garbage collected: write the buffer and close the descriptor.
        try:
            if is_finalizing():
                return  # the buffer is empty, and another object's __del__ may still log
            if not self._closed:
                self.close(0)
            elif self._given_up:  # no thread writes any more
                self._release()
        except Exception:  # when the interpreter ends, the names of this module may be gone
            return


FileSink._hot_class = FileSink
HAND_TAKEN.add(FileSink.handle.__code__)
