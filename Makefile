# `make` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test test-deps fmt lint doc bench fuzz fuzz-short mutants sanitize

# How long `make fuzz` explores with each target.
SECONDS := 60

# What the tests may open: as much as most shells and containers give a process. Where less is to be had, less.
FILES := 1024

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The tests from outside that run a second time, with epoll: of what crosses the clients' sockets, and of how a driver starts,
# accepts and ends. The result of the others can't depend on the driver: they are about Redis, the operators' HTTP, tools, key
# sets, files, output and documents, or about what shards do above every driver. (By name: `-p tidegate-tests` would build all
# dependencies again, with fewer features.)
ON_EPOLL := addresses admission codes drain drivers fronts limits metrics overload recovery resume rooms rules sessions signals start wires

# The tests come last, so that their result is what one sees: with io_uring, where it can be had, and with a small limit of
# open files; then those above with epoll and the shell's own limit.
test: test-deps fmt lint doc fuzz-short ## Everything that has to pass before a commit
	ulimit -n $(FILES) || true; cargo test --workspace
	TIDEGATE_DRIVER=epoll cargo test --workspace $(ON_EPOLL:%=--test %)

test-deps: ## Install what the tests need, where it is missing
	scripts/install-test-deps

fmt: ## Check the format; without --check, cargo corrects it
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check

lint: ## Clippy, with warnings as errors
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## Build the documentation, with warnings as errors
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

bench: ## Measure the gateway against the bare floors
	cargo run --release -p tidegate-benches --bin compare

fuzz: ## Fuzz each target for SECONDS=60
	fuzz/run --seconds $(SECONDS)

fuzz-short: ## Each fuzz target: its stored corpus, then 5 s
	fuzz/run --seconds 5

# One mutant in MUTANTS of those that .cargo/mutants.toml lists, evenly spread. Install the tool first:
# cargo install cargo-mutants --locked
MUTANTS := 18

mutants: ## Change the code in a hundred places, one at a time: do tests fail?
	cargo mutants --workspace --shard 0/$(MUTANTS) --sharding round-robin

# It takes nothing beyond the toolchain, which has the sanitizer's run time; but the flag is unstable, and
# RUSTC_BOOTSTRAP makes a stable compiler take it, which nobody promises for the next one.
sanitize: ## The io_uring driver's tests with AddressSanitizer, on x86-64
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/sanitize \
		cargo test -p tidegate --lib uring --target x86_64-unknown-linux-gnu
