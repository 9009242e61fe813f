PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= prototypes/vae_dng
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train sample test test-full docs docs-serve lint format lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.done ## create .venv with the versions pinned in requirements.lock

# Install the pinned torch first and alone, so that no dependency pulls in another version of it.
$(VENV)/.done: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

train: setup ## train a VAE, e.g. EXPERIMENT=mp_20/vae_dng ARGS="data.batch_size=64 seed=1"
	$(BIN)/python src/train_vae.py experiment=$(EXPERIMENT) $(ARGS)

# With MP-20 in data/mp_20 (scripts/download_data.py), the nearest known crystals are shown as well.
sample: setup ## generate 100 crystals with the included model and open a page with them
	$(BIN)/python src/sample_ldm.py ckpt_path=data/mp_20_small/ldm.ckpt num_samples=100 report=true \
		$(if $(wildcard data/mp_20),known=data/mp_20) output=samples overwrite=true $(ARGS)
	-@$(BIN)/python -m webbrowser -t "file://$(CURDIR)/samples/report.html" > /dev/null 2>&1

# One thread per process: with more, the parallel test processes compete for the CPUs.
test: setup ## run the quick tests (a few minutes), e.g. ARGS="-k cif"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-full: setup ## run all tests, including the slow ones
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

docs: setup ## build the documentation in site/ for reading offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: setup ## preview the documentation live, with search
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## reformat the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Left out is what differs between the builds of torch: its own suffix, and the CUDA packages and triton,
# whose versions torch chooses itself. So the file is the same with and without a GPU.
lock: ## pin the versions now installed in .venv
	$(BIN)/python -m pip freeze --all --exclude-editable > $(VENV)/freeze.txt
	grep -vE '^(pip|triton|xtal-latent|(cuda|nvidia)-[^ ]+)( @|==)' $(VENV)/freeze.txt \
		| sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

clean: ## remove the site, build files and tool caches
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
