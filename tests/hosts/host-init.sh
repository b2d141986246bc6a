#!/bin/busybox sh
# Init of the emulated host: loads KVM, runs each scenario of /scenarios in a process of its own, and reports on the serial port
# $report (report.rs parses the report). A mark has the uptime as its last word. The kernel makes variables of its unknown parameters, here $report and $modules.
/bin/busybox --install -s /bin
# shellcheck disable=SC2154 # parameters of the kernel
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in $(echo "$modules" | tr , ' '); do
    insmod "/modules/$module.ko"
done

stty -F "/dev/$report" raw
exec >"/dev/$report" 2>&1
export MAYFLY=/bin/mayfly FIRECRACKER=/bin/firecracker MAYFLY_EMULATED_HOST=1

# Heartbeat of the emulation, which qemu.rs monitors. It goes to the console, because it would interrupt lines of the
# scenarios.
while sleep 5; do cut -d ' ' -f 1 /proc/uptime; done >/dev/console &

uptime() {
    cut -d ' ' -f 1 /proc/uptime
}

printf '\001up\n'
while read -r scenario; do
    printf '\001begin %s %s\n' "$scenario" "$(uptime)"
    /bin/scenarios --exact "$scenario" --nocapture </dev/null
    status=$?
    # The output of the scenario may lack its last newline, and a mark must start a line.
    printf '\n\001end %s %s %s\n' "$scenario" "$status" "$(uptime)"
done </scenarios
printf '\001done\n'

# stty waits until the terminal has transmitted all output (TCSADRAIN).
stty -F "/dev/$report" raw
poweroff -f
