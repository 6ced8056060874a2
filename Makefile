# mosgoat: two commands, nothing to set up by hand.
#   make demo   all three pipelines on small embedded models and data, with a page of each
#   make test   style, types and all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.mosgoat-installed

.PHONY: demo test style types unit setup clean

demo: setup
	@$(BIN)/mosgoat demo --output runs/demo

test: style types unit

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mosgoat needs Python 3.11 or newer; $(PYTHON) is older (set PYTHON=...)"; exit 1; }
	@echo "== setting up $(VENV) with the pinned packages of constraints.txt (about 6 GB, a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,quant]' 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

style: setup
	@echo "== style: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@echo "== types: mypy"
	@$(BIN)/mypy

# One thread a test process: two processes share the cores better than two thread pools do.
unit: setup
	@echo "== tests: pytest, two processes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
