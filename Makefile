# make run      a server on this machine, data in ./data
# make cluster  three servers on this machine, thrown away at the end; see tools/cluster.py --help
# make test     all tests, in a virtual environment it makes itself
# make check    format, lint, types, import table and tests: what a change must pass
# make format   what a formatter and a linter can put right by themselves
# make bench    the comparison with etcd, redis, sqlite3 and LMDB
# make clean    removes what the others have made
#
# Longer tests (simulator, chaos, mutations) are run by hand: see CONTRIBUTING.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.dev-requirements
BENCH_READY := $(VENV)/.bench-requirements

.PHONY: run cluster test check format bench clean

run:
	$(PYTHON) conuredb.py --bootstrap

cluster:
	$(PYTHON) tools/cluster.py

test: $(READY)
	$(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH_READY)
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(BENCH_READY): $(READY) requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@
