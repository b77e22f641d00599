# Every job by name. `make` alone lists them. A target is here when it works, not before.
SHELL := /bin/bash
CARGO ?= cargo
TRIVET := target/release/trivet
SIM := target/release/trivet-sim
TAKEOVER := target/release/trivet-takeover

.DEFAULT_GOAL := help
.PHONY: help up down demo takeovers build deb check test test-long test-vm test-hosts test-package test-upgrade test-arm64 test-container differential sim mutants bench fuzz deny clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: build ## Run it here: three replicas in var/trivet, mounted on var/mnt, exported over NFS (SIZE=100G)
	@scripts/up $(TRIVET) $(if $(SIZE),--size $(SIZE))

down: ## End what `make up` started; the data stays in var/trivet
	@scripts/down

demo: $(TAKEOVER) ## Three nodes in namespaces: lose one, kill a daemon, move; what a client sees (root)
	$(TAKEOVER) demo --trivet $(TRIVET)

takeovers: $(TAKEOVER) ## N=200 takeovers under load, checked (root; SEED=n repeats an order)
	$(TAKEOVER) takeovers --trivet $(TRIVET) --count $(or $(N),200) $(if $(SEED),--seed $(SEED))

build: ## Build target/release/trivet
	$(CARGO) build --release --locked --bin trivet

deb: $(if $(ARCH),,build) ## Build target/debian/trivet_VERSION_ARCH.deb, for this Debian and newer ones (ARCH=arm64)
	@$(if $(ARCH),deploy/deb/cross $(ARCH),deploy/deb/build $(TRIVET))

check: ## Formatting and lints, as CI has them
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) fmt --manifest-path bench/yardstick/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: ## Everything that a change must pass (says first how long; YES=1 installs what is missing unasked)
	@scripts/test

test-long: ## What takes hours: 20,000 seeds, 200 of fsx, every decoder fuzzed for 10 minutes
	$(CARGO) build --locked --bin trivet
	$(MAKE) sim SEEDS=$(or $(SEEDS),20000)
	$(MAKE) mutants
	TRIVET_FAULT_ROUNDS=140 $(CARGO) test --locked -p trivet --test faults -- --nocapture
	SEEDS=200 scripts/suites target/debug/trivet
	KILLS=20 tests/work.sh target/debug/trivet
	SECONDS_EACH=20 FIO_MB=1024 tests/stress.sh target/debug/trivet
	$(CARGO) test --locked -p trivet --test million -- --ignored --nocapture
	$(MAKE) test-vm CASES="files verify locks fight restart rpcbind fsx pjdfstest pjdfstest-nolock deaf" \
	  STEPS=600 OPS=3000 SEEDS=3
	WRITE=512 $(MAKE) test-hosts EVENTS="lose move kill-both squeeze move kill lose squeeze kill-both move lose"
	$(MAKE) differential N=200000
	$(MAKE) test-package SUITES="bookworm trixie"
	$(MAKE) test-upgrade
	$(MAKE) test-arm64
	$(MAKE) test-container
	$(MAKE) takeovers N=200
	$(TAKEOVER) takeovers --trivet $(TRIVET) --witness --count 50
	$(TAKEOVER) takeovers --trivet $(TRIVET) --only race --count 100
	$(TAKEOVER) takeovers --trivet $(TRIVET) --count 50 --beside tests/vm/takeover-client.sh \
	  --beside tests/vm/takeover-disk.sh
	$(MAKE) fuzz SECONDS=600

test-vm: ## A real Linux kernel's NFS client against `trivet up` (root; CASES="files locks ...")
	$(CARGO) build --locked --bin trivet
	$(if $(STEPS),STEPS=$(STEPS)) $(if $(OPS),OPS=$(OPS)) $(if $(SEEDS),SEEDS=$(SEEDS)) \
	  scripts/kernel-client target/debug/trivet $(CASES)

differential: ## The same random calls to ours and to nfs-ganesha, compared (root; N=calls, SEED=n)
	$(CARGO) build --locked --bins -p trivet -p trivet-differential
	tests/differential/run target/debug/trivet target/debug/trivet-differential \
	  -n $(or $(N),20000) $(if $(SEED),--seed $(SEED))

test-hosts: ## Two guests that serve the share and mount it: moved, killed, short of memory (root; EVENTS="lose move ...")
	$(CARGO) build --locked --bin trivet
	tests/vm/hosts.sh target/debug/trivet $(EVENTS)

test-package: ## Install, serve, upgrade, purge the package in a Debian of its own (root; SUITES=trixie)
	$(CARGO) build --locked --bin trivet
	SUITES="$(or $(SUITES),bookworm)" tests/package.sh target/debug/trivet

test-upgrade: ## Rolling upgrade and back from packages, under load, in three Debians (root; SUITE=trixie)
	$(CARGO) build --locked --bin trivet
	$(CARGO) build --locked -p trivet-takeover
	SUITE="$(or $(SUITE),bookworm)" tests/package-upgrade.sh target/debug/trivet target/debug/trivet-takeover

test-arm64: ## The package for arm64 from the cross compiler, its regions under QEMU's emulation
	$(CARGO) build --locked --bin trivet
	tests/arm64.sh target/debug/trivet

test-container: ## The exporter in an unprivileged LXC container, driven by the hookscript (root)
	$(CARGO) build --locked --bin trivet
	tests/container.sh target/debug/trivet

sim: $(SIM) ## Simulate the volume under faults: SEEDS=2000 worlds (FROM=n replays from n on)
	$(SIM) --seeds $(or $(SEEDS),2000) $(if $(FROM),--from $(FROM))

mutants: $(SIM) ## Switch each rule of the volume off in turn; the simulation must notice each
	$(SIM) --mutants

.PHONY: $(SIM)
$(SIM):
	$(CARGO) build --release --locked -p trivet-sim

.PHONY: $(TAKEOVER)
$(TAKEOVER):
	$(CARGO) build --release --locked --bins -p trivet -p trivet-takeover

bench: build ## Measure a volume beside its limits: three replica processes (QUICK=1 for the short form)
	@mkdir -p var
	$(TRIVET) bench volume --replicas var/bench $(if $(QUICK),--quick)

fuzz: ## Fuzz every decoder, SECONDS=60 each (TARGET=name for one)
	@FUZZ_SECONDS=$(or $(SECONDS),60) scripts/fuzz

deny: ## Advisories, licences, sources of the dependencies (needs cargo-deny and the network)
	@command -v cargo-deny >/dev/null || { \
	  echo "cargo-deny is missing: cargo install cargo-deny --locked"; exit 1; }
	$(CARGO) deny --locked check bans licenses sources
	$(CARGO) deny --locked --manifest-path bench/yardstick/Cargo.toml --config deny.toml \
	  check licenses sources
	$(CARGO) deny --locked check advisories

clean: ## Remove everything built (DATA=1: also what `make up` stored)
	@scripts/down
	$(CARGO) clean
	rm -rf fuzz/target bench/yardstick/target var/bench var/fuzz $(if $(DATA),var)
