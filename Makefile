PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test lint bench

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

demo: $(STAMP)  ## train and evaluate on small generated series, into runs/demo
	$(BIN)/ofa-jax demo --out runs/demo

test: $(STAMP)  ## the quick tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)  ## format, lint, types, the direction of imports, and words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy ofa_jax tools
	$(BIN)/lint-imports
	$(BIN)/python tools/words.py

# torch by itself and pinned: where a CPU build of this version is on offer it is taken, without gigabytes of GPU libraries.
bench: $(STAMP)  ## compare with PyTorch and this machine's limit in ten minutes, into runs/bench.md and runs/bench.json
	@$(BIN)/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[bench]'
	$(BIN)/python tools/bench.py --json runs/bench.json --markdown runs/bench.md

# -qq: pip's warnings name the package indexes of the machine; its errors still show.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "ofa-jax needs Python 3.11 or newer; '$(PYTHON)' is missing or older. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "Installing ofa-jax and its tools into .venv (a few minutes the first time)" >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@
