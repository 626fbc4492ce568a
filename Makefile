# make demo: a real frontier, trained here, within minutes.    make test: lint, types, tests.
PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit interpreted machine-code format clean

help:
	@echo "make demo          train the quick recall sweep, time the quick kernels, draw the frontier"
	@echo "make test          lint, type check, tests"
	@echo "make machine-code  every variant of the GPU kernels, compiled and read without a GPU (15 minutes)"
	@echo "make format        rewrite the code in the project's style"
	@echo "make clean         remove .venv and caches (results stay)"

# The stamp is remade when what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "setuptools>=77" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: .venv/installed

demo: install
	$(BIN)/basedbench recall --sweep --suite quick --out $(RESULTS)
	$(BIN)/basedbench throughput --suite quick-throughput --out $(RESULTS)
	$(BIN)/basedbench plot pareto --results $(RESULTS) --out $(RESULTS)/pareto.png
	$(BIN)/basedbench plot throughput --results $(RESULTS) --out $(RESULTS)/throughput.png
	@echo
	@echo "Rows:    $(RESULTS)/recall and $(RESULTS)/throughput (parquet)"
	@echo "Figures: $(RESULTS)/pareto.png and $(RESULTS)/throughput.png"
	@echo "Next:    $(BIN)/basedbench --help"

test: lint types unit interpreted

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# kernels/ and suites/ stand beside the package but are imported from inside it: mypy is shown the tree as it is imported.
types: install
	@mkdir -p .venv/types/basedbench
	@ln -sfn $(CURDIR)/basedbench/* $(CURDIR)/kernels $(CURDIR)/suites .venv/types/basedbench/
	cd .venv/types && ../bin/mypy --config-file ../../pyproject.toml -p basedbench

# Three at once on two cores: many wait for processes that they start.
unit: install
	$(BIN)/python -m pytest -n 3 --dist worksteal

# The kernels' own tests by Triton's interpreter, which is chosen when Triton is imported; with a GPU `unit` ran them on it.
interpreted: install
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		echo "interpreted: left out, for there is a GPU"; \
	else \
		TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests/kernels/triton; \
	fi

# All variants of all kernels; `unit` has the usual ones.
machine-code: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m thorough tests/kernels/compiled

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
