# Everything a person or CI does with this repository. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
SEEDS ?= 0:20000

.PHONY: help quickstart test peers test-exports torture torture-figures torture-files simulate fuzz lint-cluster test-cluster bench-scale check format lint types layers bench setup

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv from requirements.lock and install the project into it

# torch first and alone: it brings its own CUDA packages where there is a GPU; the rest is installed as locked.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prolu-tune needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

quickstart: $(STAMP)  ## a whole sweep on the bundled language model: 18 autoencoders, six architectures
	@$(BIN)/prolu-tune run search_spaces/quickstart.yaml

test: $(STAMP)  ## run the tests
	@$(BIN)/python -m pytest -n $(WORKERS)

PEERS := .venv-peers/.installed

$(PEERS): peers.lock requirements.lock
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@echo "installing SAELens and dictionary_learning into .venv-peers (2 GB) ..."
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps -r peers.lock
	@touch $(PEERS)

peers: $(PEERS)  ## install SAELens and dictionary_learning in an environment of their own (2 GB)

test-exports: $(STAMP) $(PEERS)  ## exported folders against the real SAELens and dictionary_learning
	@$(BIN)/python -m pytest tests/export

torture: $(STAMP)  ## kill real sweeps a hundred times and compare what they end in with an undisturbed one (an hour or more)
	@$(BIN)/python scripts/torture.py --kills 100

torture-figures: $(STAMP)  ## two drivers at once, restarts, checkpoints, MLflow away: one promise after the other (half an hour)
	@$(BIN)/python scripts/torture_figures.py pairs
	@$(BIN)/python scripts/torture_figures.py restart
	@$(BIN)/python scripts/torture_figures.py checkpoint
	@$(BIN)/python scripts/torture_figures.py away

torture-files: $(STAMP)  ## files against kills, full disks, flipped bits and power cuts (root; strace, xfsprogs; minutes)
	@$(BIN)/python -m pytest -m slow tests/events
	@$(BIN)/python scripts/torture_files.py --strace --full-disk
	@$(BIN)/python scripts/torture_files.py --power-cuts 40 --filesystem ext4
	@$(BIN)/python scripts/torture_files.py --power-cuts 40 --filesystem xfs

simulate: $(STAMP)  ## the fault simulator: 20,000 seeds of the real driver on a fake disk, clock and server; then the planted bugs
	@$(BIN)/python scripts/simulate_faults.py --seeds $(SEEDS) --processes $(WORKERS) --least 100
	@$(BIN)/python scripts/simulate_faults.py --planted --processes $(WORKERS)

fuzz: $(STAMP)  ## 100,000 mutated inputs against every reader (ten minutes)
	@$(BIN)/python scripts/fuzz.py --inputs 100000 --seed 0

lint-cluster: $(STAMP)  ## check the files in cluster/ offline: Ray's schema, open ports, token, GPUs, versions, storage
	@$(BIN)/python -m prolu_tune.launch.lint

test-cluster: $(STAMP)  ## a real `ray up` in network namespaces, PostgreSQL, an S3 server (root; installs Debian packages; 30 minutes)
	@scripts/test_cluster/install.sh
	@$(BIN)/python -m pytest -m slow tests/cluster

bench-scale: $(STAMP)  ## what 2,000 trials on 64 logical GPUs cost the driver (half an hour or more, 10 GB of memory)
	@$(BIN)/python scripts/scale.py --virtual
	@$(BIN)/python scripts/scale.py

check: $(STAMP) lint types layers test  ## all that decides whether work lands: format, lint, types, layers, tests

format: $(STAMP)  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lint: $(STAMP)  ## check format and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(STAMP)  ## check types
	@$(BIN)/basedpyright --level error

layers: $(STAMP)  ## check that imports point downwards only
	@$(BIN)/lint-imports

bench: $(STAMP) $(PEERS)  ## measure speed beside SAELens and dictionary_learning (about half an hour)
	@OMP_WAIT_POLICY=passive $(BIN)/python -m prolu_tune.bench all
	@$(BIN)/python -m prolu_tune.bench search --problems 8
