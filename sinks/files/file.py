"""Events appended to a file: `FileSink`."""

# `event.__class__ is dict` does not narrow a type for pyright, and WriteLock reads `holding` from the frame.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportUnusedVariable=false
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
import time
from dataclasses import replace
from itertools import accumulate
from os import write as _os_write
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from outfall.sinks.core import lifecycle
from outfall.sinks.core.arguments import checked_seconds, checked_size
from outfall.sinks.core.bytesink import ByteSink
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import BatchResult, Ends, data_of
from outfall.sinks.core.lock import HAND_TAKEN, HAS_GLOBAL_LOCK, TURN
from outfall.sinks.core.reporting import report
from outfall.sinks.errors import SinkClosedError, SinkError
from outfall.sinks.event.chained import ChainedRenderer
from outfall.sinks.event.event import TextEvent, as_event
from outfall.sinks.event.json import OrjsonRenderer, plain_line
from outfall.sinks.event.levels import NOTSET, NUMBERS, UNKNOWN, Level, level_of, parse_level
from outfall.sinks.files.sealing import last_sealed_line, write_sealed, write_sealed_line
from outfall.sinks.files.sharing import OpenFile, place_of
from outfall.sinks.files.shortcut import Begun, BegunError, line_by_chain, line_by_screen, line_for_buffer

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.sink import OnError

#: The descriptor of a file that is not open; writing to it fails with EBADF, so the hot path need not ask.
_NOT_OPEN = -1

#: Errors that leave the descriptor good: there may be room again for the next event.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})


#: How a file is opened. With ``"b"`` or ``"t"`` it means the same: bytes are written either way.
Mode = Literal["a", "w", "x", "ab", "wb", "xb", "at", "wt", "xt", "a+", "w+", "x+"]


class _NotInTimeError(TimeoutError):
    """A flush with a deadline met a pipe or terminal that nobody reads."""


def append_line(sink: Any, data: bytes) -> None:
    """Append *data*, a line, to the file of *sink*; waits with the line for other threads.

    Raises:
        Exception: If the pipeline has to do it.
        BaseException: An interrupt; an event that it kept out is counted here.
    """
    # Taking the lock by hand: see WriteLock.
    turn = sink._turn
    try:
        del turn[0]
    except IndexError:
        sink._append_when_free(data)
        return
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


def append_to_buffer(sink: Any, data: bytes) -> None:
    """Have *data*, a line, wait in the buffer of *sink*, without its lock.

    Raises:
        LookupError: If the pipeline has to do it.
    """
    try:
        size = len(data)
        late = monotonic() >= sink._flush_due
    except BaseException:
        sink._count_dropped("interrupted")
        raise
    # No call from here on, and so no place for another thread or a signal handler.
    if late or sink._buffered + size >= sink._buffer_limit:
        raise LookupError
    sink._buffer += (data,)
    sink._buffered += size


