# make demo | demo-train | test | lint | clean: each sets up .venv by itself; python3 (>= 3.10) with venv, make
# and a package index are all that it needs.

PYTHON ?= python3
WORKERS ?= 2
TESTS ?=
PICTURES ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# One thread a process: the workers share the cores, and sums come out the same on every machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo demo-train test lint clean

help:
	@echo "make demo   reconstruct, generate and search with the models that come along; writes outputs/demo"
	@echo "            (PICTURES='a.jpg folder/' puts your own into the report)"
	@echo "make demo-train   the same from nothing, training first; writes outputs/demo-train"
	@echo "make test   all tests; WORKERS=8 for more processes, TESTS='tests/test_tokens.py -k pad' for some"
	@echo "make lint   ruff: rules and format"
	@echo "make clean  remove caches, builds and what the demos wrote (.venv and runs stay)"
	@echo "PYTHON=python3.12 chooses the python that .venv is made with."

demo: $(STAMP)
	$(BIN)/vistok demo $(PICTURES) --out outputs/demo

demo-train: $(STAMP)
	$(BIN)/vistok demo --train --out outputs/demo-train

test: $(STAMP)
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build dist outputs/demo outputs/demo-train .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamp is newer than pyproject.toml when everything that it asks for is installed.
$(STAMP): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
			echo "vistok needs Python 3.10 or newer, and '$(PYTHON)' is not;" \
				"name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV) || { \
			echo "cannot make $(VENV); on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }; }
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
