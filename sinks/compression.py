"""Rotated files compressed in the background: `Compressor`."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any, Protocol

from outfall.sinks import interprocess
from outfall.sinks.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CHUNK_BYTES = 1024 * 1024
_UNFINISHED = ".outfall-tmp"

#: Endings under which a rotated file may stand, whatever compression is in force now.
ENDINGS = (".gz", ".zst")


class Owner(Protocol):
    """What a `Compressor` asks of the sink whose files it compresses."""

    def files_to_compress(self) -> list[str]:
        """Return the paths of the rotated files that are not compressed yet, oldest first."""

    def place_compressed(self, identity: tuple[int, int], compressed: str, ending: str) -> None:
        """Put *compressed* in the place of the rotated file that *identity* (device, inode) is, wherever it is now."""

    def compression_failed(self, error: Exception) -> None:
        """Tell of a file that could not be compressed; it stays as it is."""


def _gzip(source: int, destination: str) -> None:
    # Without name and time in the header: the file says both, and equal events make equal files.
    with (
        open(source, "rb") as plain,
        open(destination, "wb") as raw,  # noqa: PTH123 - paths are text here
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as compressed,
    ):
        shutil.copyfileobj(plain, compressed, _CHUNK_BYTES)


def _zstd(source: int, destination: str) -> None:
    import zstandard  # noqa: PLC0415 - an extra

    with open(source, "rb") as plain, open(destination, "wb") as compressed:  # noqa: PTH123
        zstandard.ZstdCompressor().copy_stream(plain, compressed)


class Compressor:
    """Compress rotated files in a thread of its own, which lives as long as there is something to do.

    A compressed file is written under a temporary name and then moved into place, whole, before the plain one is
    unlinked: a kill leaves the plain file, or both. `cleaned` finishes such work at the next start.

    Args:
        method: ``"gzip"``, ``"zstd"`` or a callable ``(source, destination)`` that writes *destination*; its attribute
            ``ending``, such as ``".xz"``, is what the name of the file gets, ``".compressed"`` without one.
        owner: Whose files they are.
        guarded: Leave a file alone while another process still has it open for writing; see
            `outfall.sinks.rotating`.

    Raises:
        ValueError: If *method* is none of these.
        MissingDependencyError: If ``"zstd"`` is asked for and zstandard is not installed.
    """

    def __init__(self, method: Any, owner: Owner, *, guarded: bool) -> None:
        if method == "gzip":
            self._method: Callable[[Any, str], object] = _gzip
            self.ending = ".gz"
        elif method == "zstd":
            try:
                import zstandard  # noqa: F401, PLC0415 - an extra
            except ImportError:
                raise MissingDependencyError(package="zstandard", extra="zstd") from None
            self._method = _zstd
            self.ending = ".zst"
        elif callable(method):
            self._method = method
            self.ending = str(getattr(method, "ending", ".compressed"))
        else:
            msg = f"compression={method!r} is not 'gzip', 'zstd' or a callable"
            raise ValueError(msg)
        self._owner = owner
        self._guarded = guarded
        #: Descriptors that the thread has open, which a forked child must not keep, nor the locks on them.
        self._held: list[int] = []
        self.after_fork()

    def after_fork(self) -> None:
        """Begin anew, without a thread."""
        for descriptor in self._held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._held = []
        self._state = threading.Condition(threading.Lock())
        self._wanted = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Have a look for files to compress taken soon, in the background."""
        with self._state:
            self._wanted = True
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="outfall-compressor", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # the interpreter is going down; the next start finishes it
            self._thread = thread

    def wait(self, timeout: float) -> bool:
        """Wait until all is done, *timeout* seconds at most; return whether it is."""
        with self._state:
            return self._state.wait_for(lambda: self._thread is None, timeout)

    def _run(self) -> None:
        while True:
            with self._state:
                if not self._wanted:
                    self._thread = None
                    self._state.notify_all()
                    return
                self._wanted = False
            try:
                for path in self._owner.files_to_compress():
                    self._compress(path)
            except Exception as error:  # noqa: BLE001 - a thread that dies would leave all later files as they are
                self._owner.compression_failed(error)

    def _compress(self, path: str) -> None:
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # shifted or deleted meanwhile; the next look finds it
        directory, name = os.path.split(path)
        state = os.fstat(source)
        # The same name for the same file, so that a killed process's attempt is overwritten by the next.
        temporary = os.path.join(directory, f".{name}.{state.st_ino}{_UNFINISHED}")  # noqa: PTH118
        self._held.append(source)
        marker = -1
        try:
            # Held as long as it takes: no other process compresses it too, and none writes to it any more.
            if self._guarded and not interprocess.try_lock(source):
                return
            marker = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._held.append(marker)
            if interprocess.AVAILABLE:
                interprocess.try_lock(marker)  # shows `remove_unfinished` that somebody is at it
            # A rotation may rename the file meanwhile, while its descriptor stays good. A callable of others gets the
            # path, which it may want to look at.
            self._method(os.dup(source) if self._method in (_gzip, _zstd) else path, temporary)
            os.chmod(temporary, state.st_mode & 0o7777)  # noqa: PTH101
            # The time of its last event, for retention by age; and what shows that both hold the same.
            os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))
            self._owner.place_compressed((state.st_dev, state.st_ino), temporary, self.ending)
        except Exception as error:  # noqa: BLE001 - told, and the file stays as it is
            self._owner.compression_failed(error)
        finally:
            self._held.clear()
            os.close(source)
            if marker != -1:
                os.close(marker)
                with contextlib.suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108 - gone when it was put in its place


def remove_unfinished(directory: str, base_name: str) -> None:
    """Delete what killed processes' compression of *base_name*'s files has left in *directory*."""
    if not interprocess.AVAILABLE:
        return  # it cannot be told from what a living process is writing
    with os.scandir(directory) as entries:
        left = [e.path for e in entries if e.name.startswith(f".{base_name}.") and e.name.endswith(_UNFINISHED)]
    for path in left:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if interprocess.try_lock(descriptor):
                    os.unlink(path)  # noqa: PTH108
            finally:
                os.close(descriptor)


def endings(extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the endings a rotated file may have, none first."""
    return ("", *dict.fromkeys((*extra, *ENDINGS)))
