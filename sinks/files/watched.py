"""A sink that appends events to a file that other programs rename, delete or truncate: `WatchedFileSink`."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from outfall.sinks.core.arguments import checked_size
from outfall.sinks.errors import SinkError
from outfall.sinks.files.copytruncate import UNKNOWN, RecentWrites, find_copies, identity
from outfall.sinks.files.file import FileOptions, FileSink, append_line
from outfall.sinks.files.output import NOT_OPEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size
    from outfall.sinks.files.copytruncate import Copy, Identity
    from outfall.sinks.files.opening import Mode
    from outfall.sinks.files.sharing import OpenFile

# Looked up once: the hot path calls them for each event.
_stat, _os_write = os.stat, os.write


#: The default of `WatchedFileSink.keep_bytes`.
KEEP_BYTES = 4 * 1024 * 1024

#: How long this sink waits for a new file after the file was renamed, in seconds, and how often it checks. logrotate's
#: "create" refuses a file that another program has created first, and renames it to a name that it uses again within
#: the hour, so that events are lost. logrotate needs a fraction of a millisecond.
_MOVER_SECONDS = 0.02
_MOVER_POLLS = 20

_LOOKS_AT_CONTENT = 3


class WatchedFileSink(FileSink):
    r"""Append each event to a file that another program rotates, ``logrotate`` for example.

    Before each write the sink checks that the path still leads to the open file, and that the file was not truncated:

    - The file was moved or deleted: the sink opens the path again and writes the event to the new file. If that fails
      (a directory is in its place, a dangling link, no permission, no such directory), the sink keeps the old file,
      calls ``on_error`` once, with ``events=0``, and tries again with each event. If the old file was deleted, the
      events written to it meanwhile are written again to the new one.
    - The file was truncated after a copy was made (``copytruncate``): events that were written in between are in
      neither file. The sink finds the copy, computes from its length which events these are, and writes them again. If
      it finds no certain copy, it calls ``on_error``, with ``events=0``: events may be missing.

    Args:
        filename: Path of the file; a relative one is resolved now.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file is there.
        encoding: The encoding of text. Default UTF-8.
        delay: Open the file at the first event instead of now. Default False.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        keep_bytes: How many of the last bytes are kept in memory to be written again; text such as ``"1 MB"`` too.
            Default 4 MiB. It has to be more than is written between copy and truncation, while the rotator waits for
            the disk. 0 keeps nothing, for files that are never truncated.
        permissions: Permission bits of a file that is made, such as ``0o640``. Default None: those of the process's
            umask.
        buffer_bytes: Size of the buffer in memory, in bytes or as text such as ``"64 KiB"``. Default 0: each event is
            written at once. The path is checked when the buffer is written, and not with each event.
        flush_interval: Time after which the next event writes the buffer: seconds, a timedelta, or text such
            as ``"500 ms"``. Default 1.
        flush_level: An event of this level or above writes the buffer at once. Default ``"error"``.
        timeout: How long an event waits for the reader of a pipe or terminal that is full, as a span like
            *flush_interval*. Default 5.
        terminator: The text after each event. Default ``"\n"``.
        renderer: A structlog renderer that returns text or bytes. Default ``OrjsonRenderer()``.
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *keep_bytes* or an argument of `FileSink` is not usable.
        TypeError: If *filename* is not a path.

    The copy is searched for in the same directory, under a name that begins like the file's name up to its last dot,
    plain or compressed by gzip, bzip2 or xz. If the copy contains a part of an event, the whole event is written again,
    and the part is cut off, unless the copy is compressed or read-only. The next event, `flush` or `close` notices a
    truncation. While other processes append to the same file, the offset of an event is unknown. Then the sink writes
    only events again that are certainly missing, and reports the truncation.

    After the file was renamed, the program that renamed it has 20 ms to create a new one before this sink does. The
    event that finds no file at the path waits for that time.

    Safe from any thread and from signal handlers. A forked child writes to the same open file and watches it by itself.
    `close` checks once more for a truncation. On file systems whose inode numbers change while a file is open, the sink
    opens the path more often than needed, and loses nothing.

    Source: `logging.handlers.WatchedFileHandler`; ``logrotate(8)``.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: Mode = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
        *,
        keep_bytes: Size = KEEP_BYTES,
        **options: Unpack[FileOptions],
    ) -> None:
        self.keep_bytes: int = checked_size(keep_bytes, "keep_bytes")
        self._recent = RecentWrites(self.keep_bytes)
        self._device = self._inode = 0
        #: When the open file was opened or found truncated, in nanoseconds by the clock of its file system.
        self._since_ns = 0
        #: The copies found at the last truncation.
        self._known_copies: set[Identity] = set()
        #: True while the path cannot be opened, and the number of events that the old file got since.
        self._astray = False
        self._events_astray = 0
        #: Errors to report once the lock is released, each with the number of events lost.
        self._notices: deque[tuple[Exception, int]] = deque()
        #: True while a write runs `reopen_if_needed`.
        self._attending = False
        super().__init__(filename, mode, encoding, delay, errors, **options)

    _hot_hooks: ClassVar[tuple[str, ...]] = (*FileSink._hot_hooks, "reopen_if_needed")

    # -- the shortcut

    def _line_writer(self) -> Callable[[Any, bytes], bool] | None:
        return WatchedFileSink._write_watched

    def _write_watched(self, data: bytes) -> bool:
        """Write *data*, a line, if nothing has happened to the file; return False if the pipeline has to write it."""
        recent = self._recent
        size = len(data)
        if monotonic() >= self._verify_at:
            return False
        status = _stat(self.base_filename)
        end = recent.end
        # Size, inode and device by index: names cost twice as much. The first event of a file (0) takes the pipeline.
        if not (status[6] == end and end and status[1] == self._inode and status[2] == self._device):
            return False
        written = _os_write(self._fd, data)
        if written != size:
            self._finish(data, written)
        # If a signal handler has logged in between, `end` is now below the file's size, and the next check resets it.
        # Not append(): an interrupt may come after a call.
        recent.items += (data,)
        recent.end = end + size
        recent.room -= size
        if recent.room < 0:
            recent.trim()
        return True

    def append_undisturbed(self, data: bytes) -> bool:
        """Append *data*, one event, and count it; do nothing and return False if anything is unusual.

        For adapters that render events themselves, and that can fall back to the pipeline.
        """
        if self._astray or self._may_block or self._buffer.limit or self._attending:
            return False
        try:
            append_line(self, data)
        except Exception:
            return False
        return True

    def _refresh(self) -> None:
        super()._refresh()
        if self._astray and not self._buffer.limit:
            self._append = None

    # -- the pipeline

    def deliver(self, event: Mapping[str, Any] | str | bytes) -> None:
        """Take one event, and raise if it cannot be put out; wrappers and routers call this.

        See `Sink.deliver`. With ``on_error="raise"`` it also raises errors about the file although the event is
        written.
        """
        try:
            super().deliver(event)
        except Exception:
            if self.on_error != "raise":
                self._tell_notice()
            raise
        if self._notices:
            self._tell_notice()

    def reopen_if_needed(self) -> None:
        """Open the path again if another file is there; repair a truncation.

        Each write calls it under the sink's lock; applications may call it too. Errors go to ``on_error``.
        """
        with self._lock:
            attending = self._attending
            self._look()
        if not attending:
            self._tell_notice()

    def _write_whole(self, data: bytes, ends: Sequence[int]) -> None:
        if not self._attending:
            self._attending = True
            try:
                self.reopen_if_needed()  # a subclass may have overridden it
            finally:
                self._attending = False
        recent = self._recent
        end = recent.end
        fresh = self._fd == NOT_OPEN
        super()._write_whole(data, ends)
        if self._astray:
            self._events_astray += len(ends)
        if fresh:
            # A byte order mark or a terminator may have been written first.
            with contextlib.suppress(OSError):
                end = max(UNKNOWN, os.fstat(self._fd).st_size - len(data))
                recent.restart(end)
        if end == UNKNOWN:
            recent.restart(UNKNOWN)
        else:
            recent.add(data, ends, end)

    # -- the path

    def _look(self) -> None:
        descriptor = self._fd if self._fd != NOT_OPEN else self._parked_fd
        if descriptor == NOT_OPEN:
            return  # the next write opens it
        status = self._status_of_path()
        if status is not None and self._is_ours(status):
            self._found_again()
            self._check_size(status)
            return
        try:
            old = os.fstat(descriptor)
        except OSError:
            return  # other code has closed it: the next write fails and opens the path
        self._check_size(old)
        if status is None and old.st_nlink and not self._astray:
            self._await_mover()
        again: list[bytes] = []
        if not old.st_nlink and self._events_astray:
            # The events written to the file after it was deleted, if they are still kept.
            again = [event for _, event in self._recent.events()][-self._events_astray :]
        try:
            self._exchange()
        except OSError as error:
            if not self._astray:
                self._astray = True
                self._refresh()
                self._notices.append((error, 0))
            return
        astray = self._events_astray
        self._found_again()
        if not old.st_nlink:
            self._write_again(again)
            if astray > len(again):
                self._lose(astray - len(again))

    def _status_of_path(self) -> os.stat_result | None:
        try:
            return _stat(self.base_filename)
        except OSError:
            return None

    def _is_ours(self, status: os.stat_result) -> bool:
        return status.st_ino == self._inode and status.st_dev == self._device

    def _found_again(self) -> None:
        self._events_astray = 0
        if self._astray:
            self._astray = False
            self._changed()

    def _await_mover(self) -> None:
        for _ in range(_MOVER_POLLS):
            time.sleep(_MOVER_SECONDS / _MOVER_POLLS)
            if self._status_of_path() is not None:
                return

    def _follow(self, file: OpenFile) -> None:
        """Do nothing: the next event checks the path itself."""

    def _install(self, descriptor: int, prefix: bytes) -> None:
        super()._install(descriptor, prefix)
        status = os.fstat(descriptor)
        self._device, self._inode = status.st_dev, status.st_ino
        self._since_ns = status.st_mtime_ns
        self._recent.restart(status.st_size)

    # -- events that a rotator missed

    def _check_size(self, status: os.stat_result) -> None:
        recent = self._recent
        end = recent.end
        descriptor = self._fd if self._fd != NOT_OPEN else self._parked_fd
        if status.st_size < end and descriptor != NOT_OPEN:
            # Repeat until no signal handler has written in between, so that size and `end` belong together.
            end = UNKNOWN
            while end != recent.end:
                end = recent.end
                status = os.fstat(descriptor)
        size = status.st_size
        if size == end:
            return
        if size < end and self._regular:
            self._mend(status)
        else:
            # Another process has written, or a write was interrupted: forget the earlier writes.
            self._recent.restart(size)

    def _mend(self, status: os.stat_result) -> None:
        """Write the events again that are in neither the truncated file nor the copy."""
        recent = self._recent
        size = status.st_size
        stands = self._stands(recent, size)
        for _ in range(_LOOKS_AT_CONTENT):
            if not stands and self._fd != NOT_OPEN:
                # It may have been truncated again while it was read.
                status = os.fstat(self._fd)
                size = status.st_size
                stands = self._stands(recent, size)
        truncated_at = recent.end - size
        copies: list[Copy] = []
        if stands:
            copies = find_copies(recent, size, status, self.base_filename, self._since_ns, self._known_copies)
        standing = [event for start, event in recent.events() if start >= truncated_at]
        again = self._missing(truncated_at, copies)
        if copies:
            # Not the time of the truncation or of a later write: the next copy may have been started before.
            self._since_ns = max(copy.status.st_mtime_ns for copy in copies)
        else:
            msg = (
                f"{self.base_filename!r} was truncated, and no copy of it was found that tells what was in it: "
                "events written between copy and truncation may be missing"
            )
            self._notices.append((SinkError(msg), 0))
            standing = []
        recent.restart(size - sum(map(len, standing)))
        for event in standing:
            recent.add(event, (), recent.end)
        recent.began_ns = status.st_mtime_ns
        self._write_again(again)

    def _missing(self, truncated_at: int, copies: list[Copy]) -> list[bytes]:
        """Return the events from before *truncated_at* that are in none of *copies*; an empty list without copies."""
        if not copies:
            return []
        self._known_copies = {identity(copy.status) for copy in copies}
        missing: list[bytes] = []
        for start, event in self._recent.events():
            end = start + len(event)
            if start < truncated_at and not any(copy.holds(start, end) for copy in copies):
                missing.append(event)
                for copy in copies:
                    if copy.plain and start < copy.end < end:
                        with contextlib.suppress(OSError):  # this process may not write to it
                            self._known_copies.add(identity(copy.drop_half_event(copy.end - start)))
        return missing

    def _stands(self, recent: RecentWrites, size: int) -> bool:
        """Return True if the file holds the last *size* bytes of *recent*, and nothing else."""
        if not size:
            return True
        written = recent.joined()
        if size > len(written):
            return False
        try:
            reader = os.open(self.base_filename, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                if not self._is_ours(os.fstat(reader)):
                    return False
                content = b""
                while len(content) < size and (part := os.read(reader, size - len(content))):
                    content += part
            finally:
                os.close(reader)
        except OSError:
            return False
        return content == written[len(written) - size :]

    def _write_again(self, events: list[bytes]) -> None:
        if not events:
            return
        data = b"".join(events)
        ends = list(accumulate(map(len, events)))
        recent = self._recent
        end = recent.end
        try:
            super()._write_whole(data, ends)
        except Exception as error:
            recent.restart(UNKNOWN)
            self._lose(len(events) - self._kept, error)
            self._kept = 0
        else:
            recent.add(data, ends, end)

    def _lose(self, events: int, error: Exception | None = None) -> None:
        """Count *events* as lost that had counted as delivered, and report them."""
        if error is None:
            error = SinkError(f"{self.base_filename!r} was deleted and could not be opened anew")
        # The caller of `emit_batch` counts the events of batches.
        counted = min(events, self._ledger.delivered)
        self._ledger.delivered -= counted
        self._count_dropped("error", counted)
        self._notices.append((error, events))

    def _flush(self) -> None:
        # Notice a truncation here: there may be no further event.
        descriptor = self._fd if self._fd != NOT_OPEN else self._parked_fd
        if descriptor != NOT_OPEN and not self._attending:
            self._attending = True
            try:
                if self._astray:
                    self._look()
                else:
                    with contextlib.suppress(OSError):
                        self._check_size(os.fstat(descriptor))
            finally:
                self._attending = False
        super()._flush()

    def _release(self) -> None:
        if self._events_astray:
            with contextlib.suppress(OSError):
                if not os.fstat(self._fd).st_nlink:
                    self._lose(self._events_astray)
        super()._release()

    def _tell_notice(self, *, raises: bool = True) -> None:
        super()._tell_notice(raises=raises)
        while self._notices:
            try:
                error, events = self._notices.popleft()
            except IndexError:
                return  # another thread reports it
            (self._fail if raises else self._fail_unraised)(error, None, events=events)

    def after_fork(self) -> None:
        """Reset the sink in a forked child, which keeps the open file and watches it from its present end."""
        self._recent.restart(UNKNOWN)
        self._notices.clear()
        self._attending = False
        self._found_again()
        super().after_fork()


WatchedFileSink._hot_class = WatchedFileSink
