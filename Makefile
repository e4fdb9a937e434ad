# Two commands for a newcomer: `make demo` and `make test`. Both do all the set-up that they need.

SHELL := /bin/bash
CARGO ?= cargo
# Where Debian has haproxy.
export PATH := $(PATH):/usr/sbin:/sbin

# What the tests run, from Debian: the real programs, the C compiler for the small ones, and other users where the tests do not run as root.
PACKAGES := gcc libc6-dev python3 curl redis-server redis-tools nginx-light wrk uidmap iproute2
COMMANDS := gcc python3 curl redis-server redis-cli redis-benchmark nginx wrk newuidmap ip bridge

# What `make bench` measures beside ARMOR.
BENCH_PACKAGES := haproxy socat iproute2
BENCH_COMMANDS := haproxy socat ip ss unshare

CAMPAIGN ?= --runs 1000 --seed $(or $(SEED),1)

# $(call installed,COMMANDS,PACKAGES): installs the packages when one of the commands is missing.
define installed
	@missing=""; for command in $(1); do command -v $$command >/dev/null || missing="$$missing $$command"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages (missing:$$missing)"; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	fi
endef

.PHONY: demo campaign bench test setup check install clean

demo: ## Build, start two nodes, stream audio to three clients, kill the server, report
	$(CARGO) build --release -p armor -p audio-streaming
	./target/release/armor demo

campaign: ## 1,000 kills for each target, and all other faults, under load; about 45 minutes. SEED=… for other draws
	$(CARGO) build --release -p armor
	./target/release/armor campaign $(CAMPAIGN) --placements $$([ "$$(id -u)" = 0 ] && echo groups,namespaces || echo groups)

bench: ## Thesis chapter 6 beside HAProxy, socat and direct TCP; about ten minutes. Writes docs/performance.md
	$(call installed,$(BENCH_COMMANDS),$(BENCH_PACKAGES))
	$(CARGO) build --release -p armor -p armor-benches
	./target/release/armor bench --write docs/performance.md

setup: ## Install what the tests run, where it is missing
	$(call installed,$(COMMANDS) $(BENCH_COMMANDS),$(PACKAGES) $(BENCH_PACKAGES))

test: setup ## All tests
	$(CARGO) build --workspace --bins
	$(CARGO) build -p armor-shim
	$(CARGO) test --workspace --no-fail-fast

check: ## Format, lints and docs, warnings are errors
	$(CARGO) fmt --all -- --check
	rustfmt --edition 2024 --check elements/src/*.rs # cargo fmt does not find these: the build script lists them
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

install: ## Install the armor program
	$(CARGO) install --path armors --locked

clean:
	$(CARGO) clean
