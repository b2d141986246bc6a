#!/bin/bash
# Restores N VMs (1000) with MEMORY (128M) from one snapshot, all alive at once, and prints the memory of
# each. `make clones` builds the programs. The guest halts and waits for a serial byte, so the VMs are idle.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$(mktemp -d /dev/shm/mayfly-clones-XXXXXX)
trap 'rm -rf "$directory"' EXIT
cc -O2 -Wall -Wextra -Werror -o "$directory/clones" benches/clones/clones.c
mkfifo "$directory/input"
exec 9<>"$directory/input"
dist/mayfly run "dist/guests/$(uname -m)/echo.elf" --memory "${MEMORY:-128M}" --api-sock "$directory/s" <&9 >"$directory/output" &
first=$!
for _ in $(seq 500); do
    if [[ -s $directory/output ]] && grep -q ready "$directory/output"; then break; fi
    sleep 0.01
done
dist/mayfly snapshot "$directory/snapshot" --api-sock "$directory/s"
kill "$first"
wait "$first" || true
exec 9>&-
"$directory/clones" "${N:-1000}" dist/mayfly "$directory/snapshot"
