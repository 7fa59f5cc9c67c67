# run     the default study         test    the tests
# check   formats, types, tests     schema  the config's schema and reference
# slurm   studies through a SLURM cluster that is started here (root only)   nightly  all that CI has no time for
# faults  85 seeded faults on a running study, 51 of them signals that end a process; FAULTS=7-9 takes these seeds
# kubernetes  a dry run with that profile
# emulated  the tests for GPUs on CUDA devices that the CPU emulates (needs g++); on a real one: pytest tests/gpu
# `make run PROFILE=slurm` submits jobs instead of running them: see workflow/profiles/README.md
PYTHON ?= python3
CORES ?= all
WORKERS ?= 2
MARKED ?= not slurm and not nightly
SLURM ?= slurm
FAULTS ?= 0-84
EMULATED ?= tests/gpu tests/unit/test_train_sharding.py
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake
STAMP := $(VENV)/.installed

PROFILE ?=
EXTRA := $(VENV)/.installed-

.PHONY: run test check slurm kubernetes emulated nightly faults format schema
.DEFAULT_GOAL := run
.SECONDARY:  # or make would remove the stamps of extras

run: $(STAMP) $(if $(PROFILE),$(EXTRA)$(PROFILE))
	@$(SNAKEMAKE) $(if $(PROFILE),--workflow-profile workflow/profiles/$(PROFILE),--cores $(CORES))

test: $(STAMP)
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist loadscope -m '$(MARKED)'

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

slurm: extra-slurm
	@$(BIN)/pytest --numprocesses 2 --dist loadscope -m '$(SLURM)' tests/slurm

kubernetes: extra-kubernetes
	@$(BIN)/python -c 'import snakemake_executor_plugin_kubernetes, snakemake_storage_plugin_fs'
	@$(BIN)/pytest tests/workflow/test_kubernetes.py

emulated: $(STAMP)
	@EMULATED_GPUS=4 PYTHONPATH=$(CURDIR)/tests/gpu/emulation $(BIN)/pytest --numprocesses $(WORKERS) $(EMULATED)

nightly: $(STAMP)
	@$(BIN)/pytest -m 'nightly and not slurm'
	@$(MAKE) --no-print-directory emulated faults
	@[ "$$(id -u)" != 0 ] || $(MAKE) --no-print-directory slurm

extra-%: $(EXTRA)%
	@:

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

# What a profile needs beside it: the executor, which would make every other start of Snakemake slower.
$(EXTRA)%: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]' --constraint constraints.txt
	@touch $@
