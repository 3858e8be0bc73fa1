# `make book` runs the whole study and builds its book; `make test` runs the tests.  Both set everything up first.
PARAMS ?= params/mini.yaml
CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin

.PHONY: book full test soak bench setup lock lint lab clean

book: .venv/done
	$(BIN)/chexreason run $(PARAMS) --cores $(CORES)

full: .venv/done
	$(BIN)/chexreason run --full $(PARAMS) --cores $(CORES)

test: .venv/done
	$(BIN)/python -m pytest -n 2 --cov=chexreason --cov-report=term

# The tests that take minutes, then ten minutes of fuzzing, and a table of it all at the end.
soak: .venv/done
	rm -f runs/soak.csv
	-$(BIN)/python -m pytest -n 2 -m soak
	-$(BIN)/python tests/fuzz.py 600
	$(BIN)/python tests/soak.py

bench: .venv/done
	$(BIN)/python tests/bench.py

setup: .venv/done

.venv/done: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lint: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: .venv/done
	$(BIN)/jupyter lab --notebook-dir . $(if $(filter 0,$(shell id -u)),--allow-root)

# What a study wrote; the environment stays.
clean:
	rm -rf runs .snakemake

# torch's own build brings what it needs for CUDA: its companions stay out of the lock, or a CPU machine downloads gigabytes.
lock:
	uv pip compile --universal --python-version 3.11 --extra test --no-emit-index-url --no-annotate --no-header \
		pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock
