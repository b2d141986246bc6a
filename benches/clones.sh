#!/bin/bash
# Restores N VMs (1000) with MEMORY (128M) from one snapshot, and as many processes of a floor, all alive at once. Compares their
# times and their memory, RUNS times (2) in a row. `make clones` builds the programs. The guest halts and waits for a serial byte,
# so the VMs are idle.
#
# With ADDRESSES=1, restores N clones with addresses of their own beside N without them, once, each on a tap of its own. Each clone
# must answer ping, and curl with an ID of its own. Needs root; taps, addresses and routes are in a network namespace, which ends
# with the script.
set -euo pipefail
cd "$(dirname "$0")/.."
case $(uname -m) in
    x86_64 | aarch64) ;;
    *)
        echo "clones: mayfly does not run on $(uname -m); use x86_64 or aarch64" >&2
        exit 1
        ;;
esac
if [[ -n ${ADDRESSES:-} && -z ${IN_NAMESPACE:-} ]]; then
    IN_NAMESPACE=1 exec unshare --net "$0"
fi
count=${N:-1000} memory=${MEMORY:-128M} guests=dist/guests/$(uname -m)
# On aarch64, there is a guest for each memory map.
if [ -d "$guests/fc" ]; then guests=$guests/fc; fi
directory=$(mktemp -d /dev/shm/mayfly-clones-XXXXXX)
trap 'rm -rf "$directory"' EXIT
cc -O2 -Wall -Wextra -Werror -o "$directory/clones" benches/clones/clones.c

# Creates a snapshot of `mayfly run` with these options, after its guest has printed a line that starts with $1.
snapshot() {
    local line=$1
    shift
    mkfifo "$directory/input"
    exec 9<>"$directory/input"
    dist/mayfly run --memory "$memory" --api-sock "$directory/s" "$@" <&9 >"$directory/output" &
    local first=$!
    for _ in $(seq 500); do
        if grep -q "^$line" "$directory/output"; then break; fi
        sleep 0.01
    done
    dist/mayfly snapshot "$directory/snapshot" --api-sock "$directory/s"
    kill "$first"
    wait "$first" || true
    exec 9>&-
}

# Creates the taps a1 and so on for clones without addresses, and b1 and so on for those with addresses, and routes to them.
taps() {
    local number
    echo "link set lo up"
    echo "addr add 10.63.0.1/32 dev lo"
    echo "tuntap add tap0 mode tap"
    for ((number = 1; number <= count; number++)); do
        printf 'tuntap add %s%d mode tap\nlink set %s%d up\n' a $number a $number b $number b $number
        echo "route add 10.64.$(((number - 1) / 250)).$(((number - 1) % 250 + 1))/32 dev b$number"
    done
}

if [[ -z ${ADDRESSES:-} ]]; then
    snapshot ready "$guests/echo.elf"
    cc -O2 -Wall -Wextra -Werror -static -o "$directory/floor" benches/clones/floor.c
    mkdir "$directory/floor.snapshot"
    "$directory/floor" make "$directory/floor.snapshot" "${memory%M}" "$guests/echo.elf" >"$directory/output"
    status=0
    for ((run = 1; run <= ${RUNS:-2}; run++)); do
        echo "run $run"
        "$directory/clones" "$count" "" goals floor "$directory/floor" restore "$directory/floor.snapshot" \
            -- mayfly dist/mayfly restore "$directory/snapshot" || status=1
    done
    exit $status
fi

# IPv6 would send solicitations to each guest.
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6 || true
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
taps >"$directory/taps"
ip -batch "$directory/taps"
snapshot net "$guests/net.elf" --net tap:tap0,id=net1,mac=02:00:00:00:00:01 -- ip=10.0.0.2 pages=4294967295 echo=1
"$directory/clones" "$count" "benches/clones/check.sh $count $directory" plain \
    "without" dist/mayfly restore "$directory/snapshot" --net "net1=tap:a{n}" \
    -- "with addresses" dist/mayfly restore "$directory/snapshot" --net "net1=tap:b{n},guest-ip=10.0.0.2,ip={ip}"
