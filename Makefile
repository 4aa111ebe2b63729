# Every target sets up what it needs in $(VENV); nothing but Python 3.10 or later has to be there.

PYTHON ?= python3
VENV ?= .venv
# Passed on to pytest, nox or the benchmarks: make test ARGS="-k rotation"
ARGS ?=

# As many at a time as there are processors, each going on with what another has not begun.
PARALLEL := -n auto --dist worksteal

# Code in pages fits the column of a page.
PAGES := --line-length 88 --config "format.exclude=['*.py']" README.md docs

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# Where it is set, each of the hundreds of processes that tests start would compile the package anew, and pytest the tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
# Targets share one environment; two pips in it at once would spoil it.
.NOTPARALLEL:
.PHONY: help demo fleet test coverage fuzz crash lint format types docs bench bench-check soak wheel-check pythons clean
# An environment whose making broke off (Debian without python3-venv) is begun anew, not taken for a whole one.
.DELETE_ON_ERROR:

help:
	@echo "make demo         set up and run the example service"
	@echo "make fleet        four services, Redis and two relays, of which things are killed; needs redis-server"
	@echo "make test         the suite without what is marked as slow; wheel and sdist are wheel-check's"
	@echo "make coverage     all of the suite, with the coverage gate"
	@echo "make fuzz         each fuzz test for ten minutes  (make fuzz SECONDS=60: for one)"
	@echo "make crash        thousands of kills of processes that log through a spool"
	@echo "make lint         ruff: rules and formatting      (make format applies them)"
	@echo "make types        mypy --strict and pyright"
	@echo "make docs         the documentation, warnings as errors"
	@echo "make bench        the benchmarks, and the charts of docs/benchmarks"
	@echo "make bench-check  whether what has a budget keeps it"
	@echo "make soak         ten minutes of everything, with faults  (make soak SECONDS=60: one)"
	@echo "make wheel-check  build, install and type-check wheel and sdist"
	@echo "make pythons      the suite on the other Python versions, by nox"
	@echo "make clean        remove everything made here, $(VENV) included"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Outfall needs Python 3.10 or later" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# The stamp, not the directory, says that the environment is complete: a directory made by hand, or by an install
# that broke off, is installed into.
$(VENV)/.outfall-demo: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.outfall-%: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[$*]'
	@touch $@

demo: $(VENV)/.outfall-demo
	$(BIN)/python examples/service.py $(ARGS)

fleet: $(VENV)/.outfall-redis
	$(BIN)/python examples/fleet/fleet.py $(ARGS)

test: $(VENV)/.outfall-test
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" --ignore=tests/packaging/test_distribution.py $(ARGS)

# All of it, with the coverage gate.
coverage: override ARGS := -m "" --cov --cov-report=term-missing:skip-covered $(ARGS)
coverage: test

# The limit on memory is for what a pickle may ask of the machine. Findings become tests in tests/fuzz/test_found.py.
fuzz: SECONDS ?= 600
fuzz: $(VENV)/.outfall-test
	ulimit -v 6000000 || true; OUTFALL_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/fuzz --no-cov --timeout=0 $(ARGS)

# Each round has a seed of its own, which it prints: make crash ARGS="--kills 20000 --seed 7"
crash: $(VENV)/.outfall-test
	$(BIN)/python -m tests.crash $(ARGS)

lint: $(VENV)/.outfall-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check $(PAGES)

format: $(VENV)/.outfall-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/ruff format $(PAGES)

types: $(VENV)/.outfall-test $(VENV)/.outfall-lint
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python --warnings

docs: $(VENV)/.outfall-docs
	$(BIN)/sphinx-build -n -W -b html docs docs/_build/html

bench: $(VENV)/.outfall-bench
	$(BIN)/python -m benchmarks --seconds 30 --publish docs/benchmarks $(ARGS)

soak: SECONDS ?= 600
soak: $(VENV)/.outfall-test
	$(BIN)/python -m tests.soak --seconds $(SECONDS) $(ARGS)

bench-check: $(VENV)/.outfall-bench
	$(BIN)/python -m benchmarks --seconds 20 --check $(ARGS)

# To verify types pyright heeds only the Python on the PATH, so that one has to be where nothing but the wheel is
# installed.
wheel-check: $(VENV)/.outfall-test $(VENV)/.outfall-lint
	$(BIN)/python -m pytest tests/packaging $(ARGS)
	rm -rf build/wheel-check
	$(BIN)/python -m build --quiet --outdir build/wheel-check
	$(BIN)/python -m venv --without-pip build/wheel-check/venv
	$(PIP) --python build/wheel-check/venv/bin/python install build/wheel-check/*.whl
	cd build/wheel-check && PATH="$$PWD/venv/bin:$$PATH" $(abspath $(BIN))/pyright \
	    --ignoreexternal --verifytypes outfall

pythons: $(VENV)/.outfall-dev
	$(BIN)/nox $(ARGS)

clean:
	rm -rf $(VENV) .nox build dist *.egg-info docs/_build .coverage .coverage.* htmlcov .hypothesis .mypy_cache \
	    .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
