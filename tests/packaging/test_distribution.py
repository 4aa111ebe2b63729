"""The distributions: wheel and sdist hold what they should, install, and type-check for who uses them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

# One build or install follows the other; a slow network must not look like a hang.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
LINKS = ["outfall/sinks", "outfall/adapters"]
# In the repository only: how it is worked on, which is no use in an archive.
CI = {".ci/pages", ".ci/run", ".ci/suites", ".ci/syslog-ng"}
NOT_IN_SDIST = {".gitattributes", ".gitignore", ".pre-commit-config.yaml", *CI, *LINKS}
GENERATED_IN_SDIST = {"PKG-INFO", "setup.cfg"}
DIST_INFO = {"METADATA", "entry_points.txt", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt"}
# What a checkout holds beside the repository's files, for where no git can tell.
NOT_SOURCE = shutil.ignore_patterns(
    ".venv", ".nox", ".git", "build", "dist", "_build", "*.egg-info", "PKG-INFO", "setup.cfg",
    "__pycache__", ".*_cache", ".hypothesis", ".coverage*", "htmlcov",
)  # fmt: skip


def _run(*command: str | Path, cwd: Path, **environ: str) -> str:
    # PYTHONPATH would lead children back to the checkout; coverage would write its files into these folders.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("COVERAGE_")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def _repository_files() -> list[str] | None:
    """List what is committed or about to be, or None where git cannot tell."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    listing = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listing.split("\0") if name and os.path.lexists(ROOT / name)]


def _files(root: Path) -> set[str]:
    """Name every file below *root*, links as themselves."""
    paths = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(root).as_posix() for path in paths}


def _build(source: Path, out: Path, *options: str) -> Path:
    _run(sys.executable, "-m", "build", *options, "--outdir", out, source, cwd=out.parent)
    (built,) = out.iterdir()
    return built


def _contents(wheel: Path) -> dict[str, bytes]:
    """Map each file of *wheel* to its bytes, but for the list of their hashes."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def _package_files(source: Path) -> set[str]:
    """Name the files a wheel should have for the code that lies in *source*."""
    names = {f"outfall/{path.name}" for path in (source / "outfall").iterdir() if path.is_file()}
    for folder in ("sinks", "adapters"):
        names |= {f"outfall/{folder}/{name}" for name in _files(source / folder)}
    return names


def _install(distribution: Path, where: Path) -> Path:
    """Install *distribution* with its dependencies in an empty environment and give the Python of that."""
    venv.create(where, with_pip=False, symlinks=os.name != "nt")
    python = where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python]
    _run(*pip, "install", distribution, cwd=where)
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what the repository holds, without what builds and tests have left in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "outfall"
    names = _repository_files()
    if names is None:
        shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_SOURCE)
    for name in names or []:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def _copy(source: Path, parent: Path) -> Path:
    # setuptools leaves build/ behind and takes from it what it finds there, so every build has its own tree.
    return Path(shutil.copytree(source, parent / "tree", symlinks=True))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel straight from the tree."""
    parent = tmp_path_factory.mktemp("wheel")
    return _build(_copy(source, parent), parent / "dist", "--wheel", "--no-isolation")


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from the tree."""
    parent = tmp_path_factory.mktemp("sdist")
    return _build(_copy(source, parent), parent / "dist", "--sdist", "--no-isolation")


@pytest.fixture(scope="module")
def wheel_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the Python of an environment that has the wheel and what it depends on, nothing else."""
    return _install(wheel, tmp_path_factory.mktemp("from-wheel") / "venv")


def test_the_wheel_holds_the_packages_and_nothing_else(source: Path, wheel: Path):
    """Each module is there once, under its installed name; tests, docs and the like are not there."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    expected = _package_files(source)
    assert {"outfall/__init__.py", "outfall/py.typed", "outfall/sinks/__init__.py"} <= expected
    dist_info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert set(names) == expected | {f"{dist_info}/{name}" for name in DIST_INFO}


def test_the_sdist_holds_every_file_of_the_repository(source: Path, sdist: Path):
    """Tests, docs, examples and benchmarks come with the source; what stays behind is listed here by name."""
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()]
    assert len(names) == len(set(names))
    generated = {name for name in names if name in GENERATED_IN_SDIST or "outfall.egg-info/" in name}
    assert set(names) - generated == _files(source) - NOT_IN_SDIST


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path):
    """Who builds from the sdist, in an isolated environment as installers do, gets the same files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    rebuilt = _build(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "dist", "--wheel")
    assert rebuilt.name == wheel.name
    assert _contents(rebuilt) == _contents(wheel)


def test_a_checkout_without_symbolic_links_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path):
    """Git on Windows writes each link as a text file that holds its target; the build does not need them."""
    tree = _copy(source, tmp_path)
    for name in LINKS:
        link = tree / name
        target = link.readlink()
        link.unlink()
        link.write_text(target.as_posix(), encoding="utf-8")
    assert _contents(_build(tree, tmp_path / "dist", "--wheel", "--no-isolation")) == _contents(wheel)


IMPORT_ALL = """
import pathlib, sys
import outfall, outfall.adapters, outfall.sinks
for module in (outfall, outfall.adapters, outfall.sinks):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
from outfall import *
"""


def test_the_wheel_works_in_an_empty_environment(wheel_python: Path, tmp_path: Path):
    """What the wheel declares as dependencies is enough to import all of it."""
    _run(wheel_python, "-c", IMPORT_ALL, cwd=tmp_path)


def test_the_sdist_works_in_an_empty_environment(sdist: Path, tmp_path: Path):
    """What the sdist declares as dependencies is enough to build, install and import it."""
    _run(_install(sdist, tmp_path / "venv"), "-c", IMPORT_ALL, cwd=tmp_path)


def test_the_installed_metadata_speaks_for_the_package(wheel_python: Path, tmp_path: Path):
    """Name, license, Python and dependencies are what the documentation says."""
    code = (
        "import importlib.metadata as m; d = m.metadata('outfall');"
        "print(d['Name'], d['License-Expression'], d['Requires-Python'], *d.get_all('Provides-Extra'));"
        "print(*sorted(r for r in m.requires('outfall') if 'extra' not in r))"
    )
    first, second = _run(wheel_python, "-c", code, cwd=tmp_path).splitlines()
    name, expression, python, *extras = first.split()
    assert (name, expression, python) == ("outfall", "MIT", ">=3.10")
    assert {"windows", "zstd"} <= set(extras)
    dependencies = [re.split("[<>=!]", requirement)[0] for requirement in second.split()]
    assert dependencies == ["orjson", "requests", "structlog"]


def test_a_client_of_the_wheel_type_checks(wheel_python: Path, tmp_path: Path):
    """`py.typed` and complete annotations let mypy --strict check a program that uses the package."""
    # Copied out of the checkout, where mypy would find the source first.
    client = shutil.copy(ROOT / "tests/typing/client.py", tmp_path)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path / "cache"]
    _run(*mypy, "--python-executable", wheel_python, client, cwd=tmp_path)
