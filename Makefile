# The README's two commands are `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: build demo test test-cpp test-sanitize lint format bench bench-cpu bench-train bench-cpu-quick bench-candidate bench-loader \
	photographs docs-performance gpu-check clean

build: $(VENV)/.built

# torch first and pinned: an open range may bring gigabytes of accelerator packages.
$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gancomp needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) setuptools wheel cmake ninja pybind11 nlohmann-json
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(PIP) --no-build-isolation --editable '.[dev,log]'
	@touch $@

demo: build
	$(BIN)/gancomp demo

test: build test-cpp test-sanitize
	$(BIN)/python -m pytest

# $(call cpp,FOLDER,OPTIONS): configures, builds and runs the C++ tests.
define cpp
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/$(1) -G Ninja -DGANCOMP_TESTS=ON $(2) >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/$(1) -- --quiet
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/$(1) --output-on-failure
endef

test-cpp: $(VENV)/.installed
	$(call cpp,cpp)

# Or `make test-sanitize SANITIZE=thread`.
SANITIZE := address;undefined
test-sanitize: $(VENV)/.installed
	$(call cpp,sanitize-$(firstword $(subst ;, ,$(SANITIZE))),-DGANCOMP_FUZZ=ON '-DGANCOMP_SANITIZE=$(SANITIZE)')

CPP_FILES := find csrc tests/cpp tests/cuda tests/fuzz examples -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CPP_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CPP_FILES) | xargs $(BIN)/clang-format -i

bench: build
	$(BIN)/python -m pytest benchmarks -q --benchmark-columns=min,median,rounds --csv benchmarks/results/ops-cpu.csv
	$(BIN)/python -m benchmarks.plot benchmarks/results/ops-cpu.csv docs/images/ops-cpu.png

# Whole networks against other runtimes: about 25 minutes, on a machine that does nothing else.
bench-cpu: $(VENV)/.bench
	$(BIN)/python -m benchmarks.cpu --csv benchmarks/results/cpu.csv
	$(BIN)/python -m benchmarks.page

# A training step of the supernet against stock PyTorch: about 8 minutes, on a machine that does nothing else.
bench-train: build
	$(BIN)/python -m benchmarks.supernet_step --threads 1,2 --csv benchmarks/results/supernet.csv
	$(BIN)/python -m benchmarks.training_page

# One of them, for a look: nothing is written.
bench-cpu-quick: $(VENV)/.bench
	$(BIN)/python -m benchmarks.cpu --quick

# The images of a released generator on real photographs, in every precision of the engine: a minute.
photographs: build
	$(BIN)/python -m benchmarks.photographs --csv benchmarks/results/photographs.csv --picture docs/images/engine-horse2zebra.jpg

# A candidate of a search against stock PyTorch: about 12 minutes, on a machine that does nothing else.
bench-candidate: build
	$(BIN)/python -m benchmarks.candidate --csv benchmarks/results/candidate.csv

# The data loader beside a training step: two minutes.
bench-loader: build
	$(BIN)/python -m benchmarks.loader --csv benchmarks/results/loader.csv

docs-performance: build
	$(BIN)/python -m benchmarks.page

# On a machine that has a GPU, a torch for CUDA, nvcc, cmake and pybind11, and neither network nor pip: builds in place, runs the
# tests that need a GPU, measures, and writes gpu.csv and gpu.md to OUT. PYTHON is the one with torch. Under 8 minutes.
OUT ?= benchmarks/results
GPU_ARCHS = $(shell $(PYTHON) -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))')
gpu-check:
	cmake -S . -B build/gpu $(if $(shell command -v ninja),-G Ninja) -DGANCOMP_PYTHON=ON -DGANCOMP_ENGINE=OFF -DGANCOMP_CUDA=1 \
	  "-DGANCOMP_CUDA_ARCHS=$(GPU_ARCHS)" "-DGANCOMP_OUTPUT=$(CURDIR)/gancomp" \
	  "-DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)')" \
	  "-Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir)"
	cmake --build build/gpu --parallel
	failed=0; $(PYTHON) -m pytest -q -m gpu tests/cuda tests/kernels || failed=1; \
	  $(PYTHON) -m benchmarks.gpu --out "$(OUT)" || failed=1; exit $$failed

$(VENV)/.bench: $(VENV)/.built
	$(PIP) onnx onnxruntime onnxscript openvino
	@touch $@

clean:
	rm -rf build dist *.egg-info gancomp/lib gancomp/*.so
