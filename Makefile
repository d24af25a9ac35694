# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A Triton server to test packages with; there is one for Linux on x86-64 only, elsewhere these tests are skipped.
TRITON := .venv-triton
TRITON_READY := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(TRITON)/.ready)
DEMO := build/demo

BENCH := build/bench
# For bench-gpu, a folder for what it writes; for bench-gpu (fewer than 4: only the headline rows) and fuzz, minutes.
OUT ?= build/bench-gpu
MINUTES ?= 8

.PHONY: help demo test lint clean bench bench-gpu bench-export fuzz

help:
	@echo "make demo   export a small trained FCN-8s, prove it equal to PyTorch, segment a scene it never saw"
	@echo "make test   run the tests"
	@echo "make lint   ruff, mypy --strict, import-linter"
	@echo "make bench  latency of all three FCNs on this CPU beside their peers: table, JSON, page (30 minutes)"
	@echo "make bench-gpu     latency of every variant on the GPU, with the packages of \$$(PYTHON), nothing installed"
	@echo "make bench-export  time and memory of an export against a plain script"
	@echo "make fuzz   mutated files and requests for MINUTES, going on where the last run stopped (see docs/security.md)"
	@echo "make clean  remove .venv, .venv-triton and build"

# Made anew only when what to install changes. The marker comes last, so that an interrupted set-up is repeated.
$(READY): pyproject.toml constraints.txt
	rm -f $(READY)
	$(PYTHON) -c 'import sys; sys.exit("fcn-deploy needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(TRITON)/.ready: requirements-triton.txt
	rm -f $(TRITON)/.ready
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --requirement requirements-triton.txt
	touch $(TRITON)/.ready

demo: $(READY)
	$(BIN)/fcn-deploy export --variant 8s --checkpoint sample --output $(DEMO)/fcn8s --force
	$(BIN)/fcn-deploy predict $(DEMO)/fcn8s fcn_deploy/assets/scene.jpg --output $(DEMO)/predictions

test: $(READY) $(TRITON_READY)
	$(BIN)/pytest --numprocesses 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	for v in 8s 16s 32s; do $(BIN)/fcn-deploy export --variant $$v --output $(BENCH)/fcn$$v --force || exit; done
	$(BIN)/fcn-deploy bench $(BENCH)/fcn8s $(BENCH)/fcn16s $(BENCH)/fcn32s --json $(BENCH)/latency.json --markdown $(BENCH)/latency.md --report $(BENCH)/latency.html

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

# From a bare checkout: runs with whatever packages $(PYTHON) has.
bench-gpu:
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(PYTHON) -m benchmarks.gpu $(OUT) --minutes $(MINUTES)

bench-export: $(READY)
	$(BIN)/python -m benchmarks.export_cost

clean:
	rm -rf $(VENV) $(TRITON) build
