# Two commands: `make demo` runs the whole loop on the embedded default, `make test` proves it.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test lint clean setup-libero test-libero

setup: $(STAMP)

# torch first and pinned: a bare `torch` may bring several GB of CUDA that nobody asked for.
$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "robosteer needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps openpi-client==0.1.2  # what robots run; its own pin of numpy<2 is not needed
	bash tools/system-libraries.sh
	@touch $@

demo: setup
	$(BIN)/robosteer demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# LIBERO needs MuJoCo below 4, so it has an environment of its own.
LIBERO := .venv-libero

setup-libero: $(LIBERO)/.installed

$(LIBERO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LIBERO)
	$(LIBERO)/bin/python -c 'import torch' 2>/dev/null || $(LIBERO)/bin/pip install --quiet torch==2.13.0
	$(LIBERO)/bin/pip install --quiet --editable '.[libero]' 'pytest>=8'
	bash tools/system-libraries.sh
	@touch $@

test-libero: setup-libero
	$(LIBERO)/bin/python -m pytest tests/testbed/test_libero.py tests/steering/test_environments.py

clean:
	rm -rf $(VENV) runs
