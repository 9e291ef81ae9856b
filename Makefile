# `make run` and `make test` are each enough by themselves on a machine with Python (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint types contracts wheel check clean

# The main job: train a flow for phi^4, certify it, sample with it, compare with HMC, report.
# Repeating it goes on where it was stopped.
run: $(VENV)/.installed
	$(BIN)/flowmc run examples/phi4_8x8.toml --output runs/phi4_8x8 --resume

# The whole test suite, documentation examples included.
test: $(VENV)/.tested-with
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.developed-with
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.developed-with
	$(BIN)/mypy

contracts: $(VENV)/.developed-with
	$(BIN)/lint-imports

# The wheel, built, installed into an environment of its own and tested away from the checkout.
wheel: $(VENV)/.developed-with
	PYTHON=$(PYTHON) bash .ci/test-wheel $(BIN)/python

check: test lint types contracts wheel

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.tested-with: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.developed-with: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.tested-with $(VENV)/.installed
