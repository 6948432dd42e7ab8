# `make help` lists the targets. Every one works on a fresh clone with nothing but Python 3.11 or newer: each makes the environment that it needs.
# PYTHON chooses the interpreter, VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
# One more than the processors of a small machine: tests also wait, for a process to start or a time-out to pass.
TESTS_AT_ONCE ?= 3
# The quick tests hardly wait: as many as there are processors.
QUICK_AT_ONCE ?= 2
# What `make test` hands to pytest, for example: make test TESTS='tests/stomp -k escape'. `make drill` has the drills.
TESTS ?= -n $(TESTS_AT_ONCE) --dist worksteal --ignore tests/drill
# What `make demo` hands on, for example: make demo DEMO='--events 20'
DEMO ?=

BIN := $(VENV)/bin

CFLAGS ?= -O2
# What `make bench` hands on, for example: make bench BENCH=--quick
BENCH ?=

# How long `make fuzz` runs each of its targets.
FUZZ_SECONDS ?= 60

# How long the application writes while `make drill` kills things, and how often its clients are cut off and resume.
DRILL_SECONDS ?= 120
DRILL_RESUMES ?= 10000
# The seed of the capture drill, which a run that fails names, and how many seeds from there on, each for DRILL_SECONDS.
DRILL_SEED ?= 4
DRILL_SEEDS ?= 1
# Which of the drills.
DRILL ?= tests/drill

# How long hostile clients attack each of the servers of `make chaos`.
CHAOS_SECONDS ?= 60

# Which attacks `make attacks` measures, for example: make attacks ATTACKS=C2,C8. All of them also write bench/ATTACKS.md.
ATTACKS ?= all

# How long the crowd of `make soak` stays, on each kind of database.
SOAK_SECONDS ?= 600

.PHONY: screenshots help newcomer docs reference attacks chaos demo quick test check check-style check-async check-types check-layers fix clean bench bench-route bench-stomp drill soak fuzz mutants
.DEFAULT_GOAL := test

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.runs ## events in the terminal, with nothing but Python
	$(BIN)/python -m airy_trio demo $(DEMO)

quick: $(VENV)/.tests ## the tests that need no other program, in about 20 seconds
	AIRY_TEST_NO_SKIPS=0 $(BIN)/python -m pytest --quick -r fE -n $(QUICK_AT_ONCE) --dist worksteal

test: $(VENV)/.tests ## all tests; some: make test TESTS='tests/stomp -k escape'
	$(BIN)/python -m pytest $(TESTS)

screenshots: $(VENV)/.tests ## the pictures of the console, in docs/images; needs Chromium
	$(BIN)/python -m tests.console.screenshots

check: $(VENV)/.checks ## every linter, the type checker, the layers
	@$(MAKE) --no-print-directory -j 2 check-async check-types check-style check-layers

check-style: $(VENV)/.checks ## ruff alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Of what has changed since it last passed; what has neither a coroutine nor Trio cannot break its rules.
check-async: $(VENV)/.checks ## flake8-async alone
	@touch $(VENV)/.async-now
	find airy_trio bench fuzz migrations tests -name node_modules -prune -o -name '*.py' \
	  $$(test ! -e $(VENV)/.async || echo -newer $(VENV)/.async) -print0 \
	  | xargs -0 -r grep --null -lE 'async|await|import trio|from trio' | xargs -0 -r -n 30 $(BIN)/flake8-async
	@mv $(VENV)/.async-now $(VENV)/.async

check-types: $(VENV)/.checks ## mypy alone
	$(BIN)/mypy

check-layers: $(VENV)/.checks ## import-linter alone
	$(BIN)/lint-imports

fix: $(VENV)/.checks ## what the linters can mend by themselves
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs ## the documentation as pages, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

newcomer: $(VENV)/.tests ## the README's commands in a fresh clone, up to a browser
	$(BIN)/python -m tests.newcomer

reference: $(VENV)/.tests ## the pages of docs/reference that the program makes
	$(BIN)/python -m tests.docs.reference --write

bench: $(VENV)/.tests bench/build/load bench/build/limit ## deliveries, measured beside peers; needs a C compiler
	$(BIN)/python -m bench.run $(BENCH)
	$(BIN)/python -m bench.tls

bench-route: $(VENV)/.tests bench/build/load ## the route from a commit to a client, measured
	$(BIN)/python -m bench.route $(BENCH)

bench-stomp: $(VENV)/.tests ## the STOMP codec beside others
	$(BIN)/python -m bench.stomp_codec

mutants: $(VENV)/.tests ## delivery with one fault each, which its tests must notice
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) tests/delivery/mutants.py

drill: $(VENV)/.tests ## kills, freezes and outages under load, with everything accounted for
	DRILL_SECONDS=$(DRILL_SECONDS) DRILL_RESUMES=$(DRILL_RESUMES) SOAK_SECONDS=$(DRILL_SECONDS) \
	  DRILL_SEED=$(DRILL_SEED) DRILL_SEEDS=$(DRILL_SEEDS) $(BIN)/python -m pytest -s $(DRILL)

soak: $(VENV)/.tests ## a crowd of clients for long, to see what leaks
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s tests/drill/test_soak.py

chaos: $(VENV)/.tests ## hostile connections beside honest ones
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(BIN)/python -m pytest -s tests/drill/test_chaos.py

attacks: $(VENV)/.tests ## what each costly attack costs honest clients, one after another
	ATTACKS=$(ATTACKS) $(BIN)/python -m pytest -s tests/drill/test_attacks.py

fuzz: $(VENV)/.fuzzes ## coverage-guided fuzzing of stomp/ and WebSocket frames; Linux on x86-64
	$(BIN)/python -m fuzz.run decoder $(FUZZ_SECONDS)
	$(BIN)/python -m fuzz.run connection $(FUZZ_SECONDS)
	$(BIN)/python -m fuzz.run frames $(FUZZ_SECONDS)

bench/build/%: bench/%.c bench/program.h
	@command -v $(CC) >/dev/null || { echo "the benchmark needs a C compiler: install one, or name it with CC=…"; exit 1; }
	@mkdir -p $(@D)
	$(CC) -std=c11 -Wall -Wextra $(CFLAGS) -o $@ $<

clean: ## removes what all of these make
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache bench/build build dist

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
	@rm -f $(VENV)/.async
	@touch $@ $(VENV)/.runs $(VENV)/.tests

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.runs

$(VENV)/.fuzzes: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	@touch $@ $(VENV)/.runs
