#!/bin/bash
# Fetches from Debian's archive, without installing anything:
#
#   .cache/hosts/x86_64-2/  the emulated host's kernel and modules, busybox, the tools for ext4 with their libraries, and
#                           the images that run as guests
#   .cache/hosts/rust/      a compiler with the aarch64 standard library, for `cargo check` only
#
# Each directory appears whole or not at all. Delete .cache to fetch anew. The number counts the lists of what x86_64
# holds: a new list takes the next one, here and in contents.rs, and is fetched where an older one was.
set -Eeuo pipefail
trap 'echo "setup: fetch.sh failed at line $LINENO; a mirror may be out of reach, so try again" >&2' ERR
cd "$(dirname "$0")/../.."
cache=$PWD/.cache/hosts
x86_64=$cache/x86_64-2
mkdir -p "$cache"

# One at a time; the lock ends with this process.
exec 9>"$cache/lock"
flock 9

if [ -d "$x86_64" ] && [ -d "$cache/rust" ]; then
    exit 0
fi

work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Package lists of our own: they hold arm64 whatever the machine's dpkg knows, and need no privilege to update.
options=(
    --quiet --quiet
    -o "APT::Architectures=amd64,arm64"
    -o "APT::Sandbox::User=$(id -un)"
    -o "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"
    -o "Acquire::Languages=none"
    -o "Acquire::Retries=3"
    -o "Dir::Cache=$work/apt"
    -o "Dir::State::Lists=$work/lists"
)

update_lists() {
    [ -d "$work/lists" ] && return
    echo "setup: fetching Debian's package lists"
    mkdir -p "$work/apt" "$work/lists/partial"
    # A source that is not Debian's may fail; a package that is then unknown is the error that counts.
    apt-get "${options[@]}" update || true
}

# depends PACKAGE PATTERN: the package that PACKAGE depends on whose name matches PATTERN.
depends() {
    apt-cache "${options[@]}" depends "$1" | sed -nE "s/^ *Depends: ($2)(:[a-z0-9]+)?\$/\1/p" | head -n 1
}

# unpack DIRECTORY PACKAGE...: downloads and unpacks the packages into DIRECTORY.
unpack() {
    local directory=$1
    shift
    echo "setup: fetching $*"
    mkdir -p "$directory" "$work/packages"
    (cd "$work/packages" && apt-get "${options[@]}" download "$@")
    local package
    for package in "$work"/packages/*.deb; do
        dpkg -x "$package" "$directory"
        rm "$package"
    done
}

# field FILE OFFSET LENGTH: one unsigned little-endian field of a file.
field() {
    od -An "-tu$3" "-j$2" "-N$3" "$1" | tr -d ' '
}

# unpack_vmlinux BZIMAGE: the kernel's ELF. The boot protocol's setup header gives the number of setup sectors (0x1f1)
# and where the payload is in the protected-mode part (0x248, 0x24c); its last 4 bytes are the unpacked size.
unpack_vmlinux() {
    local start length
    start=$(($(field "$1" 497 1) * 512 + 512 + $(field "$1" 584 4)))
    length=$(($(field "$1" 588 4) - 4))
    dd if="$1" of="$work/payload" bs=1M status=none \
        iflag=skip_bytes,count_bytes "skip=$start" "count=$length"
    if [ "$(od -An -tx1 -N4 "$work/payload" | tr -d ' ')" != 02214c18 ]; then
        echo "setup: the kernel is not compressed by lz4; unpack_vmlinux must learn its format" >&2
        return 1
    fi
    lz4 -dcq "$work/payload"
}

# What the host loads, and then what Linux as a guest does.
modules=(
    virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd drivers/net/tun
    drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_mmio drivers/block/virtio_blk
    net/core/failover drivers/net/net_failover drivers/net/virtio_net
)

# fetch_ext4_tools DIRECTORY: mke2fs, e2fsck and debugfs, and in lib/ the libraries that they need and the loader.
fetch_ext4_tools() {
    local from=$work/ext4 library
    unpack "$from" e2fsprogs:amd64 libext2fs2:amd64 libcom-err2:amd64 libss2:amd64 libblkid1:amd64 libuuid1:amd64 \
        libc6:amd64
    mkdir -p "$1/lib"
    cp "$from"/sbin/mke2fs "$from"/sbin/e2fsck "$from"/sbin/debugfs "$1/"
    for library in libext2fs.so.2 libe2p.so.2 libcom_err.so.2 libss.so.2 libblkid.so.1 libuuid.so.1 libc.so.6 \
        ld-linux-x86-64.so.2; do
        cp -L "$(find "$from/lib/x86_64-linux-gnu" "$from/usr/lib/x86_64-linux-gnu" -name "$library" 2>/dev/null)" \
            "$1/lib/"
    done
}

fetch_x86_64() {
    local from=$work/host to=$work/x86_64 kernel module version
    kernel=$(depends linux-image-cloud-amd64:amd64 'linux-image-[0-9].*')
    version=${kernel#linux-image-}
    unpack "$from" "$kernel:amd64" busybox-static:amd64 memtest86+:amd64 xen-hypervisor-4.17-amd64:amd64
    mkdir -p "$to/modules"
    cp "$from/boot/vmlinuz-$version" "$to/vmlinuz"
    unpack_vmlinux "$to/vmlinuz" >"$to/vmlinux"
    cp "$from/bin/busybox" "$to/busybox"
    cp "$from/boot/memtest86+x64.bin" "$to/memtest86+"
    gzip -dc "$from"/boot/xen-4.17-amd64.gz >"$to/xen"
    for module in "${modules[@]}"; do
        cp "$from/lib/modules/$version/kernel/$module.ko" "$to/modules/"
    done
    fetch_ext4_tools "$to/ext4"
    rm -rf "$cache"/x86_64 "$cache"/x86_64-*
    mv "$to" "$x86_64"
}

# Debian's rustc-web has an arm64 standard library. It is unpacked here and not installed, so that no second rustc gets
# into PATH; `rustc` in the directory runs it.
fetch_rust() {
    local to=$work/rust architecture libraries
    architecture=$(dpkg --print-architecture)
    # What the compiler needs and this machine lacks, the rust packages themselves apart.
    libraries=$(apt-get "${options[@]}" --simulate --no-install-recommends install rustc-web |
        sed -nE 's/^Inst ([^ ]+) .*/\1/p' | grep -vE '^(rustc-web|libstd-rust-web.*)$' || true)
    # shellcheck disable=SC2086 # one word for each package
    unpack "$to" rustc-web "libstd-rust-web-dev:$architecture" libstd-rust-web-dev:arm64 \
        "$(depends libstd-rust-web-dev 'libstd-rust-web-[0-9.]+')" $libraries
    rm -rf "$to/usr/share" "$to/usr/libexec" "$to/usr/bin/rustdoc"
    cat >"$to/rustc" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/usr/lib/$(uname -m)-linux-gnu exec "$here/usr/bin/rustc" "$@"
SCRIPT
    chmod +x "$to/rustc"
    mv "$to" "$cache/rust"
}

update_lists
[ -d "$x86_64" ] || fetch_x86_64
[ -d "$cache/rust" ] || fetch_rust
