# Everything a person or CI does with this repository. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: help quickstart test test-exports check format lint types layers bench setup

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

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

test-exports: $(STAMP)  ## exported folders against the real SAELens and dictionary_learning, in an environment of their own (2 GB)
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check --no-deps -r peers.lock
	@$(BIN)/python -m pytest tests/export

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

bench: $(STAMP)  ## measure speed (minutes)
	@$(BIN)/python -m prolu_tune.bench step
	@$(BIN)/python -m prolu_tune.bench search --problems 8
