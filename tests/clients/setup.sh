#!/bin/bash
# Makes .cache/clients, a Python environment with the clients of requirements.txt, unless it is there as they say.
set -euo pipefail
cd "$(dirname "$0")"
home=../../.cache/clients

if cmp --silent requirements.txt "$home/requirements.txt"; then
    exit 0
fi
echo "setup: fetching the clients of tests/clients/requirements.txt"
rm -rf "$home"
mkdir -p "$(dirname "$home")"
if ! python3 -m venv "$home"; then
    echo "setup: python3 makes no environments; run: sudo apt-get install --no-install-recommends python3-venv" >&2
    exit 1
fi
if ! "$home/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt; then
    echo "setup: the clients cannot be fetched from PyPI: is there a network? Set PIP_INDEX_URL to use a mirror" >&2
    rm -rf "$home"
    exit 1
fi
# Last, so that what was begun and not finished is done again.
cp requirements.txt "$home/requirements.txt"
