# make run      a server on this machine, data in ./data
# make build    bin/server, with the profile kvstore, and bin/kvctl; see docs/kvstore.md
# make cluster  three servers on this machine, thrown away at the end; see tools/cluster.py --help
# make test     all tests, in a virtual environment it makes itself
# make test-all all of them once for each storage engine, the contract by TLS with the one that has
#               plain connections in `make test`, and the reverse
# make check    format, lint, types, import table and tests: what a change must pass
# make format   what a formatter and a linter can put right by themselves
# make bench    the comparison with etcd, redis, sqlite3, LMDB, LevelDB and RocksDB
# make wheel    build/conuredb-VERSION-py3-none-any.whl, for pip
# make pyz      build/conuredb.pyz, the server and the shell in one file that Python runs as it is
# make redis-check REDIS_SUITE=FOLDER  Redis' own tests, from its source; see CONTRIBUTING.md
# make clean    removes what the others have made
#
# make chart-check  the Helm charts: lint, what they make, what they refuse; see tools/chart_check.py
# make image-check  the container image, built and tried; needs podman or docker
# make image-check-cluster  the same, and three containers that agree; image-check-dev: the same, and
#                   the image that holds the tests
# make k8s-images   the image under two tags, as archives in build/k8s
# make k8s-check    both charts on the Kubernetes of kubectl's context, which has to have these
#                   images; see tools/k8s_check.py --help
#
# Longer tests (simulator, chaos, mutations) are run by hand: see CONTRIBUTING.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.dev-requirements
BENCH_READY := $(VENV)/.bench-requirements

ENGINE := $(or $(shell command -v podman || command -v docker),docker)
IMAGE := docker.io/conuredb/conuredb

.PHONY: run build cluster test test-all check format bench wheel pyz clean
.PHONY: redis-check chart-check image-check image-check-cluster image-check-dev k8s-images k8s-check

run:
	$(PYTHON) conuredb.py --bootstrap

build:
	$(PYTHON) tools/starters.py

cluster:
	$(PYTHON) tools/cluster.py

# The tests start servers by the hundred: whatever the environment says, compile them once.
test test-all check: export PYTHONDONTWRITEBYTECODE :=
test test-all check: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache

test: $(READY)
	$(BIN)/python -m pytest -n 4

test-all: $(READY)
	TEST_ENGINE=btree TEST_TLS=1 $(BIN)/python -m pytest -n 4
	TEST_ENGINE=lsm TEST_TLS=0 $(BIN)/python -m pytest -n 4

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 4

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH_READY)
	$(BIN)/python -m bench

wheel: $(READY)
	$(BIN)/python tools/packages.py wheel

pyz:
	$(PYTHON) tools/packages.py pyz

redis-check:
	@test -n "$(REDIS_SUITE)" || { echo "say REDIS_SUITE=FOLDER; see CONTRIBUTING.md"; exit 2; }
	$(PYTHON) tools/redis_check.py $(REDIS_SUITE)

chart-check: $(READY)
	$(BIN)/python tools/chart_check.py

image-check:
	$(PYTHON) tools/image_check.py --engine=$(ENGINE)

# The names of containers that are gone may take a resolver half a minute to fail.
image-check-cluster:
	$(PYTHON) tools/image_check.py --engine=$(ENGINE) --cluster

image-check-dev:
	$(PYTHON) tools/image_check.py --engine=$(ENGINE) --dev

# Two images that differ, if only in a label: enough to see one take the other's place.
k8s-images:
	mkdir -p build/k8s
	set -e; for tag in check check-next; do \
	  $(ENGINE) build --target=production --build-arg=REVISION=$$tag -t $(IMAGE):$$tag .; \
	  rm -f build/k8s/$$tag.tar; \
	  $(ENGINE) save -o build/k8s/$$tag.tar $(IMAGE):$$tag; \
	done

k8s-check:
	$(PYTHON) tools/k8s_check.py --image=$(IMAGE)

clean:
	rm -rf $(VENV) build bin conuredb.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(BENCH_READY): $(READY) requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@
