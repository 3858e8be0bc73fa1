# `make book` runs the whole study and builds its book; `make test` runs the tests.  Both set everything up first.
PARAMS ?= params/mini.yaml
CORES ?= 2
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# uv where it could be installed, else pip: the same packages, more slowly.
# Compiled at once, as pip does: where PYTHONDONTWRITEBYTECODE is set, every process would compile all libraries again.
INSTALL := $$(test -x $(BIN)/uv && echo $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python || echo $(PIP) install) --constraint requirements.lock
TORCH = $(shell grep '^torch==' requirements.lock)

# Optional parts of the package: make setup EXTRAS=cluster
EXTRAS ?=

.PHONY: book full test coverage soak experiment bench cluster setup hooks lock lint lab clean

book: .venv/done
	$(BIN)/chexreason run "$(PARAMS)" --cores $(CORES)

full: .venv/done
	$(BIN)/chexreason run --full "$(PARAMS)" --cores $(CORES)

test: .venv/tests
	$(BIN)/python -m pytest -n 2

# The same, and which lines they reach.
coverage: .venv/tests
	$(BIN)/python -m pytest -n 2 --cov=chexreason --cov-report=term

# The tests that take minutes, then ten minutes of fuzzing, and a table of all results at the end.
soak: .venv/tests
	rm -f runs/soak.csv
	-$(BIN)/python -m pytest -n 2 -m soak
	-$(BIN)/python tests/fuzz.py 600
	$(BIN)/python tests/soak.py

# The controlled experiment (book/plan.md): some hours on two cores. Its small records go to released/.
experiment: .venv/done
	$(BIN)/chexreason run params/reward.yaml path --cores $(CORES)
	$(BIN)/chexreason release params/reward.yaml

bench: .venv/tests
	$(BIN)/python tests/bench.py

# A one-node Slurm from Debian's packages, a small study through it and without it, and a comparison of their records.
cluster: .venv/tests
	$(INSTALL) --editable '.[cluster]'
	which slurmctld slurmd munged > /dev/null || (apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge)
	$(BIN)/python tests/cluster.py

setup: .venv/done
	$(if $(EXTRAS),$(INSTALL) --editable '.[$(EXTRAS)]')

# torch comes first: uv picks the build for this machine's GPU, or the CPU build; pip takes what its index offers.
.venv/done: requirements.lock pyproject.toml
	@echo "Setting up .venv, 2.3 GB: two minutes with uv, four with pip."
	@echo "1 of 3: Python and uv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --quiet --constraint requirements.lock uv || echo "uv cannot be installed: pip does it, more slowly"
	@echo "2 of 3: torch"
	@test ! -x $(BIN)/uv || $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=auto $(TORCH) \
		|| $(PIP) install --constraint requirements.lock $(TORCH)
	@echo "3 of 3: the other packages"
	@$(INSTALL) --editable .
	@touch $@

# What only the tests, the linters and the lock need.
.venv/tests: .venv/done
	@echo "What only the tests need"
	@$(INSTALL) --editable '.[test]'
	@touch $@

hooks: .venv/tests
	$(BIN)/pre-commit install

lint: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/done
	$(BIN)/jupyter lab --notebook-dir . $(if $(filter 0,$(shell id -u)),--allow-root)

# What a study wrote; the environment stays.
clean:
	rm -rf runs .snakemake

# torch's own build brings what it needs for CUDA: its companions stay out of the lock, or a CPU machine downloads gigabytes.
lock: .venv/tests
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra test --extra cluster --no-emit-index-url --no-annotate --no-header \
		pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock
