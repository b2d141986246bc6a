#!/bin/sh
# Executes a test program of fctools in namespaces of its own: its processes, files and interfaces end with it.
#
#   unshare --mount --net --pid --fork --kill-child --mount-proc fctools.sh DATA PROGRAM [ARGUMENT ...]
#
# DATA holds the files that the tests name below FCTOOLS_TESTDATA_PATH. The tests also use /tmp, /srv/jailer and /run/netns.
set -eu
data=$1 program=$2
shift 2
# Device nodes of the jailer need a file system that permits them. DATA may be below /tmp.
mount -t tmpfs tmpfs /srv
cp -rL "$data" /srv/data
cp "$program" /srv/program
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
ip link set lo up
export FCTOOLS_TESTDATA_PATH=/srv/data
cd /srv
# Without another process in its place, the program adopts the jailed processes and reads their exit status.
exec /srv/program "$@"
