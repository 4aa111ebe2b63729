"""Files that roll over: `BaseRotatingFileSink`."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from _thread import get_ident
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from outfall.sinks.core import flock
from outfall.sinks.core.arguments import checked_seconds, checked_size
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import SinkError
from outfall.sinks.files import compression as compressing
from outfall.sinks.files.compression import Compressor
from outfall.sinks.files.current import SharedFileSink, state_of
from outfall.sinks.files.file import FileOptions
from outfall.sinks.files.listing import names_in
from outfall.sinks.files.opening import OPEN_ATTEMPTS, Mode, checked_path

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from typing_extensions import Unpack

    from outfall.sinks.event.units import Size, Span

#: Seconds from a failed rotation to the next attempt: the first wait, which is doubled each time, and the longest.
_BACKOFF_SECONDS = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class RotatedFile:
    """A file that a sink has rotated.

    Args:
        path: Its path.
        ending: The ending that compression has added to its name, or "".
        age: The sort key; the newest file has the greatest.
    """

    path: str
    ending: str
    age: tuple[float, int]


class RotationOptions(FileOptions, total=False):
    """Arguments that subclasses of `BaseRotatingFileSink` pass on to it; its docstring describes them."""

    namer: Callable[[str], str] | None
    rotator: Callable[[str, str], object] | None
    max_age: Span | None
    max_total_bytes: Size | None
    compression: Literal["gzip", "zstd"] | Callable[[str, str], object] | None
    multiprocess: bool


class BaseRotatingFileSink(SharedFileSink):
    r"""Append each event to a file that rolls over: the base class of sinks that decide when and how.

    A subclass implements `should_rollover` and `do_rollover`. For retention and compression it also implements
    `names_of_rotated`, which determines the files that belong to it.

    Args:
        filename: Path of the file; a relative one is resolved now.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file is there.
        encoding: The encoding of text. Default UTF-8.
        delay: Open the file at the first event instead of now. Default False.
        errors: How to treat characters that *encoding* does not have. Default ``"backslashreplace"``.
        namer: Called with the default path of a rotated file; returns the path to use. Also an attribute, or a method
            of a subclass. Default None: the default path.
        rotator: Called with source and destination to move the file; also an attribute, or a method of a subclass. It
            has to leave nothing, or an empty file, at the source. Default None: the file is renamed.
        backup_count: How many rotated files to keep. Default 0: no limit.
        max_age: The largest age of rotated files, in seconds, as a timedelta, or as text such as ``"30 days"``. It
            counts from the last event. Default None: no limit.
        max_total_bytes: The largest size of all rotated files together, in bytes or as text such as ``"2 GB"``; the
            oldest are deleted first. Default None: no limit.
        compression: ``"gzip"``, ``"zstd"`` (extra ``zstd``), or a callable ``(source, destination)`` with an attribute
            ``ending``. A background thread compresses, and no write waits for it. Default None.
        multiprocess: True if any number of processes write to the file and rotate it. Default False. Needs ``flock(2)``
            on a local file system; not supported on Windows.
        permissions: Permission bits of a file that is made, such as ``0o640``. Default None: those of the process's
            umask.
        buffer_bytes: Size of the buffer in memory, in bytes or as text such as ``"64 KiB"``. Default 0: each event is
            written at once.
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
        ValueError: If a limit is negative or no number, *compression* is unknown, or the platform does not support
            *multiprocess*.
        TypeError: If *namer* or *rotator* is not callable.
        MissingDependencyError: If *compression* is ``"zstd"`` and zstandard is not installed.

    If a rotation fails, since a hook raises or the file system refuses, no event is lost: the event is written to the
    current file, ``on_error`` is called once, and the rotation is tried again after 1 s, then 2 s, up to a minute.
    Retention is applied at construction and after each rotation. The sink deletes and compresses only files whose names
    it would give itself, through `namer`.

    Source: `logging.handlers.BaseRotatingHandler`.
    """

    _inside = frozenset(
        {"begin_new_file", "compression_failed", "exclusively", "files_to_compress", "get_files_to_delete", "rotate"}
        | {"names_of_rotated", "place_compressed", "rotated_files", "rotation_filename", "sample_of_rotated"}
        | {"should_rollover"}
    )

    #: Returns the path for a rotated file, given its default path.
    namer: Callable[[str], str] | None = None
    #: Moves the file, given source and destination.
    rotator: Callable[[str, str], object] | None = None

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: Mode = "a",
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
        *,
        namer: Callable[[str], str] | None = None,
        rotator: Callable[[str, str], object] | None = None,
        backup_count: int = 0,
        max_age: Span | None = None,
        max_total_bytes: Size | None = None,
        compression: Literal["gzip", "zstd"] | Callable[[str, str], object] | None = None,
        multiprocess: bool = False,
        **options: Unpack[FileOptions],
    ) -> None:
        for argument, hook in (("namer", namer), ("rotator", rotator)):
            if hook is not None and not callable(hook):
                msg = f"{argument}={hook!r} is not callable"
                raise TypeError(msg)
        # Set only if given: a subclass may define them as methods.
        if namer is not None:
            self.namer = namer
        if rotator is not None:
            self.rotator = rotator
        self.backup_count: int = checked_size(backup_count, "backup_count", "files")
        self.max_age: float | None = None if max_age is None else checked_seconds(max_age, "max_age")
        self.max_total_bytes: int | None = (
            None if max_total_bytes is None else checked_size(max_total_bytes, "max_total_bytes")
        )
        self._compressor = None if compression is None else Compressor(compression, self, guarded=bool(multiprocess))
        #: The possible endings of rotated files, of this and of earlier settings.
        own = [self._compressor.ending] if self._compressor else []
        self._endings = ("", *dict.fromkeys((*own, *compressing.ENDINGS)))
        self._told_failure = ""
        self._told_others = False
        self._retry_at = 0.0
        self._backoff = _BACKOFF_SECONDS[0]
        path = checked_path(filename)
        # The compressor has its own lock, so that no write waits while it waits for another process.
        self._compressor_lock = flock.DirectoryLock(os.path.dirname(path))
        super().__init__(filename, mode, encoding, delay, errors, multiprocess=multiprocess, **options)
        self._tidy_up_at_start()

    # -- hooks

    def should_rollover(self, data: bytes) -> bool:
        """Return True if the file has to roll over before *data*, one event, is written. Called under the lock."""
        msg = f"{type(self).__name__} has to implement should_rollover(data)"
        raise TypeError(msg)

    def do_rollover(self) -> None:
        """Roll over now: move the file by `rotate`, and open a new one by `begin_new_file`."""
        msg = f"{type(self).__name__} has to implement do_rollover()"
        raise TypeError(msg)

    def rotation_filename(self, default_name: str) -> str:
        """Return the name for a rotated file: the result of `namer` for *default_name*, or *default_name* itself."""
        namer = self.namer
        return os.fsdecode(namer(default_name)) if callable(namer) else default_name

    def rotate(self, source: str, dest: str) -> None:
        """Move *source* to *dest*, by `rotator` if there is one; a missing *source* is no error."""
        rotator = self.rotator
        if callable(rotator):
            rotator(source, dest)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.replace(source, dest)

    def names_of_rotated(self, file_name: str) -> Iterator[tuple[tuple[float, int], str]]:
        """Yield the default names, with full path, from which *file_name* could be made, each with its age.

        The age is a sort key; the newest file has the greatest. Called for every file in the directory. A file is left
        alone unless `rotation_filename` returns its name for one of the default names.
        """
        return iter(())

    def sample_of_rotated(self) -> str:
        """Return the default name of a rotated file; rotated files are searched for in its directory."""
        return f"{self.base_filename}.1"

    def get_files_to_delete(self) -> list[str]:
        """Return the paths of the rotated files that exceed `backup_count`, `max_age` or `max_total_bytes`."""
        now = time.time()
        doomed: list[str] = []
        total = 0
        # An empty file, of a day without events, does not count.
        ages: set[tuple[float, int]] = set()
        ages_with_events: set[tuple[float, int]] = set()
        for file in self.rotated_files():
            state = state_of(file.path)
            if state is None:
                continue
            total += state.st_size
            ages.add(file.age)
            if state.st_size:
                ages_with_events.add(file.age)
            counted = ages_with_events if state.st_size else ages
            if (
                (self.backup_count and len(counted) > self.backup_count)
                or (self.max_age is not None and state.st_mtime < now - self.max_age)
                or (self.max_total_bytes is not None and total > self.max_total_bytes)
            ):
                doomed.append(file.path)
        return doomed

    def rotated_files(self) -> list[RotatedFile]:
        """Return the rotated files, newest first: those whose name `namer` returns for one of their default names."""
        directory = self._directory_of_rotated()
        found: list[RotatedFile] = []
        with contextlib.suppress(FileNotFoundError):
            for name in names_in(directory, self._start_of_rotated()):
                path = os.path.join(directory, name)
                file = None if path == self.base_filename else self._as_rotated(path)
                if file is not None:
                    found.append(file)
        return sorted(found, key=lambda file: file.age, reverse=True)

    def _names_of_earlier(self) -> list[str]:
        return [file.path for file in self.rotated_files()[:2]]

    def _directory_of_rotated(self) -> str:
        return os.path.dirname(os.path.abspath(self.rotation_filename(self.sample_of_rotated())))

    def _start_of_rotated(self) -> str:
        """Return the beginning of the names of all rotated files, "" if unknown; other files are not examined."""
        own: Any = type(self)
        renamed = callable(self.namer) or own.rotation_filename is not BaseRotatingFileSink.rotation_filename
        if renamed or own.names_of_rotated is not getattr(self._hot_class, "names_of_rotated", None):
            return ""  # not known
        return self._start_of_defaults()

    def _start_of_defaults(self) -> str:
        """Return the beginning of the default names of rotated files."""
        return f"{os.path.basename(self.base_filename)}."

    def _as_rotated(self, path: str) -> RotatedFile | None:
        for ending in self._endings:
            if not path.endswith(ending):
                continue
            stem = path[: len(path) - len(ending)]
            for age, default_name in self.names_of_rotated(os.path.basename(stem)):
                if os.path.abspath(self.rotation_filename(default_name)) == stem:
                    return RotatedFile(path, ending, age)
        return None

    # -- writing

    def _write_whole(self, data: bytes, ends: Sequence[int]) -> None:
        """Write *data* as `FileSink` does; roll over before each event that must not go to the current file."""
        kept = self._kept = 0
        begun = start = 0  # offsets: of the first unwritten byte, and of the current event
        group: list[int] = []
        try:
            if self._fd == self._parked_fd:
                self._install(*self._open_file())
            if self.multiprocess:
                self._catch_up()
                self._write_regained()
            for end in ends:
                event = data[start:end]
                for _ in range(OPEN_ATTEMPTS):  # a file that another process has started may be full already
                    try:
                        due = self.should_rollover(event)
                    except Exception as error:
                        self._note(error)
                        break
                    if due and group:
                        super()._write_whole(data[begun:start], group)
                        if self.multiprocess:
                            self._mend(data[begun:start], group[0])
                        kept += len(group)
                        begun, group = start, []
                        self._unwritten = 0
                    if not (due and self._roll()):
                        break
                group.append(end - begun)
                start = end
                self._unwritten = start - begun
            self._unwritten = 0
            super()._write_whole(data[begun:], group)
            if self.multiprocess and group:
                self._mend(data[begun:], group[0])
        except BaseException:
            self._kept += kept
            self._shared_file.size = None
            self._unwritten = 0
            raise

    def _current_size(self, limit: float = inf) -> int:
        """Return the size of the file with what the next write begins with; asked of the system if above *limit*."""
        if self._fd == self._parked_fd:
            self._install(*self._open_file())
        file = self._shared_file
        counted = file.size
        if counted is not None and counted + len(self._prefix) + self._unwritten > limit:
            # In a signal handler, the interrupted code may have counted bytes that it has not written yet.
            interrupts, self._interrupts = self._interrupts, self._lock.depth > 1
            asked = counted if self._interrupts else os.fstat(max(self._fd, self._parked_fd)).st_size
            # If a signal handler has logged meanwhile, it has counted its bytes, or switched to another file.
            if self._shared_file is file and file.size == counted:
                file.size = asked
                if asked > counted and not interrupts:
                    self._notice_others("was appended to")
        while (size := self._shared_file.size) is None:
            file = self._shared_file
            file.size = os.fstat(max(self._fd, self._parked_fd)).st_size
            found, size = os.fstat(max(self._fd, self._parked_fd)).st_size, file.size
            if size is not None and found > size:
                file.size = None  # a signal handler has written in between
        return size + len(self._prefix) + self._unwritten

    #: True if a signal handler has found the file full, or rolled over, since the last check outside of one.
    _interrupts = False

    def _move_on(self) -> None:
        super()._move_on()
        if self._compressor is not None:
            # The last process that closes a file compresses it.
            self._compressor.start()

    def close(self, timeout: float | None = None) -> bool:
        """Flush, wait for compression within *timeout*, and close; see `Sink.close`.

        The next start compresses the remaining files.
        """
        deadline = monotonic() + self._seconds(timeout)
        try:
            return super().close(timeout)
        finally:
            self._wait_for_compressor(deadline)

    def drain(self, timeout: float) -> None:
        """Write the buffer at exit, and wait for compression within *timeout*."""
        deadline = monotonic() + timeout
        try:
            super().drain(timeout)
        finally:
            self._wait_for_compressor(deadline)

    def _wait_for_compressor(self, deadline: float) -> None:
        if self._compressor is not None:
            self._compressor.wait(max(0.0, deadline - monotonic()))

    # -- rolling over

    def _roll(self) -> bool:
        """Roll over, unless that has failed a short time ago; return True if another process has rolled over."""
        place = self._place
        if place.rolling or monotonic() < self._retry_at:
            return False
        self._interrupts = self._interrupts or self._lock.depth > 1
        place.rolling = get_ident()
        try:
            with self._directory_lock:
                others = self._others_have_rotated()
                if not others:
                    self.do_rollover()
        except Exception as error:
            self._retry_at = monotonic() + self._backoff
            self._backoff = min(2 * self._backoff, _BACKOFF_SECONDS[1])
            self._note(error)
            return False
        finally:
            place.rolling = 0
        self._retry_at = 0.0
        self._backoff = _BACKOFF_SECONDS[0]
        self._told_failure = ""
        return others

    def _note(self, error: Exception) -> None:
        """Report *error* once the event is written, unless it is the same as the last one."""
        # A lasting fault is reported once, not at each event.
        if describe(error) != self._told_failure:
            self._told_failure = describe(error)
            self._notice = error

    @contextlib.contextmanager
    def exclusively(self) -> Generator[None]:
        """Hold the sink's lock, and with *multiprocess* also the lock between processes; for `do_rollover`."""
        with self._lock:
            place = self._place
            rolling, place.rolling = place.rolling, get_ident()
            try:
                with self._directory_lock:
                    yield
            finally:
                place.rolling = rolling

    @contextlib.contextmanager
    def _beside_writes(self) -> Generator[None]:
        """Prevent rotation, for the compressor's thread; with *multiprocess* this does not take the sink's lock."""
        if self.multiprocess:
            with self._compressor_lock:
                yield
        else:
            with self.exclusively():
                yield

    def _others_have_rotated(self) -> bool:
        """Open the path again if another file is there; return True if so."""
        if self._fd == self._parked_fd:
            return False
        current = identity_of(self.base_filename)
        if current == self._shared_file.identity:
            return False
        known = any(other._shared_file.identity == current for other in self._place.others(self))
        self._move_on()
        if current is not None and not known:
            self._notice_others("was replaced")
        return True

    def _notice_others(self, what: str) -> None:
        """Warn once that another process writes to or rotates the file, which needs multiprocess=True."""
        members = (self, *self._place.others(self))
        aware = any(isinstance(sink, SharedFileSink) and sink.multiprocess for sink in members)
        if not aware and not self._told_others:
            self._told_others = True
            warning = RuntimeWarning(
                f"{self.base_filename!r} {what} by somebody else: several processes on one rotating file lose events "
                "and backups, unless each of them sets multiprocess=True"
            )
            if self.on_error == "raise":
                self._fail_unraised(warning, None)
            else:
                self._notice = warning

    def _roll_over(self) -> None:
        """Call `_move_file` under both locks."""
        if self._place.rolling == get_ident():
            self._move_file()
            return
        with self.exclusively():
            if not self._closed:
                self._flush()
                self._others_have_rotated()
                self._move_file()

    def _make_way(self) -> tuple[str, Sequence[str]]:
        """Return a free path to move the file to, and the paths of files to delete after the move."""
        raise NotImplementedError

    def _move_file(self) -> bool:
        """Move the file away and start a new one; return False if the file is empty or not a regular file."""
        try:
            before = os.stat(self.base_filename)
        except FileNotFoundError:
            return False
        if not (stat.S_ISREG(before.st_mode) and before.st_size):
            return False
        dest, surplus = self._make_way()
        try:
            self.rotate(self.base_filename, dest)
            self._moved = before.st_dev, before.st_ino
            self.begin_new_file()
        except BaseException:
            # If the file is still in its place, *dest* is a complete or partial copy. Each attempt would leave another
            # copy, and the copies would displace older files.
            with contextlib.suppress(OSError):
                after = os.stat(self.base_filename)
                if os.path.samestat(before, after) and after.st_size >= before.st_size:
                    os.unlink(dest)
            raise
        finally:
            self._moved = None
        for path in surplus:
            with contextlib.suppress(FileNotFoundError):  # retention has deleted it
                os.unlink(path)
        return True

    #: Device and inode of the last moved file, until the new one is started.
    _moved: tuple[int, int] | None = None

    def begin_new_file(self) -> None:
        """Open the path again after the file was moved away, and apply retention; for `do_rollover`.

        If that fails, no event is lost.

        Raises:
            SinkError: If the rotator has left the file in its place, and it is not empty.
        """
        left = self._moved or self._shared_file.identity
        self._exchange()
        if self._shared_file.identity == left and os.stat(self.base_filename).st_size:
            msg = f"the rotator left {self.base_filename!r} where it was"
            raise SinkError(msg)
        try:
            self._tidy_up()
        except Exception as error:
            self._notice = error

    def _tidy_up(self) -> None:
        """Delete the files that retention does not keep, and start to compress the others."""
        for path in self.get_files_to_delete():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if self._compressor is not None:
            self._compressor.start()

    def _tidy_up_at_start(self) -> None:
        if self._compressor is None and not self.backup_count and self.max_age is None and self.max_total_bytes is None:
            return
        try:
            with contextlib.suppress(FileNotFoundError), self.exclusively():  # without the directory there are no files
                if self._compressor is not None:
                    compressing.remove_unfinished(self._directory_of_rotated(), self.base_filename)
                self.files_to_compress(locked=True)  # first deletes plain files that were compressed already
                self._tidy_up()
        except Exception as error:
            self._fail(error, None, events=0)

    # -- called by the compressor

    def files_to_compress(self, *, locked: bool = False) -> list[str]:
        """Return the paths of the rotated files that are not compressed yet, oldest first."""
        # The directory is listed without the lock, so that no write waits. Later steps notice changes.
        by_age: dict[tuple[float, int], list[RotatedFile]] = {}
        for file in self.rotated_files():
            # Skip the open file: it was moved away, and there is no new one yet.
            if identity_of(file.path) == self._shared_file.identity:
                continue
            by_age.setdefault(file.age, []).append(file)
        paths: list[str] = []
        for _, same in sorted(by_age.items()):
            plain = [file.path for file in same if not file.ending]
            compressed = [file.path for file in same if file.ending]
            if compressed and plain:
                with contextlib.nullcontext() if locked else self._beside_writes():
                    compressing.finish_placing(plain[0], compressed)
            else:
                paths += plain
        return paths

    def place_compressed(self, identity: tuple[int, int], compressed: str, ending: str) -> None:
        """Replace the rotated file with *identity*, whatever its path is now, by *compressed*."""
        for _ in range(OPEN_ATTEMPTS):  # the file may be shifted before the lock is acquired
            paths = [file.path for file in self.rotated_files() if identity_of(file.path) == identity]
            if not paths:
                return  # deleted meanwhile
            with self._beside_writes():
                if identity_of(paths[0]) == identity:
                    # In this order: a kill between the two steps leaves both files, and the next start deletes one.
                    os.replace(compressed, paths[0] + ending)
                    os.unlink(paths[0])
                    return

    def compression_failed(self, error: Exception) -> None:
        """Report *error*: a file could not be compressed, and was left as it is."""
        self._fail_unraised(error, None)

    def after_fork(self) -> None:
        """Reset the sink in a forked child, which shares the open file; see `FileSink`."""
        self._compressor_lock.after_fork()
        if self._compressor is not None:
            self._compressor.after_fork()
        super().after_fork()


def identity_of(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at *path*, or None if there is none."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    return state.st_dev, state.st_ino
