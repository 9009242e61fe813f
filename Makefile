PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= prototypes/vae_dng
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test test-full docs docs-serve lint format lock clean

help: ## say what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.done ## make the environment in .venv, as requirements.lock pins it

# torch first and alone: what depends on it must find it there, and not bring another
$(VENV)/.done: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

train: setup ## train a VAE: EXPERIMENT=mp_20/vae_dng ARGS="data.batch_size=64 seed=1"
	$(BIN)/python src/train_vae.py experiment=$(EXPERIMENT) $(ARGS)

# a thread for each process: two that want all CPUs take turns in waiting for each other
test: setup ## run the quick tests, in minutes: ARGS="-k cif"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-full: setup ## run all tests, the slow ones too
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

docs: setup ## build the documentation in site/, which opens without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: setup ## show the documentation as one writes it, with search
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## pin what is installed in .venv now
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

clean: ## remove caches of tools and tests
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
