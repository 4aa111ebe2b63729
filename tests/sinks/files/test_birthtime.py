"""When a file was created."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from outfall.sinks.files import birthtime as birth
from outfall.sinks.files.birthtime import birth_time

#: The kernel stamps files with a clock that ticks 100 times a second or more.
TICK_SECONDS = 0.011


@pytest.fixture
def newborn(tmp_path: Path) -> Path:
    """A file just created, on a file system that knows when."""
    path = tmp_path / "app.log"
    path.touch()
    if birth_time(path) is None:
        pytest.skip("this file system, kernel or C library does not tell when a file was created")
    return path


def test_a_new_file_was_born_just_now(tmp_path: Path, newborn: Path) -> None:
    """The birth of a file is between two readings of the clock around its creation."""
    before = time.time()
    path = tmp_path / "second.log"
    path.write_bytes(b"x")
    born = birth_time(path)
    assert born is not None
    assert before - TICK_SECONDS <= born <= time.time()


def test_nothing_done_to_a_file_changes_its_birth(newborn: Path) -> None:
    """Writes, os.utime, chmod, a rename and a second link leave the birth as it is."""
    born = birth_time(newborn)
    with newborn.open("ab") as file:
        file.write(b"more")
    os.utime(newborn, (1e9, 1e9))
    newborn.chmod(0o600)
    moved = newborn.rename(newborn.with_name("moved.log"))
    os.link(moved, newborn)
    assert birth_time(newborn) == birth_time(moved) == born != newborn.stat().st_mtime


def test_any_kind_of_path_will_do(newborn: Path) -> None:
    """Text, bytes and path objects name the same file, and one with a name beyond ASCII."""
    assert birth_time(str(newborn)) == birth_time(os.fsencode(newborn)) == birth_time(newborn)
    assert birth_time(newborn.rename(newborn.with_name("größe\u2028.log"))) is not None


def test_a_link_is_followed(newborn: Path) -> None:
    """For a symbolic link it is the birth of the file that counts."""
    link = newborn.with_name("link")
    link.symlink_to(newborn)
    assert birth_time(link) == birth_time(newborn)


def test_what_is_not_there_was_never_born(tmp_path: Path) -> None:
    """A missing file, a dangling link, a path through a file and an impossible name give None."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("missing", "link", "file/below", "zero\0byte", "x" * 5000):
        assert birth_time(tmp_path / name) is None
    assert birth_time("") is None


def test_a_file_without_a_birth_has_none() -> None:
    """Where the file system keeps no such time, as /proc does not, the answer is None."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc")
    assert birth_time("/proc/self/stat") is None


@pytest.mark.parametrize(("told", "believed"), [(1e9 + 0.5, 1e9 + 0.5), (0.0, None), (-1.0, None)])
def test_what_python_knows_is_believed(
    told: float, believed: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """st_birthtime is taken where there is one, except for the values that stand for none."""
    monkeypatch.setattr(birth.os, "stat", lambda path: SimpleNamespace(st_birthtime=told))
    assert birth_time(tmp_path) == believed


@pytest.mark.parametrize(("platform", "expected"), [("win32", 5.0), ("sunos5", None)])
def test_elsewhere_it_is_what_the_system_has(
    platform: str, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows keeps it in st_ctime, before Python 3.12; systems that do not tell give None."""
    monkeypatch.setattr(birth.os, "stat", lambda path: SimpleNamespace(st_ctime=5.0))
    monkeypatch.setattr(birth.sys, "platform", platform)
    assert birth_time(tmp_path) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="statx is Linux's")
@pytest.mark.parametrize(
    "lack",
    [
        "sys.modules['ctypes'] = None",
        "import ctypes; ctypes.CDLL = lambda name: object()",
        "import ctypes\ndef CDLL(name): raise OSError(name)\nctypes.CDLL = CDLL",
    ],
    ids=["no ctypes", "no statx", "no dlopen"],
)
def test_a_system_without_statx_tells_nothing(lack: str, tmp_path: Path) -> None:
    """Without ctypes, the call or the library the answer is None, and no error."""
    look = f"from outfall.sinks.files.birthtime import birth_time\nprint(birth_time({str(tmp_path)!r}))"
    script = f"import sys\n{lack}\n{look}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ctypes is not needed at all")
def test_ctypes_is_imported_by_the_first_question(tmp_path: Path) -> None:
    """Whoever asks for no birth does not pay for ctypes."""
    script = (
        "import sys\nfrom outfall.sinks.files.birthtime import birth_time\nbefore = 'ctypes' in sys.modules\n"
        f"birth_time({str(tmp_path)!r})\nprint(before, 'ctypes' in sys.modules)"
    )
    # Coverage, which starts in children too, may import anything.
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    assert done.stdout == "False True\n"
