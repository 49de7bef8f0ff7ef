# Every target sets up .venv by itself. PYTHON=... chooses the Python, ARGS=... goes to JupyterLab, NB=... to notebooks.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lab check ruff pyright suite gpu bench notebooks book clean

PYTHON ?= python3
NB ?= notebooks
PIP := pip==26.3
PY := .venv/bin/python
READY := .venv/.ready

# One thread in each worker: two jobs of two threads on two cores are many times slower than one. Compiled files are
# kept, whatever the shell says: some hundred processes would compile the package again.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout 300 --nbval-sanitize-with tests/nbval.cfg
# The index of the course, drawn, is what JupyterLab opens first.
INDEX := /lab/tree/README.md?factory=Markdown%20Preview

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## prune a small network in the first notebook, headless, into runs/demo/
	$(PY) -m pruninglab demo

test: ruff ## ruff, pyright, the tests, and every notebook against its committed outputs
	+@$(MAKE) --no-print-directory -j 2 pyright suite

test-all: check ## everything that `make test` runs, the long tests, branch coverage and mutation testing
	$(PYTEST) -m "slow or not slow" --cov
	$(PYTEST) $(NBVAL) -m "slow or not slow" notebooks tests/conftest.py
	OMP_NUM_THREADS=1 $(PY) tests/mutation.py

lab: $(READY) ## open the notebooks in JupyterLab
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m jupyterlab notebooks --LabApp.default_url="$(INDEX)" $(ARGS)

check: ruff pyright ## ruff and pyright only

ruff: $(READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check

pyright: $(READY)
	$(PY) -m pyright

suite: $(READY)
	$(PYTEST) $(NBVAL) notebooks tests

gpu: $(READY) ## contract, numerics and speeds on a CUDA device, into runs/gpu/report.json
	$(PY) tests/gpu/report.py

bench: $(READY) ## the speed measurements, on an otherwise idle machine
	HISTORY=1 $(PY) -m pytest tests/benchmarks -s

notebooks: $(READY) ## run all notebooks and keep their outputs, normalised (NB=notebooks/00_start.ipynb for one)
	$(PY) tests/normalise_notebooks.py --run "$(NB)"

book: $(READY) ## the course, the guide and a reference as a site, from kept outputs, into runs/book/html
	$(PY) notebooks/book/make_book.py runs/book
	@echo "Open runs/book/html/index.html"

clean: ## remove .venv and the caches; runs/ and data stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find pruninglab tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last and holds the folder it was made in: a first install that was interrupted starts afresh, a
# complete .venv is brought up to date in place when pyproject.toml changes or the folder has moved.
ifneq "$(shell cat $(READY) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(READY)
endif

USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

$(READY): pyproject.toml
	@if [ -e .venv/.unfinished ] || ! $(PY) -c '$(USABLE)' 2>/dev/null; then \
	    for python in "$(PYTHON)" python3.13 python3.12 python3.11 ''; do \
	        if [ -n "$$python" ] && "$$python" -c '$(USABLE)' 2>/dev/null; then break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "pruninglab needs Python 3.11, 3.12 or 3.13 with its venv module; $(PYTHON) --version says:" \
	            "$$("$(PYTHON)" --version 2>&1 | head -n 1). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making .venv with $$("$$python" --version)"; \
	    "$$python" -m venv --clear .venv && touch .venv/.unfinished || exit 1; \
	fi
	@echo "Installing the versions pinned in pyproject.toml into .venv: about 2 GB and 2 minutes," \
	    "more where torch comes with CUDA"
	@(while kill -0 $$$$ 2>/dev/null; do printf .; sleep 3; done) & dots=$$!; \
	    trap 'kill $$dots; echo' EXIT; trap 'exit 130' INT TERM; \
	    export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	    $(PY) -m pip install -qq '$(PIP)' && \
	    $(PY) -m pip install -qq --group pinned --editable .
	@$(PY) -m jupyterlab.labextensions disable --log-level=ERROR --level=sys_prefix "@jupyterlab/apputils-extension:announcements"
	@rm -f .venv/.unfinished
	@pwd -P > $(READY)
