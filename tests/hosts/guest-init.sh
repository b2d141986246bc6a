#!/bin/busybox sh
# The first process of Linux as a guest: says what the kernel found, then gives a prompt.
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
# An order in which each finds what it depends on.
for module in virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net; do
    insmod "/modules/$module.ko"
done
if [ -d /sys/firmware/acpi ]; then acpi=yes; else acpi=no; fi
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
memory=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
echo "linux: cpus=$(nproc) acpi=$acpi clock=$clock memory=$memory end"
export PS1='prompt> '
exec sh -i