class FileSink(ByteSink):
    r"""Append each event to a file, one line each.

    Each event reaches the operating system before `handle` returns: it survives any death of the process, though not
    a loss of power. With *buffer_bytes* set, up to that much waits in memory.

    Args:
        filename: Path of the file; made absolute once, here. Kept as `base_filename`.
        mode: ``"a"`` to append (default), ``"w"`` to truncate when first opened, ``"x"`` to insist on a new file. In
            every mode each write goes to the end, even while others write to or truncate the same file.
        encoding: How text is encoded. Default UTF-8. A byte order mark is written at the start of an empty file alone.
        delay: Open at the first event instead of now. Default False.
        errors: What to do with characters that *encoding* does not have. Default ``"backslashreplace"``.
        permissions: Permission bits for a file that is created here, such as ``0o640``, whatever the umask. Default
            None: ``0o666`` less the umask. An existing file keeps its own.
        buffer_bytes: Keep up to so many bytes of events in memory and write them together. Default 0: none. They are
            written when that many have come, at an event of *flush_level* or above, at the first event
            *flush_interval* after the last write, and by `flush`, `close` and the exit of the process. A kill loses
            them.
        flush_interval: Seconds, or a timedelta; default 1.0. No thread watches it: it is looked at with each event.
        flush_level: Level at which an event and those before it are written at once. Default ``"error"``.
        timeout: How long an event waits, in seconds or as a timedelta, for the reader of a pipe or terminal that is
            full. Default 5.0. Once that time has passed in vain, events are dropped at once until somebody reads; one
            that is half written then is ``pending``, and goes on by itself.
        terminator: What ends each event. Default ``"\n"``. Settable.
        renderer: What makes an event text or bytes, a renderer of structlog. Default ``OrjsonRenderer()``.
        level: Events below it are left out: a name in any case, or a number. Default NOTSET, which takes all.
        processors: Processors of structlog, applied in order to a copy of each event. Default none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: What to call the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *mode*, *encoding*, *errors*, *permissions*, *buffer_bytes*, *flush_interval* or *flush_level*
            is not usable.
        TypeError: If *filename* is not a path: an open file or a descriptor is for `StreamSink`.

    A file that cannot be opened goes to ``on_error``, and each event tries again. A write that fails or is cut short
    (disk full) is undone, so that no half line stays; the event is counted as ``dropped["error"]``, and writing goes
    on as soon as there is room. Half a line that a killed process left is ended before the first event is written. A
    pipe that is full makes `handle` wait for its reader, no longer than *timeout*. A descriptor that somebody else has
    closed is noticed within a second, before what has its number now is written to for longer.

    Safe from any thread and from signal handlers; any number of processes may append to one file. Sinks of one process
    on one file, links to it included, take turns, and one that opens the path anew takes the others along. A forked
    child goes on with the same open file, and leaves what the parent had buffered to the parent. A named pipe without a
    reader counts as a file that cannot be opened. On NFS, appends of several hosts may overwrite each other.

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
        buffer_bytes: int = 0,
        flush_interval: float | dt.timedelta = 1.0,
        flush_level: Level = "error",
        timeout: float | dt.timedelta = 5.0,
        terminator: str = "\n",
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        #: The absolute path, as text; frozen here, so that a later chdir does not move the file.
        self.base_filename: str = checked_path(filename)
        self._place = place_of(self.base_filename)
        #: The file that is open.
        self._shared_file = OpenFile()
        self.mode: str = _checked_mode(mode)
        self.delay: bool = bool(delay)
        self.permissions: int | None = _checked_permissions(permissions)
        self.buffer_bytes: int = checked_size(buffer_bytes, "buffer_bytes")
        self._flush_seconds = checked_seconds(flush_interval, "flush_interval")
        self._timeout = checked_seconds(timeout, "timeout")
        self._flush_level = parse_level(flush_level, "flush_level")
        self._fd = _NOT_OPEN
        #: An open descriptor that the hot path must not use, since `_prefix` has to be written first.
        self._parked_fd = _NOT_OPEN
        #: What the next write must begin with: an end for somebody's half line, or a byte order mark.
        self._prefix = b""
        self._regular = True
        #: A pipe or a terminal: whoever reads it decides when a write ends, and how much of a line fits at once.
        self._may_block = False
        #: While such a line may be half written: what a signal handler logs then waits in the buffer.
        self._mid_line = False
        #: close() could not have the lock in time, or it has let go of the file: it must not be opened again. Before
        #: that close() may well have to open it, for what waits.
        self._given_up = self._released = False
        #: Never truncate, nor insist on a new file, a second time.
        self._opened_before = False
        #: The levels, as they are spelt, of events that are neither filtered nor make the buffer be written.
        self._passing_levels: frozenset[str] = frozenset()
        #: How much may wait; 0 from the process's exit on.
        self._buffer_limit = 0 if lifecycle.exiting() else self.buffer_bytes
        self._buffered = 0
        self._flush_due = 0.0
        self._empty_buffer()
        #: When to look whether the descriptor is still the sink's own, by the monotonic clock.
        self._verify_at = 0.0
        #: What has to be told though it costs no event.
        self._notice: Exception | None = None
        #: Nobody read a pipe for as long as `_timeout`: until somebody does, no event waits for that.
        self._stalled = False
        super().__init__(
            renderer=renderer,
            encoding=encoding,
            errors=errors,
            terminator=terminator,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )
        self._place.join(self)
        if not self.delay:
            try:
                with self._lock:
                    self._install(*self._open_file())
            except OSError as error:
                self._fail(error, None, events=0)

    #: The class for whose methods the short cut stands in, and these methods: one that is overridden turns it off.
    _hot_class: ClassVar[type[FileSink]]
    _hot_hooks: ClassVar[tuple[str, ...]] = ("deliver", "emit", "render", "write", "_put", "_write_whole")
    #: True if the size of the file is counted.
    _counts_size: ClassVar[bool] = False

    # -- the short cut

    def handle(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event: `deliver` under the error policy. Never raises, unless ``on_error`` is ``"raise"``.

        When it returns, the event has reached the operating system, or the buffer where there is one.
        """
        # Whatever is unusual, and every failure, takes the pipeline, where it is treated exactly: until the write
        # nothing has happened, and a failed write has been undone.
        append = self._append
        rest: Any = event
        if append is not None:
            data = None
            try:
                make = self._make_line
                data = plain_line(event, self._level) if make is None else make(self, event)
                if data:
                    append(self, data)
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
                # A line that is made was handed to `append`, which counts what it has not put out. Python 3.10 looks
                # for signals on the way back from it, too.
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
            # Whoever counts the size of the same file has to know what is written to it.
            and (self._counts_size or not self._place.counts_size)
            # What is filtered is counted without a lock.
            and (HAS_GLOBAL_LOCK or not (self._level or self._processors))
        )
        #: Whether a plain event is rendered as `plain_line` does it, but for the terminator.
        self._renders_plain = isinstance(renderer, (OrjsonRenderer, ChainedRenderer)) and renderer.is_plain
        plain = self._renders_plain and self._terminator == "\n"
        processors = self._processors
        #: What the first processor decides by, if it only looks at events: see `outfall.sinks.shaping`.
        self._screen: Callable[[Any, float], Any] | None = (
            getattr(processors[0], "screen", None) if processors else None
        )
        by_screen = plain and len(processors) == 1 and getattr(processors[0], "screen_usual", None) is not None
        plain = plain and not processors
        self._line_end = self._terminator_bytes
        highest = self._flush_level if self._buffer_limit else UNKNOWN
        self._passing_levels = frozenset(n for n, number in NUMBERS.items() if self._level <= number < highest)
        #: What puts a line out: given the sink, since a bound method would keep it alive. None: the pipeline does.
        self._append: Callable[[Any, bytes], None] | None = None
        #: What makes the line, given the sink and the event; None: `plain_line`.
        self._make_line: Callable[[Any, Any], bytes | None] | None = None
        #: What writes the line where one write is not enough; it returns False if the pipeline has to.
        self._write_line: Callable[[Any, bytes], bool] | None = self._line_writer()
        if self._sealer is not None:
            usual = usual and self._write_line is None
            self._write_line = write_sealed_line
        if usual and self._buffer_limit:
            if plain and HAS_GLOBAL_LOCK:
                self._append, self._make_line = append_to_buffer, line_for_buffer
        elif usual:
            self._append = append_line
            self._make_line = None if plain else line_by_screen if by_screen else line_by_chain

    @property
    def line_appender(self) -> Callable[[Any, bytes], None] | None:
        """See `Forwarding.line_appender`: of a file without a buffer, a level and processors of its own."""
        return self._append if self._make_line is None and not self._level else None

    def _line_writer(self) -> Callable[[Any, bytes], bool] | None:
        """Return what writes a line where one write is not enough."""
        return None

    def _append_when_free(self, data: bytes) -> None:
        """Append *data*, a line that is made, as soon as other threads let go of the file."""
        delivered = False
        try:
            with self._lock:
                self._check_open()
                write = self._write_line
                if self._buffer_limit or self._append is None or (write is not None and not write(self, data)):
                    raise LookupError
                if write is None:
                    self.write(data)
                self._ledger.delivered += 1
                delivered = True
        except BaseException as error:
            if delivered:  # interrupted at the way out, and counted as that
                self._ledger.delivered -= 1
            if not isinstance(error, Exception):
                self._count_dropped("interrupted")
            raise

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
                if not (self._buffer_limit or self._buffer or self._mid_line):
                    try:
                        self.write(data)
                    except _NotInTimeError as error:
                        if not self._torn:
                            raise
                        # A part of it stands in the pipe: the rest goes out before anything else does.
                        self._put_back([data])
                        return error
                    self._ledger.delivered += 1
                    settled = True
                    if self._buffer:  # from a signal handler meanwhile
                        self._write_buffer(counted_elsewhere=1)
                    return self._take_notice()
                self._buffer += (data,)
                settled = True
                self._buffered += len(data)
                if not self._mid_line and (
                    self._buffered >= self._buffer_limit
                    or level_of(event if begun is None else begun.event) >= self._flush_level
                    or monotonic() >= self._flush_due
                ):
                    # If it fails this event is among the lost, and the pipeline counts it.
                    settled = False
                    try:
                        self._write_buffer(counted_elsewhere=1)
                        if self._buffer and self._may_block:  # from a signal handler meanwhile
                            self._write_buffer(counted_elsewhere=1)
                    except _NotInTimeError as error:
                        if self._buffered > self._buffer_limit and self._withdraw(data):
                            raise
                        return error
                    settled = True
        except Exception:
            raise
        except BaseException:
            if settled:  # interrupted at the way out, and counted as that
                self._ledger.delivered -= 1
            raise
        return self._take_notice()

    def _withdraw(self, data: bytes) -> bool:
        """Take *data* out of what waits again; return False if a part of it is written."""
        for index, waiting in enumerate(self._buffer):
            if waiting is data:
                del self._buffer[index]
                self._buffered -= len(data)
                return True
        return False

    def _take_notice(self) -> Exception | None:
        notice, self._notice = self._notice, None
        return notice

    def _tell_notice(self) -> None:
        notice = self._take_notice()
        if notice is not None:
            self._fail(notice, None, events=0)

    def write(self, data: bytes) -> None:
        """Write *data*, one rendered event, whole or not at all."""
        self._write_lines(data, (len(data),))

    def _write_lines(self, data: bytes, ends: Sequence[int]) -> None:
        """Write *data*, in which events end at *ends*, sealed if the renderer does that; see `_write_whole`."""
        if self._sealer is None:
            self._write_whole(data, ends)
        else:
            write_sealed(self, data, ends)

    #: The renderer, if it seals each line, and True while it does.
    _sealer: Any = None
    _sealing = False

    def _take_sealer(self, renderer: Any) -> None:
        if renderer is not None:
            if self.terminator != "\n":
                msg = f"terminator={self.terminator!r}: the lines of a chain end in '\\n'"
                raise ValueError(msg)
            renderer.claim(self)
        self._sealer = renderer

    def _last_line(self) -> bytes | None:
        """Return the last line that is sealed, of this file or the one before it."""
        return last_sealed_line(self.base_filename, self._names_of_earlier())

    def _names_of_earlier(self) -> list[str]:
        """Return the paths of the files that were written before this one, the newest first."""
        return []

    @reads_data_alone(any_number=True)
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Write all items by one call of the system; what a full disk keeps out is left for a retry."""
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
                    if isinstance(error, _NotInTimeError) and self._torn:
                        self._put_back([data_of(batch)[taken] + self._item_end])
                        taken += 1
                    if not taken:
                        raise
        finally:
            notice = self._take_notice()
            if notice is not None:
                # What is raised from a batch would say that none of it was taken.
                self._fail_unraised(notice, None)
        return BatchResult(retry=range(taken, len(batch))) if taken < len(batch) else None

    def _write_whole(self, data: bytes, ends: Sequence[int]) -> None:
        """Write *data*, in which events end at *ends*; if that fails keep whole events only, `_kept` of them."""
        self._kept = 0
        if monotonic() >= self._verify_at:
            self._verify()
        self._mid_line = self._may_block or self._sealing
        try:
            self._write_or_reopen(data, ends)
        except BaseException:
            self._shared_file.size = None
            raise
        finally:
            self._mid_line = self._sealing

    def _write_or_reopen(self, data: bytes, ends: Sequence[int]) -> None:
        file = self._shared_file
        try:
            # Without a call in between, where a signal handler could go on to another file.
            if file.size is not None:
                file.size += len(data)
            written = _os_write(self._fd, data)
        except OSError as error:
            file.size = None
            if self._may_block and isinstance(error, BlockingIOError):
                self._finish(data, 0, ends)
                return
            if self._fd != _NOT_OPEN:
                if error.errno in _NO_ROOM:
                    raise
                # The descriptor is of no more use: closed behind our back, a pipe without its reader, a stale mount.
                self._verify()
                self._forget_descriptor()
            prefix = self._take_descriptor()
            self._mid_line = self._may_block or self._sealing
            try:
                self._finish(prefix + data, 0, [len(prefix) + end for end in ends])
                self._shared_file.size = None
            except BaseException:
                if prefix and not self._kept and self._fd != _NOT_OPEN:
                    done = min(self._torn, len(prefix))
                    self._torn -= done
                    if done < len(prefix):
                        self._install(self._fd, prefix[done:])
                raise
        else:
            if written != len(data):
                self._finish(data, written, ends)

    def _finish(self, data: bytes, written: int, ends: Sequence[int] = ()) -> None:
        """Write the rest of *data* after a short write, or take back the part of an event that stands there."""
        view = memoryview(data)
        self._torn = 0
        try:
            while written < len(data):
                try:
                    written += _os_write(self._fd, view[written:])
                except BlockingIOError:
                    if not self._may_block:
                        raise
                    self._await_room()
        except BaseException as error:
            self._kept = sum(1 for end in ends if end <= written)
            keep = ends[self._kept - 1] if self._kept else 0
            if isinstance(error, _NotInTimeError):
                self._torn = written - keep
            elif self._may_block and not isinstance(error, Exception):
                # Interrupted on the way back from the system: how much it took then is not known.
                self._install(self._fd, self._terminator_bytes or b"\n")
            else:
                self._take_back(data[keep:written])
            raise

    def _await_room(self) -> None:
        """Wait until somebody reads: as long as `_timeout`, or until the deadline of `flush` or `close`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        deadline = self._deadline
        left = (0.0 if self._stalled else self._timeout) if deadline is None else max(0.0, deadline - monotonic())
        if not poll.poll(1000 * left):
            self._stalled = True
            raise _NotInTimeError(errno.ETIMEDOUT, "nobody reads it", self.base_filename)
        self._stalled = False

    def _take_back(self, part: bytes) -> None:
        """Remove *part*, half an event, from the end of the file; where that cannot be done, have it ended."""
        if not part:
            return
        try:
            if self._regular and self._ends_with(part):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(part))
                return
        except OSError:
            pass
        self._install(self._fd, self._terminator_bytes or b"\n")

    def _ends_with(self, part: bytes) -> bool:
        # The file is open for writing alone, and others may append to it: ours is only what can be read at its end.
        size = os.fstat(self._fd).st_size
        reader = os.open(self.base_filename, os.O_RDONLY | _CLOEXEC)
        try:
            same = os.path.samestat(os.fstat(reader), os.fstat(self._fd))
            return same and size >= len(part) and _read_at(reader, size - len(part), len(part) + 1) == part
        finally:
            os.close(reader)

    # -- the buffer

    def _empty_buffer(self) -> None:
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._in_flight = 0
        self._kept = 0
        #: How much of the first event that is not written stands in the pipe already.
        self._torn = 0
        self._mid_line = False
        self._flush_due = monotonic() + self._flush_seconds

    def _write_buffer(self, counted_elsewhere: int = 0) -> None:
        """Write what waits. If that fails, what is not in the file is lost and counted, but for *counted_elsewhere*."""
        self._flush_due = monotonic() + self._flush_seconds
        count = self._kept = 0
        # Exchanged first: what a signal handler logs meanwhile must neither be written twice nor be lost. There is no
        # call, and so no place for an interrupt, between the exchange and the try.
        chunk, self._buffer = self._buffer, []
        try:
            self._buffered = 0
            count = self._in_flight = len(chunk)
            if chunk:
                self._write_lines(b"".join(chunk), tuple(accumulate(map(len, chunk))))
        except _NotInTimeError:
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
            self._in_flight = 0

    def _put_back(self, chunk: list[bytes]) -> None:
        """Have what could not be written in time wait on, the first event less what of it is written."""
        if self._given_up:
            self._count_dropped("closed", len(chunk))
            self._lost += len(chunk)
            return
        chunk[0] = chunk[0][self._torn :]
        self._buffer[:0] = chunk
        self._buffered += sum(map(len, chunk))

    def _flush(self) -> None:
        # A signal handler in the midst of a line: whoever writes that line writes the buffer next.
        if self._buffer and not self._mid_line:
            self._write_buffer()

    def _drop_buffer(self) -> int:
        """Count what waits as lost to `close`, let nothing more wait, and return how much it was."""
        self._buffer_limit = 0
        left, self._buffer = self._buffer, []
        if left:
            self._count_dropped("closed", len(left))
        return len(left)

    def _give_up(self) -> None:
        self._given_up = True
        lost = self._drop_buffer()
        if lost:
            why = "closed while another thread was still writing"
            self._fail(_NotInTimeError(errno.ETIMEDOUT, why, self.base_filename), None, events=lost)

    def drain(self, timeout: float) -> None:
        """Write what waits, at exit, and buffer nothing from now on."""
        self._buffer_limit = 0
        self._changed()
        super().drain(timeout)

    def _stats(self) -> SinkStats:
        stats = super()._stats()
        pending = len(self._buffer) + self._in_flight
        return replace(stats, pending=pending, accepted=stats.accepted + pending) if pending else stats

    # -- the file

    def reopen(self) -> None:
        """Open the path anew, as after ``logrotate`` has moved the file; for a SIGHUP handler.

        What waits in the buffer goes to the old file. If the path cannot be opened, that goes to ``on_error`` and the
        old file, where there is one, is kept. Never truncates.
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
        """Write what is buffered; see `Sink.flush`."""
        done = super().flush(timeout)
        self._tell_notice()
        return done

    def close(self, timeout: float | None = None) -> bool:
        """Write what is buffered, and close the file; see `Sink.close`."""
        done = super().close(timeout)
        self._tell_notice()
        return done

    def _exchange(self) -> None:
        """Go on with the file that is at the path now, and have the sinks follow that wrote to the same as this one."""
        left = self._shared_file
        self._take_file_at_path()
        for other in self._place.others(self):
            if other._shared_file is left:
                other._follow(self._shared_file)

    def _follow(self, file: OpenFile) -> None:
        """Go on with *file* too, as another sink has done, if it is at this sink's path; called under the lock."""
        with contextlib.suppress(OSError):
            state = os.stat(self.base_filename)
            if (state.st_dev, state.st_ino) == file.identity and self._fd != self._parked_fd:
                FileSink._take_file_at_path(self)

    def _take_file_at_path(self) -> None:
        """Open the path and let its file take the place of the one that is open, under the same descriptor."""
        current = self._fd if self._fd != _NOT_OPEN else self._parked_fd
        if current != _NOT_OPEN and not self._is_own(current):
            current = _NOT_OPEN
        opened, prefix = self._open_file()
        if current != _NOT_OPEN:
            state = os.fstat(opened)
            self._next_identity = state.st_dev, state.st_ino
            # In one step: a write that a signal handler interrupted still holds the number, and must not meet another
            # file under it, nor none.
            os.dup2(opened, current, inheritable=False)
            os.close(opened)
            opened = current
        self._install(opened, prefix)

    def _install(self, descriptor: int, prefix: bytes) -> None:
        """Write to *descriptor* from now on, *prefix* first: until then the hot path must not find it."""
        if descriptor == _NOT_OPEN:
            self._shared_file = OpenFile()
        else:
            state = os.fstat(descriptor)
            identity = state.st_dev, state.st_ino
            self._shared_file = self._place.file_of_others(self, identity) or OpenFile(identity)
            # Again, since a signal handler may have opened it by another sink in between.
            self._shared_file = self._place.file_of_others(self, identity) or self._shared_file
        self._shared_file.size = None
        self._verify_at = monotonic() + _VERIFY_SECONDS
        self._prefix = prefix
        self._fd, self._parked_fd = (_NOT_OPEN, descriptor) if prefix else (descriptor, _NOT_OPEN)

    def _take_descriptor(self) -> bytes:
        """Have an open descriptor in `_fd`; return the prefix that the caller has to write first."""
        if self._given_up or self._released:
            msg = f"{self.name} is closed"
            raise SinkClosedError(msg)
        if self._parked_fd == _NOT_OPEN:
            self._install(*self._open_file())
        if self._parked_fd != _NOT_OPEN:
            self._fd, self._parked_fd = self._parked_fd, _NOT_OPEN
        prefix, self._prefix = self._prefix, b""
        return prefix

    def _open_file(self) -> tuple[int, bytes]:
        """Open the path; return the descriptor and what has to be written first."""
        # O_NONBLOCK only for the opening: without it a pipe that nobody reads would block the application here.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CLOEXEC | _NOCTTY | _NONBLOCK
        if not self._opened_before:
            flags |= os.O_TRUNC if "w" in self.mode else os.O_EXCL if "x" in self.mode else 0
        descriptor = self._create(flags)
        try:
            kind = os.fstat(descriptor).st_mode
            regular = stat.S_ISREG(kind)
            # A pipe stays as it was opened, not blocking, so that flush and close can keep their time.
            if self._sealer is not None and not regular:
                raise OSError(errno.EINVAL, "a chain is written to regular files alone", self.base_filename)
            may_block = bool(_NONBLOCK) and (stat.S_ISFIFO(kind) or os.isatty(descriptor))
            prefix = self._missing_start(descriptor) if regular else b""
        except BaseException:
            os.close(descriptor)
            raise
        self._opened_before = True
        self._regular = regular
        if may_block != self._may_block:
            self._may_block = may_block
            self._changed()
        return descriptor, prefix

    def _create(self, flags: int) -> int:
        if self.permissions is None:
            return os.open(self.base_filename, flags, 0o666)
        try:
            # O_EXCL tells whether it is this call that makes the file.
            descriptor = os.open(self.base_filename, flags | os.O_EXCL, self.permissions)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            try:
                return os.open(self.base_filename, flags & ~os.O_CREAT)
            except FileNotFoundError:  # a symbolic link to a file that is yet to be made
                descriptor = os.open(self.base_filename, flags, self.permissions)
        if hasattr(os, "fchmod"):  # not on Windows before Python 3.13
            try:
                os.fchmod(descriptor, self.permissions)
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def _missing_start(self, descriptor: int) -> bytes:
        """Return what must come before the next event: a byte order mark, or an end for somebody's half line."""
        if os.fstat(descriptor).st_size == 0:
            return b"" if type(self._renderer) is OrjsonRenderer else self._byte_order_mark
        end = self._terminator_bytes
        if not end:
            return b""
        ends = (end, b"\n" if type(self._renderer) is OrjsonRenderer else "\n".encode(self._bare_encoding))
        longest = max(map(len, ends))
        with contextlib.suppress(OSError):  # write-only for us: then nothing can be known
            reader = os.open(self.base_filename, os.O_RDONLY | _CLOEXEC | _NONBLOCK)
            try:
                for attempt in range(_TAIL_LOOKS):
                    size = os.fstat(reader).st_size
                    tail = _read_at(reader, max(0, size - longest), longest)
                    if tail.endswith(ends) or not size:
                        return b""
                    # Another process may be in the midst of writing its line; a dead one's half line stays as it is.
                    time.sleep(0.001 * attempt)
                return end
            finally:
                os.close(reader)
        return b""

    # Whoever closes a descriptor that is not theirs makes the system give its number to the next file, socket or pipe
    # that anybody opens. It must be neither written to nor closed then.

    def _is_own(self, descriptor: int) -> bool:
        """Return True if *descriptor* is still what was opened under this number."""
        while True:
            known = self._shared_file.identity
            try:
                state = os.fstat(descriptor)
            except OSError:
                return False
            if (state.st_dev, state.st_ino) in (known, self._next_identity):
                return True
            if known == self._shared_file.identity:  # else a signal handler has gone on to another file meanwhile
                return False

    #: Device and inode of the file that is about to take the place of the one that is open.
    _next_identity: tuple[int, int] | None = None

    def _close_own(self, descriptor: int) -> None:
        if descriptor != _NOT_OPEN and self._is_own(descriptor):
            os.close(descriptor)

    def _verify(self) -> None:
        """Look whether the descriptor is still this sink's own; forget it if not, so that the next write opens one."""
        self._verify_at = monotonic() + _VERIFY_SECONDS
        descriptor = max(self._fd, self._parked_fd)
        if descriptor == _NOT_OPEN or self._is_own(descriptor):
            return
        self._fd = self._parked_fd = _NOT_OPEN
        self._shared_file = OpenFile()
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            msg = (
                f"descriptor {descriptor}, of {self.base_filename!r}, was closed by somebody else and is another file "
                "now, which may have got events of the last second"
            )
            self._notice = SinkError(msg)

    def _forget_descriptor(self) -> None:
        descriptor, self._fd = self._fd, _NOT_OPEN
        with contextlib.suppress(OSError):
            self._close_own(descriptor)

    def _release(self) -> None:
        self._lost += self._drop_buffer()
        self._released = True
        self._place.leave(self)
        self._fd, self._parked_fd, descriptors = _NOT_OPEN, _NOT_OPEN, (self._fd, self._parked_fd)
        for descriptor in descriptors:
            self._close_own(descriptor)

    def _describe(self) -> str:
        return repr(self.base_filename)

    def _fresh_state(self) -> None:
        super()._fresh_state()
        self._lock = self._place.lock()

    def after_fork(self) -> None:
        """Begin anew in a forked child: the same open file, nothing of the parent's buffer."""
        # Whoever opens first truncates; in a child that would be what the parent has written since.
        self._opened_before = True
        self._empty_buffer()
        if self._sealer is not None:
            self._sealer.state = None  # the parent goes on by itself
        super().after_fork()

    def __del__(self) -> None:
        # A sink nobody holds any more: what it buffered is written, and its descriptor is not leaked. At the end of the
        # interpreter the names of this module may be gone already.
        try:
            if not self._closed:
                self.close(0)
            elif self._given_up:  # nobody writes any more
                self._release()
        except Exception:
            return


