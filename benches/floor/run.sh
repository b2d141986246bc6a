#!/bin/bash
# Builds the floor program and measures dist/mayfly against it. `make floor` first builds dist/mayfly and the
# guests.
set -euo pipefail
cd "$(dirname "$0")/../.."
cc -O2 -Wall -Wextra -Werror -static -o dist/floor benches/floor/floor.c
make --silent -C resources/guests "OUT=$PWD/dist/guests/$(uname -m)" big
exec cargo bench --quiet --bench floor
