# One command sets up, one checks, one tests; CI calls the same.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup demo test test-rotating test-faults check audit benchmarks clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/tamis demo

# Threads of torch that spin for a core would keep it from the other workers. Four of these on two cores: tests that
# wait for a process leave theirs to another.
test: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 4 --dist worksteal -m "not long"

# One part of the long tests, another each day; CI runs it after `make test`.
test-rotating: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 3 --dist worksteal -m long $$($(PYTHON) tests/rotation.py)

# Every fault and the booted machine, the long ones too: two hours or so, as root; what cannot be tried here says why.
test-faults: setup
	sh tests/faults/install_tools.sh
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "long or not long" tests/faults tests/deploy tests/real_data \
		tests/models tests/service/training tests/service/web/test_api_fuzz.py

# The bill of materials, and what of it is known to be vulnerable.
audit: setup
	$(BIN)/python -m pip install --quiet --editable '.[audit]'
	$(BIN)/python .ci/audit.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: setup
	$(BIN)/python -m tests.benchmarks.queries
	$(BIN)/python -m tests.benchmarks.throughput
	$(BIN)/python -m tests.benchmarks.latency
	$(BIN)/python -m tests.benchmarks.idle

clean:
	rm -rf $(VENV) build dist artefacts .mypy_cache .ruff_cache .pytest_cache .hypothesis
