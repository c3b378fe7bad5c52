# `make demo` and `make test` set everything up in .venv first; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
TIMED = @bash tests/timed.sh
PYTEST = $(BIN)/python -m pytest -q
BOTH = env OMP_NUM_THREADS=1 $(PYTEST) -n 2  # two processes of one thread each beat one of two
SITE = $(BIN)/python -m sphinx -q -E -W --keep-going -c docs . _site  # all pages anew: a second run must not forget a warning
CHECKED = clip_adapter_lite docs notebooks solutions tests

.PHONY: setup browser walls demo test test-fast bench reference notebooks colab exercises grade site lab clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'clip-adapter-lite needs Python 3.11 or later'"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

browser:  # Chromium for the widgets' and the site's tests, where it is missing and may be installed; without it they skip and say so
	@command -v chromium chromedriver >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver \
		>/dev/null; } || echo "No chromium and chromium-driver, and they could not be installed: the browser tests will skip."

walls:  # bubblewrap, behind which the grader runs submissions; on macOS, and without it, it runs them as you and says so
	@command -v bwrap >/dev/null || { apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null; } \
		|| echo "No bubblewrap, and it could not be installed: the grader's tests of its walls will skip."

demo: setup  ## the main job: four methods on three bundled banks, under three minutes on two cores
	$(BIN)/clip-adapter-lite compare

test-fast: setup  ## no notebooks, browser or grader; under five minutes
	$(TIMED) lint $(BIN)/ruff check $(CHECKED)
	$(TIMED) layers $(BIN)/lint-imports --no-cache
	$(TIMED) unit-tests $(BOTH) --dist loadfile -m "not slow and not notebook and not browser and not grader" --durations=5

test: setup browser walls  ## everything, under forty minutes; installs Chromium and bubblewrap for its tests where it may
	$(TIMED) lint $(BIN)/ruff check $(CHECKED)
	$(TIMED) layers $(BIN)/lint-imports --no-cache
	$(TIMED) unit-tests $(BOTH) --dist loadfile -m "not notebook and not browser and not grader" --durations=10
	$(TIMED) notebooks $(BOTH) --dist worksteal -m notebook --durations=5
	$(TIMED) site $(SITE)
	$(TIMED) browser $(PYTEST) -m browser
	$(TIMED) grader $(PYTEST) -m grader --durations=5
	$(TIMED) wheel bash tests/wheel.sh $(BIN)/python

bench: setup  ## speed as ratios: a table, and results/bench.json
	$(BIN)/python tests/benchmarks/bench.py

reference: setup  ## the committed reference results, again: resumable, about an hour on two cores
	$(BIN)/python -m clip_adapter_lite.making.reference

notebooks: setup  ## the notebooks from notebooks/src, executed: eight minutes
	$(BIN)/python notebooks/build.py

colab: setup  ## _colab/: the wheel and the notebooks, to upload to Google Drive once
	$(BIN)/python notebooks/build.py --colab _colab

exercises: setup  ## the nbgrader sources and the hand-out from solutions/src
	$(BIN)/python solutions/build.py

grade: setup  ## make grade SUBMITTED=dir: scores and feedback for a folder of submissions
	$(BIN)/python solutions/grade.py $(SUBMITTED)

site: setup  ## the reading site from the notebooks as they are, under a minute; warnings are errors
	$(TIMED) site $(SITE)
	@echo "Open _site/index.html in a browser; it needs no server and no network."

lab: setup  ## open JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root)  # Jupyter refuses root without it

clean:
	rm -rf .venv build dist _site _colab *.egg-info
