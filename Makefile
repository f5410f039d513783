# make test    every test          make repro   reproduce the default comparison
#                                  make baselines   the same with every baseline (docs/baselines.md)
# make ui      Prefect and MLflow user interfaces        make lint    ruff
# Everything below runs in .venv, which is built from requirements.lock where it is missing or out of date.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export DO_NOT_TRACK := 1

.PHONY: setup repro baselines test ui lint lock clean

setup: .venv/ready data/digits/digits.csv.gz

# The mark is written last: an install that was interrupted is repeated.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	@# --no-deps: the lock is complete, and a resolution of pip's own would stumble over releases newer than the lock.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data/digits/digits.csv.gz: | .venv/ready
	$(BIN)/python -m streams.sources

repro: setup
	@dvc status --quiet data.dvc dvc.yaml || $(BIN)/python -m flows.server dvc repro dvc.yaml
	@fcl compare --stream digits
	@echo "report  comparison/report.html: all streams and figures, every number with its run; report.md: the tables alone"
	@echo "claims  of the papers, and what was measured here: fcl claims"
	@echo "what a change of code or parameters did to the means over seeds: .venv/bin/dvc metrics diff"
	@echo "make ui starts Prefect's UI (http://127.0.0.1:4200) and MLflow's (http://127.0.0.1:5000) with these runs"
	@fcl claims > comparison/claims.txt || { cat comparison/claims.txt; exit 1; }

baselines: setup
	@$(BIN)/python -m flows.server dvc repro dvc.yaml baselines/dvc.yaml
	@fcl report > /dev/null
	@fcl compare --stream digits
	@fcl compare --stream digits-tasks-small

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

ui: setup
	@$(BIN)/python -m flows.ui

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Exact versions with hashes for every platform, and no address: any registry will do.
lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra cluster --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --output-file requirements.lock

clean:
	rm -rf built runs results comparison .pytest_cache .ruff_cache
