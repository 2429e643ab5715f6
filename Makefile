# Two commands matter: `make serve` and `make test`. Both build .venv first, from constraints.txt (CPU).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
TEST_STAMP := $(VENV)/.installed-test
# where the CPU build of torch is when the default index offers only the CUDA one; set it empty to skip the question
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu --retries 1

.PHONY: serve test test-fast test-all bench lint clean

serve: $(STAMP)
	$(BIN)/drafthouse serve $(ARGS)

# tests in two processes, but for those that start servers of their own and look at the clock
test: $(TEST_STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --ignore=tests/acceptance
	$(BIN)/python -m pytest -q tests/acceptance

test-fast: $(TEST_STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-all: test

bench: $(TEST_STAMP)
	$(BIN)/drafthouse bench serve $(ARGS)

lint: $(TEST_STAMP)
	$(BIN)/ruff check .

# torch first: with its CPU build in place no other requirement can pull in a CUDA build of several GB
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(TORCH_INDEX) torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(TEST_STAMP): $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
