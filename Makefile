# packlight: `make demo` and `make test` work from a fresh clone.
#
# PYTHON       the Python 3.11 (or newer) that makes .venv
# TORCH_INDEX  where pip may find a torch without CUDA: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3.11
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODEL := .cache/models/SmolLM2-135M-Instruct
PACKAGES := exporter targets runtime

# Spinning OpenMP threads cost a factor of ten as soon as anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

.PHONY: help install demo test lint bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   install, then export the real SmolLM2-135M-Instruct within a budget, into demo/out"
	@echo "make test   install, then lint, types, layers and every test, the slow ones too"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make bench  the tables of docs/benchmarks.md (an hour on two cores, 20 GB of disk)"
	@echo "make docs   the documentation into site/"
	@echo "make clean  everything that these make, but the cache of models and tools (.cache)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

demo: $(STAMP)
	$(BIN)/python -m benchmarks.models smollm2
	$(BIN)/packlight export $(MODEL) --device raspberry-pi-5 --format gguf --quant q4_k_m \
		--context 2048 --max-memory 300MB --min-speed 10 -o demo/out --overwrite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

bench: $(STAMP)
	$(BIN)/python -m benchmarks.convert_speed
	$(BIN)/python -m benchmarks.kl_parity
	$(BIN)/python -m benchmarks.tables

docs: $(DOCS_STAMP)
	$(BIN)/python -m benchmarks.tables
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
