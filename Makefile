# Every target sets up what it needs and reuses what is there. PYTHON=python3.12 make test takes another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo test test-device-code test-mutants lint types format wheels compare benchmarks figures clean
help:
	@echo "make demo        set up, then train, evaluate and plot on the embedded data (minutes)"
	@echo "make test        set up, then run all tests (minutes)"
	@echo "make test-device-code  GPU code compiled without a GPU against docs/kernel_budgets.md; address sanitizer (minutes)"
	@echo "make test-mutants  small mistakes planted into the kernels, one at a time, must be noticed (a tenth; FULL=1: all)"
	@echo "make compare     natural, PGD and SENSE over three seeds; rewrites the README's table (resumes when stopped)"
	@echo "make benchmarks  kernels beside eager torch and torch.compile, attacks beside other libraries and plain loops"
	@echo "make lint types  ruff and mypy;  make format  rewrites the code"
	@echo "make wheels      two wheels, with and without the extension, each installed and tested on its own"
	@echo "make figures     the README's picture"

# torch first, by itself: the build of the extension must see the very torch that will load it
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV): torch, test tools and plots"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools ninja
	@touch $@

# the package without its extension, which is built beside it: there a second build compiles what has changed
$(VENV)/.package: $(VENV)/.installed setup.py
	FASTSAL_NO_EXT=1 $(PIP) --no-build-isolation --editable '.[plots,images,test,bench]'
	@touch $@

$(VENV)/.built: $(VENV)/.package $(SOURCES)
	@echo "building fastsal (minutes; after a change of a source, what depends on it)"
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.tools: $(VENV)/.built
	$(PIP) ruff mypy
	@touch $@

setup: $(VENV)/.built

demo: setup
	$(BIN)/fastsal train --data fashion-mnist-mini --model small-cnn --method sense --c 0.5 --eps 0.1 --epochs 6 \
	  --out runs/demo --overwrite

test: setup
	$(BIN)/python -m pytest -n auto

test-device-code: setup
	$(BIN)/python -m tools.budgets --check
	$(BIN)/python -m pytest -m device_code -n auto

test-mutants: setup
	$(BIN)/python -m tools.mutants $(if $(FULL),,--share 0.1 $(wildcard csrc/rows/*.h csrc/cuda/*.cuh))

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tools
	$(BIN)/mypy

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheels: setup
	tools/test_wheels $(BIN)/python

compare: setup
	$(BIN)/python -m benchmarks.compare --readme README.md

benchmarks: setup
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

figures: setup
	$(BIN)/python examples/three_gaussians.py --out docs/three_gaussians.png

clean:
	rm -rf build dist *.egg-info fastsal/*.so runs/demo
