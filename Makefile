# Two commands for a newcomer: `make demo` and `make test`. Both do all the set-up that they need.

SHELL := /bin/bash
CARGO ?= cargo

# What the tests run, from Debian: the real programs, the C compiler for the small ones, and other users where the tests do not run as root.
PACKAGES := gcc libc6-dev python3 curl redis-server redis-tools nginx-light wrk uidmap iproute2
COMMANDS := gcc python3 curl redis-server redis-cli redis-benchmark nginx wrk newuidmap ip bridge

CAMPAIGN ?= --runs 1000 --seed $(or $(SEED),1)

.PHONY: demo campaign test setup check install clean

demo: ## Build, start two nodes, stream audio to three clients, kill the server, report
	$(CARGO) build --release -p armor -p audio-streaming
	./target/release/armor demo

campaign: ## 1,000 kills for each target, and all other faults, under load; about 45 minutes. SEED=… for other draws
	$(CARGO) build --release -p armor
	./target/release/armor campaign $(CAMPAIGN) --placements $$([ "$$(id -u)" = 0 ] && echo groups,namespaces || echo groups)

setup: ## Install what the tests run, where it is missing
	@missing=""; for command in $(COMMANDS); do command -v $$command >/dev/null || missing="$$missing $$command"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages (missing:$$missing)"; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	fi

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
