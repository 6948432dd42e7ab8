# `make help` lists the targets. Every one works on a fresh clone with nothing but Python 3.11 or newer: each makes the environment that it needs.
# PYTHON chooses the interpreter, VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
# LOCKED=1, as in CI, installs the versions in locks/ and checks their hashes. Otherwise the newest allowed versions are
# installed.
LOCKED ?=
# One more than the processors of a small machine: tests also wait, for a process to start or a time-out to pass. A third
# of the time of the quick ones is such waiting too.
TESTS_AT_ONCE ?= 3
QUICK_AT_ONCE ?= $(TESTS_AT_ONCE)
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
# An option of uv for `make lock`: --upgrade updates every version. Without it, only those change that pyproject.toml no
# longer allows.
LOCK ?=

# Which of the drills.
DRILL ?= tests/drill

# How long hostile clients attack each of the servers of `make chaos`.
CHAOS_SECONDS ?= 60

# Which attacks `make attacks` measures, for example: make attacks ATTACKS=C2,C8. All of them also write bench/ATTACKS.md.
ATTACKS ?= all

# How long the crowd of `make soak` stays, on each kind of database.
SOAK_SECONDS ?= 600

.PHONY: dist image pictures lock lowest screenshots help newcomer docs reference attacks chaos demo quick test check check-style check-async check-types check-layers check-manifests fix clean bench bench-route bench-stomp drill soak fuzz mutants
.DEFAULT_GOAL := test

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.runs ## events in the terminal, with nothing but Python
	$(BIN)/python -m airy_trio demo $(DEMO)

quick: $(VENV)/.tests ## the tests that need no other program, in less than a minute
	$(BIN)/python -m pytest --quick -r fE -n $(QUICK_AT_ONCE) --dist worksteal

test: $(VENV)/.tests ## all tests; some: make test TESTS='tests/stomp -k escape'
	$(BIN)/python -m pytest $(TESTS)

screenshots: $(VENV)/.tests ## the pictures of the console, in docs/images; needs Chromium
	$(BIN)/python -m tests.console.screenshots

pictures: $(VENV)/.tests ## the picture of the README, from a real run
	$(BIN)/python -m tests.pictures

check: $(VENV)/.checks ## every linter, the type checker, the layers
	@$(MAKE) --no-print-directory -j 2 check-async check-types check-style check-layers check-manifests

check-style: $(VENV)/.checks ## ruff alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Of what has changed since it last passed; what has neither a coroutine nor Trio cannot break its rules.
check-async: $(VENV)/.checks ## flake8-async alone
	@touch $(VENV)/.async-now
	find airy_trio bench fuzz migrations tests -name node_modules -prune -o -name '*.py' \
	  $$(test ! -e $(VENV)/.async || echo -newer $(VENV)/.async) -print0 \
	  | xargs -0 -r grep --null -lE 'async|await|import trio|from trio' | xargs -0 -r -n 30 -P 2 $(BIN)/flake8-async
	@mv $(VENV)/.async-now $(VENV)/.async

check-types: $(VENV)/.checks ## mypy alone
	$(BIN)/mypy

check-layers: $(VENV)/.checks ## import-linter alone
	$(BIN)/lint-imports

check-manifests: $(VENV)/.checks ## the schemas of Kubernetes alone
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes.yaml

fix: $(VENV)/.checks ## what the linters can mend by themselves
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs ## the documentation as pages, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

newcomer: $(VENV)/.tests ## the README's commands in a fresh clone and from the wheel, up to a browser
	$(BIN)/python -m tests.newcomer

image: $(VENV)/.tests ## builds and runs the image with Podman, up to a row at a client; root on Debian
	$(BIN)/python -m tests.image

reference: $(VENV)/.tests ## the pages and the schema of docs/reference that the program makes
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

# The tests that use each dependency, from the settings to a whole server. One is left out: it prints a query
# with its values, for which SQLAlchemy 2.1.0 warns.
LOWEST ?= --deselect tests/log/test_sql.py::test_quiet_conversation_is_found_by_its_index \
  tests/settings tests/auth/test_keys.py tests/auth/test_web_tokens.py tests/check/test_certificate.py \
  tests/admin/test_metrics.py tests/admin/test_server.py tests/log/test_sql.py \
  tests/e2e/test_payloads.py tests/test_migrate.py

lowest: ## tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	@$(MAKE) --no-print-directory VENV=.venv-lowest .venv-lowest/bin/python
	.venv-lowest/bin/python -m pip install --quiet --require-hashes --requirement locks/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	.venv-lowest/bin/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal -m 'not slow' $(LOWEST)

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(LOCK)

lock: $(VENV)/.locks ## the lock files; newer versions: make lock LOCK=--upgrade
	$(UV_COMPILE) pyproject.toml --extra dev --extra docs --extra fuzz --output-file locks/ci.txt
	$(UV_COMPILE) pyproject.toml --extra test --constraints locks/ci.txt --output-file locks/test.txt
	$(UV_COMPILE) pyproject.toml --extra redis --constraints locks/ci.txt --output-file locks/image.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(UV_COMPILE) - --constraints locks/ci.txt --output-file locks/build.txt
	$(UV_COMPILE) pyproject.toml --extra test --resolution lowest-direct --output-file locks/lowest.txt

dist: $(VENV)/.tests ## the wheel and the source distribution, in dist/
	@! grep -q example.org pyproject.toml || { echo "pyproject.toml has no public address of the project yet: replace git.example.org"; exit 1; }
	$(BIN)/python -m build --no-isolation

bench/build/%: bench/%.c bench/program.h
	@command -v $(CC) >/dev/null || { echo "the benchmark needs a C compiler: install one, or name it with CC=…"; exit 1; }
	@mkdir -p $(@D)
	$(CC) -std=c11 -Wall -Wextra $(CFLAGS) -o $@ $<

clean: ## removes what all of these make
	rm -rf $(VENV) .venv-lowest .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache bench/build build dist

# The environment grows by what a target needs; each stamp is older than the pyproject.toml that it was made from
# when that changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("airy-trio needs Python 3.11 or newer, this is " + sys.version.split()[0] \
	  + "; choose another with PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# $(call install,EXTRAS,LOCK FILE)
install = $(if $(LOCKED),$(BIN)/python -m pip install --quiet --require-hashes --requirement locks/$2.txt \
  && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .,$(BIN)/python -m pip install --quiet --editable '.$1')

$(VENV)/.runs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tests: pyproject.toml locks/test.txt | $(VENV)/bin/python
	$(call install,[test],test)
	@touch $@ $(VENV)/.runs

$(VENV)/.checks: pyproject.toml locks/ci.txt | $(VENV)/bin/python
	$(call install,[dev],ci)
	@rm -f $(VENV)/.async
	@touch $@ $(VENV)/.runs $(VENV)/.tests

$(VENV)/.docs: pyproject.toml locks/ci.txt | $(VENV)/bin/python
	$(call install,[docs],ci)
	@touch $@ $(VENV)/.runs

$(VENV)/.fuzzes: pyproject.toml locks/ci.txt | $(VENV)/bin/python
	$(call install,[fuzz],ci)
	@touch $@ $(VENV)/.runs

$(VENV)/.locks: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[lock]'
	@touch $@ $(VENV)/.runs
