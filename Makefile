# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo

.PHONY: help demo test lint clean bench-export

help:
	@echo "make demo   export FCN-32s, prove it equal to PyTorch, segment a photo with it"
	@echo "make test   run the tests"
	@echo "make lint   ruff, mypy --strict, import-linter"
	@echo "make bench-export  time and memory of an export against a plain script"
	@echo "make clean  remove .venv and build"

# Made anew only when what to install changes. The marker comes last, so that an interrupted set-up is repeated.
$(READY): pyproject.toml constraints.txt
	rm -f $(READY)
	$(PYTHON) -c 'import sys; sys.exit("fcn-deploy needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/fcn-deploy export --variant 32s --rng-seed 4 --output $(DEMO)/fcn32s --force
	$(BIN)/fcn-deploy predict $(DEMO)/fcn32s fcn_deploy/assets/astronaut.jpg --output $(DEMO)/predictions

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-export: $(READY)
	$(BIN)/python -m benchmarks.export_cost

clean:
	rm -rf $(VENV) build
