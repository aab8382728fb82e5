# `make demo` and `make test` need only Python (3.11 or newer), make and git.
.DEFAULT_GOAL := help
.PHONY: help install demo smoke test test-rest test-long test-browser test-all test-oldest check docs bench gpu-check

# The first interpreter that is new enough and can create virtual environments. To use another one: `make PYTHON=... install`.
PYTHON = $(shell for python in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)
VENV := .venv
IN := $(VENV)/bin
# Number of test processes, with one thread each.
WORKERS := 2
FIND_CHROMIUM = { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
PYTEST = $(IN)/python -m pytest -n $(WORKERS) --dist worksteal

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/installed ## create .venv and install contextseg with all dependencies

# torchao, installed for the tests, makes some versions of torch log a warning at every start.
demo smoke: export TORCH_LOGS = -torch.utils._pytree

demo: install ## train on generated scenes, score, save, reload, predict; two to five minutes; results in demo/REPORT.md
	$(IN)/contextseg-demo

smoke: install ## run the demo with 20 training steps, as a quick check
	$(IN)/contextseg-demo --steps 20 --output runs/smoke

test: install ## run the default tests; about three minutes, no network, no GPU
	$(PYTEST)

test-rest: install ## run the tests marked slow or processes, which `make test` leaves out
	$(PYTEST) -m "(slow or processes) and not long and not browser and not gpu"

test-long: install ## run the tests marked long, which take minutes and which CI leaves out
	$(PYTEST) -m "long"

test-browser: install ## drive the page of contextseg-app in a real Chromium, which is installed first where that is possible
	@$(FIND_CHROMIUM) || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y chromium; } || echo "There is no Chromium: install it (Debian, Ubuntu: apt-get install chromium)."
	$(IN)/python -m pytest -m browser tests/app

test-all: test test-rest test-long ## run all three; for tests that need a GPU: make gpu-check

test-oldest: ## run the default tests with the oldest versions that pyproject.toml allows
	$(MAKE) VENV=.venv-oldest CONSTRAINTS="-c constraints-oldest.txt" test

check: install docs ## check formatting, lint, rules on imports and sizes, and build the documentation
	$(IN)/ruff check .
	$(IN)/ruff format --check .
	$(IN)/python -m pytest -q tests/test_layout.py

docs: install ## build the documentation into docs/_build/html; warnings are errors
	$(IN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# The profiler, which measures memory, logs where it looks for GPUs.
bench gpu-check: export KINETO_LOG_LEVEL = 99

bench: install ## compare every family's time and memory with other libraries and with the recorded ratios; ten minutes
	$(IN)/python -m contextseg.benchmarks.families

gpu-check: install ## what a GPU has to show, in eight minutes: gpu tests, bf16 steps, fused attention, CamVid
	$(IN)/python -m contextseg.benchmarks.gpu_check

$(VENV)/installed: pyproject.toml $(if $(CONSTRAINTS),constraints-oldest.txt)
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv found. Install one (Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing contextseg and its dependencies into $(VENV) with $(PYTHON); this takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(IN)/python -m pip install -e ".[dev]" $(CONSTRAINTS)
	@touch $@
