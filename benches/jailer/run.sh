#!/bin/bash
# Builds the floor of the jailer and the program in the jail, and measures dist/mayfly-jailer. `make jailer` first builds dist.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p dist/jailer
cc -O2 -Wall -Wextra -Werror -static -o dist/jailer/floor benches/jailer/floor.c
cc -O2 -Wall -Wextra -Werror -static -nostdlib -o dist/jailer/vmm benches/jailer/vmm.c
# The copy is a step of the start: the program has the size of mayfly.
truncate -s "$(stat -c %s dist/mayfly)" dist/jailer/vmm
# Firecracker's jailer requires this name.
cp -f dist/jailer/vmm dist/jailer/firecracker
exec cargo bench --quiet --package jailer --bench jailer
