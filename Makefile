# Every target makes what it needs: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers
COLD := $(addprefix tests/nec_jax/,test_api.py test_api_errors.py test_input_bands.py) tests/train/studies/test_baselines.py

.PHONY: setup demo demo-train test test-cold test-slow test-versions test-torch parity kill fuzz lint format bench clean

setup: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(PEERS)/installed: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --group peers
	touch $@

demo: setup
	$(BIN)/python -m examples.demo

# Huge pages make training on a CPU a tenth to a third faster (docs/performance.md).
demo-train: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo-train: setup
	$(BIN)/python -m examples.demo_train

test: setup
	$(BIN)/python -m pytest

# Cold starts of what is compiled first: two workers share an empty cache of programs.
test-cold: setup
	for start in $$(seq 20); do rm -rf .pytest_cache && $(BIN)/python -m pytest $(COLD) || exit 1; done

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The coder from the wheel, without JAX, on every Python that is supported.
test-versions:
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	tests/versions.sh "$$(ls -t dist/nec_jax-*.whl | head -1)" 3.11 3.12 3.13

# The PyTorch example against JAX, and archives in PyTorch's DataLoader, in an environment without JAX.
test-torch: setup .venv-torch/installed
	NEC_TORCH_PYTHON=$(CURDIR)/.venv-torch/bin/python $(BIN)/python -m pytest tests/nec_jax/test_export.py tests/coder/archive/test_torch_loading.py

.venv-torch/installed: pyproject.toml
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --upgrade pip
	.venv-torch/bin/python -m pip install --quiet --group torch --editable .
	touch $@

# Imported models against the originals, live, with other random weights than the fixtures'.
parity: setup $(PEERS)/installed
	rm -rf runs/parity
	$(PEERS)/bin/python tests/parity/make.py runs/parity --seed 1 --every-timm
	NEC_PARITY=$(CURDIR)/runs/parity $(BIN)/python -m pytest tests/nec_jax/convert/test_parity.py

# Kills two training runs 20 times each at random moments, and encoding of archives and of a scene:
# they must end with the same bytes.
kill: setup
	$(BIN)/python tests/kill.py
	$(BIN)/python tests/kill_archive.py
	$(BIN)/python tests/kill_scene.py

# A million random mutations, then five minutes of coverage-guided fuzzing.
fuzz: setup
	$(BIN)/python -m pip install --quiet --group fuzz
	$(BIN)/python tests/fuzz/mutate.py
	$(BIN)/python tests/fuzz/coverage.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup $(PEERS)/installed
	$(BIN)/python -m benchmarks.coder --peer $(PEERS)/bin/python
	$(BIN)/python -m benchmarks.train_step --peer $(PEERS)/bin/python
	$(BIN)/python -m benchmarks.encode --peer $(PEERS)/bin/python

clean:
	rm -rf .venv .venv-* dist