_TAIL_LOOKS = 4
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOCTTY = getattr(os, "O_NOCTTY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)

FileSink._hot_class = FileSink

#: How long a descriptor is taken for the sink's own without a look.
_VERIFY_SECONDS = 1.0


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def _checked_mode(mode: str) -> str:
    if not isinstance(mode, str) or mode.replace("b", "").replace("t", "").replace("+", "") not in ("a", "w", "x"):
        msg = f"mode={mode!r} is not 'a', 'w' or 'x'"
        raise ValueError(msg)
    return mode


def _checked_permissions(permissions: int | None) -> int | None:
    if permissions is None:
        return None
    if isinstance(permissions, int) and not isinstance(permissions, bool):
        owner, group, others = permissions >> 6 & 7, permissions >> 3 & 7, permissions & 7
        # Nobody means to give others what the owner has not: such a number was written without its 0o.
        if 0 <= permissions <= _MOST_PERMISSIONS and (group | others) & ~owner == 0:
            return permissions
    msg = f"permissions={permissions!r} is not a set of permission bits"
    if re.fullmatch("(0o?)?[0-7]{3}", str(permissions)):
        msg += f": write 0o{str(permissions)[-3:]}"
    else:
        msg += " such as 0o640, up to 0o777"
    raise ValueError(msg)


#: What a log file can have: read, write and execute for owner, group and others.
_MOST_PERMISSIONS = 0o777


def checked_path(filename: str | bytes | os.PathLike[str]) -> str:
    """Return *filename* as an absolute path.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is empty, or has a character that no path can have.
    """
    if not isinstance(filename, (str, bytes, os.PathLike)):
        msg = f"filename={filename!r} is not a path such as 'app.jsonl'"
        if hasattr(filename, "write"):
            msg += ": for an open file there is StreamSink(file)"
        elif isinstance(filename, int):
            msg += f": for a descriptor there is StreamSink(open({filename!r}, 'wb'))"
        raise TypeError(msg)
    path = os.fsdecode(filename)
    if not path or "\0" in path:
        msg = f"filename={filename!r} is not a path such as 'app.jsonl': it {'has a NUL' if path else 'is empty'}"
        raise ValueError(msg)
    return os.path.abspath(path)
