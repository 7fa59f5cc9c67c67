# run     the default study         test    the tests
# check   everything that CI does   schema  the config's schema and reference
# faults  50 seeded faults on a running study, which takes an hour; FAULTS=7-9 takes these seeds
PYTHON ?= python3
CORES ?= all
WORKERS ?= 2
FAULTS ?= 0-49
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake
STAMP := $(VENV)/.installed

.PHONY: run test check faults format schema
.DEFAULT_GOAL := run

run: $(STAMP)
	@$(SNAKEMAKE) --cores $(CORES)

test: $(STAMP)
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup

faults: $(STAMP)
	@$(BIN)/pytest tests/faults --capture no --fault-seeds $(FAULTS)

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/snakefmt --check workflow/Snakefile rules
	$(BIN)/mypy
	$(SNAKEMAKE) --lint
	$(SNAKEMAKE) --dry-run
	@$(MAKE) --no-print-directory test

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/snakefmt workflow/Snakefile rules

schema: $(STAMP)
	$(BIN)/understudy schema > workflow/schemas/config.schema.json
	sed -i '/^<!-- From here on/,$$d' config/README.md
	$(BIN)/understudy schema --markdown >> config/README.md

# The virtual environment, made anew when a pinned version changes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "understudy needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (once; some minutes, 2 GB without CUDA)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]' --constraint constraints.txt
	@touch $@
