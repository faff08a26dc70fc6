# The life of this book in a few commands. `make` alone lists them.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed-robustlab

# One thread a process: the tests run in several processes, and the results of sums stay put.
export OMP_NUM_THREADS ?= 1

PARALLEL  := --numprocesses auto --maxprocesses 4 --dist loadscope
PYTEST    := $(PY) -m pytest $(PARALLEL)
NOTEBOOKS := --nbval --nbval-current-env --nbval-cell-timeout 120

.DEFAULT_GOAL := help
.PHONY: help book serve test test-fast test-changed lab chapters lint clean system system-and-browser

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*##\( .*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

book: $(STAMP)  ## build the web book from the committed chapters
	@$(PY) -m book.build

serve: book  ## build, then serve the book on http://localhost:8000
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html 8000

test: system-and-browser $(STAMP) lint  ## all tests: library, chapters, book, browser
	@$(PY) -m book.build --fresh
	@$(PYTEST) $(NOTEBOOKS) tests chapters

test-fast: $(STAMP)  ## the quick tests of the library: no notebooks, no browser
	@$(PYTEST) -m "not slow and not notebook and not browser" tests

test-changed: $(STAMP)  ## the tests of the files changed since origin/main (or the last commit)
	@$(PY) tests/changed.py $(NOTEBOOKS) $(PARALLEL)

lab: $(STAMP)  ## open the chapters in JupyterLab
	@$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) chapters

chapters: $(STAMP)  ## run the chapters again, in place
	@$(PY) -m book.execute

lint: $(STAMP)  ## check style and imports with ruff
	@$(PY) -m ruff check --quiet .

clean:  ## remove what was built; `rm -r .venv` removes the environment too
	rm -rf _build book/generated build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The environment. The stamp is newer than the pins as long as nothing has to be installed.
$(STAMP): requirements.txt constraints.txt pyproject.toml | system
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing what requirements.txt pins into $(VENV) (a few minutes, once) ..."
	@$(PY) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

system:
	@$(PYTHON) tests/system.py

system-and-browser:
	@$(PYTHON) tests/system.py --browser
