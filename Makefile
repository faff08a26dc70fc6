# The life of this book in a few commands. `make` alone lists them.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed-robustlab

# One thread a process: the tests run in several processes, and the results of sums stay put.
export OMP_NUM_THREADS ?= 1

# Modules are compiled once: the tests start some forty processes, and compiling costs each half a minute.
unexport PYTHONDONTWRITEBYTECODE

PARALLEL  := --numprocesses auto --maxprocesses 4 --dist loadscope
PYTEST    := $(PY) -m pytest $(PARALLEL)
NOTEBOOKS := --nbval --nbval-current-env --nbval-cell-timeout 120 --nbval-sanitize-with tests/nbval.cfg

.DEFAULT_GOAL := help
.PHONY: help book pdf serve test test-full test-fast test-changed test-lowest test-newest smoke links fresh-book lab chapters \
        assignments grade leaderboard quizzes slides lint clean system system-and-browser

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*##\( .*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

book: $(STAMP)  ## build the web book from the committed chapters
	@$(PY) -m book.build

pdf: system-and-browser book  ## the book on paper: all chapters in one PDF, printed by the browser
	@$(PY) -m book.pdf

serve: book  ## build, then serve the book on http://localhost:8000
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html 8000

# The checks of style run beside the build of the book, which keeps one core busy for a minute.
test: system-and-browser $(STAMP)  ## all tests: library, chapters, book, browser
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint fresh-book
	@$(PYTEST) $(NOTEBOOKS) tests chapters

fresh-book: $(STAMP)
	@$(PY) -m book.build --fresh

test-full: PYTEST += --full
test-full: test  ## those that `make test` leaves out too: full products of cases, all suites on a pretend GPU
	@$(PY) -m pytest $(PARALLEL) --pretend-gpu tests/suite

# Without nbval, whose imports alone take each process 2.5 s, nor the files of the book and the course.
test-fast: $(STAMP)  ## the quick tests of the library: no notebooks, no browser
	@$(PYTEST) -p no:nbval -m "not slow and not notebook and not browser" tests/pretend tests/suite tests/unit

test-changed: $(STAMP)  ## the tests of the files changed since origin/main (or the last commit)
	@$(PY) tests/changed.py $(NOTEBOOKS) $(PARALLEL)

test-lowest:  ## the library's tests on the oldest versions that pyproject.toml allows
test-newest:  ## the library's tests on the newest versions that there are
test-lowest test-newest: test-%: system
	@test -x _build/$*/bin/python || $(PYTHON) -m venv _build/$*
	@_build/$*/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $$($(PYTHON) tests/versions.py $*)
	@_build/$*/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@_build/$*/bin/python -m pytest $(PARALLEL) $$($(PYTHON) tests/versions.py files)

smoke: system  ## install the library into an empty environment, and attack a model with it
	@rm -rf build _build/smoke
	@$(PYTHON) -m venv _build/smoke
	@_build/smoke/bin/python -m pip install --quiet .
	@_build/smoke/bin/python -I tests/smoke.py

links:  ## ask for every address on another host that pages, chapters and bibliography name
	@$(PYTHON) tests/links.py

lab: $(STAMP)  ## open the chapters in JupyterLab
	@$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) chapters

chapters: $(STAMP)  ## run the chapters again, in place
	@$(PY) -m book.execute

assignments: $(STAMP)  ## make the students', the instructor's and the grader's copies, with KEY=...
	@$(PY) -m assignments.build

quizzes: $(STAMP)  ## the quiz questions for a learning platform: Moodle XML and QTI
	@$(PY) -m book.quizzes

slides: $(STAMP)  ## slides of a chapter, with CHAPTER=07, or of all
	@$(PY) -m book.slides $(CHAPTER)

grade: $(STAMP)  ## grade a class, with ASSIGNMENT=02_pgd SUBMISSIONS=folder
	@$(PY) -m assignments.grade $(ASSIGNMENT) $(SUBMISSIONS)

leaderboard: $(STAMP)  ## rank the grades, with ASSIGNMENT=02_pgd
	@$(PY) -m assignments.leaderboard $(ASSIGNMENT)

lint: $(STAMP)  ## check style, imports and types
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy --no-error-summary

clean:  ## remove what was built; `rm -r .venv` removes the environment too
	rm -rf _build book/generated build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The environment. The stamp is newer than the pins as long as nothing has to be installed. In compat mode the
# environment names the folder itself, so that an editor or mypy finds the package from outside of it, too.
$(STAMP): requirements.txt constraints.txt pyproject.toml | system
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing what requirements.txt pins into $(VENV) (a few minutes, once) ..."
	@$(PY) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

system:
	@$(PYTHON) tests/system.py

system-and-browser:
	@$(PYTHON) tests/system.py --browser
