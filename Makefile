# Every target works on a fresh clone with nothing but Python 3.11 or newer: each makes the environment that it needs.
# PYTHON chooses the interpreter, VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
# What `make test` hands to pytest, for example: make test TESTS='tests/stomp -k escape'
TESTS ?=

BIN := $(VENV)/bin
LINES_MAX := 250

.PHONY: demo test check fix clean
.DEFAULT_GOAL := test

demo: $(VENV)/.runs
	$(BIN)/python -m airy_trio demo

test: $(VENV)/.tests
	$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/.checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/flake8-async $$(find airy_trio migrations tests -name node_modules -prune -o -name '*.py' -print)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@find airy_trio -name '*.py' -exec wc -l {} + | awk '$$1 > $(LINES_MAX) && $$2 != "total" \
	  {print "note: " $$2 " has " $$1 " lines, over $(LINES_MAX): is there a second subject inside?"}'

fix: $(VENV)/.checks
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist

# The environment grows by what a target needs; each stamp is older than the pyproject.toml that it was made from
# when that changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("airy-trio needs Python 3.11 or newer, this is " + sys.version.split()[0] \
	  + "; choose another with PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tests: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.runs

$(VENV)/.checks: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.runs $(VENV)/.tests
