# Every target sets up .venv by itself, and once: the stamp is out of date only after a change of pyproject.toml.
# Needs python3 (3.10 or later) with venv, git and make.
.DELETE_ON_ERROR:
.PHONY: demo test check lint venv fuzz clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
PYTEST_WORKERS ?= 2
FUZZ_SECONDS ?= 300

# Two test processes on two cores: each takes one thread, or they trample on one another.
test: export OMP_NUM_THREADS ?= 1

demo: $(STAMP)
	$(BIN)/structadmm demo

test: $(STAMP)
	$(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile $(TESTS)

check: lint test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Five minutes for each parser of the runner; needs clang with libFuzzer.
fuzz:
	device/runner/fuzz/run.sh $(FUZZ_SECONDS)

venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
