# What a newcomer types: `make demo`, `make test`. Each target does its own set-up, in .venv.

# The Python that makes .venv; the extra that brings TensorRT (rtx, cu12 or cu13); the number of test
# processes; further arguments of pytest or of the benchmark.
PYTHON ?= python3
FLAVOUR ?= rtx
JOBS ?= 2
ARGS ?=

BIN := .venv/bin

.PHONY: help demo test lint format bench docs clean
.DEFAULT_GOAL := help
# pip must not install twice at once.
.NOTPARALLEL:

help:
	@echo "make demo    compile two models and check them; no GPU needed"
	@echo "make test    run the tests           (JOBS=4, ARGS='-k convolution')"
	@echo "make lint    check format, style, types and the direction of imports"
	@echo "make format  put files into the format that lint expects"
	@echo "make bench   measure against the other roads; needs a GPU (FLAVOUR=cu13, ARGS=...)"
	@echo "make docs    write the API reference to build/docs"
	@echo "make clean   remove caches and build products"

demo: .venv/installed-$(FLAVOUR),demo
	$(BIN)/python -m torch2trt.tools.demo

test: .venv/installed-$(FLAVOUR),test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: .venv/installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/installed-lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed-$(FLAVOUR),test
	$(BIN)/python -m benchmarks.run $(ARGS)

docs: .venv/installed-docs
	$(BIN)/pdoc --docformat google --output-directory build/docs torch2trt

clean:
	rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find torch2trt tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is named after the extras that were installed.
.venv/installed-%: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$*]'
	@touch '$@'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else \
	  "torch2trt needs Python 3.10 or newer, and this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "could not make .venv (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
