# Everything from a fresh clone: `make train` shows the demo, `make test` proves the project. Both set up .venv first.
PYTHON ?= python3
# torch's own index offers builds for each CUDA version; TORCH="torch==2.13.0 --index-url ..." takes one of them.
TORCH ?= torch==2.13.0
CONFIG ?= ds_configs/zero2.json
RANKS ?= 1
FUZZ ?= 2000
# Test files run in this many processes at once; FLAGS="-n 0" runs them in one.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The launcher and ninja must be found by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup train chain test test-all bench gpu-check docs lint types check clean
.DEFAULT_GOAL := help

help:
	@echo "make train   the demo: deepspeed launch/train_dpo.py --deepspeed $(CONFIG)"
	@echo "make chain   pretraining, fine-tuning and DPO of a new small model, with answers before and after each"
	@echo "make test    unit, parity, distributed and fault tests, as CI runs them"
	@echo "make test-all  the same and the long tests: more configurations, 20 kills, more fuzzing"
	@echo "make bench   speed and memory against MiniMind's loop and TRL, in one run"
	@echo "make gpu-check  accepts a GPU: parity, attention, experts, ZeRO, resume, speed; one page in ten minutes"
	@echo "make check   lint, types and tests"

setup: $(READY)

# Bytecode is compiled on all cores, where pip would use one. Some packages have templates that are no Python.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile $(TORCH)
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(READY)

train: setup
	deepspeed --num_gpus $(RANKS) launch/train_dpo.py --deepspeed $(CONFIG) $(FLAGS)

chain: setup
	python launch/chain.py $(FLAGS)

# Each worker takes whole files, so that the fixtures of a file are made once. One thread a worker: the threads of several
# workers would wait for each other's cores. Python may keep its byte code, or every launch would compile it anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) $(FLAGS)

# MINIMIND_FUZZ: new damaged files for each fuzz test.
test-all: setup
	MINIMIND_FUZZ=$(FUZZ) $(PYTEST) --long $(FLAGS)

bench: setup
	-pip install --quiet --editable ".[bench]"
	python -m tests.benchmarks.bench $(FLAGS)

# Without .venv it uses PYTHON, which needs the packages: machines with GPUs often have no internet to install them.
gpu-check:
	$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m tests.gpu.check

docs: setup
	python -m tests.docs

lint: setup
	ruff check .
	ruff format --check .

types: setup
	mypy

# Types beside the tests, which leave a core idle while ranks wait.
check: lint
	$(MAKE) --no-print-directory -j2 types test

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
