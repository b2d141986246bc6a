# Goals to build, test and measure mayfly. `make` lists them.

ARCH := $(shell uname -m)
BUILD := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(BUILD)/$(ARCH)-unknown-linux-gnu/release
GUESTS := $(CURDIR)/dist/guests/$(ARCH)

# Compiler with the aarch64 standard library, from setup. It needs a target directory of its own.
ARM_RUSTC := $(CURDIR)/.cache/hosts/rust/rustc

.PHONY: help guests build demo tools setup format lint docs aarch64 unit test fuzz bench attack control floor jailer queue restore tracking clones order clean
# Goals run in their order, even with -j: cargo uses all processors already.
.NOTPARALLEL:

help: ## list the goals
	@sed -nE 's/^([a-z0-9]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

guests:
	@echo '== guests'
	@mkdir -p $(GUESTS)
	@$(MAKE) --no-print-directory -C resources/guests OUT=$(GUESTS)

build: guests ## build the static release binaries dist/mayfly and dist/mayfly-jailer, and the test guests in dist/guests
	@echo '== build'
	@cargo build --release --package mayfly --package jailer --bin mayfly --bin mayfly-jailer
	@# By rename: the tests of another make may run the program.
	@install -m 755 $(RELEASE)/mayfly dist/mayfly.$$$$ && mv -f dist/mayfly.$$$$ dist/mayfly
	@install -m 755 $(RELEASE)/mayfly-jailer dist/jailer.$$$$ && mv -f dist/jailer.$$$$ dist/mayfly-jailer
	@install -m 644 $(RELEASE)/mayfly.map dist/map.$$$$ && mv -f dist/map.$$$$ dist/mayfly.map

demo: tools build ## boot a guest and explain its output; needs /dev/kvm
	@dist/mayfly demo

tools:
	@tests/hosts/setup.sh build

setup: ## install or list missing Debian packages, fetch images and clients for the tests
	@tests/hosts/setup.sh

format:
	@echo '== format'
	@cargo fmt --check

lint:
	@echo '== lint'
	@cargo clippy --workspace --all-targets -- -D warnings

docs:
	@echo '== documentation'
	@RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

aarch64:
	@echo '== aarch64'
	@RUSTC=$(ARM_RUSTC) cargo check --workspace --target aarch64-unknown-linux-gnu --target-dir $(BUILD)/aarch64-check

# tests/local and the target `load` of tests/fuzz require /dev/kvm. The emulated host runs the same guests in any case.
ifneq ($(wildcard /dev/kvm),)
UNIT := --workspace
else
UNIT := --workspace --lib --bins --test architecture --test order --test cli --test docs --test fuzz --test hosts --test clients --test jail -- --exact --skip load
endif

# In CI, a test that lacks a requirement fails (tests/scratch/requirement.rs). Elsewhere it is skipped, reported and counted.
ifeq ($(CI),true)
export MAYFLY_TESTS ?= all
endif

# Duration of each fuzz target in seconds: all run in one process, two at a time on two processors.
export FUZZ_SECONDS ?= 10

unit: build
	@echo '== tests$(if $(filter --lib,$(UNIT)), without tests/local and the fuzz target load: no /dev/kvm on this machine)'
	@skipped=$$(mktemp); status=0; \
	MAYFLY=$(CURDIR)/dist/mayfly MAYFLY_SKIPPED=$$skipped cargo test --no-fail-fast $(UNIT) || status=$$?; \
	echo "== skipped for lack of a requirement: $$(wc -l <$$skipped)"; \
	cat $$skipped; rm -f $$skipped; exit $$status

test: setup format guests lint docs aarch64 unit ## run all checks and tests, with real images on an emulated host

T ?= 60
fuzz: ## drive each fuzz target, or TARGET=name, for T=60 seconds; by coverage on a nightly compiler
	@tests/fuzz/run.sh $(T) $(TARGET)

bench: build ## run the criterion benchmarks
	@$(MAKE) --no-print-directory --silent -C resources/guests OUT=$(GUESTS) big
	@cargo bench --bench boot

attack: build ## measure the delay of answers while a guest attacks the VMM
	@cargo bench --bench attack

control: build ## compare the API socket with its floor
	@cargo bench --bench control

floor: build ## compare the start with its floor: the same KVM calls as bare ioctls
	@benches/floor/run.sh

jailer: build ## compare mayfly-jailer with its floor: the same system calls; needs root
	@benches/jailer/run.sh

queue: ## compare the virtio devices with bare system calls; needs a network namespace
	@cargo bench --bench queue

restore: build ## compare snapshots with their floor
	@cargo bench --bench restore

tracking: build ## measure the cost of dirty page tracking while the guest runs; needs root
	@cargo bench --bench tracking

N ?= 1000
clones: build ## load N=1000 VMs from one snapshot, all alive at once
	@N=$(N) benches/clones.sh

order: build ## rewrite resources/order.ld by the functions that a start executes; needs /dev/kvm
	@cargo bench --bench order -- $(abspath dist/mayfly dist/mayfly.map) >$(RELEASE)/order.ld
	@mv $(RELEASE)/order.ld resources/order.ld

clean: ## remove build results; fetched packages in .cache stay
	@cargo clean
	@rm -rf dist
