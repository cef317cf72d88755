# Every target sets up what it needs, so each works on a fresh machine with Python 3.11 or newer.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup chromium lint check test faults fuzz demo bench clean

help:  ## show the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(INSTALLED) chromium  ## create .venv with the exact versions of constraints.txt

# Skipped while pyproject.toml and constraints.txt are older than the last installation.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The browser tests drive the system's Chromium, which pip cannot install.
chromium:
	@command -v chromium >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium; \
	} || echo "setup: no chromium here and no way to install it: browser tests will be skipped"

lint: $(INSTALLED)  ## style, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## lint and the fast tests, in under a minute
	$(BIN)/pytest -m 'not (ray or browser or faults or gpu)'

test: setup lint  ## all of continuous integration
	$(BIN)/pytest -m 'not long'

faults: setup  ## the tests that take minutes, and twenty schedules of faults over every kind of step: hours
	$(BIN)/pytest -m long
	$(BIN)/python -m tests.faults.schedules

fuzz: $(INSTALLED)  ## twenty thousand bad shards: nothing crashes, hangs, is lost or counted twice
	$(BIN)/python -m tests.faults.fuzz

demo: $(INSTALLED)  ## curate a synthetic pool on this machine, from raw shards to a report
	$(BIN)/winnow demo

bench: $(INSTALLED)  ## side-by-side measurements
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:  ## remove the environment, caches and the demo's run
	rm -rf .venv build dist runs/demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
