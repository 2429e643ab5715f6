# Two commands matter: `make serve` and `make test`. Both build .venv first, from constraints.txt (CPU).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test

.PHONY: serve test test-fast test-all bench lint clean

serve: $(STAMP)
	$(BIN)/drafthouse serve $(ARGS)

test: $(TEST_STAMP) lint
	$(BIN)/python -m pytest -q

test-fast: $(TEST_STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-all: test

bench: $(TEST_STAMP)
	$(BIN)/drafthouse bench serve $(ARGS)

lint: $(TEST_STAMP)
	$(BIN)/ruff check .

# torch first and by its exact version: that is the CPU build where pip is pointed at one, and no other
# requirement can then pull in a CUDA build of several GB
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
