# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: venv demo test test-all lint format bench clean

venv: $(READY)

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# --no-compile: Python compiles what it imports, which is a part of what is installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[offline,demo,test,lint]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/maskwright demo --out demo-run

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: $(READY)
	$(BIN)/python -m pytest -m "not gpu and not network"

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo-run
