# `make demo` and `make test` work on a machine that has Python (3.11 or newer), make and git, and nothing else.
.DEFAULT_GOAL := help
.PHONY: help install demo smoke test test-rest test-all test-oldest check docs bench

# The first interpreter that runs, is new enough and can make virtual environments; another one: `make PYTHON=... install`.
PYTHON = $(shell for python in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)
VENV := .venv
IN := $(VENV)/bin
# The tests are shared by this many processes of one thread each.
WORKERS := 2
PYTEST = $(IN)/python -m pytest -n $(WORKERS) --dist worksteal

help: ## show these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/installed ## create .venv and install everything into it

demo: install ## train on generated scenes, score, save, reload, predict: 5 minutes, see demo/REPORT.md
	$(IN)/contextseg-demo

smoke: install ## the demo in 20 training steps: does everything still run?
	$(IN)/contextseg-demo --steps 20 --output runs/smoke

test: install ## the tests that always run, within 3 minutes (no network, no GPU)
	$(PYTEST)

test-rest: install ## the tests that `make test` leaves out: the slow ones, and those that start processes
	$(PYTEST) -m "(slow or processes) and not gpu"

test-all: test test-rest ## both; those for a GPU with `.venv/bin/python -m pytest -m gpu`

test-oldest: ## the tests on the oldest versions that pyproject.toml allows
	$(MAKE) VENV=.venv-oldest CONSTRAINTS="-c constraints-oldest.txt" test

check: install docs ## formatting, lint, the rules on imports and sizes, and the documentation
	$(IN)/ruff check .
	$(IN)/ruff format --check .
	$(IN)/python -m pytest -q tests/test_layout.py

docs: install ## build the documentation; a warning is an error; open docs/_build/html/index.html
	$(IN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

bench: install ## time and memory beside transformers' models
	$(IN)/contextseg-benchmark

$(VENV)/installed: pyproject.toml $(if $(CONSTRAINTS),constraints-oldest.txt)
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv found. Install one (Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing contextseg and its dependencies into $(VENV) with $(PYTHON); this takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(IN)/python -m pip install -e ".[dev]" $(CONSTRAINTS)
	@touch $@
