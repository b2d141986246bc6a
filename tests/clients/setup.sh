#!/bin/bash
# Creates .cache/clients, a Python environment with the clients of requirements.txt, unless it exists with these versions.
set -euo pipefail
cd "$(dirname "$0")"
home=../../.cache/clients

# One process at a time. The kernel releases the lock at its end.
mkdir -p ../../.cache
exec 9>../../.cache/clients.lock
flock 9

if cmp --silent requirements.txt "$home/requirements.txt"; then
    exit 0
fi
echo "setup: fetching the clients of tests/clients/requirements.txt"
rm -rf "$home"
if ! python3 -m venv "$home"; then
    echo "setup: cannot create a Python environment; run: sudo apt-get install --no-install-recommends python3-venv" >&2
    exit 1
fi
if ! "$home/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt; then
    echo "setup: cannot fetch the clients from PyPI; check the network, or set PIP_INDEX_URL to a mirror" >&2
    rm -rf "$home"
    exit 1
fi
# Last: the next run repeats an interrupted installation.
cp requirements.txt "$home/requirements.txt"
