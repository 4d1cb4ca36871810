# Each target installs what it needs into .venv first; that is done again only when the requirements change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint format
.DELETE_ON_ERROR:

demo: $(INSTALLED)  ## one sentence in, an adapter out, the model before and after
	$(BIN)/python experiments/demo.py

test: $(INSTALLED)  ## the whole test suite, on 8 fake CPU devices
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## what a commit must pass: style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): requirements.txt requirements-dev.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
