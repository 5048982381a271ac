# make demo   set up .venv, train and score LTS on the generated data set mini, print the table
# make test   set up .venv for development, run ruff, mypy and pytest; CI runs it and make check
# make check  hold today's code against results/baselines: metrics, masks of pinned weights, short trainings; minutes
# make slow   the tests that take minutes          make gpu    the tests that need CUDA
# make bench  speed, as ratios and seconds of this machine

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
FLOORS := whole-image,largest-object,random-object,oracle-32

.PHONY: demo test check slow gpu bench clean

demo: $(VENV)/train
	$(BIN)/risbench run --method lts --dataset mini
	$(BIN)/risbench run --method reference/$(FLOORS) --dataset mini
	$(BIN)/risbench table --dataset mini

test: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

check: export CUDA_VISIBLE_DEVICES =
check: export OMP_NUM_THREADS = 1
check: $(VENV)/train
	$(BIN)/risbench data index mini
	printf '%s\n' results/baselines/*.json | xargs -n 1 -P 2 $(BIN)/risbench check --baseline

slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

gpu: $(VENV)/dev
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/dev
	$(BIN)/python -m pytest benchmarks -m ''

$(VENV)/train: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing risbench[train] into $(VENV) (torch and its CUDA libraries: several GB, some minutes)"
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/dev: $(VENV)/train
	$(PIP) -e '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
