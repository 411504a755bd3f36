# The whole set-up: `make demo` or `make test` on a machine with Python 3.11 or later and make.
#
#   VENV=folder     the environment to use or to create (.venv)
#   PYTHON=program  the Python that creates it (the first one of at least 3.11)
#   TORCH=...       another torch, as pip names it: make demo TORCH="torch==2.11.*"
#   TORCH_INDEX=... a further package index to take torch from: see "Which torch" in README.md
#   PYTEST=...      further arguments of pytest: make test PYTEST="tests/test_layout.py -k parse"

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
PYTEST ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SAY = @printf '\n== %s\n'
HAS_TORCH = $(BIN)/python -c 'import torch; assert [int(n) for n in torch.__version__.split(".")[:2]] >= [2, 11]'
PRINT_TORCH = 'import importlib.metadata as m; print("torch==" + m.version("torch"))'

.DEFAULT_GOAL := help
.PHONY: help setup demo emoji systems test lint always
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up .venv, train the demo, write runs/demo/report.html"
	@echo "make systems train and score the toy scale of eleven systems, write docs/systems.md"
	@echo "make emoji   the same with about 1,400 emoji and their names"
	@echo "make test    set up .venv with the development tools and run the tests"
	@echo "make lint    set up likewise and run ruff"
	@echo "make setup   set up .venv only"
	@echo "Settings (VENV, PYTHON, TORCH, TORCH_INDEX, PYTEST) are explained at the top of the Makefile."

setup: $(VENV)/.unimm

demo: setup
	$(SAY) "training recipes/demo.py into runs/demo; Ctrl-C saves, the same command continues"
	$(BIN)/unimm train recipes/demo.py
	$(SAY) "scoring runs/demo on scenes and prompts it never saw"
	$(BIN)/unimm eval runs/demo
	$(SAY) "done: open runs/demo/report.html; scores are in runs/demo/report.json"

emoji: setup
	$(SAY) "training recipes/emoji.py into runs/emoji; Ctrl-C saves, the same command continues"
	$(BIN)/unimm train recipes/emoji.py
	$(SAY) "scoring runs/emoji"
	$(BIN)/unimm eval runs/emoji
	$(SAY) "done: open runs/emoji/report.html"

systems: setup
	$(SAY) "training recipes/toys/ into runs/systems, two at a time; Ctrl-C saves, the same command continues"
	$(BIN)/python -m tools.run_systems --out runs/systems --jobs 2
	$(SAY) "done: docs/systems.md, and a report.html in each folder of runs/systems/runs"

# Two workers of one thread each: threads of both would only wait for one another on two cores. A file's tests share
# what it trained, so they stay on one worker.
test: $(VENV)/.unimm-dev
	$(SAY) "running the tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -rs $(PYTEST)

lint: $(VENV)/.unimm-dev
	$(BIN)/ruff check .

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "unimm needs Python 3.11 or later, and none is on the PATH; install one or name it: make PYTHON=/path/to/python"; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than 3.11; name another: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) can't create environments; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(SAY) "creating $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that nothing after it makes pip weigh another build of it. Where pip is offered a
# CPU build of the same version it prefers that (2.13.0+cpu counts as newer than 2.13.0). A torch that is already in
# the environment and new enough is kept, unless TORCH names one. The file holds the constraints for all that follows.
$(VENV)/.torch: constraints.txt | $(BIN)/python
ifdef TORCH
	$(SAY) "installing $(TORCH)"
	$(PIP) install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
else
	@if $(HAS_TORCH) 2>/dev/null; then printf '\n== keeping the torch that is installed\n'; else \
		torch=$$(grep '^torch==' constraints.txt) && printf "\n== installing $$torch\n" && \
		$(PIP) install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$torch"; fi
endif
	@{ grep -v '^torch==' constraints.txt && $(BIN)/python -c $(PRINT_TORCH); } > $@.new
	@if test -n "$(TORCH)" && cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

ifdef TORCH
$(VENV)/.torch: always  # looked at again each time; what follows is redone only if it changed
endif

$(VENV)/.unimm: $(VENV)/.torch pyproject.toml constraints.txt
	$(SAY) "installing unimm and what it needs (a minute or two)"
	$(PIP) install -q -c $(VENV)/.torch -e .
	@touch $@

$(VENV)/.unimm-dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(SAY) "installing unimm, what it needs, and the development tools (a minute or two)"
	$(PIP) install -q -c $(VENV)/.torch -e ".[dev]"
	@touch $(VENV)/.unimm $@
