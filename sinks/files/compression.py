"""Compression of rotated files in the background: `Compressor`."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import stat
import threading
import time
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from outfall.sinks.core import flock, threads
from outfall.sinks.errors import extra_module
from outfall.sinks.files.listing import names_in

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK_BYTES = 1024 * 1024

#: The ending of temporary files during compression.
UNFINISHED = ".outfall-tmp"

_ATTEMPTS = 10

#: The endings of compressed files, whichever method is set now.
ENDINGS = (".gz", ".zst")


class Owner(Protocol):
    """The methods that a `Compressor` calls on the sink whose files it compresses."""

    #: Path of the file that is rotated.
    base_filename: str

    def files_to_compress(self) -> list[str]:
        """Return the paths of the rotated files that are not compressed yet, oldest first."""
        ...

    def place_compressed(self, identity: tuple[int, int], compressed: str, ending: str) -> None:
        """Replace the rotated file with *identity* (device, inode), whatever its path is now, by *compressed*."""

    def compression_failed(self, error: Exception) -> None:
        """Report *error*: a file could not be compressed, and was left as it is."""


# The built-in methods read from the descriptor, which stays valid when the file is renamed. They do not close it:
# closing it would not release the lock if a child, forked meanwhile, has a copy of the descriptor.


def _gzip(source: int, destination: str) -> None:
    import gzip
    import shutil

    # No name and time in the header: equal events give equal files.
    with (
        open(source, "rb", closefd=False) as plain,
        open(destination, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as compressed,
    ):
        shutil.copyfileobj(plain, compressed, _CHUNK_BYTES)


def _zstd(source: int, destination: str) -> None:
    import zstandard

    with open(source, "rb", closefd=False) as plain, open(destination, "wb") as compressed:
        zstandard.ZstdCompressor().copy_stream(plain, compressed)


#: The first bytes of compressed files.
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def open_lines(path: str) -> IO[bytes]:
    """Open the file at *path* for reading; decompress it if it begins like a file of gzip or zstd.

    Raises:
        OSError: If it cannot be read.
        MissingDependencyError: If it is compressed by zstd, and zstandard is not installed.
    """
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    try:
        begun = file.peek(4)[:4] if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
        if begun.startswith(_GZIP_MAGIC):
            import gzip

            file.close()
            return cast("IO[bytes]", gzip.open(path))
        if begun == _ZSTD_MAGIC:
            decompressor = extra_module("zstandard", "zstd").ZstdDecompressor()
            return io.BufferedReader(decompressor.stream_reader(file, read_across_frames=True, closefd=True))
    except BaseException:
        file.close()
        raise
    return file


class Compressor:
    """Compress rotated files in a thread, which ends when no file is left.

    A file is compressed under a temporary name. That file is renamed, and then the plain one is deleted. A kill leaves
    the plain file, or both; the owner finishes the work at the next start.

    Args:
        method: ``"gzip"``, ``"zstd"`` or a callable ``(source, destination)`` that writes *destination*. The callable's
            attribute ``ending``, such as ``".xz"``, is added to the file's name; without it, ``".compressed"``. Its
            *source* is a second name of the file, which stays valid while rotation renames the first.
        owner: The sink whose files it compresses.
        guarded: True to skip a file while another process has it open for writing; see
            `outfall.sinks.files.rotating`.

    Raises:
        ValueError: If *method* is none of these, or its ``ending`` is not usable as one.
        MissingDependencyError: If it is ``"zstd"`` and zstandard is not installed.
    """

    def __init__(self, method: Any, owner: Owner, *, guarded: bool) -> None:
        if method == "gzip":
            # Now: a process may change its root or its user before the first rollover, and could not import any more.
            for name in ("gzip", "shutil"):
                importlib.import_module(name)
            self._method: Callable[[Any, str], object] = _gzip
            self.ending: str = ".gz"
        elif method == "zstd":
            extra_module("zstandard", "zstd")
            self._method = _zstd
            self.ending = ".zst"
        elif callable(method):
            self._method = method
            self.ending = _checked_ending(method)
        else:
            msg = f"compression={method!r} is not 'gzip', 'zstd' or a callable"
            raise ValueError(msg)
        self._owner = owner
        self._guarded = guarded
        #: The descriptors that the thread has open. A forked child closes them, since they carry locks.
        self._held: list[int] = []
        self.after_fork()

    def after_fork(self) -> None:
        """Reset the compressor in a forked child, without a thread."""
        for descriptor in self._held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._held = []
        # Re-entrant, for signal handlers that log.
        self._state = threading.Condition(threading.RLock())
        self._wanted = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Compress the files that are due, in the background."""
        with self._state:
            self._wanted = True
            if self._thread is not None:
                return
            # Set first: a rollover in a signal handler must not start a second thread.
            self._thread = threading.Thread(target=self._run, name="outfall-compressor", daemon=True)
            try:
                threads.start(self._thread)
            except RuntimeError:
                self._thread = None  # the interpreter is shutting down; the next start finishes the work

    def wait(self, timeout: float) -> bool:
        """Wait until all files are compressed, at most *timeout* seconds; return False on a timeout."""
        with self._state:
            return self._state.wait_for(lambda: self._thread is None, timeout)

    def _run(self) -> None:
        ended = False
        try:
            while not ended:
                with self._state:
                    self._wanted, wanted = False, self._wanted
                    if not wanted:
                        ended = True
                        self._thread = None
                        self._state.notify_all()
                if wanted:
                    self._look()
        finally:
            if not ended:  # on_error has raised
                with self._state:
                    self._thread = None
                    self._state.notify_all()

    def _look(self) -> None:
        try:
            paths = self._owner.files_to_compress()
        except Exception as error:
            self._owner.compression_failed(error)
        else:
            for path in paths:
                self._compress(path)

    def _compress(self, path: str) -> None:
        directory, base_name = os.path.dirname(path), os.path.basename(self._owner.base_filename)
        temporaries: list[str] = []
        try:
            source = self._hold(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            # The lock is held until the end: no other process compresses the file or writes to it.
            if not self._lock(source):
                return
            state = os.fstat(source)
            # The name depends on the file alone, so the next attempt overwrites the file of a killed process.
            stem = os.path.join(directory, f".{base_name}.{state.st_ino}")
            temporary, link = stem + UNFINISHED, f"{stem}.source{UNFINISHED}"
            temporaries += (temporary, link)
            if not self._mark(temporary):
                return
            if self._method in (_gzip, _zstd):
                self._method(source, temporary)
            else:
                self._call(path, state, link, temporary)
            os.chmod(temporary, stat.S_IMODE(state.st_mode))
            # The time of the last event: retention by age uses it, and it marks that both files hold the same events.
            os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))
            self._owner.place_compressed((state.st_dev, state.st_ino), temporary, self.ending)
        except FileNotFoundError as error:
            # Renamed or deleted meanwhile; the next pass finds it.
            if error.filename != path:
                self._owner.compression_failed(error)
        except Exception as error:
            self._owner.compression_failed(error)
        finally:
            # While the locks are held: the next process that gets them creates files of the same names.
            for left in temporaries:
                with contextlib.suppress(OSError):
                    os.unlink(left)
            held, self._held = self._held, []
            for descriptor in held:
                os.close(descriptor)

    def _call(self, path: str, state: os.stat_result, link: str, temporary: str) -> None:
        """Call the user's callable, which opens the file by name."""
        # By a second name: meanwhile a rotation may rename the file and put another one in its place.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        try:
            os.link(path, link)
        except FileNotFoundError:
            raise
        except OSError:  # the file system has no hard links: check afterwards that the file is still at its path
            self._method(path, temporary)
            _check_same(path, state, path)
        else:
            _check_same(link, state, path)
            self._method(link, temporary)

    def _mark(self, temporary: str) -> bool:
        """Create *temporary* and lock it: `remove_unfinished` leaves locked files alone."""
        for _ in range(_ATTEMPTS):
            marker = self._hold(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            with contextlib.suppress(FileNotFoundError):
                if self._lock(marker) and os.path.samestat(os.stat(temporary), os.fstat(marker)):
                    return True
            time.sleep(0.001)  # another process took it for a leftover, and deleted it before it was locked
        return False

    def _hold(self, descriptor: int) -> int:
        self._held.append(descriptor)
        return descriptor

    def _lock(self, descriptor: int) -> bool:
        """Lock an open file; return False if another process has locked it."""
        try:
            return not flock.AVAILABLE or flock.try_lock(descriptor)
        except OSError:
            if self._guarded:
                raise
            return True  # the file system has no locks; a single process needs none


def _check_same(name: str, state: os.stat_result, path: str) -> None:
    if not os.path.samestat(os.stat(name), state):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _checked_ending(method: Any) -> str:
    ending = getattr(method, "ending", ".compressed")
    if not isinstance(ending, str) or not ending or os.path.basename(ending) != ending:
        msg = f"compression={method!r}: its ending={ending!r} is not what a file's name can get, such as '.xz'"
        raise ValueError(msg)
    return ending


def remove_unfinished(directory: str, path: str) -> None:
    """Delete temporary files in *directory* that killed processes have left while compressing files of *path*."""
    if not flock.AVAILABLE:
        return  # without locks, a leftover cannot be told from the file of a living process
    prefix = f".{os.path.basename(path)}."
    for name in names_in(directory, prefix):
        if not name.endswith(UNFINISHED):
            continue
        with contextlib.suppress(OSError):
            left = os.path.join(directory, name)
            descriptor = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if flock.try_lock(descriptor):
                    os.unlink(left)
            finally:
                os.close(descriptor)


def finish_placing(plain: str, compressed: list[str]) -> bool:
    """Delete *plain* if one of *compressed* is its complete copy, after a kill; return True if *plain* is gone."""
    with contextlib.suppress(FileNotFoundError):
        made = os.stat(plain).st_mtime_ns
        if any(os.stat(path).st_mtime_ns == made for path in compressed):
            os.unlink(plain)
    return not os.path.lexists(plain)
