# `make demo` and `make test` set everything up in .venv first; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
TIMED = @bash tests/timed.sh

.PHONY: setup demo test test-fast bench reference lab clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'clip-adapter-lite needs Python 3.11 or later'"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: setup  ## the main job: four methods on three bundled banks, under five minutes on two cores
	$(BIN)/clip-adapter-lite compare

test-fast: setup  ## no notebooks, browser or grader; under five minutes
	$(TIMED) lint $(BIN)/ruff check clip_adapter_lite tests
	$(TIMED) unit-tests $(BIN)/python -m pytest -q -m "not slow" --durations=5

test: setup  ## everything
	$(TIMED) lint $(BIN)/ruff check clip_adapter_lite tests
	$(TIMED) tests $(BIN)/python -m pytest -q --durations=10
	$(TIMED) wheel bash tests/wheel.sh $(BIN)/python

bench: setup  ## speed as ratios: a table, and results/bench.json
	$(BIN)/python tests/benchmarks/bench.py

reference: setup  ## the committed reference results, again: resumable, about half an hour on two cores
	$(BIN)/python -m clip_adapter_lite.bundled.reference

lab: setup  ## open JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root)  # Jupyter refuses root without it

clean:
	rm -rf .venv build dist *.egg-info
