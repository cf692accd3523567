# dstore: set-up, tests and the demonstration.  `make demo` and `make test` do everything
# they need on a machine that has Python >= 3.11 and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.dstore-ready
JOBS   ?= 2
FUZZ_SECONDS ?= 30
# The same in every run of CI, so that a change is judged by what it changes; make soak draws one.
FUZZ_SEED    ?= 1

.PHONY: help setup demo demo-short test check lint types contracts tidy fuzz soak bench lock proto clean

help:
	@echo 'make demo    a local network of nodes protects a real file, loses machines, serves it back'
	@echo 'make test    the test suite (under 10 minutes on 2 cores)'
	@echo 'make check   lint, types, import contracts, tidy tests, then make test'
	@echo 'make fuzz    every decoder of bytes from outside, FUZZ_SECONDS=$(FUZZ_SECONDS) each'
	@echo 'make soak    the long runs: a thousand fault schedules, fuzzing, long transfers, scale'
	@echo 'make bench   the figures of docs/performance.md'

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock .ci/setup.sh
	@sh .ci/setup.sh '$(PYTHON)' '$(VENV)'
	@touch $(STAMP)

demo: setup
	@$(BIN)/python -m benchmarks.demo

demo-short: setup
	@$(BIN)/python -m benchmarks.demo --short

test: setup
	@$(BIN)/pytest -q -n $(JOBS) --dist loadfile -m 'not soak'

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

contracts: setup
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

tidy: setup
	@$(BIN)/pytest -q tests/tidy

check: lint types contracts tidy test

# Where atheris has no wheel for the interpreter, the search goes on without coverage and says so.
fuzz: setup
	@$(BIN)/python -c 'import atheris' 2>/dev/null \
	    || $(BIN)/pip install -q --only-binary atheris -e '.[fuzz]' || true
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --jobs $(JOBS)

soak: setup
	@$(BIN)/pytest -q -m soak --timeout 3600
	@$(MAKE) fuzz FUZZ_SECONDS=600 FUZZ_SEED=$$(date +%s)

bench: setup
	@$(BIN)/pip install -q -e '.[bench]' && sh benchmarks/all.sh

# After a change of dependencies in pyproject.toml; pip and uv both read the result.
lock: setup
	@$(BIN)/pip install -q uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

# After a change of a .proto file.
proto: setup
	@cd $(CURDIR) && $(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. dstore/core/proto/*.proto

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
