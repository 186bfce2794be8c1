# Two commands matter: `make demo` runs a private federation and ends with its report,
# `make test` runs everything that must hold. Both may be repeated; a second run installs nothing.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

TORCH ?= cpu
VENV ?= .venv
# The pins were made with Python 3.11, so it is the first choice. A name counts only if it starts.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3; do \
	if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$candidate; break; fi; done)

# Tests run side by side, a file at a time; WORKERS=0 runs them one after the other. Those of whole
# fleets, which are many processes with deadlines of seconds and wait more than they compute, come
# after the others, which compute all the time; FLEETS_AT_ONCE=0 gives each the machine for itself.
WORKERS ?= 2
FLEETS_AT_ONCE ?= $(WORKERS)
BY_FILE := --dist loadfile --no-loadscope-reorder
# Only files that name the mark: each worker would import all others for half a minute, for nothing.
FLEETS = $(shell grep -rl --include='test_*.py' 'mark\.fleet' tests)

BIN := $(VENV)/bin
CONSTRAINTS := constraints/$(TORCH).txt
PACKAGES := server client shared simulations
# What is installed is a function of these files; their hash is the name of the stamp.
KEY := $(shell cat pyproject.toml constraints/*.txt 2>/dev/null | cksum | cut -d' ' -f1)-$(TORCH)
DEMO_STAMP := $(VENV)/installed-demo-$(KEY)
TEST_STAMP := $(VENV)/installed-test-$(KEY)
READY := $(VENV)/created
INSTALL_LOG := $(VENV)/install.log

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

# One thread for each process: the models are small, and threads that wait for each other on a busy
# machine made a round of the quickstart four times slower (docs/log.md).
demo check fast: export OMP_NUM_THREADS ?= 1

.PHONY: help demo test check check-tests check-fleets fast lint style aarch64 aarch64-run clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

demo: $(DEMO_STAMP) ## install, run the quickstart, print its table and the path of its report
	@$(BIN)/fedslm simulate quickstart

test: $(TEST_STAMP) ## install what tests need, then lint, types, import rules and all tests
	@$(MAKE) --no-print-directory check

# Types take one core for minutes: they are checked beside the tests, with what those leave of the
# processor. What mypy says comes in one piece at the end, or before the fleets if it failed by then.
check: style ## the same without installing
	@said=$$(mktemp); nice -n 19 $(BIN)/mypy >"$$said" 2>&1 & mypy=$$!; \
	trap 'kill $$mypy 2>/dev/null; rm -f "$$said"' EXIT; \
	failed=0; typed=; \
	$(MAKE) --no-print-directory check-tests || failed=1; \
	if ! kill -0 $$mypy 2>/dev/null; then wait $$mypy; typed=$$?; fi; \
	if ((failed == 0 && $${typed:-0} == 0)); then \
		$(MAKE) --no-print-directory check-fleets || failed=1; \
	fi; \
	if [ -z "$$typed" ]; then wait $$mypy; typed=$$?; fi; \
	echo "$(BIN)/mypy"; cat "$$said"; \
	exit $$((failed || typed))

check-tests:
	$(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) --durations=40 -m "not fleet" --doctest-modules \
		--cov --cov-report=term tests $(PACKAGES)

check-fleets:
	$(BIN)/python -m pytest -n $(FLEETS_AT_ONCE) $(BY_FILE) --durations=20 -m fleet $(FLEETS)

lint: style
	$(BIN)/mypy

style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

fast: $(TEST_STAMP) ## the tests that take under two seconds each
	$(BIN)/python -m pytest -q -m "not slow and not statistical" tests

aarch64: ## resolve what an ARM board would install; fails if CUDA would come along
	@"$(PYTHON)" packaging/aarch64.py

# Debian's qemu-user-static and g++-aarch64-linux-gnu, and Linux 6.7; packaging/arm64.py says why.
ARM64 ?= build/arm64
aarch64-run: $(TEST_STAMP) ## make an ARM board in a folder, and run on it in emulation what a node does
	$(BIN)/python packaging/arm64.py make $(ARM64)
	FEDSLM_ARM64_ROOT=$(ARM64) $(BIN)/python -m pytest -q -rP --show-capture=stdout tests/aarch64/check_board.py tests/aarch64/check_fleet.py

clean: ## remove the environment and all caches; runs are kept
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage

# A test environment can run the demo too, so the demo's stamp is met by either.
ifneq ($(wildcard $(TEST_STAMP)),)
$(DEMO_STAMP):
	@touch $@
else
$(DEMO_STAMP): | $(READY)
	@$(call install,sim,the demo)
endif

$(TEST_STAMP): | $(READY)
	@$(call install,sim$(comma)ray$(comma)dev,the tests)

comma := ,

# hatchling comes first and pinned, so that the build needs no second, unpinned environment; so does
# setuptools, for the few dependencies that publish no wheel.
define install
	set -o pipefail; \
	if [ ! -f $(CONSTRAINTS) ]; then \
		echo "TORCH=$(TORCH), expected cpu or cuda." >&2; exit 2; fi; \
	echo "Installing what $(2) need into $(VENV) (once, a few minutes; log in $(INSTALL_LOG)) ..."; \
	if $(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off \
			-c $(CONSTRAINTS) hatchling editables setuptools >$(INSTALL_LOG) 2>&1 \
		&& $(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off \
			-c $(CONSTRAINTS) --no-build-isolation -e ".[$(1)]" >>$(INSTALL_LOG) 2>&1; \
	then rm -f $(VENV)/installed-*; touch $@; \
	else \
		grep -E '^(ERROR|error)' $(INSTALL_LOG) | tail -n 5 >&2; \
		if grep -q 'No matching distribution found for torch==.*+cpu' $(INSTALL_LOG); then \
			echo "pip did not find the CPU build of torch. Set PIP_EXTRA_INDEX_URL to PyTorch's" >&2; \
			echo "CPU wheel index (PyTorch's installation page names it) and run make again," >&2; \
			echo "or take the default build with several gigabytes of CUDA: make TORCH=cuda ..." >&2; \
		else echo "The installation failed; the whole log is in $(INSTALL_LOG)." >&2; fi; \
		exit 1; \
	fi
endef

$(READY):
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python of at least 3.11 was found. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "$(PYTHON) is older than Python 3.11, or does not start." >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$(PYTHON) cannot make virtual environments: its venv module is missing (Debian and Ubuntu: apt-get install python3-venv)." >&2; \
		exit 1; fi
	@"$(PYTHON)" -m venv --clear $(VENV) && touch $@
