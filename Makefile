# Everything a person or CI runs. Bare `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready
PROTOS := $(wildcard proto/grade/v1/*.proto)
CODE := policy stream serving grade_client simulator evaluation monitor cli benchmarks tests
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup lock proto check test demo bench

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## make the environment .venv with everything pinned

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, %s is version %d.%d. Name another: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)

$(READY): $(VENV)/bin/python requirements.lock pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9
	$(UV) pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

lock: $(VENV)/bin/python ## resolve the pins anew into requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9
	$(UV) pip compile -q --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements.lock

proto: $(READY) ## generate the message and service stubs from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=proto --mypy_out=quiet:proto --grpc_python_out=proto --mypy_grpc_out=quiet:proto $(PROTOS)
	@for f in proto/grade/v1/*_pb2_grpc.py; do grep -q '^service ' $${f%_pb2_grpc.py}.proto || rm -f $$f $${f}i; done

check: $(READY) ## format, lint, import layers, types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports
	$(BIN)/mypy

test: $(READY) ## run every test, on a real Kafka, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

demo: $(READY) ## the whole loop on this machine, with simulated users
	$(BIN)/grade demo $(ARGS)

bench: $(READY) ## how fast the parts are, beside their peers; ARGS=--full for figures to quote
	$(BIN)/grade bench $(ARGS)
