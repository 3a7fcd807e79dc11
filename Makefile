# `make demo` and `make test` each set up a fresh machine and then do their job; second runs only rebuild what changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The environment's own cmake and ninja for every install: another cmake would build everything anew.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check fix bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built
	$(BIN)/aigc-engine demo --out out

test: $(VENV)/.built-dev
	$(BIN)/python -m pytest

check: $(VENV)/.built-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

fix: $(VENV)/.built-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.built-dev
	$(BIN)/aigc-engine bench

clean:
	rm -rf build dist out *.egg-info aigc_engine/_native*.so

# torch first and alone: pinned, so that nothing below pulls another build of it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.deps: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet "setuptools>=77" wheel "pybind11>=2.13" cmake ninja numpy safetensors pillow tqdm typer rich
	touch $@

$(VENV)/.built: $(VENV)/.deps $(NATIVE_SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/.built-dev: $(VENV)/.built
	$(BIN)/pip install --quiet --no-build-isolation -e ".[dev,triton,diffusers,transformers]" $(TORCH)
	touch $@
