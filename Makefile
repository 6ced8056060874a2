# mosgoat: two commands, nothing to set up by hand.
#   make demo   all three pipelines and their evaluations on small embedded models and data: runs/demo/report.html
#   make test   style, types and all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.mosgoat-installed

ifneq ($(words $(VENV)),1)
$(error VENV='$(VENV)' must be one path without spaces; the folder of the checkout may have some)
endif

.PHONY: demo test style types unit setup clean

demo: setup
	@$(BIN)/mosgoat demo --output runs/demo

test: style types unit

setup: $(STAMP)

# Each step looks at what is there, so that a setup that was interrupted is taken up where it stopped.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null || { echo "$(PYTHON) is not there; install Python 3.11 or newer (Debian, Ubuntu: apt-get install python3 python3-venv), or say where it is with PYTHON=..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mosgoat needs Python 3.11 or newer; $(PYTHON) is older (set PYTHON=...)"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv, then run make again"; exit 1; }
	@echo "== setting up $(VENV) with the pinned packages of constraints.txt (about 7 GB, a few minutes the first time)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
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
