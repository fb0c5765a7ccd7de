# Two commands: `make demo` runs the whole loop on the embedded default, `make test` proves it.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

# LeRobot asks for an older torch and transformers than the core: an environment of its own. Which LeRobot Python decides:
# 3.11 has 0.4.4, 3.12 and newer 0.6.1 (`make test-lerobot PYTHON=python3.12 VENV_LEROBOT=.venv-lerobot-0.6`).
VENV_LEROBOT  ?= .venv-lerobot
LEROBOT_0.4 := lerobot==0.4.4 transformers==4.57.6 transformer-lens==3.2.1
LEROBOT_0.6 := lerobot==0.6.1 transformers==5.5.4 transformer-lens==3.5.1
LEROBOT_STAMP := $(VENV_LEROBOT)/.installed

.PHONY: setup setup-lerobot setup-libero demo test test-lerobot test-libero lint clean

setup: $(STAMP)

# torch first and pinned: a bare `torch` may bring several GB of CUDA that nobody asked for.
$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "robosteer needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
	@bash tools/make-venv.sh $(PYTHON) $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps openpi-client==0.1.2  # what robots run; its own pin of numpy<2 is not needed
	bash tools/system-libraries.sh
	@touch $@

setup-lerobot: $(LEROBOT_STAMP)

$(LEROBOT_STAMP): pyproject.toml Makefile
	@bash tools/make-venv.sh $(PYTHON) $(VENV_LEROBOT)
	$(VENV_LEROBOT)/bin/python -c 'import torchvision' 2>/dev/null || $(VENV_LEROBOT)/bin/pip install --quiet torch==2.9.1 torchvision==0.24.1
	old=$$($(VENV_LEROBOT)/bin/python -c 'import sys; print(int(sys.version_info < (3, 12)))') && \
	$(VENV_LEROBOT)/bin/pip install --quiet --editable '.[lerobot]' $$([ $$old = 1 ] && echo '$(LEROBOT_0.4)' || echo '$(LEROBOT_0.6)') nnsight==0.8.1 peft==0.21.2 'pytest>=8'
	$(VENV_LEROBOT)/bin/pip check
	@touch $@

demo: setup
	$(BIN)/robosteer demo

test: setup
	$(BIN)/python -m pytest

test-lerobot: setup-lerobot
	$(VENV_LEROBOT)/bin/python -m pytest tests/lerobot

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# LIBERO needs MuJoCo below 4, so it has an environment of its own.
VENV_LIBERO ?= .venv-libero

setup-libero: $(VENV_LIBERO)/.installed

$(VENV_LIBERO)/.installed: pyproject.toml
	@bash tools/make-venv.sh $(PYTHON) $(VENV_LIBERO)
	$(VENV_LIBERO)/bin/python -c 'import torch' 2>/dev/null || $(VENV_LIBERO)/bin/pip install --quiet torch==2.13.0
	$(VENV_LIBERO)/bin/pip install --quiet --editable '.[libero]' 'pytest>=8'
	bash tools/system-libraries.sh
	@touch $@

test-libero: setup-libero
	$(VENV_LIBERO)/bin/python -m pytest tests/testbed/test_libero.py tests/steering/test_environments.py

clean:
	rm -rf $(VENV) $(VENV_LEROBOT) $(VENV_LIBERO) runs
