# Verbs of this project. Each sets up what it needs; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Four more than cores: many tests wait.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(4 + (os.cpu_count() or 1))')
# Hundreds of interpreters are started by the tests: each would compile the same files.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run run-heroku-emulated demo test check proof-link proof-heroku proof-scale proof-console proof-api peers tests heroku-cli conformance soak lint format clean

help:  ## List the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

run: $(READY)  ## Serve on http://127.0.0.1:8000 with a key of your own (kept in .env)
	$(BIN)/python -m gateway quickstart

run-heroku-emulated: $(READY)  ## The Heroku path without an account: an emulated platform, a gateway on it
	$(BIN)/python -m tests.heroku_emulator.house

demo: $(READY)  ## Run the seeds' request through the whole path and show the session's story
	$(BIN)/python scripts/demo.py

test:  ## Everything: lint and all tests, against real clients and servers
	@$(MAKE) --no-print-directory --jobs=2 $(READY) peers
	@$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(READY)
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

check: lint  ## Seconds: lint, and the tests of the pure parts
	$(BIN)/python -m pytest -q tests/test_house_rules.py tests/test_docs.py tests/unit/gateway tests/link -n auto

proof-link: $(READY)  ## Break the link and kill the gateway under load; count what was lost (nothing)
	$(BIN)/python -m tests.proof.link

proof-heroku: $(READY)  ## 200 sessions on a faulty platform, ten silent minutes behind its router (15 min)
	$(BIN)/python -m tests.proof.heroku

proof-scale: $(READY)  ## 10,000 calls over three gateways, then again while they are killed and the engine restarts (8 min)
	$(BIN)/python -m tests.proof.scale

proof-console: $(READY) peers  ## What an operator does, in a real Chromium; screenshots in build/console
	$(BIN)/python -m tests.proof.console

proof-api: $(READY) peers  ## Heroku's documented endpoints, with a scripted model, real servers and a PostgreSQL
	$(BIN)/python -m tests.proof.api

peers:  # The tests need a Chromium and a PostgreSQL; where apt can, they are installed
	@missing=""; \
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || test -n "$$NO_BROWSER" || missing="chromium fonts-dejavu-core"; \
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || test -n "$$NO_POSTGRES" || missing="$$missing postgresql"; \
	test -z "$$missing" || { echo "installing $$missing (or set NO_BROWSER=1, NO_POSTGRES=1 to go without)"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; }

heroku-cli: $(READY)  ## The vendor's own command line and MCP server against the emulator (450 MB from npm)
	HEROKU_CLI_TESTS=1 $(BIN)/python -m pytest -q tests/system/test_heroku_cli.py tests/system/test_heroku_vendor.py

conformance: $(READY)  ## Run the official MCP conformance suite through the gateway, every revision
	$(BIN)/python -m tests.proof.conformance

soak: $(READY)  ## 500 sessions at full rate beside forced drops, then 3,000 lifecycles: nothing grows
	$(BIN)/python -m tests.soak.soak

lint: $(READY)  ## Format, lint, dependencies, layers, types
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/deptry . >/dev/null 2>&1 || $(BIN)/deptry .
	$(BIN)/lint-imports --no-logo 2>/dev/null | tail -1 | grep -q ' 0 broken' || $(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)  ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

clean:  ## Remove what the other verbs made, but keep .env
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage* tests/system/node/node_modules tests/heroku_emulator/node/node_modules tests/system/node_heroku/node_modules
