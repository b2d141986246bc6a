# Goals to build, test and measure mayfly. `make` lists them.

# This machine, and the architecture of the build: `make build ARCH=aarch64` builds on x86_64, too.
HOST := $(shell uname -m)
ARCH := $(HOST)
TARGET := $(ARCH)-unknown-linux-gnu
BUILD := $(or $(CARGO_TARGET_DIR),target)
GUESTS := $(CURDIR)/dist/guests/$(ARCH)

ifeq ($(ARCH),$(HOST))
CARGO := cargo
else
ifneq ($(HOST) $(ARCH),x86_64 aarch64)
$(error cannot build for $(ARCH) on $(HOST): only x86_64 builds for another architecture, aarch64; build on $(ARCH))
endif
# Debian's compiler has a standard library for aarch64. Another compiler needs another target directory.
CARGO := RUSTC=$(CURDIR)/.cache/hosts/rust/rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc cargo
BUILD := $(BUILD)/cross
CROSS := --target $(TARGET) --target-dir $(BUILD)
endif
RELEASE := $(BUILD)/$(TARGET)/release

ifeq ($(filter x86_64 aarch64,$(ARCH)),)
$(error cannot build for $(ARCH): mayfly has no code for it; use x86_64 or aarch64)
endif

.PHONY: help guests pages build install uninstall deb package demo demo-zero tools cross setup format lint docs aarch64 scenarios ahead programs unit test fuzz bench attack control filters floor jailer queue restore storm tracking zero cycles clones order clean
# Goals run in their order, even with -j: cargo uses all processors already.
.NOTPARALLEL:

help: ## list the goals
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

cross:
	@tests/hosts/setup.sh cross

# A build for another architecture fetches its tools itself.
guests: $(if $(CROSS),cross)
	@echo '== guests for $(ARCH)'
	@mkdir -p $(GUESTS)
	@$(MAKE) --no-print-directory -C resources/guests OUT=$(GUESTS) ARCH=$(ARCH)

# publish FILE MODE NAME: installs FILE as dist/ARCH/NAME, and as dist/NAME if it is for this machine. By rename: the tests of
# another make may run the program.
publish = @for to in dist/$(ARCH) $(if $(CROSS),,dist); do \
	mkdir -p $$to && install -m $(2) $(1) $$to/$(3).$$$$ && mv -f $$to/$(3).$$$$ $$to/$(3) || exit 1; done

# The man pages and completions are the same for all architectures. With the profile of the programs: `ahead` compiles the other one
# meanwhile.
pages:
	@echo '== man pages and completions'
	@cargo run --quiet --release --package manual -- dist/share "$$(git log -1 --format=%cs 2>/dev/null || date +%F)"

build: guests $(if $(CROSS),,pages) ## build dist/mayfly, mayfly-standby, mayfly-tools, mayfly-jailer (static) and the test guests, or dist/aarch64 for ARCH=aarch64
	@echo '== build for $(ARCH)'
	@$(CARGO) build --release --package mayfly --package jailer --bin mayfly --bin mayfly-standby --bin mayfly-tools --bin mayfly-jailer $(CROSS)
	$(call publish,$(RELEASE)/mayfly,755,mayfly)
	$(call publish,$(RELEASE)/mayfly-standby,755,mayfly-standby)
	$(call publish,$(RELEASE)/mayfly-tools,755,mayfly-tools)
	$(call publish,$(RELEASE)/mayfly-jailer,755,mayfly-jailer)
	$(call publish,$(RELEASE)/mayfly.map,644,mayfly.map)

PREFIX ?= /usr/local
export PREFIX DESTDIR ZSHDIR

install: ## install the files of `make build` below PREFIX=/usr/local, in DESTDIR for a package
	@resources/install.sh install $(ARCH)

uninstall: ## remove the files of `make install` below PREFIX=/usr/local
	@resources/install.sh uninstall $(ARCH)

deb: build pages package ## build a Debian package in dist, or for ARCH=aarch64

# Packages the present build.
package:
	@resources/debian/build.sh $(ARCH)

# built TEST: the program of a test in the list of the build.
built = "$$(sed -nE 's/.*"executable":"([^"]*\/deps\/$(1)-[^"]*)".*/\1/p' $(BUILD)/scenarios.json)"

# The emulated host of another architecture runs test programs of that architecture.
scenarios: $(if $(CROSS),cross)
	@echo '== scenarios for $(ARCH)'
	@mkdir -p $(BUILD)
	@$(CARGO) build --workspace --exclude interleavings --lib --bins --test hosts --test local $(CROSS) \
		--message-format json-render-diagnostics >$(BUILD)/scenarios.json
	$(call publish,$(call built,hosts),755,scenarios)
	$(call publish,$(call built,local),755,local)
ifeq ($(ARCH),aarch64)
	@$(if $(CROSS),aarch64-linux-gnu-gcc,cc) -O2 -Wall -Wextra -Werror -static -o $(BUILD)/floor benches/floor/aarch64.c
	$(call publish,$(BUILD)/floor,755,floor)
endif

demo: tools build ## boot a guest and explain its output; needs /dev/kvm
	@dist/mayfly demo

