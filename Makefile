# make serve: set up, train the default classifier, serve it on port 3000.
# make test:  set up, run the tests (what CI runs).
# make docs:  set up, build the documentation into site/.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PORT ?= 3000
BIN := .venv/bin
READY := .venv/.ready
UV_VERSION := $(shell sed -n 's/^uv==\([^ ;]*\).*/\1/p' requirements.lock)
export UV_HTTP_TIMEOUT ?= 300

.PHONY: setup serve test docs lint lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "error: Python >= 3.11 is needed; set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Serves what was promoted as "digits" before, if anything was.
serve: $(READY)
	@test -f "$${PARITYLINE_STORE:-artifacts/store}/digits/promoted" || $(BIN)/parityline train digits
	PARITYLINE_BUNDLE=$${PARITYLINE_BUNDLE:-digits} $(BIN)/bentoml serve --port $(PORT)

# Where no bytecode is to be written, each of the tests' many processes would compile what it
# imports anew: half of the time.
test: export PYTHONDONTWRITEBYTECODE :=
test: lint
	$(BIN)/python -m pytest

# The note that it would print is about a later mkdocs than the lock's.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml
	@echo "site/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# After a change of dependencies. Versions and hashes only: the index is each machine's own.
# Those in serving/ are what a Bento installs: pyarrow and typer are for scoring and the command
# line, and a machine without a GPU needs no onnxruntime-gpu, which is five times as large.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock"
COMPILE_SERVING := $(COMPILE) --extra serve --constraint requirements.lock
lock:
	$(COMPILE) --all-extras --group dev pyproject.toml -o requirements.lock
	printf 'pyarrow\ntyper\n' | $(COMPILE_SERVING) --excludes /dev/stdin \
		pyproject.toml -o serving/requirements.lock
	printf 'pyarrow\ntyper\nonnxruntime-gpu\n' | $(COMPILE_SERVING) --excludes /dev/stdin \
		pyproject.toml serving/requirements-cpu.in -o serving/requirements-cpu.lock
	printf 'pyarrow\ntyper\n' | $(COMPILE_SERVING) --excludes /dev/stdin --extra torch \
		pyproject.toml -o serving/requirements-torch.lock

clean:
	rm -rf .venv dist site .pytest_cache .mypy_cache .ruff_cache
