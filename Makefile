# Two commands do everything on a fresh machine: `make run` and `make test`. Each target sets up what it needs.
.DEFAULT_GOAL := help
.PHONY: help run course test test-slow test-newest test-all test-gpu bench-gpu wheels check format bench torture clean

PYTHON ?= python3
BENCH  ?=
# A folder of wheels, for a machine that has torch for its GPU and no network: `make wheels` fills it elsewhere.
WHEELS ?=
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
export OMP_NUM_THREADS_TESTS ?= 1
# One and a half a core: slow tests wait a third of their time, for other processes and for the disk.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() * 3 // 2)')

# Some of the tests: TESTS=tests/test_gpu.py
TESTS ?=
# The context of each process takes half a gigabyte of the card. Plugins of the machine's pytest stay out.
GPU_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count()))')

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dlrun needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml tests/constraints.txt
	@echo "installing dlrun into $(VENV) (torch brings several GB on Linux)"
	$(PIP) install --editable . --constraint tests/constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml tests/constraints.txt
	@echo "installing dlrun and what its tests need into $(VENV) (torch brings several GB on Linux)"
	$(PIP) install --editable '.[dev]' --constraint tests/constraints.txt
	@touch $(VENV)/.installed $@

run: $(VENV)/.installed  ## train a residual net on real handwritten digits (no download of data)
	$(BIN)/dlrun model=resnet data=digits

course: $(VENV)/.installed  ## run every lesson of the course and print its results (DLRUN_DATA_DIR names the data)
	$(BIN)/dlrun -m 'lesson=glob(*)' strict=true

test: $(VENV)/.installed-dev  ## the fast tests (minutes on two cores, by the machine)
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TESTS) $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not browser and not gpu"

test-slow: $(VENV)/.installed-dev  ## the other tests (some five times as long)
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TESTS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "(slow or browser) and not gpu"

test-newest: $(VENV)/.installed-dev  ## the fast tests with the newest versions that pyproject.toml allows
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TESTS) $(BIN)/python tests/newest.py $(VENV)-newest -n auto --dist worksteal -m "not slow and not browser and not gpu"

test-all: $(VENV)/.installed-dev  ## every test but those that need a GPU
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TESTS) $(BIN)/python -m pytest -n auto --dist worksteal -m "not gpu"

# With WHEELS the environment sees the torch of the machine, and takes all else from the folder.
ifdef WHEELS
GPU := $(VENV)-gpu
$(GPU)/.installed-gpu: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(GPU)
	$(GPU)/bin/python -m pip install --quiet --no-index --find-links $(WHEELS) --editable '.[test-gpu]'
	@touch $@
else
GPU := $(VENV)
$(GPU)/.installed-gpu: $(VENV)/.installed-dev
	$(PIP) install --editable '.[test-gpu]' --constraint tests/constraints.txt
	@touch $@
endif

wheels: $(VENV)/.made  ## fill the folder WHEELS with what test-gpu and bench-gpu need beside torch (ON="--platform ...": of another machine)
	$(BIN)/python tests/wheels.py $(WHEELS) $(ON)

test-gpu: $(GPU)/.installed-gpu  ## the tests on a GPU; WHEELS=folder where there is no network (minutes on one card and 16 cores)
	OMP_NUM_THREADS=$(OMP_NUM_THREADS_TESTS) PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(GPU)/bin/python -m pytest -p xdist -n $(GPU_WORKERS) --dist worksteal -m gpu $(TESTS)

bench-gpu: $(GPU)/.installed-gpu  ## measure speed on a GPU; WHEELS=folder where there is no network (DLRUN_DATA_DIR names the data)
	$(GPU)/bin/python tests/bench/gpu.py

check: $(VENV)/.installed-dev  ## format, lint, types, who imports whom
	$(BIN)/ruff format --check dlrun tests
	$(BIN)/ruff check dlrun tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev  ## write the format that check asks for
	$(BIN)/ruff format dlrun tests
	$(BIN)/ruff check --fix dlrun tests

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) install --editable '.[bench]' --constraint tests/constraints.txt
	@touch $@

bench: $(VENV)/.installed-bench  ## measure speed beside the peers; BENCH="resnet cnn" for some (DLRUN_DATA_DIR names the data)
	$(BIN)/python tests/bench/bench.py $(BENCH)

torture: $(VENV)/.installed-dev  ## kill 100 runs and 20 sweeps hard, resume them, compare with undisturbed ones (about 10 minutes)
	$(BIN)/python tests/torture/torture.py
	$(BIN)/python tests/torture/sweep_torture.py

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) $(VENV)-newest $(VENV)-gpu .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
