# `make book` runs the whole study and builds its book; `make test` runs the tests.  Both set everything up first.
PARAMS ?= params/mini.yaml
CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# uv where it could be installed, else pip: the same packages, more slowly.
INSTALL := $$(test -x $(BIN)/uv && echo $(BIN)/uv pip install --python $(BIN)/python || echo $(PIP) install) --constraint requirements.lock
TORCH = $(shell grep '^torch==' requirements.lock)

.PHONY: book full test soak bench setup hooks lock lint lab clean

book: .venv/done
	$(BIN)/chexreason run "$(PARAMS)" --cores $(CORES)

full: .venv/done
	$(BIN)/chexreason run --full "$(PARAMS)" --cores $(CORES)

test: .venv/tests
	$(BIN)/python -m pytest -n 2 --cov=chexreason --cov-report=term

# The tests that take minutes, then ten minutes of fuzzing, and a table of all results at the end.
soak: .venv/tests
	rm -f runs/soak.csv
	-$(BIN)/python -m pytest -n 2 -m soak
	-$(BIN)/python tests/fuzz.py 600
	$(BIN)/python tests/soak.py

bench: .venv/tests
	$(BIN)/python tests/bench.py

setup: .venv/done

# torch comes first: uv picks the build for this machine's GPU, or the CPU build; pip takes what its index offers.
.venv/done: requirements.lock pyproject.toml
	@echo "Installing the packages: 2.3 GB, one to four minutes the first time."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	-$(PIP) install --quiet --constraint requirements.lock uv
	test ! -x $(BIN)/uv || $(BIN)/uv pip install --python $(BIN)/python --torch-backend=auto $(TORCH) \
		|| $(PIP) install --constraint requirements.lock $(TORCH)
	$(INSTALL) --editable .
	touch $@

# What only the tests, the linters and the lock need.
.venv/tests: .venv/done
	$(INSTALL) --editable '.[test]'
	touch $@

hooks: .venv/tests
	$(BIN)/pre-commit install

lint: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: .venv/done
	$(BIN)/jupyter lab --notebook-dir . $(if $(filter 0,$(shell id -u)),--allow-root)

# What a study wrote; the environment stays.
clean:
	rm -rf runs .snakemake

# torch's own build brings what it needs for CUDA: its companions stay out of the lock, or a CPU machine downloads gigabytes.
lock: .venv/tests
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra test --no-emit-index-url --no-annotate --no-header \
		pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock
