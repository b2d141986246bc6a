#!/bin/busybox sh
# Tasks of the Linux guest with its drives and its interface; virtio.rs types their names. The last line is
# `virtio: ok RESULT end`, or `virtio: failed end` after a failed command. The task churn does not end.
set -eu
trap 'echo "virtio: failed end"' EXIT

ok() {
    trap - EXIT
    echo "virtio: ok $* end"
}

sum() {
    md5sum "$1" | cut -d ' ' -f 1
}

# `set -e` ignores the status of a command after `!`.
expect_failure() {
    if "$@"; then return 1; fi
}

# Later reads come from the drive, not from the page cache.
drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

# fill MIB FILES [DEVICE]: writes a large file and small ones, and deletes some of these.
fill() {
    mount -t ext4 "/dev/${3:-vda}" /mnt
    dd if=/dev/urandom of=/mnt/large bs=1M "count=$1" 2>/dev/null
    mkdir /mnt/many
    for number in $(seq "$2"); do
        echo "file $number" >"/mnt/many/$number"
    done
    rm /mnt/many/1*
    before=$(sum /mnt/large)
    drop_caches
    after=$(sum /mnt/large)
    [ "$before" = "$after" ]
    umount /mnt
    ok "$after"
}

# verify DEVICE: writes to the file system and to its drive must fail.
verify() {
    [ "$(cat "/sys/block/$1/ro")" = 1 ]
    expect_failure dd if=/dev/zero "of=/dev/$1" bs=512 count=1 conv=fsync
    mount -t ext4 -o ro "/dev/$1" /mnt
    expect_failure mount -o remount,rw /mnt
    found=$(sum /mnt/large)
    umount /mnt
    ok "$found"
}

# churn DEVICE: writes forever. A `kept` line names a file that the drive holds from then on.
churn() {
    mkdir "/mnt/$1"
    mount -t ext4 "/dev/$1" "/mnt/$1"
    cd "/mnt/$1"
    number=0
    while true; do
        dd if=/dev/urandom of=new bs=64k count=16 2>/dev/null
        mv new "$number"
        sync
        echo "kept $1 $number $(sum "$number") end"
        number=$((number + 1))
        # Unsynced data and names, in flight at any time.
        rm -f "./$((number - 8))"
        dd if=/dev/urandom of=loose bs=256k count=8 2>/dev/null &
    done
}

interface() {
    # HyStart mistakes the varying delays of an emulated host for congestion and ends slow start early. Small windows then
    # cause small packets and low throughput.
    echo 0 >/sys/module/tcp_cubic/parameters/hystart
    ip address add 10.77.0.2/24 dev eth0
    ip link set eth0 up
    ping -c 3 -A 10.77.0.1 >/dev/null
    ok "$(cat /sys/class/net/eth0/address)"
}

# send MIB: sends to port 5001 of the host. nc writes 1 KiB at a time, one packet each; dd writes large buffers, which the
# interface segments.
send() {
    dd if=/dev/urandom of=/sent bs=1M "count=$1" 2>/dev/null
    nc 10.77.0.1 5001 -e dd if=/sent bs=256k 2>/dev/null
    ok "$(sum /sent)"
}

# Receives from port 5002 of the host.
receive() {
    nc 10.77.0.1 5002 -e dd of=/received bs=256k 2>/dev/null
    ok "$(sum /received)"
}

# Writes files and verifies each by a read from the drive, and echoes all data from port 5003 of the host, until /stop
# exists.
work() {
    # Clears the kernel log: the result lists problems since then.
    dmesg -c >/dev/null
    mount -t ext4 /dev/vda /mnt
    nc 10.77.0.1 5003 -e cat &
    number=0
    while [ ! -e /stop ]; do
        echo "begins $number end"
        expected=$(dd if=/dev/urandom bs=64k count=8 2>/dev/null | tee "/mnt/$number" | md5sum | cut -d ' ' -f 1)
        drop_caches
        [ "$(sum "/mnt/$number")" = "$expected" ]
        echo "wrote $number $expected $(cut -d ' ' -f 1 /proc/uptime) end"
        rm -f "/mnt/$((number - 4))"
        number=$((number + 1))
    done
    umount /mnt
    ok "$(dmesg | grep -E 'stall|lockup|I/O error|EXT4-fs error|unstable|BUG|WARNING|Call Trace|hung' || true)"
}

# Reports the uptime before and after a sleep of one second.
clock() {
    before=$(cut -d ' ' -f 1 /proc/uptime)
    sleep 1
    ok "$before $(cut -d ' ' -f 1 /proc/uptime)"
}

# Reports the devices, by ACPI and by arguments, and the serial of each drive, after a check of its content.
devices() {
    drop_caches
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
