# The README's two commands are `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: build demo test test-cpp lint format bench clean

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

test: build test-cpp
	$(BIN)/python -m pytest

test-cpp: $(VENV)/.installed
	@mkdir -p build/cpp
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/cpp -G Ninja -DGANCOMP_TESTS=ON >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/cpp >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/cpp --output-on-failure

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

bench: build
	$(BIN)/python -m pytest benchmarks --benchmark-columns=min,median,rounds

clean:
	rm -rf build dist *.egg-info gancomp/lib gancomp/*.so
