# Two commands do everything on a machine with python3, make and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Both demo and tests run on CPUs; without this, threads that spin for work slow a busy machine down.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint format docs soak lock lowest clean

demo: $(VENV)/.installed
	$(BIN)/stedm demo -o runs/demo

# Tests in two processes with one thread each: faster than one process with two on networks this small.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site: build/docs/index.html.
docs: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs

# torch and torchvision first: their wheels are large, and the project takes whichever release is there.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Kills, mutated inputs, full disks, leakage, memory: hours in all, so bounded; run it again to go on (docs/reliability.md).
MINUTES ?= 30
soak: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

# What is installed here goes into the lock, after `make test` has passed with it.
lock: $(VENV)/.installed
	$(BIN)/python -m pip check
	$(BIN)/python requirements/versions.py tested > requirements/tested.txt

# The lowest versions that pyproject.toml allows, in an environment of their own, and tests of what touches each of them.
# Not in CI: another torch is 3 GB. WITHOUT="torch torchvision" takes the newest of these.
WITHOUT ?=
LOWEST := .venv-lowest
lowest: $(VENV)/.installed
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/python requirements/versions.py lowest --without $(WITHOUT) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --editable ".[dev]" --constraint $(LOWEST)/constraints.txt
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -o filterwarnings=default $(QUICK)

# Each dependency of the package is at work in one of them.
QUICK := tests/test_cli.py tests/test_door.py tests/app/test_server.py tests/data/test_folder.py tests/diffusion/test_pipeline.py \
	tests/diffusion/test_unet.py tests/exchange tests/segmentation/test_export.py \
	tests/evaluation/test_quality.py tests/evaluation/test_report.py tests/experiment/test_quality.py tests/io \
	tests/segmentation/test_model.py tests/segmentation/test_whole_slide.py tests/slides tests/style/test_encoder.py \
	tests/training/test_tracker.py tests/training/test_trainer.py tests/workers/test_ray_pool.py

clean:
	rm -rf $(VENV) $(LOWEST) runs
