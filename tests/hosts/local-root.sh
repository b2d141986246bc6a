#!/bin/busybox sh
# Runs tests/local with the arguments of this script, and mayfly of the host. Its tests change their root, which the kernel does not
# permit in an initramfs: the root is a file system in memory. The caller has created a mount namespace for it.
set -e
root=/tmp/root
mkdir -p $root
mount -t tmpfs none $root
for directory in bin dev guests lib proc sys; do
    mkdir $root/$directory
    mount -o rbind /$directory $root/$directory
done
mkdir $root/tmp $root/program
mkdir -p $root/dev/shm
mount -t tmpfs none $root/dev/shm
# The tests link to the program, in its file system.
cp /bin/mayfly /bin/mayfly-tools /bin/mayfly-jailer $root/program
ip link set lo up
cd $root
mount -o move . /
# MAYFLY_TESTS=all: a test that lacks a requirement fails. Those are left out by name.
MAYFLY=/program/mayfly MAYFLY_TESTS=all exec chroot . /bin/local --test-threads 1 "$@"
