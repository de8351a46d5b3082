.PHONY: help setup demo test test-slow test-kernels test-transformers test-vllm test-ray test-lmms test-app gpu-check lint format docs docs-serve wheel-test clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := .venv/.docs
export HF_HUB_OFFLINE = 1

help:
	@echo "make setup              create .venv and install foveate with its development tools (once)"
	@echo "make demo               a small model on drawn scenes, with and without pruning"
	@echo "make test               all tests that need neither a GPU nor vLLM nor Ray, in under 6 minutes"
	@echo "make test-slow          those of them that take long: compiled forwards, trainings in several processes"
	@echo "make test-kernels       install Triton; run the GPU kernels in its interpreter and compile them, on a CPU"
	@echo "make test-transformers  what depends on transformers, on its oldest and its newest release"
	@echo "make test-vllm          install vLLM for CPUs (once; up to 7 minutes, 3.1 GB) and test the plugin in it"
	@echo "make test-ray           install Ray (once; 0.8 GB) and test batches, evaluations and servers on a small cluster"
	@echo "make test-lmms          install lmms-eval (once; 1 minute, 0.6 GB) and run a task of its own with foveate's models"
	@echo "make gpu-check          on a GPU, in under 9 minutes: its tests, times beside their goals (DRY=1: on the CPU)"
	@echo "make test-app           install gradio (once; 0.6 GB) and test web page and report in Chromium, which must be installed"
	@echo "make lint               ruff, mypy, import-linter"
	@echo "make format             let ruff fix what it can"
	@echo "make docs               build the pages in docs/ into build/site; a broken link is an error"
	@echo "make docs-serve         show them on http://127.0.0.1:8000, built anew at every change"
	@echo "make wheel-test         build the wheel, install it elsewhere, prune a scene with it"

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "foveate needs Python 3.11 or newer; try: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/foveate demo

test: setup
	$(BIN)/python -m pytest -n 2 -m 'not gpu and not vllm and not kernels and not slow'

test-slow: setup
	$(BIN)/python -m pytest -n 2 -m 'slow and not gpu and not vllm and not kernels'

test-kernels: setup
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt triton
	$(BIN)/python -m pytest -n 2 -m kernels tests/selection tests/importance

# The environments lie outside the checkout (once: about 2 minutes, 2.2 GB; PyTorch from PyPI brings CUDA, 3 GB more).
test-transformers:
	PYTHON="$(PYTHON)" bash scripts/transformers_test.sh

# 1 GiB for keys and values, not a share of the memory; threads not tied to cores that others use, too; no C++ compiled
# for the few helpers that vLLM hands to torch.compile in spite of enforce_eager.
test-vllm: export VLLM_CPU_KVCACHE_SPACE = 1
test-vllm: export VLLM_CPU_OMP_THREADS_BIND = nobind
test-vllm: export TORCHDYNAMO_DISABLE = 1
test-vllm: export VLLM_NO_USAGE_STATS = 1
test-vllm: export DO_NOT_TRACK = 1
# In two processes: vLLM 0.32 cannot start an engine where llvmlite has been imported, as its drafts by n-grams do
# (it looks for kernels in everything that modules hold).
test-vllm:
	environment=$$(PYTHON="$(PYTHON)" bash scripts/vllm_env.sh) && \
		"$$environment/bin/python" -m pytest -m vllm tests/serving && \
		"$$environment/bin/python" -m pytest -m vllm tests/evaluation/lmms_eval

# Ray's own packages lie outside the checkout; all else is that of .venv.
test-ray: setup
	environment=$$(PYTHON="$(PYTHON)" bash scripts/ray_env.sh) && \
		OMP_NUM_THREADS=1 "$$environment/bin/python" -m pytest -m 'ray and not slow' \
			tests/serving/ray tests/evaluation tests/cli

# Needs no installation of foveate: where there is no .venv, any Python with PyTorch and transformers does.
gpu-check:
	PYTHONPATH=src $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/gpu_check.py $(if $(DRY),--dry) \
		$(if $(OUT),--out "$(OUT)")

# gradio and playwright lie outside the checkout; the browser is the system's (on Debian: apt-get install chromium).
test-app: setup
	environment=$$(PYTHON="$(PYTHON)" bash scripts/app_env.sh) && \
		OMP_NUM_THREADS=1 "$$environment/bin/python" -m pytest -m app tests/app tests/evaluation

# Likewise lmms-eval, of whose packages only those are installed that a local task needs.
test-lmms: export HF_DATASETS_OFFLINE = 1
test-lmms: setup
	environment=$$(PYTHON="$(PYTHON)" bash scripts/lmms_env.sh) && \
		OMP_NUM_THREADS=1 "$$environment/bin/python" -m pytest -m lmms tests/evaluation/lmms_eval

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(DOCS): pyproject.toml $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt --editable '.[docs]'
	touch $@

docs: export NO_MKDOCS_2_WARNING = 1
# Not --quiet: mkdocs counts only the warnings that it shows, so that nothing would fail.
docs: $(DOCS)
	$(BIN)/python -m mkdocs build --strict
	@echo "built: build/site/index.html"

docs-serve: $(DOCS)
	$(BIN)/python -m mkdocs serve

wheel-test: setup
	bash scripts/wheel_test.sh

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
