# Everything runs in .venv, which `setup` makes. Paths are relative, so spaces in the path of the
# project do no harm.

# One thread per process: the same figures on every machine, and no fight for cores under xdist.
export OMP_NUM_THREADS := 1
# The caller's Python is not ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
SPEECH ?=
LM ?=
LOCK_ARGS ?=
FUZZ_SEED ?= 2
FUZZ_COUNT ?= 200

LOCK_EXTRAS := fairseq translation speech torchscale report dev
LOCK_PINS := torch==2.11.0 torchaudio==2.11.0 torchvision==0.26.0 \
	numpy cython wheel ninja 'setuptools<82' uv

.DEFAULT_GOAL := help
.PHONY: help setup test fuzz coverage demo bench lint format lock

help: ## Print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

# Ends at once when the stamp in .venv fits setup.py and requirements.lock.
setup: ## Make .venv from requirements.lock (PYTHON=... picks the interpreter)
	@bash scripts/setup.sh

test: lint ## Lint, then run the tests (PYTEST_ARGS=... is added)
	.venv/bin/python -m pytest -n 2 $(PYTEST_ARGS)

fuzz: setup ## Try random combinations of model options (FUZZ_SEED=..., FUZZ_COUNT=...)
	FUZZ_SEED=$(FUZZ_SEED) FUZZ_COUNT=$(FUZZ_COUNT) .venv/bin/python -m pytest -n 2 \
		--show-capture=stdout tests/integration/test_option_combinations.py

coverage: setup ## Run the tests and print which lines of the package they leave out
	.venv/bin/python -m pytest -n 2 --cov $(PYTEST_ARGS)

demo: setup ## Run the demo, with SPEECH=1 or LM=1 another (DEMO_ARGS=... is added)
	.venv/bin/sigma-fairseq demo $(if $(SPEECH),--speech) $(if $(LM),--lm) $(DEMO_ARGS)

bench: setup ## Time and count what σReparam costs; more of it on a GPU (BENCH_ARGS=... is added)
	.venv/bin/python -W ignore scripts/benchmark.py runs/bench --growth --generation $(BENCH_ARGS)

lint: setup ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy sigma_fairseq

format: setup ## Put the code into the project's style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock: setup ## Write requirements.lock anew from setup.py (LOCK_ARGS=--upgrade for newer versions)
	printf '%s\n' $(LOCK_PINS) | .venv/bin/uv pip compile --quiet --universal \
		--python-version 3.11 --python .venv/bin/python --annotation-style line \
		--custom-compile-command 'make lock' $(LOCK_EXTRAS:%=--extra %) $(LOCK_ARGS) \
		--output-file requirements.lock setup.py -
