#!/bin/busybox sh
# Init of the Linux guest: reports the machine as the kernel found it, then starts a shell.
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
# In the order of their dependencies.
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/list
if [ -d /sys/firmware/acpi ]; then acpi=yes; else acpi=no; fi
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
memory=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
echo "linux: cpus=$(nproc) acpi=$acpi clock=$clock memory=$memory end"
export PS1='prompt> '
exec sh -i
