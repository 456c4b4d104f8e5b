# Needs only make and Python 3.11, 3.12 or 3.13; everything else goes into .venv.
# Another interpreter than python3: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint format clean
.DEFAULT_GOAL := demo

demo: .venv/.installed  ## the whole tour on the embedded data
	$(BIN)/edgeq demo

test: .venv/.installed-dev  ## the default tests, under three minutes on two cores
	$(BIN)/python -m pytest -n auto --dist loadfile

slow: .venv/.installed-dev  ## the tests that train
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow or ci_slow"

lint: .venv/.installed-dev  ## what every change must pass besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## everything that can be made again, except .venv
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache

# The stamps: installed once, and again when pyproject.toml asks for other packages.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "expected Python 3.11, 3.12 or 3.13 as '$(PYTHON)', got: $$($(PYTHON) --version 2>&1);" \
	    "install one and run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@
