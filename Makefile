# Every target makes .venv and installs what it needs first; a stamp file per set of packages keeps a second run from
# installing anything. Variables to override:
#   PYTHON=python3.12            the interpreter that .venv is made with (3.10 or later)
#   PIP_ARGS="--index-url ..."   more arguments for pip, such as the index that holds CPU-only builds of torch
#   MODEL=mobilenet_v2           the sample model of `make demo`
#   PYTEST_ARGS="-k render"      more arguments for pytest

PYTHON ?= python3
PIP_ARGS ?=
MODEL ?= pitfalls
OUT ?= profiler_out/$(MODEL)
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: help demo test test-all bench lint docs browser clean
.DEFAULT_GOAL := help

help:
	@echo "make demo [MODEL=pitfalls|mobilenet_v2|...] profile a sample model, write the page and the archive"
	@echo "make test                                 run the tests (with Chromium where it can be had)"
	@echo "make test-all                             the same and those that take minutes: whole flows, heavy sweeps"
	@echo "make lint                                 ruff and mypy --strict"
	@echo "make bench                                compare speed and memory with other tools"
	@echo "make docs                                 write docs/operators.md from the operator table"
	@echo "make clean                                remove .venv, caches and outputs"

demo: $(VENV)/.stamp-demo
	@$(BIN)/python -m profiler demo --model $(MODEL) --out $(OUT)

test: $(VENV)/.stamp-dev browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not heavy" $(PYTEST_ARGS)

test-all: $(VENV)/.stamp-dev browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check --quiet .
	@$(BIN)/python -m mypy

docs: $(VENV)/.stamp-demo
	@$(BIN)/python docs/operators.py

bench: $(VENV)/.stamp-dev
	@$(BIN)/python -m benchmarks

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-venv requirements/demo.txt pyproject.toml
	@echo "Installing requirements/demo.txt (some minutes, once)"
	@$(PIP) -r requirements/demo.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-demo requirements/dev.txt
	@echo "Installing requirements/dev.txt (once)"
	@$(PIP) -r requirements/dev.txt
	@touch $@

# Debian's browser and driver, for the tests that read the page. Where they cannot be had, those tests are skipped.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium and chromium-driver (once)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null \
			|| echo "chromium could not be installed: the browser tests are skipped"; \
	else \
		echo "chromium and chromedriver are not installed: the browser tests are skipped"; \
	fi

clean:
	rm -rf $(VENV) build dist profiler_out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
