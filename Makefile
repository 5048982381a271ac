# A bare `make` prints the targets: every target's purpose stands behind ## on its line.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
ifeq ($(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME),)# as in risbench/__main__.py: threads that wait leave their cores to others
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 2000
endif
export NO_MKDOCS_2_WARNING = 1# mkdocs-material's notice about MkDocs 2, which is not used here
FLOORS := whole-image,largest-object,random-object,oracle-32

.DEFAULT_GOAL := help
.PHONY: help demo test check slow gpu bench docs graph dist clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/train ## set up .venv, train and score LTS on the generated data set mini, print the table (minutes)
	$(BIN)/risbench run --method lts --dataset mini
	$(BIN)/risbench run --method reference/$(FLOORS) --dataset mini
	$(BIN)/risbench table --dataset mini

test: $(VENV)/dev ## ruff, mypy --strict, the rules of the rooms, the documentation site, pytest: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

check: export CUDA_VISIBLE_DEVICES =
check: export OMP_NUM_THREADS = 1
check: $(VENV)/train ## compare today's metrics, masks and short trainings with results/baselines (minutes)
	$(BIN)/risbench data index mini
	printf '%s\n' results/baselines/*.json | xargs -n 1 -P 2 $(BIN)/risbench check --baseline

slow: $(VENV)/dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

gpu: $(VENV)/dev ## the tests that need CUDA
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/dev ## speed, as ratios and seconds of this machine
	$(BIN)/python -m pytest benchmarks -m ''

docs: $(VENV)/docs ## build the documentation site into site/
	$(BIN)/mkdocs build --strict --quiet

graph: $(VENV)/dev ## print the import graph: levels, circles, rooms that reach torch
	$(BIN)/python tools/import_graph.py

dist: $(VENV)/dev ## build the sdist and the wheel into dist/
	$(BIN)/python -m hatchling build

clean: ## remove .venv, site and dist, which can be made again; runs stay
	rm -rf $(VENV) site dist

$(VENV)/made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; old = sys.version_info < (3, 11); sys.exit("risbench needs Python 3.11 or newer, and $(PYTHON) is Python %d.%d: make PYTHON=python3.12 takes another one." % sys.version_info[:2] if old else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/train: $(VENV)/made
	@echo "Installing risbench[train] into $(VENV) (torch and its CUDA libraries: several GB, some minutes)"
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/dev: $(VENV)/train
	$(PIP) -e '.[train,dev,docs]'
	touch $@

$(VENV)/docs: $(VENV)/made
	$(PIP) -e '.[docs]'
	touch $@
