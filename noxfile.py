"""The suite on every supported Python, and the checks that need only one.

``make`` covers daily work; this is for the versions: ``make pythons``, or
``nox -s tests-3.13 -- -k rotation``.
"""

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests"]

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# What pyproject.toml gives as lower bounds, on the oldest Python.
LOWEST = ["structlog==24.1.0", "orjson==3.10.7", "requests==2.32.3"]
# As in the Makefile; what wheel and sdist hold does not depend on the version.
PARALLEL = ["-n", "auto", "--dist", "worksteal", "--ignore=tests/packaging/test_distribution.py"]


def run_suite(session: nox.Session) -> None:
    """Run the suite, with a cache for each session: what failed on one Python is not what failed on the next."""
    cache = f"cache_dir={session.virtualenv.location}/.pytest_cache"
    session.run("python", "-m", "pytest", *PARALLEL, "-o", cache, *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite; without coverage, whose gate `make coverage` has."""
    session.install("-e", ".[test]")
    run_suite(session)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the suite against the oldest dependencies that are allowed."""
    session.install("-e", ".[test]", *LOWEST)
    run_suite(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and formatting."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    pages = ("--line-length", "88", "--config", "format.exclude=['*.py']", "README.md", "docs")
    session.run("ruff", "format", "--check", *pages)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright."""
    session.install("-e", ".[test,lint]")
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python", "--warnings")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, warnings as errors."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-n", "-W", "-b", "html", "docs", "docs/_build/html")
