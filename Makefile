# Everything here needs Python 3.11 or newer and make; the rest arrives as wheels in .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := stream connectors schemas tests
ARGS ?=
WORKERS ?= 5
EXAMPLES ?= 20

# Tests start many processes, and none of them should have to compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint format bench soak venv jars clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready  ## the whole story under live load, on an embedded PostgreSQL and Kafka
	$(BIN)/slackwater demo $(ARGS)

test: lint  ## lint, then every test but the benchmarks and the soak
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m "not soak and not bench" --ignore=tests/bench $(ARGS)

lint: .venv/ready  ## ruff, mypy and the import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/ready  ## what ruff can put right by itself
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: .venv/ready  ## measures; wants the machine for itself
	$(BIN)/python -m tests.bench $(ARGS)

soak: .venv/ready  ## the long run
	SLACKWATER_PIPE_EXAMPLES=$(EXAMPLES) $(BIN)/pytest --timeout=0 -m soak -s tests $(ARGS)
	SLACKWATER_PIPE_EXAMPLES=$(EXAMPLES) $(BIN)/pytest --timeout=0 -s tests/faults/test_pipe.py

venv: .venv/ready  ## only the virtual environment

jars: .venv/ready  ## resolves Kafka's jars anew, and rewrites their lock file
	$(BIN)/python -c "from connectors.local import jars; jars.relock()"

clean:  ## removes the virtual environment and the tools' caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# An old pip fails on some of these wheels, so the environment's own is brought up to date before anything else.
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "slackwater needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --only-binary :all: --editable '.[embedded,registry,dev]'
	@touch $@
