# Everything is installed into .venv from requirements.lock (pinned by hash); nothing outside this directory changes.
#   make demo    one scenario as a timing run: what the commands and the output look like
#   make test    lint, types, then every test except the soak runs
#   make bench   the speed table, measured side by side on this machine
#   make bench-peers   the three protocols of tests/bench/peers under tdsim, SPIN and Harmony (OPTIONS=--quick: minutes)
#   make soak    the long searches
#   make conformance   the TDX module against the published tables, row by row (TABLE=path.csv: another table)
#   make pairs   every two calls of the module on one entry or page, in every order: docs/seamcall-pairs.md
#   make module-coverage   what these two reach of the module's branches; fails below 95 %
#   make corpus  every known race planted, hunted by every strategy: docs/race-scoreboard.md
#   make lint    ruff and mypy only
#   make clean   removes .venv, out/ and caches

SHELL  := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.stamp

RELEASES := 1.0 1.5.01 1.5.28 2.0 nbr
COVERED := $(BIN)/coverage run --parallel-mode --branch --source=tdx/module

DEMO_SCENARIO := scenarios/library/fault-vs-convert.yaml

.PHONY: demo test bench bench-peers lint soak clean install corpus conformance pairs module-coverage
.DELETE_ON_ERROR:

demo: $(STAMP)
	@echo "A vCPU touches a private page while the host converts it to shared: one timing run, with the published"
	@echo "cost table, of $(DEMO_SCENARIO)."
	@echo "\$$ tdsim run $(DEMO_SCENARIO)"
	@$(BIN)/tdsim run $(DEMO_SCENARIO)

test: lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.bench

bench-peers: $(STAMP)
	$(BIN)/python -m tests.bench.peers $(OPTIONS)

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak

conformance: $(STAMP)
	$(BIN)/python -m tests.conformance $(if $(TABLE),--table "$(TABLE)") $(OPTIONS)

pairs: $(STAMP)
	$(BIN)/python -m tests.pairwise --jobs 2 --write docs/seamcall-pairs.md

# Conformance and exploration alone, nothing else: what they reach of the module's branches.
module-coverage: export COVERAGE_FILE := out/module-coverage/data
module-coverage: $(STAMP)
	rm -rf out/module-coverage && mkdir -p out/module-coverage
	for release in $(RELEASES); do \
	  $(COVERED) -m tests.conformance --profile $$release > out/module-coverage/conformance-$$release.txt; \
	done
	$(COVERED) -m pytest -q -p no:cacheprovider tests/pairwise tests/tdx/module/test_quirks.py tests/tdx/module/test_invariants.py
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered --sort=cover --fail-under=95

corpus: $(STAMP)
	$(BIN)/python -m tests.corpus --jobs 2 --write docs/race-scoreboard.md

install: $(STAMP)

# The project itself is built with the hatchling that the lock pins, hence no build isolation.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tdsim needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

clean:
	rm -rf .venv out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find sim vcpu mmu tdx scenarios tests -name __pycache__ -type d -prune -exec rm -rf {} +
