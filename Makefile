# Every target works on a fresh checkout: each one sets the environment up first when it has to.
PYTHON ?= python3
BIN := .venv/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: setup demo test check format bench site dist-check lock clean
.DEFAULT_GOAL := setup

setup: .venv/ready  ## a virtual environment with the train, text and dev extras

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[train,text,dev]'
	touch $@

demo: setup  ## the main job: learned soft labels on digits, 60 short runs, table, pictures and page
	$(BIN)/labelemb compare digits

test: setup  ## the tests
	$(BIN)/python -m pytest

check: setup  ## format, lint and types, nothing changed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: setup  ## the quick benchmarks; benchmarks/README.md lists all with their commands
	$(BIN)/python -m benchmarks.step_cost
	$(BIN)/python -m benchmarks.large_labels

site: setup  ## the documentation as pages, site/index.html; a broken link fails
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/build.py

EXTRAS ?= core train
dist-check: setup  ## wheel and sdist, the wheel tried in a fresh environment for each of EXTRAS
	UV=$(BIN)/uv .ci/dist-check $(EXTRAS)

lock: setup  ## constraints.txt anew; the +cpu build that some machines hold locally is no version of the lock
	$(BIN)/uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -c constraints.txt pyproject.toml -o constraints.new
	sed -E -e '/^torch==.*/d' constraints.new > constraints.txt && echo 'torch==2.13.0' >> constraints.txt
	rm constraints.new

clean:
	rm -rf .venv dist site .cache .mypy_cache .pytest_cache .ruff_cache