demo-zero: build ## wake three of N=1000 suspended functions by curl; needs root and /dev/kvm
	@MAYFLY=$(CURDIR)/dist/mayfly cargo bench --quiet --profile dev --bench demo-zero

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

# On aarch64 the other goals build the rest.
aarch64:
ifeq ($(HOST),x86_64)
	@$(MAKE) --no-print-directory build scenarios ARCH=aarch64
else
	@$(MAKE) --no-print-directory build scenarios
endif

# Compiles what the later goals of `test` need, two builds at a time: each has phases with one thread, such as the link-time optimization.
# The two share no target directory of cargo. The later goal repeats a step that has failed, and fails with its error.
ahead:
	@echo '== builds ahead, two at a time'
	@$(MAKE) --no-print-directory --keep-going lint docs programs $(if $(filter x86_64,$(HOST)),ahead-cross) & \
	$(MAKE) --no-print-directory --keep-going build $(if $(filter x86_64,$(HOST)),ahead-cross-release); \
	wait || true

.PHONY: ahead-cross ahead-cross-release
ahead-cross:
	@$(MAKE) --no-print-directory scenarios ARCH=aarch64
ahead-cross-release:
	@$(MAKE) --no-print-directory build ARCH=aarch64

programs:
	@echo '== test programs'
	@cargo test --no-run --quiet $(UNIT_TARGETS)

# tests/local and the target `load` of tests/fuzz require /dev/kvm. The emulated host runs the same guests in any case.
ifneq ($(wildcard /dev/kvm),)
UNIT_TARGETS := --workspace
else
UNIT_TARGETS := --workspace --lib --bins --test architecture --test dependencies --test order --test cli --test docs --test scripts --test fuzz --test hosts --test clients --test install --test jail --test models --test standby
UNIT_ARGUMENTS := -- --exact --skip load
endif
UNIT := $(UNIT_TARGETS) $(UNIT_ARGUMENTS)

# In CI, a test that lacks a requirement fails (tests/scratch/requirement.rs). Elsewhere it is skipped, reported and counted. CI builds
# once: files for incremental builds would take a tenth of the time.
ifeq ($(CI),true)
export MAYFLY_TESTS ?= all
export CARGO_INCREMENTAL ?= 0
endif

# The programs of this profile are tests, which unwind. With `abort` for the others, cargo would compile each crate twice.
export CARGO_PROFILE_DEV_PANIC := unwind

# Tests mostly wait for processes: more threads than processors.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))

# Duration of each fuzz target in seconds: all run in one process, as many at a time as it has threads.
export FUZZ_SECONDS ?= 10

unit: build
	@echo '== tests$(if $(filter --lib,$(UNIT)), without tests/local and the fuzz target load: no /dev/kvm on this machine)'
	@MAYFLY=$(CURDIR)/dist/mayfly tests/unit.sh $(UNIT)

test: setup format guests ahead lint docs aarch64 unit ## run all checks and tests, with real images on an emulated host

T ?= 60
fuzz: ## drive each fuzz target, or TARGET=name, for T=60 seconds; by coverage on a nightly compiler
	@tests/fuzz/run.sh $(T) $(TARGET)

bench: build ## run the criterion benchmarks
	@$(MAKE) --no-print-directory --silent -C resources/guests OUT=$(GUESTS) big
	@cargo bench --package boot-benchmark

attack: build ## measure the delay of answers while a guest attacks the VMM
	@cargo bench --bench attack

control: build ## compare the API socket with its floor
	@cargo bench --bench control

filters: build ## measure the cost of the seccomp filters
	@cargo bench --bench filters

floor: build ## compare the start with its floor: the same KVM calls as bare ioctls
	@benches/floor/run.sh

jailer: build ## compare mayfly-jailer with its floor: the same system calls; needs root
	@benches/jailer/run.sh

queue: ## compare the virtio devices with bare system calls; needs a network namespace
	@cargo bench --bench queue

restore: build ## compare snapshots with their floor
	@cargo bench --bench restore

storm: build ## request random ones of COUNT=10000 suspended instances at the highest rate for SECONDS=60; needs root
	@cargo bench --bench storm

tracking: build ## measure the cost of dirty page tracking while the guest runs; needs root
	@cargo bench --bench tracking

zero: build ## measure wakes by a packet, suspends and sleepers beside floors; needs root
	@cargo bench --bench zero

# The same tests run fewer cycles in `make test`.
cycles: N = 10000
cycles: KILLS = 200
cycles: build ## suspend and wake guests N=10000 times with open connections, and kill VMs and supervisors KILLS=200 times; needs root
	@MAYFLY=$(CURDIR)/dist/mayfly CYCLES=$(N) KILLS=$(KILLS) cargo test --test instances -- --nocapture --test-threads 2 cycles killed

N ?= 1000
clones: build ## load N=1000 VMs from one snapshot beside a floor; ADDRESSES=1: with addresses of their own, needs root
	@N=$(N) benches/clones.sh

order: build ## rewrite resources/order.ld by the functions that a start executes; needs /dev/kvm
	@cargo bench --bench order -- $(abspath dist/mayfly dist/mayfly.map) >$(RELEASE)/order.ld
	@mv $(RELEASE)/order.ld resources/order.ld

clean: ## remove build results; fetched packages in .cache stay
	@cargo clean
	@rm -rf dist
