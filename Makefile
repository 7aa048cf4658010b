# Development and demonstration. Every target sets up what it needs in .venv; CI calls the same targets (.ci/run).
# Another Python: make PYTHON=python3.12 ...   More for pytest or simulate: make test ARGS="-m 'not slow'"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=
# Two more than cores, since the slow tests wait for other processes much of the time; a file's tests in one of them, since
# what they share takes long to set up.
PROCESSES = -n $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 2)') --dist loadfile --no-loadscope-reorder

# The end of the range of Flower that is not pinned; another: make test-flwr FLWR=1.43.0
FLWR ?= 1.41.0

export FLWR_TELEMETRY_ENABLED := 0

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help simulate test test-all test-flwr coverage lint format docs chaos benchmarks proto fuzz clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

simulate: $(VENV)/simulation.stamp ## Train on real data with sparse updates, deliver students, write a report
	$(BIN)/fedpress simulate $(ARGS)

test: $(VENV)/dev.stamp ## Run the tests, in a few processes
	$(BIN)/python -m pytest -q $(PROCESSES) -m "not deployment and not long" $(ARGS)

test-all: $(VENV)/dev.stamp ## Run what is too long for each change: whole deployments, clusters, Ray, runs of ten seconds
	$(BIN)/python -m pytest -q $(PROCESSES) -m "deployment or long" $(ARGS)

test-flwr: $(VENV)/flwr-$(FLWR)/flwr ## Run what touches Flower with its oldest version, or FLWR=1.43.0
	PYTHONPATH=$(CURDIR)/$(VENV)/flwr-$(FLWR) $(BIN)/python -c 'import flwr; assert flwr.__version__ == "$(FLWR)"'
	PYTHONPATH=$(CURDIR)/$(VENV)/flwr-$(FLWR) $(BIN)/python -m pytest -q $(PROCESSES) -m "not slow" tests/test_flower_doors.py \
		tests/client tests/server tests/compression/messages tests/simulations/engines tests/simulations/deploy $(ARGS)
	PYTHONPATH=$(CURDIR)/$(VENV)/flwr-$(FLWR) $(BIN)/python -m pytest -q tests/simulations/benchmarks/test_wire.py $(ARGS)

coverage: $(VENV)/dev.stamp ## Run them half as fast, and print the lines that none reaches
	$(BIN)/python -m pytest -q $(PROCESSES) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(VENV)/dev.stamp ## Check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=.ci/imports $(BIN)/lint-imports

format: $(VENV)/dev.stamp ## Format the code and sort the imports
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

docs: $(VENV)/docs.stamp ## Build the site into site/; a broken link or reference is an error
	PYTHONPATH=.pkg NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

proto: $(VENV)/dev.stamp ## Write the code for the hub's protocol again, after a change of compression/messages/hub.proto
	$(BIN)/python -m grpc_tools.protoc -I .pkg --python_out=.pkg --pyi_out=.pkg --grpc_python_out=.pkg \
		.pkg/fedpress/compression/messages/hub.proto

chaos: $(VENV)/dev.stamp ## Kill, cut, slow down a deployment by a seed; FEDPRESS_FAULTS=30 FEDPRESS_CHAOS_SEED=7 for more
	FEDPRESS_FAULTS=$${FEDPRESS_FAULTS:-13} $(BIN)/python -m pytest -q -s tests/simulations/deploy/test_chaos.py $(ARGS)

benchmarks: $(VENV)/simulation.stamp ## Run the standing suites (many hours; goes on where it was), write docs/results/suites anew
	@for suite in digits fashion-mnist text niid-bench; do \
		$(BIN)/fedpress bench communication $$suite $(ARGS); cp runs/bench-$$suite/results.md docs/results/suites/$$suite.md; \
	done

fuzz: $(VENV)/fuzz.stamp ## Fuzz the decoder for a minute; for longer: ARGS=-max_total_time=3600
	@mkdir -p .fuzz/corpus
	PYTHONPATH=.pkg OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/decode.py -max_len=2100 -max_total_time=60 \
		-artifact_prefix=.fuzz/ $(ARGS) .fuzz/corpus tests/fuzz/corpus tests/compression/golden

clean: ## Remove caches and build products (not .venv, not runs/)
	rm -rf build dist site *.egg-info .coverage .fuzz .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The stamps are made by the installations that they stand for; `dev` contains `simulation`.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"fedpress needs Python 3.11 or newer and $(PYTHON) is {sys.version.split()[0]}; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/simulation.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[simulation]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/simulation.stamp $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev,docs]'
	@touch $(VENV)/simulation.stamp $(VENV)/dev.stamp $@
# Flower alone goes before the installed one on the path: the rest of what it needs is there.
$(VENV)/flwr-$(FLWR)/flwr: | $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) flwr==$(FLWR)

$(VENV)/fuzz.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[fuzz]'
	@touch $@
