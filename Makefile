# Every job by name. `make` alone lists them. A target is here when it works, not before.
SHELL := /bin/bash
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help build check test test-vm bench fuzz deny clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build target/release/trivet
	$(CARGO) build --release --locked --bin trivet

check: ## Formatting and lints, as CI has them
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: ## Everything that a change must pass (says first how long; YES=1 installs what is missing unasked)
	@scripts/test

bench: build ## Measure a volume beside its limits: three replica processes (QUICK=1 for the short form)
	@mkdir -p var
	target/release/trivet bench volume --replicas var/bench $(if $(QUICK),--quick)

test-vm: ## A real Linux kernel's NFS client against `trivet up` (root; CASES="files locks fight restart")
	$(CARGO) build --locked --bin trivet
	tests/vm/nfs.sh target/debug/trivet $(CASES)

fuzz: ## Fuzz every decoder, SECONDS=60 each (TARGET=name for one)
	@FUZZ_SECONDS=$(or $(SECONDS),60) scripts/fuzz

deny: ## Advisories, licences, sources of the dependencies (needs cargo-deny and the network)
	@command -v cargo-deny >/dev/null || { \
	  echo "cargo-deny is missing: cargo install cargo-deny --locked"; exit 1; }
	$(CARGO) deny --locked check bans licenses sources
	$(CARGO) deny --locked check advisories

clean: ## Remove everything built
	$(CARGO) clean
	rm -rf fuzz/target
