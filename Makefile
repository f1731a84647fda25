# `make train` and `make test` set everything up themselves; nothing else needs to be installed.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CONFIG ?= catch

.PHONY: setup train test test-slow lint clean

$(STAMP): pyproject.toml setup.cfg
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[atari,dmc,craftax,gymnasium,data,eval,dev]'
	@touch $@

setup: $(STAMP)

train: $(STAMP)
	$(PY) -m experiments.train --config=$(CONFIG) $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: lint
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(PY) -m pytest -m slow -s

clean:
	rm -rf $(VENV) build *.egg-info
