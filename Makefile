PYTHON ?= python3
BIN := .venv/bin
CODE := dicache_compile tests bench versus zoo examples docs

# Compiled code stays in the checkout, where a second run finds it.
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.cache/inductor
# Threads that spin while they wait slow each other down tenfold as soon as a core is shared.
export OMP_WAIT_POLICY ?= passive

.PHONY: bench bench-full demo models test test-all test-versus lint docs notebooks venv versions

bench: .venv/versus
	$(BIN)/python -m versus --quick

bench-full: .venv/versus
	$(BIN)/python -m versus

demo: venv
	$(BIN)/python -m bench.demo

models: venv
	$(BIN)/python -m bench.models

test: venv
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=40 --durations-min=5

test-all: venv
	$(BIN)/python -m pytest -n auto --dist worksteal -m ""

test-versus: .venv/versus
	$(BIN)/python -m pytest -n auto --dist worksteal -m "" versus/tests

notebooks: venv
	$(BIN)/python -m pytest -n auto --dist worksteal -m "" tests/use/test_notebooks.py

docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: venv
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# One row of docs/versions.md, as in `make versions PYTHON=python3.12 TORCH=2.11.0`.
versions:
	tests/versions.sh $(PYTHON) $(TORCH)

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" # the first that knows --group
	$(BIN)/python -m pip install -c constraints.txt -e . --group test --group lint --group bench --group docs
	touch $@

# What only the comparison needs.
.venv/versus: .venv/installed
	$(BIN)/python -m pip install -c constraints.txt --group versus
	touch $@
