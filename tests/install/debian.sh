#!/bin/bash
# debian.sh DIRECTORY PACKAGES PACKAGE GUEST: installs a Debian system from the file PACKAGES into DIRECTORY, and PACKAGE into that. Uses
# it there: with the commands of a user, and GUEST. The caller has created a mount namespace.
set -euo pipefail
root=$1/root
mkdir "$root"
# In memory: dpkg syncs each file.
mount -t tmpfs -o mode=755 none "$root"
if ! PATH=$PATH:/usr/sbin:/sbin debootstrap --variant=minbase --include=man-db "--unpack-tarball=$2" bookworm "$root" >"$1/log" 2>&1; then
    tail -n 20 "$1/log"
    exit 1
fi
mount -t proc proc "$root/proc"
for device in kvm net/tun; do
    if [ -e "/dev/$device" ]; then
        mkdir -p "$(dirname "$root/dev/$device")"
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    fi
done
cp "$3" "$root/package.deb"
cp "$4" "$root/guest.elf"

inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 chroot "$root" "$@"
}

inside dpkg --install /package.deb
inside dpkg --verify mayfly
inside mayfly version
inside mayfly version --json
inside mayfly doctor || [ ! -e /dev/kvm ]
inside mayfly standby --help | head -n 1
inside mayfly-jailer --version
if [ -e /dev/kvm ]; then
    inside mayfly run /guest.elf --memory 64M
fi
for page in mayfly mayfly-run mayfly-ctl mayfly-jailer mayfly-standby; do
    inside man -w "$page"
done
inside dpkg --purge mayfly
if inside sh -c 'command -v mayfly || ls -d /usr/share/doc/mayfly' 2>/dev/null; then
    echo "files of the package are left" >&2
    exit 1
fi
echo removed
