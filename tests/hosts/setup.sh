#!/bin/bash
# Prepares a Debian machine with Rust for the build and the tests: installs missing Debian packages as root, or lists them
# otherwise, and fetches images and tools (fetch.sh) and third-party clients (../clients/setup.sh).
# `setup.sh build` prepares only the build, `setup.sh cross` the build for aarch64 on x86_64.
set -euo pipefail
cd "$(dirname "$0")"
part=${1:-all}
machine=$(uname -m)
case $machine in
    x86_64 | aarch64) ;;
    *)
        echo "setup: mayfly does not run on $(uname -m); use x86_64 or aarch64" >&2
        exit 1
        ;;
esac

missing=()

# require TEST PACKAGE: adds the package to the missing ones if the test fails.
require() {
    eval "$1" >/dev/null 2>&1 || missing+=("$2")
}

require 'command -v cc' gcc
require 'command -v ld' binutils
require '[ -e "$(cc -print-file-name=libc.a)" ]' libc6-dev
if [ "$part" = cross ] || { [ "$part" = all ] && [ "$machine" = x86_64 ]; }; then
    require 'command -v aarch64-linux-gnu-gcc' gcc-aarch64-linux-gnu
    require '[ -e "$(aarch64-linux-gnu-gcc -print-file-name=libc.a)" ]' libc6-dev-arm64-cross
fi
if [ "$part" = all ]; then
    if [ "$machine" = x86_64 ]; then require 'command -v qemu-system-x86_64' qemu-system-x86; fi
    require 'command -v qemu-system-aarch64' qemu-system-arm
    require 'command -v flock' util-linux
    require 'command -v lz4' lz4
    require 'command -v xz' xz-utils
    require 'command -v ip' iproute2
    require 'command -v ping' iputils-ping
    require 'command -v curl' curl
    require 'command -v nft' nftables
    require 'command -v passt' passt
    require 'command -v strace' strace
    require 'command -v gdb' gdb
    require 'command -v umoci' umoci
    require 'command -v skopeo' skopeo
    require 'command -v python3' python3
    require 'python3 -c "import ensurepip"' python3-venv
    require 'command -v lintian' lintian
    require 'command -v mandoc' mandoc
    require 'command -v man' man-db
    require 'command -v zsh' zsh
    require 'command -v fish' fish
    require 'command -v systemd-analyze' systemd
    # In a directory of programs for root.
    require 'command -v debootstrap || [ -x /usr/sbin/debootstrap ]' debootstrap
fi

install_missing() {
    export DEBIAN_FRONTEND=noninteractive
    # Another setup may hold the lock.
    apt-get -o DPkg::Lock::Timeout=600 install --yes --quiet --no-install-recommends "${missing[@]}"
}

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "setup: Debian packages are missing: ${missing[*]}" >&2
        echo "setup: run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${missing[*]}"
    # Package lists may be missing or outdated: update them after a failure.
    install_missing || { apt-get update --quiet && install_missing; }
fi

case $part in
    build) exit 0 ;;
    cross) exec ./fetch.sh rust ;;
esac

for tool in clippy fmt; do
    if ! command -v "cargo-$tool" >/dev/null || ! "cargo-$tool" --version >/dev/null 2>&1; then
        echo "setup: cargo $tool is missing; run: rustup component add clippy rustfmt" >&2
        exit 1
    fi
done

../clients/setup.sh
exec ./fetch.sh
