# Secateur. `make demo` and `make test` each do the whole set-up on a fresh machine: Python 3.11, git, make, a C++ compiler.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := prep,client,server,otel,postgres,s3,plot,dev
SETUP := $(VENV)/.setup-done
KERNEL := $(VENV)/.kernel-done
KERNEL_SOURCES := hatch_build.py $(wildcard he_runtime/kernel/CMakeLists.txt he_runtime/kernel/*.[ch]pp)
PYFHEL := $(VENV)/.pyfhel-done
ATHERIS := $(VENV)/.atheris-asked
PARSERS := codec key-set client-spec plan configuration
PYTEST_FLAGS ?= -n 2 --dist worksteal
SHARE ?= 1.0
CASES ?= 100000
FUZZ_SECONDS ?= 60

# The first of these that runs and is 3.11 or newer; 3.11 first because constraints.txt was resolved for it.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

.PHONY: help setup kernel sanitize demo test soak chaos fuzz check format pyfhel clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(KERNEL) ## create .venv and install everything, once

$(SETUP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "cannot set up: found no Python >= 3.11; try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "cannot set up: $(PYTHON) has no venv module; try installing the python3-venv package" >&2; exit 1; }
	@# The kernel is built below, with the tools that this installs, so that later builds can go on from it.
	SECATEUR_NO_KERNEL=1 $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(KERNEL): $(SETUP) $(KERNEL_SOURCES)
	$(BIN)/python hatch_build.py --optional
	@touch $@

kernel: $(SETUP) ## compile the native kernel, only what changed
	$(BIN)/python hatch_build.py
	@touch $(KERNEL)

sanitize: $(SETUP) ## run the kernel's own tests with sanitizers
	$(BIN)/python hatch_build.py --sanitize

demo: setup ## train, compress, serve and classify one encrypted digit
	$(BIN)/secateur demo

test: setup ## run every test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

soak: setup ## the service under load for a long time (about an hour; SHARE=0.02 takes minutes)
	$(BIN)/python -m benchmarks.service.together soak --share $(SHARE)

chaos: setup ## the service with faults under load (about half an hour)
	$(BIN)/python -m benchmarks.service.together chaos --share $(SHARE)

fuzz: setup $(ATHERIS) ## hostile requests to a real server, and fuzzing of every parser (CASES=2000 takes a minute)
	mkdir -p build/fuzz
	for parser in $(PARSERS); do \
	    $(BIN)/python -m tests.hostile.fuzz_parsers $$parser --seconds $(FUZZ_SECONDS) --findings build/fuzz; \
	done
	$(BIN)/python -m tests.hostile.fuzz_service --count $(CASES)

$(ATHERIS): $(SETUP)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt atheris || \
	    echo "atheris does not install here: the parsers get seeded mutations instead"
	@touch $@

check: setup ## lint, format, types, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy hatch_build.py
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

format: setup ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pyfhel: $(PYFHEL) ## build and install Pyfhel 3.5.0 from source (about four minutes)

$(PYFHEL): $(SETUP) cmake/pyfhel-seal.cmake
	CMAKE_TOOLCHAIN_FILE="$(CURDIR)/cmake/pyfhel-seal.cmake" \
	    $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt Pyfhel
	@touch $@

clean: ## remove .venv, caches and build outputs
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	rm -f he_runtime/kernel/_kernel.*.so he_runtime/kernel/absence.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
