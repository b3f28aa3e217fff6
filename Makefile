# rsd: `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check crash reliability bench example install uninstall venv venv-dev

help:
	@echo "make demo      the whole job on this machine, simulated: no GPU, no key"
	@echo "make test      all tests (a few minutes)"
	@echo "make check     ruff and mypy"
	@echo "make crash     kill every process again and again, and count (N=80 kills, or MINUTES=10; SEED=1; ADAPTIVE=1)"
	@echo "make reliability   every test that injects a fault, and docs/reliability.md from what they saw (an hour)"
	@echo "make bench     benchmarks, by hand"
	@echo "make install IMAGES=DIR OUTPUT=DIR [USER=rsd] [KEYFILE=FILE] [PREFIX=/opt/rsd]   the systemd service (root)"
	@echo "make uninstall takes the service away; configuration and results stay"

$(VENV)/made: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rsd needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/made-dev: $(VENV)/made requirements-dev.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

venv: $(VENV)/made

venv-dev: $(VENV)/made-dev

demo: venv
	@$(BIN)/python daemon.py demo

test: venv-dev
	@$(BIN)/python -m pytest -q -m "not slow"

check: venv-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/mypy

crash: venv-dev
	@$(BIN)/python -m tests.crash.soak $(if $(ADAPTIVE),--adaptive) $(if $(MINUTES),--minutes $(MINUTES),--kills $(or $(N),80)) --seed $(or $(SEED),1)

# Everything that injects a fault, and the table of what came of it.
reliability: venv-dev
	@rm -rf .evidence && mkdir .evidence
	@RSD_EVIDENCE=$(CURDIR)/.evidence $(BIN)/python -m pytest -q tests/crash tests/integration tests/unit/test_scores_corpus.py tests/unit/test_question.py
	@RSD_EVIDENCE=$(CURDIR)/.evidence $(BIN)/python -m tests.fuzz_scores --seconds 120
	@RSD_EVIDENCE=$(CURDIR)/.evidence $(BIN)/python -m tests.crash.soak --kills $(or $(N),1000)
	@RSD_EVIDENCE=$(CURDIR)/.evidence $(BIN)/python -m tests.crash.soak --kills $(or $(N),300) --adaptive
	@$(BIN)/python -m tests.evidence .evidence > docs/reliability.md

# Those that need a server of yours say so at their head.
BENCHMARKS := $(filter-out benchmarks/bench_caches.py,$(sort $(wildcard benchmarks/bench_*.py)))

bench: venv-dev
	@for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python $$script || exit 1; done
	@echo "Others in benchmarks/ need arguments; each says which at its head."

example: venv
	@$(BIN)/python -c 'from rsd.settings.words import example; print(example(), end="")' > rsd.example.toml

# USER counts only when it is given here: the environment always has one
SERVICE_USER := $(if $(findstring command,$(origin USER)),$(USER),rsd)

install:
	@SERVICE_USER="$(SERVICE_USER)" PYTHON="$(PYTHON)" bash systemd/install.sh install

uninstall:
	@SERVICE_USER="$(SERVICE_USER)" bash systemd/install.sh uninstall
