PYTHON ?= python3
BIN := .venv/bin
CODE := dicache_compile tests bench

# Compiled code stays in the checkout, where a second run finds it.
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.cache/inductor
# Threads that spin while they wait slow each other down tenfold as soon as a core is shared.
export OMP_WAIT_POLICY ?= passive

.PHONY: bench bench-full demo models test test-all lint venv

bench: venv
	$(BIN)/python -m bench.versus --quick

bench-full: venv
	$(BIN)/python -m bench.versus

demo: venv
	$(BIN)/python -m bench.demo

models: venv
	$(BIN)/python -m bench.models

test: venv
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: venv
	$(BIN)/python -m pytest -n auto --dist worksteal -m ""

lint: venv
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" # the first that knows --group
	$(BIN)/python -m pip install -c constraints.txt -e . --group test --group lint --group bench
	touch $@
