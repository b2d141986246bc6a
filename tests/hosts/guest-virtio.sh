#!/bin/busybox sh
# What Linux as a guest does with its drives and its interface, by the name of the task; virtio.rs types it. The last line
# is `virtio: ok FINDINGS end`, or `virtio: failed end` when any command failed; that of churn never comes.
set -eu
trap 'echo "virtio: failed end"' EXIT

ok() {
    trap - EXIT
    echo "virtio: ok $* end"
}

sum() {
    md5sum "$1" | cut -d ' ' -f 1
}

# `set -e` takes no notice of a `!`.
refused() {
    if "$@"; then return 1; fi
}

# What was written must come back from the drive itself.
forget_cache() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

fill() {
    mount -t ext4 /dev/vda /mnt
    dd if=/dev/urandom of=/mnt/large bs=1M count=24 2>/dev/null
    mkdir /mnt/many
    for number in $(seq 300); do
        echo "file $number" >"/mnt/many/$number"
    done
    rm /mnt/many/1*
    before=$(sum /mnt/large)
    forget_cache
    after=$(sum /mnt/large)
    [ "$before" = "$after" ]
    umount /mnt
    ok "$after"
}

# Neither the file system nor the drive under it may be written.
look() {
    [ "$(cat /sys/block/vda/ro)" = 1 ]
    refused dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync
    mount -t ext4 -o ro /dev/vda /mnt
    refused mount -o remount,rw /mnt
    found=$(sum /mnt/large)
    umount /mnt
    ok "$found"
}

# Writes for ever, and names what the drive must hold from then on.
churn() {
    mount -t ext4 /dev/vda /mnt
    number=0
    while true; do
        dd if=/dev/urandom of=/mnt/new bs=64k count=16 2>/dev/null
        mv /mnt/new "/mnt/$number"
        sync
        echo "kept $number $(sum "/mnt/$number") end"
        number=$((number + 1))
        # What is under way at any time: data and names that no sync covers yet.
        rm -f "/mnt/$((number - 8))"
        dd if=/dev/urandom of=/mnt/loose bs=256k count=8 2>/dev/null &
    done
}

interface() {
    # This end of slow start takes the unsteady pace of an emulated host for a full line; packets then stay so small that
    # the way of each costs more than what it carries.
    echo 0 >/sys/module/tcp_cubic/parameters/hystart
    ip address add 10.77.0.2/24 dev eth0
    ip link set eth0 up
    ping -c 3 -A 10.77.0.1 >/dev/null
    ok "$(cat /sys/class/net/eth0/address)"
}

# send MIB: to the host's port 5001. nc itself writes 1 KiB at a time, which would be a packet each; dd leaves it to the
# interface to cut large ones.
send() {
    dd if=/dev/urandom of=/sent bs=1M "count=$1" 2>/dev/null
    nc 10.77.0.1 5001 -e dd if=/sent bs=256k 2>/dev/null
    ok "$(sum /sent)"
}

# From the host's port 5002.
receive() {
    nc 10.77.0.1 5002 -e dd of=/received bs=256k 2>/dev/null
    ok "$(sum /received)"
}

# Until there is a /stop: writes files, each of which must come back from the drive as it was meant, and echoes all that
# comes from the host's port 5003.
work() {
    # The kernel is to complain of nothing from here on.
    dmesg -c >/dev/null
    mount -t ext4 /dev/vda /mnt
    nc 10.77.0.1 5003 -e cat &
    number=0
    while [ ! -e /stop ]; do
        echo "begins $number end"
        meant=$(dd if=/dev/urandom bs=64k count=8 2>/dev/null | tee "/mnt/$number" | md5sum | cut -d ' ' -f 1)
        forget_cache
        [ "$(sum "/mnt/$number")" = "$meant" ]
        echo "wrote $number $meant $(cut -d ' ' -f 1 /proc/uptime) end"
        rm -f "/mnt/$((number - 4))"
        number=$((number + 1))
    done
    umount /mnt
    ok "$(dmesg | grep -E 'stall|lockup|I/O error|EXT4-fs error|unstable|BUG|WARNING|Call Trace|hung' || true)"
}

# Whether timers run: the time before and after a second.
clock() {
    before=$(cut -d ' ' -f 1 /proc/uptime)
    sleep 1
    ok "$before $(cut -d ' ' -f 1 /proc/uptime)"
}

# Names what there is: how each device was announced, and what each drive calls itself.
devices() {
    forget_cache
    ids=
    for drive in /sys/block/vd*; do
        [ "$(dd if="/dev/${drive##*/}" bs=512 count=1 2>/dev/null | head -n 1)" = "this is $(cat "$drive/serial")" ]
        ids="$ids $(cat "$drive/serial")"
    done
    if grep -q virtio_mmio /proc/cmdline; then arguments=yes; else arguments=no; fi
    ok "arguments=$arguments acpi=$(find /sys/bus/platform/devices -name 'LNRO0005:*' | wc -l)" \
        "virtio=$(find /sys/bus/virtio/devices -type l | wc -l) drives=$ids"
}

"$@"
