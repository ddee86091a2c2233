# Two commands do everything on a machine with python3, make and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Both demo and tests run on CPUs; without this, threads that spin for work slow a busy machine down.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint format docs soak clean

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

clean:
	rm -rf $(VENV) runs
