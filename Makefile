# `make demo` and `make test` each set up a fresh machine and then do their job; second runs only rebuild what changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The environment's own cmake and ninja for every install: another cmake would build everything anew.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test fuzz check fix bench graphs sanitize test-aarch64 clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built
	$(BIN)/aigc-engine demo --out out

test: $(VENV)/.built-dev
	$(BIN)/python -m pytest

# As many random networks as find what the suite's few don't: five minutes.
fuzz: $(VENV)/.built-dev
	$(BIN)/python -m pytest --hypothesis-profile=fuzz tests/test_graph_random.py

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

# What the zoo's models are captured as, after a change of theirs or of how graphs are fused.
graphs: $(VENV)/.built-dev
	$(BIN)/python -c "from aigc_engine import zoo; from aigc_engine.planned import keep_graph; \
	  print(*filter(None, map(keep_graph, map(zoo.load, zoo.names()))), sep='\n')"

# In a copy of the package, from which the tests and their subprocesses import: the checkout's own module isn't touched.
# Leaks are off, for Python and PyTorch keep what they once allocate; libstdc++ goes along so that exceptions are seen.
# PYTHONPATH is for subprocesses that import from tests/; the copy, their working folder, comes before it.
SANITIZED := build/sanitized
SANITIZED_BUILD := build/cmake-sanitized
SANITIZED_TESTS := test_parity test_attention test_conv_int8 test_conv_tiles test_embedding test_recorded_denoiser test_linear_update test_decode test_ops_norm test_ops_random test_thread_pool test_denoise_loop
SANITIZED_ENV = PYTHONPATH=$(CURDIR) LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0

sanitize: $(VENV)/.built-dev
	rm -rf $(SANITIZED)
	$(BIN)/python setup.py -q build_py --build-lib $(SANITIZED)
	cmake -G Ninja -S . -B $(SANITIZED_BUILD) -DCMAKE_BUILD_TYPE=Release -DAIGC_CUDA=off -DAIGC_SANITIZE=address,undefined \
	  -DPython_EXECUTABLE="$(abspath $(BIN))/python" -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" \
	  -DAIGC_OUTPUT_DIR="$(abspath $(SANITIZED))/aigc_engine" -DAIGC_OUTPUT_NAME=_native.so
	cmake --build $(SANITIZED_BUILD)
	cd $(SANITIZED) && export $(SANITIZED_ENV) && \
	  $(abspath $(BIN))/python -c "import ctypes; from aigc_engine import _native; ctypes.CDLL(_native.__file__).__asan_init" && \
	  timeout 900 $(abspath $(BIN))/python -m pytest -q -p no:cacheprovider --import-mode=append -c $(CURDIR)/pyproject.toml \
	  $(SANITIZED_TESTS:%=$(CURDIR)/tests/%.py)

# Cross-compiled and emulated; tests/aarch64.sh says on what machine.
AARCH64_TESTS := test_parity test_linear_update test_ops_norm test_ops_random test_pointwise test_thread_pool test_denoise_loop

test-aarch64: $(VENV)/.built-dev
	tests/aarch64.sh build/aarch64 -q $(AARCH64_TESTS:%=tests/%.py)

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
