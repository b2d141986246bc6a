#!/bin/bash
# Checks that N clones with addresses of their own answer ping, and curl with IDs of their own; and N clones without, each on its tap.
#
#   check.sh N DIRECTORY
set -euo pipefail
count=$1 directory=$2
fetch=(curl --silent --show-error --noproxy '*' --max-time 60)
: >"$directory/ids"
for ((number = 1; number <= count; number++)); do
    address=10.64.$(((number - 1) / 250)).$(((number - 1) % 250 + 1))
    ping -q -c 1 -W 60 "$address" &>"$directory/ping" || { echo "no answer to ping from $address"; exit 1; }
    ping -q -c 1 -W 60 -I "a$number" 10.0.0.2 &>"$directory/ping" || { echo "no answer to ping at a$number"; exit 1; }
    "${fetch[@]}" "http://$address/id" >>"$directory/ids"
    "${fetch[@]}" --interface "a$number" http://10.0.0.2/id >>"$directory/ids"
    # The table of neighbors of the kernel has 1024 entries, for all namespaces.
    ip neigh flush dev "a$number"
    ip neigh flush dev "b$number"
done
found=$(sort -u "$directory/ids" | grep -cE '^[0-9a-f]{32}$')
echo "$count clones with addresses and $count without answer ping and curl, with $found different IDs"
[[ $found -eq $((2 * count)) ]]
