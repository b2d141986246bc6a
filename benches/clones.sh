#!/bin/bash
# Restores N machines (1000) of MEMORY (128M) from one snapshot, which are all alive at once, and says what each takes. `make
# clones` builds what is needed. The guest waits halted for a serial byte, so that the machines are there and do nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d /dev/shm/mayfly-clones-XXXXXX)
trap 'rm -rf "$folder"' EXIT
cc -O2 -Wall -Wextra -Werror -o "$folder/clones" benches/clones/clones.c
mkfifo "$folder/input"
exec 9<>"$folder/input"
dist/mayfly run "dist/guests/$(uname -m)/echo.elf" --memory "${MEMORY:-128M}" --api-sock "$folder/s" <&9 >"$folder/output" &
first=$!
for _ in $(seq 500); do
    if [[ -s $folder/output ]] && grep -q ready "$folder/output"; then break; fi
    sleep 0.01
done
dist/mayfly snapshot "$folder/snapshot" --api-sock "$folder/s"
kill "$first"
wait "$first" || true
exec 9>&-
"$folder/clones" "${N:-1000}" dist/mayfly "$folder/snapshot"
