#!/bin/bash
# Makes a Debian machine with Rust and a C compiler ready for the build and the tests: installs the Debian packages that
# are missing when it may, names them when it may not, and fetches what the tests run on (fetch.sh) and the
# clients that drive mayfly (../clients/setup.sh).
# `setup.sh build` sees to the build alone.
set -euo pipefail
cd "$(dirname "$0")"

missing=()

# needs TEST PACKAGE: the package is missing when the test fails.
needs() {
    eval "$1" >/dev/null 2>&1 || missing+=("$2")
}

needs 'command -v cc' gcc
needs 'command -v ld' binutils
needs '[ -e "$(cc -print-file-name=libc.a)" ]' libc6-dev
if [ "${1:-all}" = all ]; then
    needs 'command -v qemu-system-x86_64' qemu-system-x86
    needs 'command -v flock' util-linux
    needs 'command -v lz4' lz4
    needs 'command -v ip' iproute2
    needs 'command -v ping' iputils-ping
    needs 'command -v curl' curl
    needs 'command -v passt' passt
    needs 'command -v python3' python3
    needs 'python3 -c "import ensurepip"' python3-venv
fi

install_missing() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
}

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "setup: Debian packages are missing: ${missing[*]}" >&2
        echo "setup: run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${missing[*]}"
    # Package lists may be absent or name versions that the archive no longer has.
    install_missing || { apt-get update --quiet && install_missing; }
fi

[ "${1:-all}" = all ] || exit 0

for tool in clippy fmt; do
    if ! command -v "cargo-$tool" >/dev/null || ! "cargo-$tool" --version >/dev/null 2>&1; then
        echo "setup: cargo $tool is missing; run: rustup component add clippy rustfmt" >&2
        exit 1
    fi
done

../clients/setup.sh
exec ./fetch.sh
