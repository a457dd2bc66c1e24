# Everything a newcomer or CI runs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
# libgomp reads this once, when torch is loaded: without it, waiting threads spin beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check format clean

demo: .venv/ready
	rm -rf demo-out
	$(BIN)/edge-vla demo --out demo-out

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff format --check edge_vla tests
	$(BIN)/ruff check edge_vla tests
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/ready
	$(BIN)/ruff format edge_vla tests
	$(BIN)/ruff check --fix edge_vla tests

.PHONY: .venv
.venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
