"""Files that roll over: `BaseRotatingFileSink`, and by size `RotatingFileSink`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from dataclasses import dataclass
from os import SEEK_CUR as _SEEK_CUR
from os import lseek as _lseek
from os import stat as _stat
from os import write as _os_write
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from outfall.sinks import compression as compressing
from outfall.sinks import interprocess
from outfall.sinks.arguments import checked_seconds, checked_size
from outfall.sinks.compression import Compressor
from outfall.sinks.errors import SinkError
from outfall.sinks.failures import describe, report
from outfall.sinks.file import FileSink
from outfall.sinks.levels import NOTSET

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from outfall.sinks.base import OnError
    from outfall.sinks.batch import BatchResult, Encoded

#: After a failed rotation the next is tried after this many seconds, then twice as many, up to the second figure.
_BACKOFF_SECONDS = (1.0, 60.0)

#: How often what others may have rotated meanwhile is tried anew.
_OPEN_ATTEMPTS = 10

_NOT_OPEN = -1
# Not on Windows, where several processes are refused.
_pread: Any = getattr(os, "pread", None)


@dataclass(frozen=True, slots=True)
class RotatedFile:
    """A file that a sink has rotated away.

    Args:
        path: Where it is.
        ending: What compression added to its name, or nothing.
        age: What sorts its files, the newest first.
    """

    path: str
    ending: str
    age: tuple[float, int]


class BaseRotatingFileSink(FileSink):
    """What all rotating files have in common; for subclasses that decide when and how to roll over.

    A subclass implements `should_rollover` and `do_rollover`; to have retention and compression it also says which
    files are its own, by `names_of_rotated`.

    Args:
        filename: See `FileSink`.
        mode: See `FileSink`.
        encoding: See `FileSink`.
        delay: See `FileSink`.
        errors: See `FileSink`.
        namer: Makes the name of a rotated file from its default name; also an attribute, or a method of a subclass.
            Default None: the default name.
        rotator: Called with source and destination instead of the renaming; also an attribute, or a method of a
            subclass. It has to leave nothing, or an empty file, at the source. Default None.
        backup_count: How many rotated files to keep. Default 0: not limited by number.
        max_age: Delete rotated files whose last event is older, in seconds or as a timedelta. Default None.
        max_total_bytes: Delete the oldest rotated files while all together are larger. Default None.
        compression: ``"gzip"``, ``"zstd"`` (extra ``zstd``), or a callable ``(source, destination)`` with an attribute
            ``ending``; done by a background thread, no write waits for it. Default None.
        multiprocess: Any number of processes may write to the file and rotate it. Default False. Needs ``flock(2)`` on
            a local file system; refused on Windows.
        permissions: See `FileSink`.
        buffer_bytes: See `FileSink`.
        flush_interval: See `FileSink`.
        flush_level: See `FileSink`.
        terminator: See `FileSink`.
        renderer: See `ByteSink`.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Raises:
        ValueError: If a bound is negative or no number, *compression* is unknown, or *multiprocess* cannot be had.
        TypeError: If *namer* or *rotator* is not callable.
        MissingDependencyError: If zstd is asked for and zstandard is not installed.

    A rotation that fails, by a hook that raises or by the file system, costs no event: the event is written to the file
    as it is, ``on_error`` is told once, and the rotation is tried again after 1 s, then 2 s, up to a minute. Retention
    is applied after each rotation and at construction; only files whose name the sink would make itself, through
    `namer`, are ever deleted or compressed.

    Source: `logging.handlers.BaseRotatingHandler`.
    """

    #: Makes the name of a rotated file from its default name.
    namer: Callable[[str], str] | None = None
    #: Moves the file away, given source and destination.
    rotator: Callable[[str, str], object] | None = None
    #: The size in bytes at which the file rolls over, in subclasses that have one.
    max_bytes: int = 0

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        encoding: str | None = None,
        delay: bool = False,  # noqa: FBT001, FBT002 - the order of logging.handlers.BaseRotatingHandler
        errors: str | None = None,
        *,
        namer: Callable[[str], str] | None = None,
        rotator: Callable[[str, str], object] | None = None,
        backup_count: int = 0,
        max_age: float | dt.timedelta | None = None,
        max_total_bytes: int | None = None,
        compression: Literal["gzip", "zstd"] | Callable[[str, str], object] | None = None,
        multiprocess: bool = False,
        permissions: int | None = None,
        buffer_bytes: int = 0,
        flush_interval: float | dt.timedelta = 1.0,
        flush_level: str | float = "error",
        terminator: str = "\n",
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        for argument, hook in (("namer", namer), ("rotator", rotator)):
            if hook is not None and not callable(hook):
                msg = f"{argument}={hook!r} is not callable"
                raise TypeError(msg)
        # Only where given: a subclass may have made them methods.
        if namer is not None:
            self.namer = namer
        if rotator is not None:
            self.rotator = rotator
        self.backup_count: int = checked_size(backup_count, "backup_count", "files")
        self.max_age: float | None = None if max_age is None else checked_seconds(max_age, "max_age")
        self.max_total_bytes: int | None = (
            None if max_total_bytes is None else checked_size(max_total_bytes, "max_total_bytes")
        )
        if multiprocess and not interprocess.AVAILABLE:
            msg = f"multiprocess={multiprocess!r}: this platform has no flock()"
            raise ValueError(msg)
        self.multiprocess: bool = bool(multiprocess)
        self._compressor = None if compression is None else Compressor(compression, self, guarded=self.multiprocess)
        #: Under which endings a rotated file may stand, whatever compression was in force.
        self._endings = compressing.endings([self._compressor.ending] if self._compressor else [])
        #: Size of the current file in bytes; None if it has to be asked of the system.
        self._size: int | None = None
        #: Device and inode of the current file.
        self._identity: tuple[int, int] | None = None
        self._rotation_failure: Exception | None = None
        self._told_failure = ""
        self._told_others = False
        self._retry_at = 0.0
        self._backoff = _BACKOFF_SECONDS[0]
        #: Bytes of events that are counted in `_size` and not written yet.
        self._unwritten = 0
        #: While files are being moved: what hooks and signal handlers log then must not move them too.
        self._rolling = False
        path = os.path.abspath(os.fsdecode(filename))  # noqa: PTH100 - as FileSink does
        self._directory_lock = interprocess.DirectoryLock(os.path.dirname(path))  # noqa: PTH120
        # The compressor's own: no write waits while it waits for another process.
        self._compressor_lock = interprocess.DirectoryLock(os.path.dirname(path))  # noqa: PTH120
        self._shared = self.multiprocess and (self._counts_size or self._asks_for_room)
        super().__init__(
            filename,
            mode,
            encoding,
            delay,
            errors,
            permissions=permissions,
            buffer_bytes=buffer_bytes,
            flush_interval=flush_interval,
            flush_level=flush_level,
            terminator=terminator,
            renderer=renderer,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )
        self._tidy_up_at_start()

    # -- hooks

    def should_rollover(self, data: bytes) -> bool:  # noqa: ARG002 - for subclasses
        """Return True if the file has to roll over before *data*, one event, is written. Called under the lock."""
        msg = f"{type(self).__name__} has to implement should_rollover(data)"
        raise TypeError(msg)

    def do_rollover(self) -> None:
        """Roll over now: move the file away by `rotate`, and open a new one by `begin_new_file`."""
        msg = f"{type(self).__name__} has to implement do_rollover()"
        raise TypeError(msg)

    def rotation_filename(self, default_name: str) -> str:
        """Return the name for a rotated file: what `namer` makes of *default_name*, or that."""
        namer = self.namer
        return os.fsdecode(namer(default_name)) if callable(namer) else default_name

    def rotate(self, source: str, dest: str) -> None:
        """Move *source* away to *dest*, by `rotator` if there is one; a *source* that is not there is no error."""
        rotator = self.rotator
        if callable(rotator):
            rotator(source, dest)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.replace(source, dest)  # noqa: PTH105 - paths are text here

    def names_of_rotated(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:  # noqa: ARG002
        """Give the default names, with full path, that *file_name* could have been made of, each with its age.

        The age sorts: the newest file has the greatest. Called for every file in the directory; what does not become
        *file_name* again by `rotation_filename` is left alone.
        """
        return iter(())

    def sample_of_rotated(self) -> str:
        """Return the default name of some rotated file, which tells the directory they are in."""
        return f"{self.base_filename}.1"

    def get_files_to_delete(self) -> list[str]:
        """Return the paths of the rotated files that exceed `backup_count`, `max_age` or `max_total_bytes`."""
        now = time.time()
        doomed: list[str] = []
        total = 0
        ages: set[tuple[float, int]] = set()
        for file in self.rotated_files():
            state = _state_of(file.path)
            if state is None:
                continue
            total += state.st_size
            ages.add(file.age)
            if (
                (self.backup_count and len(ages) > self.backup_count)
                or (self.max_age is not None and state.st_mtime < now - self.max_age)
                or (self.max_total_bytes is not None and total > self.max_total_bytes)
            ):
                doomed.append(file.path)
        return doomed

    def rotated_files(self) -> list[RotatedFile]:
        """Return the rotated files there are, the newest first: those whose name round-trips through `namer`."""
        found: list[RotatedFile] = []
        try:
            entries = os.scandir(self._directory_of_rotated())
        except FileNotFoundError:
            return found
        with entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) or entry.path == self.base_filename:
                    continue
                file = self._as_rotated(entry.path)
                if file is not None:
                    found.append(file)
        return sorted(found, key=lambda file: file.age, reverse=True)

    def _directory_of_rotated(self) -> str:
        return os.path.dirname(os.path.abspath(self.rotation_filename(self.sample_of_rotated())))  # noqa: PTH100, PTH120

    def _as_rotated(self, path: str) -> RotatedFile | None:
        for ending in self._endings:
            if not path.endswith(ending):
                continue
            stem = path[: len(path) - len(ending)]
            for age, default_name in self.names_of_rotated(os.path.basename(stem)):  # noqa: PTH119
                if os.path.abspath(self.rotation_filename(default_name)) == stem:  # noqa: PTH100
                    return RotatedFile(path, ending, age)
        return None

    # -- writing

    def _write_whole(self, data: bytes, ends: Sequence[int]) -> None:
        """Write *data* as `FileSink` does, rolling over before each event that should not go to the file as it is."""
        kept = self._kept = 0
        begun = start = 0  # of what is not written yet, and of the event looked at
        group: list[int] = []
        try:
            self._catch_up()
            for end in ends:
                event = data[start:end]
                if self._must_roll(event):
                    if group:
                        super()._write_whole(data[begun:start], group)
                        kept += len(group)
                        begun, group = start, []
                        self._unwritten = 0
                    # Again, since a file that another process has begun may be full by now.
                    for _ in range(_OPEN_ATTEMPTS):
                        if not (self._roll() and self._must_roll(event)):
                            break
                if self._size is not None:
                    self._size += end - start
                group.append(end - begun)
                start = end
                self._unwritten = start - begun
            self._unwritten = 0
            super()._write_whole(data[begun:], group)
        except BaseException:
            self._kept += kept
            self._size = None
            self._unwritten = 0
            raise

    def _must_roll(self, event: bytes) -> bool:
        try:
            return self.should_rollover(event)
        except Exception as error:  # noqa: BLE001 - a hook may raise anything; the event is written all the same
            self._note(error)
            return False

    def _catch_up(self) -> None:
        """Have the file open; where several processes write, find out which is the current one and how large it is."""
        if self._fd == self._parked_fd:
            self._install(*self._open_file())
        if not self.multiprocess:
            return
        try:
            for _ in range(_OPEN_ATTEMPTS):
                state = _state_of(self.base_filename)
                if state is not None and (state.st_dev, state.st_ino) == self._identity:
                    break
                self._move_on()
            else:
                return
        except Exception as error:  # noqa: BLE001 - the file that is open takes the event as well
            self._size = None
            self._note(error)
            return
        if not self._prefix and self._regular and state.st_size != self._size and not self._ends_whole(state.st_size):
            prefix = self._missing_start(self._fd)
            if prefix:
                self._install(self._fd, prefix)
        self._size = state.st_size
        if self._prefix:
            self._write_start()

    def _ends_whole(self, size: int) -> bool:
        """Return True if the file, which has *size* bytes, is known to end with a whole line."""
        try:
            return os.pread(self._fd, 1, size - 1) == b"\n"
        except OSError:  # empty, or it may not be read
            return False

    def _missing_start(self, descriptor: int) -> bytes:
        end = self._terminator_bytes
        if not (self.multiprocess and end and os.fstat(descriptor).st_size):
            return super()._missing_start(descriptor)
        try:
            if interprocess.ends_with(descriptor, end):
                return b""
            interprocess.await_writer(descriptor)
            return b"" if interprocess.ends_with(descriptor, end) else end
        except OSError:  # it may not be read
            return super()._missing_start(descriptor)

    def _write_start(self) -> None:
        """Write what has to come before the next event, unless another process has done so."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._directory_lock)
            except Exception as error:  # noqa: BLE001 - the event is written all the same
                self._note(error)
            descriptor = self._parked_fd
            missing = self._missing_start(descriptor)
            if missing:
                os.write(descriptor, missing)
            self._install(descriptor, b"")

    def _append_shared(self, data: bytes) -> bool:
        # What is asked of the system before each event is whether others have moved the file away, and how large they
        # have made it; then whether one of them has died in the midst of its line.
        state = _stat(self.base_filename)  # noqa: PTH116
        if (state.st_dev, state.st_ino) != self._identity:
            return False
        size = state.st_size
        end = size + len(data)
        descriptor = self._fd
        if (end > self.max_bytes and self._is_bound_by_size()) or (
            size != self._size and _pread(descriptor, 1, size - 1) != b"\n"
        ):
            return False
        self._size = end
        written = _os_write(descriptor, data)
        if written != len(data):
            self._finish(data, written, (len(data),))
        # And afterwards whether one did between the look and the write. Not if a signal handler has logged meanwhile:
        # it has looked itself.
        elif _lseek(descriptor, 0, _SEEK_CUR) != end and self._size == end:
            self._size = None
            self._mend(data, len(data))
        return True

    def _mend(self, data: bytes, first: int) -> None:
        """Write the first event of *data*, *first* bytes, once more if it follows the half line of a dead writer."""
        end = self._terminator_bytes
        # The event ended the broken line; the new one may follow another.
        while end and not interprocess.stands_alone(self._fd, data, end, len(self._byte_order_mark)):
            data = data[:first]
            if _os_write(self._fd, data) != first:
                self._install(self._fd, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.base_filename)

    def _write_or_reopen(self, data: bytes, ends: Sequence[int]) -> None:
        super()._write_or_reopen(data, ends)
        if self.multiprocess and self._regular and ends and self._fd != _NOT_OPEN:
            self._size = None
            self._mend(data, ends[0])

    def _finish(self, data: bytes, written: int, ends: Sequence[int] = ()) -> None:
        if not (self.multiprocess and self._regular):
            super()._finish(data, written, ends)
            return
        if not written:
            written = _os_write(self._fd, data)
        if written == len(data):
            return
        # What others have written since would stand between the halves, and would be cut off with the first: so it
        # stays, as after a kill, and is ended.
        self._kept = sum(1 for end in ends if end <= written)
        if written != (ends[self._kept - 1] if self._kept else 0):
            self._install(self._fd, self._terminator_bytes or b"\n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.base_filename)

    def _take_back(self, part: bytes) -> None:
        if not self.multiprocess:
            super()._take_back(part)

    def _is_bound_by_size(self) -> bool:
        """Return True if `max_bytes` is in force."""
        return True

    def _create(self, flags: int) -> int:
        if self.multiprocess:
            state = _state_of(self.base_filename)
            if state is None or stat.S_ISREG(state.st_mode):
                # To be read as well: what others have left at its end.
                with contextlib.suppress(PermissionError):
                    return super()._create(flags & ~os.O_WRONLY | os.O_RDWR)
        return super()._create(flags)

    def _move_on(self) -> None:
        """Go on with the file that another process has begun."""
        self._exchange()
        if self._compressor is not None:
            # The last that lets go of a file finds it free to be compressed.
            self._compressor.start()

    def _current_size(self) -> int:
        """Return the size of the current file, with what the next write has to begin with."""
        if self._fd == self._parked_fd:
            self._install(*self._open_file())
        if self._size is None:
            descriptor = self._parked_fd if self._prefix else self._fd
            self._size = os.fstat(descriptor).st_size + len(self._prefix) + self._unwritten
        return self._size

    def _install(self, descriptor: int, prefix: bytes) -> None:
        super()._install(descriptor, prefix)
        self._size = None

    def _open_file(self) -> tuple[int, bytes]:
        for _ in range(_OPEN_ATTEMPTS):
            opened = self._open_current()
            if opened is not None:
                return opened
            time.sleep(0.001)
        with self._directory_lock:  # nobody can rotate it now
            opened = self._open_current()
        if opened is None:
            msg = f"{self.base_filename!r} was moved away again and again while it was being opened"
            raise SinkError(msg)
        return opened

    def _open_current(self) -> tuple[int, bytes] | None:
        """Open the path; return None if that file has been rotated away in between."""
        descriptor, prefix = super()._open_file()
        current = False
        try:
            state = os.fstat(descriptor)
            identity = (state.st_dev, state.st_ino)
            # Shared by all who write to it, for as long as they do: until the last has moved on, nobody compresses it.
            current = not (self.multiprocess and self._regular) or (
                interprocess.try_lock(descriptor, shared=True) and _identity_of(self.base_filename) == identity
            )
        finally:
            if not current:
                os.close(descriptor)
        if not current:
            return None
        self._identity = identity
        return descriptor, prefix

    def _put(self, event: dict[str, Any]) -> Exception | None:
        settled = super()._put(event)
        failure, self._rotation_failure = self._rotation_failure, None
        return failure or settled

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Write all items; see `FileSink`."""
        try:
            return super().emit_batch(batch)
        finally:
            failure, self._rotation_failure = self._rotation_failure, None
            if failure is not None:
                # What is raised from a batch would say that none of it was taken.
                self._fail_unraised(failure, None)

    def reopen(self) -> None:
        """Open the path anew; see `FileSink`."""
        super().reopen()
        self._tell_rotation_failure()

    def flush(self, timeout: float | None = None) -> bool:
        """Write what is buffered; see `Sink.flush`. Compression in the background is not waited for."""
        done = super().flush(timeout)
        self._tell_rotation_failure()
        return done

    def close(self, timeout: float | None = None) -> bool:
        """Flush, wait for compression within *timeout*, and close; see `Sink.close`.

        What is not compressed by then is compressed at the next start.
        """
        deadline = monotonic() + self._seconds(timeout)
        try:
            done = super().close(timeout)
            self._tell_rotation_failure()
        finally:
            if self._compressor is not None:
                self._compressor.wait(max(0.0, deadline - monotonic()))
        return done

    def drain(self, timeout: float) -> None:
        """Write what waits, at exit, and let compression finish within *timeout*."""
        deadline = monotonic() + timeout
        try:
            super().drain(timeout)
        finally:
            if self._compressor is not None:
                self._compressor.wait(max(0.0, deadline - monotonic()))

    def _tell_rotation_failure(self) -> None:
        failure, self._rotation_failure = self._rotation_failure, None
        if failure is not None:
            self._fail(failure, None, events=0)

    # -- rolling over

    def _roll(self) -> bool:
        """Roll over, unless that has failed a short while ago; return True if others have begun the file there is."""
        if self._rolling or monotonic() < self._retry_at:
            return False
        try:
            with self.exclusively():
                others = self._others_have_rotated()
                if not others:
                    self.do_rollover()
        except Exception as error:  # noqa: BLE001 - hooks may raise anything; the event is written all the same
            self._retry_at = monotonic() + self._backoff
            self._backoff = min(2 * self._backoff, _BACKOFF_SECONDS[1])
            self._note(error)
            return False
        self._retry_at = 0.0
        self._backoff = _BACKOFF_SECONDS[0]
        self._told_failure = ""
        return others

    def _note(self, error: Exception) -> None:
        """Have *error* told when the event is written, unless it was the last that was told."""
        # Once, and again if it fails in another way: a lasting fault is one report, not one for each event.
        if describe(error) != self._told_failure:
            self._told_failure = describe(error)
            self._rotation_failure = error

    @contextlib.contextmanager
    def exclusively(self) -> Generator[None]:
        """Hold the sink's lock, and where several processes write also the one between them; for `do_rollover`."""
        with self._lock:
            rolling = self._rolling
            self._rolling = True
            try:
                if self.multiprocess:
                    with self._directory_lock:
                        yield
                else:
                    yield
            finally:
                self._rolling = rolling

    @contextlib.contextmanager
    def _beside_writes(self) -> Generator[None]:
        """Keep rotation out, for the compressor's thread; where several processes write, without the sink's lock."""
        if self.multiprocess:
            with self._compressor_lock:
                yield
        else:
            with self.exclusively():
                yield

    @contextlib.contextmanager
    def _rollover(self) -> Generator[bool]:
        """Hold the locks for a rollover; give whether there is something to roll over: no empty or special file."""
        with self._lock:
            by_hand = not self._rolling
            if by_hand:
                if self._closed:
                    yield False
                    return
                self._flush()
            with self.exclusively():
                if by_hand:
                    self._others_have_rotated()
                state = _state_of(self.base_filename)
                yield state is not None and stat.S_ISREG(state.st_mode) and state.st_size > 0

    def _others_have_rotated(self) -> bool:
        """Go on with the file at the path if that is not ours any more; return True if so."""
        if self._fd == self._parked_fd:
            return False
        current = _identity_of(self.base_filename)
        if current == self._identity:
            return False
        self._move_on()
        if current is not None:
            self._notice_others("was replaced")
        return True

    def _notice_others(self, what: str) -> None:
        """Tell once that another process writes to or rotates the file, which needs multiprocess=True."""
        if not self.multiprocess and not self._told_others:
            self._told_others = True
            warning = RuntimeWarning(
                f"{self.base_filename!r} {what} by somebody else: several processes on one rotating file lose events "
                "and backups, unless each of them sets multiprocess=True"
            )
            if self.on_error == "raise":
                self._fail_unraised(warning, None)
            else:
                self._rotation_failure = warning

    def _move_away(self, dest: str) -> None:
        """Have `rotate` move the file to *dest*, where nothing is, and begin a new one; all of it, or nothing."""
        before = os.stat(self.base_filename)  # noqa: PTH116
        try:
            self.rotate(self.base_filename, dest)
            self.begin_new_file()
        except BaseException:
            # Where all is still in its place, a copy, whole or half, would be made again and again with each attempt,
            # and would push the older files out.
            after = _state_of(self.base_filename)
            if after is not None and os.path.samestat(before, after) and after.st_size >= before.st_size:
                with contextlib.suppress(OSError):
                    os.unlink(dest)  # noqa: PTH108
            raise

    def begin_new_file(self) -> None:
        """Open the path anew after the file was moved away, and apply retention; for `do_rollover`.

        Nothing is lost if that fails.

        Raises:
            SinkError: If the file is still there, and not empty: a rotator has left it.
        """
        state = _state_of(self.base_filename)
        if state is not None and (state.st_dev, state.st_ino) == self._identity:
            self._size = None
            if state.st_size:
                msg = f"the rotator left {self.base_filename!r} where it was"
                raise SinkError(msg)
        else:
            self._exchange()
        try:
            self._tidy_up()
        except Exception as error:  # noqa: BLE001 - it is told, and tried again after the next rotation
            self._rotation_failure = error

    def _tidy_up(self) -> None:
        """Delete what retention does not keep, and have the rest compressed."""
        for path in self.get_files_to_delete():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
        if self._compressor is not None:
            self._compressor.start()

    def _tidy_up_at_start(self) -> None:
        if self._compressor is None and not self.backup_count and self.max_age is None and self.max_total_bytes is None:
            return
        try:
            with contextlib.suppress(FileNotFoundError), self.exclusively():  # no directory, and so nothing in it
                if self._compressor is not None:
                    compressing.remove_unfinished(self._directory_of_rotated(), self.base_filename)
                self.files_to_compress(locked=True)  # finishes first what would count twice
                self._tidy_up()
        except Exception as error:  # noqa: BLE001 - hooks may raise anything; it is tried again after the next rotation
            self._fail(error, None, events=0)

    # -- what the compressor asks

    def files_to_compress(self, *, locked: bool = False) -> list[str]:
        """Return the paths of the rotated files that are not compressed yet, oldest first."""
        # The directory is read without the lock, so that no write waits; what has changed since is noticed later.
        by_age: dict[tuple[float, int], list[RotatedFile]] = {}
        for file in self.rotated_files():
            # Not one that was moved away without a new one to write to.
            if _identity_of(file.path) == self._identity:
                continue
            by_age.setdefault(file.age, []).append(file)
        paths: list[str] = []
        for _, same in sorted(by_age.items()):
            plain = [file.path for file in same if not file.ending]
            compressed = [file.path for file in same if file.ending]
            if compressed and plain:
                with contextlib.nullcontext() if locked else self._beside_writes():
                    _finish_placing(plain[0], compressed)
            else:
                paths += plain
        return paths

    def place_compressed(self, identity: tuple[int, int], compressed: str, ending: str) -> None:
        """Put *compressed* in the place of the rotated file that *identity* is, wherever it is now."""
        for _ in range(_OPEN_ATTEMPTS):  # since it may be shifted again between the look and the lock
            paths = [file.path for file in self.rotated_files() if _identity_of(file.path) == identity]
            if not paths:
                return  # deleted meanwhile
            with self._beside_writes():
                if _identity_of(paths[0]) == identity:
                    # In this order: a kill between the two leaves both, which the next start can tell.
                    os.replace(compressed, paths[0] + ending)  # noqa: PTH105
                    os.unlink(paths[0])  # noqa: PTH108
                    return

    def compression_failed(self, error: Exception) -> None:
        """Tell of a file that could not be compressed; it stays as it is."""
        self._fail_unraised(error, None)

    def after_fork(self) -> None:
        """Begin anew in a forked child, which shares the open file; see `FileSink`."""
        self._directory_lock.after_fork()
        self._compressor_lock.after_fork()
        if self.multiprocess and self._regular:
            # The child opens the path itself. The parent's open file, were it kept, would keep the lock on it too, and
            # its offset would not tell where the last write went.
            for descriptor in {self._fd, self._parked_fd} - {_NOT_OPEN}:
                os.close(descriptor)
            super()._install(_NOT_OPEN, b"")
        if self._compressor is not None:
            self._compressor.after_fork()
        self._size = None
        self._unwritten = 0
        self._rolling = False
        super().after_fork()


class RotatingFileSink(BaseRotatingFileSink):
    r"""Append each event to a file that rolls over before it grows beyond a size.

    ``app.log`` becomes ``app.log.1``, ``app.log.1`` becomes ``app.log.2`` and so on up to *backup_count*; the oldest is
    deleted.

    Args:
        filename: See `FileSink`.
        mode: See `FileSink`. With *max_bytes* ``"w"`` means ``"a"``, since a restart would lose what was not rotated.
        max_bytes: Size in encoded bytes, terminators included, that the file does not exceed, unless one event alone
            does. Default 0: it never rolls over.
        backup_count: How many rotated files to keep. Default 0: it never rolls over, as with
            `logging.handlers.RotatingFileHandler`, unless *max_age* or *max_total_bytes* says what to keep.
        encoding: See `FileSink`.
        delay: See `FileSink`.
        errors: See `FileSink`.
        namer: See `BaseRotatingFileSink`.
        rotator: See `BaseRotatingFileSink`.
        max_age: See `BaseRotatingFileSink`.
        max_total_bytes: See `BaseRotatingFileSink`.
        compression: See `BaseRotatingFileSink`.
        multiprocess: See `BaseRotatingFileSink`.
        permissions: See `FileSink`.
        buffer_bytes: See `FileSink`.
        flush_interval: See `FileSink`.
        flush_level: See `FileSink`.
        terminator: See `FileSink`.
        renderer: See `ByteSink`.
        level: See `Sink`.
        processors: See `Sink`.
        on_error: See `Sink`.
        name: See `Sink`.

    Raises:
        ValueError: As `BaseRotatingFileSink`.

    An empty file and one that is not a regular file never roll over. The size is counted, not asked for each event; a
    file truncated by somebody else is noticed when it seems full. With *multiprocess* each event costs one ``stat``,
    the file may exceed *max_bytes* by one event a process, and a rotated file that an idle process still has open is
    compressed when that process has moved on.

    Source: `logging.handlers.RotatingFileHandler`.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        max_bytes: int = 0,
        backup_count: int = 0,
        encoding: str | None = None,
        delay: bool = False,  # noqa: FBT001, FBT002 - the order of logging.handlers.RotatingFileHandler
        errors: str | None = None,
        *,
        namer: Callable[[str], str] | None = None,
        rotator: Callable[[str, str], object] | None = None,
        max_age: float | dt.timedelta | None = None,
        max_total_bytes: int | None = None,
        compression: Literal["gzip", "zstd"] | Callable[[str, str], object] | None = None,
        multiprocess: bool = False,
        permissions: int | None = None,
        buffer_bytes: int = 0,
        flush_interval: float | dt.timedelta = 1.0,
        flush_level: str | float = "error",
        terminator: str = "\n",
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        level: str | float = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self.max_bytes: int = checked_size(max_bytes, "max_bytes")
        super().__init__(
            filename,
            mode.replace("w", "a") if isinstance(mode, str) and max_bytes else mode,
            encoding,
            delay,
            errors,
            namer=namer,
            rotator=rotator,
            backup_count=backup_count,
            max_age=max_age,
            max_total_bytes=max_total_bytes,
            compression=compression,
            multiprocess=multiprocess,
            permissions=permissions,
            buffer_bytes=buffer_bytes,
            flush_interval=flush_interval,
            flush_level=flush_level,
            terminator=terminator,
            renderer=renderer,
            level=level,
            processors=processors,
            on_error=on_error,
            name=name,
        )

    _counts_size = True
    _hot_hooks = (*FileSink._hot_hooks, "should_rollover")  # noqa: SLF001 - its base class

    def _has_room(self, size: int) -> bool:
        # Attributes may be set at any time, so they are read at each event.
        counted = self._size
        if counted is not None:
            counted += size
            if counted <= self.max_bytes:
                self._size = counted
                return True
        if self._rolls():
            return False
        self._size = None  # not counted while nothing depends on it
        return True

    def _is_bound_by_size(self) -> bool:
        return self._rolls()

    def _rolls(self) -> bool:
        return (
            self.max_bytes > 0
            and self._regular
            and (self.backup_count > 0 or self.max_age is not None or self.max_total_bytes is not None)
        )

    def should_rollover(self, data: bytes) -> bool:
        """Return True if *data* would make the file larger than `max_bytes`."""
        if not self._rolls():
            return False
        size = self._current_size()
        if size + len(data) <= self.max_bytes:
            return False
        # So it seems; the system knows what others have done to the file.
        counted, self._size = size, None
        size = self._current_size()
        if size > counted:
            self._notice_others("was appended to")
        # A byte order mark that is yet to be written does not make an empty file one that has something in it.
        return size > len(self._prefix) and size + len(data) > self.max_bytes

    def do_rollover(self) -> None:
        """Roll over now: shift the numbered files, move the file to ``.1`` and open a new one.

        Raises:
            OSError: If the file system refuses; the file goes on as it is.
            Exception: Whatever `namer` and `rotator` raise.
        """
        with self._rollover() as due:
            if not due:
                return
            surplus = self._free_first_number()
            self._move_away(self.rotation_filename(f"{self.base_filename}.1"))
            for path in surplus:
                with contextlib.suppress(FileNotFoundError):  # what retention has deleted by now
                    os.unlink(path)  # noqa: PTH108

    def _free_first_number(self) -> list[str]:
        """Shift the numbered files up by one, as far as the first number that is free; return what is one too many.

        Raises:
            SinkError: If all numbers get the same name, and not just one file is to be kept.
        """
        # Only so far: after a shift that failed or was killed halfway, those above the gap have moved already.
        names = [self.rotation_filename(f"{self.base_filename}.1")]
        endings: list[list[str]] = []
        while endings_there := self._endings_of(names[-1]):
            endings.append(endings_there)
            if 0 < self.backup_count < len(names):
                break
            name = self.rotation_filename(f"{self.base_filename}.{len(names) + 1}")
            if name == names[-1]:
                if not self.backup_count:
                    msg = f"namer gives all rotated files the name {name!r}"
                    raise SinkError(msg)
                break
            names.append(name)
        if len(endings) == len(names):  # one too many, left by a rotation that was cut short
            for ending in endings.pop():
                os.unlink(names[-1] + ending)  # noqa: PTH108
        for number in range(len(endings), 0, -1):
            for ending in endings[number - 1]:
                os.replace(names[number - 1] + ending, names[number] + ending)  # noqa: PTH105
        # Not deleted before the rotation has succeeded: one that fails costs nothing.
        if 0 < self.backup_count == len(endings):
            return [names[-1] + ending for ending in endings[-1]]
        return []

    def _endings_of(self, stem: str) -> list[str]:
        """Return the endings under which there is a file that is called *stem*, plain or compressed.

        Raises:
            OSError: If a directory has its name.
        """
        found: list[str] = []
        for ending in self._endings:
            try:
                mode = os.lstat(stem + ending).st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), stem + ending)
            found.append(ending)
        if len(found) > 1 and not found[0]:
            # Now, since a kill in the midst of shifting the two would leave them under two numbers.
            _finish_placing(stem, [stem + ending for ending in found[1:]])
            if not os.path.lexists(stem):
                found.pop(0)
        return found

    def names_of_rotated(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:
        """Give the default name for each number in *file_name*; the lowest number is the newest file."""
        for match in re.finditer(r"[1-9][0-9]*", file_name):
            number = match.group()
            yield (-float(number), 0), f"{self.base_filename}.{number}"


def _finish_placing(plain: str, compressed: list[str]) -> None:
    """Unlink *plain* if one of *compressed* is made of it: somebody was killed between the steps of placing it."""
    with contextlib.suppress(FileNotFoundError):
        made = os.stat(plain).st_mtime_ns  # noqa: PTH116
        if any(os.stat(path).st_mtime_ns == made for path in compressed):  # noqa: PTH116
            os.unlink(plain)  # noqa: PTH108


def _state_of(path: str) -> os.stat_result | None:
    """Return what the system says of the file at *path*, or None if there is none."""
    try:
        return os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None


def _identity_of(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at *path*, or None if there is none."""
    state = _state_of(path)
    return None if state is None else (state.st_dev, state.st_ino)


RotatingFileSink._hot_class = RotatingFileSink  # noqa: SLF001 - its own class
