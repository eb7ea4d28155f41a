# Building, running and testing Atoll. `make help` says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help up deps test lint test-unit test-system chaos fuzz bench clean

# Sandboxes are made by root. Everything else runs as you.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
DATA_DIR ?= ./.atoll
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release/atoll

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  Options: make up ARGS="--api-port 3100", make up DATA_DIR=/var/lib/atoll'

up: deps ## Build Atoll and run the whole cloud here; Ctrl-C ends it
	cargo build --release --locked -p atoll
	@criu=$$(scripts/criu.sh) || echo "No CRIU from this system's packages: doctor says what that means" >&2; \
	exec $(SUDO) $(RELEASE) up --data-dir $(DATA_DIR) --ca-bundle host $${criu:+--criu "$$criu"} $(ARGS)

deps: ## Install what Atoll needs from the operating system
	@scripts/deps.sh

test: ## Test everything, for real; system tests need root and use sudo
	@scripts/test.sh lint unit system

lint: ## Formatting, lints, licences
	@scripts/test.sh lint

test-unit: ## Tests of the crates
	@scripts/test.sh unit

test-system: ## Tests of a running stack: official SDKs, security, network, stress
	@scripts/test.sh system

chaos: ## Kill Atoll 200 times under load, twice: SEED=1 KILLS=50 for another run
	@SEED=$(SEED) KILLS=$(KILLS) scripts/test.sh chaos

fuzz: ## Fuzz what envd reads from the network; SECONDS=60 for each target
	@SECONDS_EACH=$(or $(SECONDS),60) scripts/fuzz.sh $(ARGS)

bench: deps ## Measure: start a stack, print what it does in how long, and write target/bench.json
	cargo build --release --locked -p atoll
	@scripts/bench.sh $(ARGS)

clean: ## Remove all that was built; a stack's data in ./.atoll stays
	@scripts/clean.sh
