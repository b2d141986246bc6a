#!/bin/busybox sh
# The emulated host's first process: loads KVM, runs each scenario listed in /scenarios by itself, and says on the second
# serial port what came of it (report.rs reads this).
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in irqbypass kvm kvm-amd tun; do
    insmod "/modules/$module.ko"
done

stty -F /dev/ttyS1 raw
exec >/dev/ttyS1 2>&1
export MAYFLY=/bin/mayfly MAYFLY_EMULATED_HOST=1

# The sign that the emulation itself still runs (qemu.rs looks for it). It goes to the console: among what the scenarios
# print it could end up in the middle of a line.
while sleep 5; do cut -d ' ' -f 1 /proc/uptime; done >/dev/console &

printf '\001up\n'
while read -r scenario; do
    printf '\001begin %s\n' "$scenario"
    /bin/scenarios --exact "$scenario" --nocapture </dev/null
    status=$?
    # What the scenario printed last may lack its newline, and a mark counts only at the start of a line.
    printf '\n\001end %s %s\n' "$scenario" "$status"
done </scenarios
printf '\001done\n'

# Setting a terminal waits until all of its output is out.
stty -F /dev/ttyS1 raw
poweroff -f
