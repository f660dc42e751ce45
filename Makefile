# tokenpool. `make help` lists the targets. You need python3 (3.11 to 3.13, with venv) and make.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PYTEST := $(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: help install reproduce protocol bench test test-all mutants lab app notebooks site slides train-default lock clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

install: $(READY)  ## create .venv from requirements.lock, once

reproduce: $(READY)  ## measure every method without finetuning: table, CSV and page in results/reproduce (4 minutes)
	$(BIN)/tokenpool reproduce

protocol: $(READY)  ## search K and finetune every method on pebbles, then write results/board.html (20 minutes)
	$(BIN)/tokenpool protocol

bench: $(READY)  ## does saving compute save time? table and page in results/bench (4 minutes)
	$(BIN)/tokenpool bench

test: $(READY)   ## lint, types, tests, every notebook as it is and as a good student leaves it (12 minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/lint_words.py
	$(BIN)/python tools/solve_notebooks.py .solved
	$(PYTEST) .solved notebooks tests tokenpool

test-all: test mutants  ## the same, what is slow, what needs a browser, and the planted mistakes (45 minutes)
	$(PYTEST) -m "slow or browser" tests

mutants: $(READY)  ## plant about a hundred mistakes, one by one: do the tests notice? (six minutes)
	$(BIN)/python tools/run_mutants.py

lab: $(READY)    ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

app: $(READY)    ## the explorers in the browser, without code; served to this machine only
	$(BIN)/tokenpool explore

notebooks: $(READY)  ## run all notebooks and save their outputs
	$(BIN)/python tools/tidy_notebooks.py

site: $(READY)   ## the course as a static site in site/, offline: notebooks, board, API (a minute)
	$(BIN)/python tools/build_site.py

slides: $(READY) ## the lecturer's slides, made from the notebooks, in slides/
	$(BIN)/python tools/make_slides.py

train-default: $(READY)  ## train the shipped model (25 minutes on two cores)
	$(BIN)/tokenpool train --preset pebbles

lock: $(READY)   ## write requirements.lock from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras -o requirements.lock

clean:           ## remove .venv, results, site and slides
	rm -rf .venv results site slides

# Written last, so that an interrupted set-up is repeated; a changed lock file or pyproject.toml makes it out of date.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Found Python {v[0]}.{v[1]}; tokenpool needs 3.11 to 3.13. Type: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "Installing the locked packages into .venv (torch is large: some minutes, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m tokenpool.core.kernels
	@touch $(READY)
