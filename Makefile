# mayfly: build, demonstrate, test, measure. `make` lists the goals.

ARCH := $(shell uname -m)
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(ARCH)-unknown-linux-gnu/release
GUESTS := $(CURDIR)/dist/guests/$(ARCH)

# The compiler with the aarch64 standard library, as setup fetches it; it needs its own target directory.
ARM_RUSTC := $(CURDIR)/.cache/hosts/rust/rustc

.PHONY: help guests build demo tools setup format lint docs aarch64 unit test bench control floor queue restore clones order clean
# Goals one after the other and in their order, whatever -j says: cargo has all processors already.
.NOTPARALLEL:

help: ## list the goals
	@sed -nE 's/^([a-z0-9]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

guests:
	@echo '== guests'
	@mkdir -p $(GUESTS)
	@$(MAKE) --no-print-directory -C resources/guests OUT=$(GUESTS)

build: guests ## the static release binary in dist/mayfly, the test guests in dist/guests
	@echo '== build'
	@cargo build --release --bin mayfly
	@install -m 755 $(RELEASE)/mayfly dist/mayfly

demo: tools build ## boot a guest and explain what is seen; needs /dev/kvm
	@dist/mayfly demo

tools:
	@tests/hosts/setup.sh build

setup: ## install or name missing Debian packages, fetch what the tests run on
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
	@RUSTC=$(ARM_RUSTC) cargo check --workspace --target aarch64-unknown-linux-gnu --target-dir $(TARGET)/aarch64-check

# Without /dev/kvm the tests of tests/local cannot run; the emulated host runs the same guests in any case.
ifneq ($(wildcard /dev/kvm),)
UNIT := --workspace
else
UNIT := --workspace --lib --bins --test architecture --test cli --test hosts
endif

unit: build
	@echo '== tests$(if $(filter --lib,$(UNIT)), without those of tests/local, because there is no /dev/kvm here)'
	@MAYFLY=$(CURDIR)/dist/mayfly cargo test --no-fail-fast $(UNIT)

test: setup format guests lint docs aarch64 unit ## everything that must hold, real images on an emulated host included

bench: build ## criterion benchmarks
	@$(MAKE) --no-print-directory --silent -C resources/guests OUT=$(GUESTS) big
	@cargo bench --bench boot

control: build ## the control socket side by side with the least that it could cost
	@cargo bench --bench control

floor: build ## mayfly side by side with the least that KVM allows
	@benches/floor/run.sh

queue: ## the virtio devices side by side with bare system calls; needs a network namespace
	@cargo bench --bench queue

restore: build ## snapshots side by side with the least that they could cost
	@cargo bench --bench restore

N ?= 1000
clones: build ## N=1000 machines alive at once, restored from one snapshot
	@N=$(N) benches/clones.sh

order: guests ## lay the program out by what it executes, into resources/order.ld; needs /dev/kvm
	@cargo rustc --release --bin mayfly -- -C link-arg=-Wl,-Map=$(abspath $(RELEASE)/order.map)
	@cp $(RELEASE)/mayfly $(RELEASE)/order.program
	@cargo bench --bench order -- $(abspath $(RELEASE)/order.program $(RELEASE)/order.map) >$(RELEASE)/order.ld
	@mv $(RELEASE)/order.ld resources/order.ld

clean: ## remove what was built; the fetched packages in .cache stay
	@cargo clean
	@rm -rf dist
