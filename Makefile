# `make demo` shows the main job, `make test` passes the tests; both install what they need first.
# Everything is built in one profile (see Cargo.toml), so the dependencies compile once.

DEMO ?=
DEMO_DIR ?= target/devnet
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON ?= python3
MODELS_VENV := $(TARGET)/venv-models

.PHONY: help demo build test lint bench bench-peers bench-diffusers need need-tests
help:
	@echo "make demo             build Argus, start a network, make demo.png (DEMO=once stops by itself)"
	@echo "make test             all tests      make lint    formatting, clippy, docs"
	@echo "make bench            benches        make bench-peers, make bench-diffusers: against others"

need:
	@scripts/need build

need-tests: need
	@scripts/need tests

build: need
	$(CARGO) build --workspace --locked

demo: build
	$(TARGET)/debug/argus devnet --dir $(DEMO_DIR) --demo demo.png $(if $(filter once,$(DEMO)),--once)

# The adversary feature gives miners `--dishonest`, so that tests can watch cheats being caught.
test: need-tests
	$(CARGO) nextest run --workspace --locked --features adversary $(if $(CI),--profile ci)
	$(CARGO) test --workspace --locked --features adversary --doc --quiet

lint: need
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked --features adversary -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --features adversary

bench: need
	$(CARGO) bench --workspace --locked

bench-peers: need
	$(CARGO) build --workspace --locked --benches
	$(PYTHON) benches/peers/run.py --target $(TARGET)

bench-diffusers: need
	$(CARGO) build --workspace --locked --benches
	test -x $(MODELS_VENV)/bin/python || $(PYTHON) -m venv $(MODELS_VENV)
	$(MODELS_VENV)/bin/pip install --quiet -r models/training/requirements.txt
	$(MODELS_VENV)/bin/python models/training/bench_diffusers.py --target $(TARGET)
