#!/bin/bash
# Fetches files from Debian's archive, without an installation:
#
#   .cache/hosts/x86_64-3/   kernel and modules of the emulated host, busybox, ext4 tools with their libraries, and the
#                            guest images
#   .cache/hosts/aarch64-1/  kernel, modules, busybox and ext4 tools of the emulated aarch64 host
#   .cache/hosts/backports-1/  kernel and modules of a newer emulated aarch64 host, and its QEMU, from bookworm-backports
#   .cache/hosts/debian-1/   packages of a clean Debian system, into which tests/install.rs installs the package of mayfly
#   .cache/hosts/gdb-ARCHITECTURE-1/  gdb with its libraries
#   .cache/hosts/rust/       compiler with the aarch64 standard library, on x86_64
#
# `fetch.sh rust` fetches only the compiler. Each directory appears atomically. Delete .cache to fetch again. Increment the
# number of a directory, here and in kind.rs, with each change of its content.
set -Eeuo pipefail
trap 'echo "setup: fetch.sh failed at line $LINENO; a mirror may be unreachable; try again" >&2' ERR
cd "$(dirname "$0")/../.."
cache=$PWD/.cache/hosts
x86_64=$cache/x86_64-3
aarch64=$cache/aarch64-1
backports=$cache/backports-1
debian=$cache/debian-1
gdb_x86_64=$cache/gdb-x86_64-1
gdb_aarch64=$cache/gdb-aarch64-1
# An aarch64 machine needs no other architecture.
architectures=amd64,arm64
case ${1:-$(uname -m)} in
    rust) parts=(rust) ;;
    aarch64) parts=(aarch64 backports debian gdb_aarch64) architectures=arm64 ;;
    x86_64) parts=(x86_64 aarch64 backports debian gdb_x86_64 gdb_aarch64 rust) ;;
    *)
        echo "setup: mayfly does not run on $(uname -m); use x86_64 or aarch64" >&2
        exit 1
        ;;
esac
rust=$cache/rust
mkdir -p "$cache"

# One process at a time. The kernel releases the lock at its end.
exec 9>"$cache/lock"
flock 9

missing=()
for part in "${parts[@]}"; do
    [ -d "${!part}" ] || missing+=("$part")
done
[ ${#missing[@]} -gt 0 ] || exit 0

work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Separate package lists: they include arm64 independent of dpkg's configuration, and their update requires no root.
options=(
    --quiet --quiet
    -o "APT::Architectures=$architectures"
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
    # Sources other than Debian may fail. The download of an unknown package fails later.
    apt-get "${options[@]}" update || true
}

# dependency_of PACKAGE PATTERN: prints the first dependency of PACKAGE whose name matches PATTERN.
dependency_of() {
    apt-cache "${options[@]}" depends "$1" | sed -nE "s/^ *Depends: ($2)(:[a-z0-9]+)?\$/\1/p" | head -n 1
}

# unpack DIRECTORY PACKAGE...: downloads packages and unpacks them into DIRECTORY.
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

# field FILE OFFSET LENGTH: prints an unsigned little-endian field of a file.
field() {
    od -An "-tu$3" "-j$2" "-N$3" "$1" | tr -d ' '
}

# unpack_vmlinux BZIMAGE: prints the ELF image of the kernel. The setup header (Documentation/arch/x86/boot.rst) holds the
# number of setup sectors at 0x1f1, and offset and length of the payload in the protected-mode part at 0x248 and 0x24c.
# The last 4 bytes of the payload are the unpacked size.
unpack_vmlinux() {
    local start length
    start=$(($(field "$1" 497 1) * 512 + 512 + $(field "$1" 584 4)))
    length=$(($(field "$1" 588 4) - 4))
    dd if="$1" of="$work/payload" bs=1M status=none \
        iflag=skip_bytes,count_bytes "skip=$start" "count=$length"
    if [ "$(od -An -tx1 -N4 "$work/payload" | tr -d ' ')" != 02214c18 ]; then
        echo "setup: cannot unpack the kernel: its compression is not lz4; extend unpack_vmlinux" >&2
        return 1
    fi
    lz4 -dcq "$work/payload"
}

# Modules of the host beside KVM, then modules of the Linux guest.
modules=(
    drivers/net/tun
    drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_mmio drivers/block/virtio_blk
    net/core/failover drivers/net/net_failover drivers/net/virtio_net
)

# fetch_ext4_tools DIRECTORY ARCHITECTURE TRIPLET LOADER: fetches mke2fs, e2fsck and debugfs, and their libraries and dynamic
# loader into lib/.
fetch_ext4_tools() {
    local from=$work/ext4-$2 library
    unpack "$from" "e2fsprogs:$2" "libext2fs2:$2" "libcom-err2:$2" "libss2:$2" "libblkid1:$2" "libuuid1:$2" "libc6:$2"
    mkdir -p "$1/lib"
    cp "$from"/sbin/mke2fs "$from"/sbin/e2fsck "$from"/sbin/debugfs "$1/"
    for library in libext2fs.so.2 libe2p.so.2 libcom_err.so.2 libss.so.2 libblkid.so.1 libuuid.so.1 libc.so.6 "$4"; do
        cp -L "$(find "$from/lib/$3" "$from/usr/lib/$3" -name "$library" 2>/dev/null)" "$1/lib/"
    done
}

# fetch_host ARCHITECTURE DIRECTORY UNPACKED MODULE...: fetches kernel, busybox and modules of a host into DIRECTORY, with all
# files of the packages in UNPACKED.
fetch_host() {
    local architecture=$1 to=$2 from=$3 kernel module version
    shift 3
    kernel=$(dependency_of "linux-image-cloud-$architecture:$architecture" 'linux-image-[0-9][^:]*')
    version=${kernel#linux-image-}
    unpack "$from" "$kernel:$architecture" "busybox-static:$architecture"
    mkdir -p "$to/modules"
    cp "$from/boot/vmlinuz-$version" "$to/vmlinuz"
    cp "$from/bin/busybox" "$to/busybox"
    for module in "$@"; do
        cp "$from/lib/modules/$version/kernel/$module.ko" "$to/modules/"
    done
}

# fetch_generic_kernel DIRECTORY: fetches the kernel for all machines. The one for clouds has no driver of VMGenID (CONFIG_VMGENID).
fetch_generic_kernel() {
    local from=$work/generic kernel
    kernel=$(dependency_of linux-image-amd64:amd64 'linux-image-[0-9][^:]*')
    unpack "$from" "$kernel:amd64"
    cp "$from/boot/vmlinuz-${kernel#linux-image-}" "$1/vmlinuz-generic"
    rm -rf "$from"
}

fetch_x86_64() {
    local from=$work/host to=$work/x86_64
    fetch_host amd64 "$to" "$from" virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd "${modules[@]}"
    unpack_vmlinux "$to/vmlinuz" >"$to/vmlinux"
    fetch_generic_kernel "$to"
    unpack "$from" memtest86+:amd64 xen-hypervisor-4.17-amd64:amd64
    cp "$from/boot/memtest86+x64.bin" "$to/memtest86+"
    gzip -dc "$from"/boot/xen-4.17-amd64.gz >"$to/xen"
    fetch_ext4_tools "$to/ext4" amd64 x86_64-linux-gnu ld-linux-x86-64.so.2
    rm -rf "$cache"/x86_64 "$cache"/x86_64-*
    mv "$to" "$x86_64"
}

# The kernel has KVM built in.
fetch_aarch64() {
    local to=$work/aarch64
    fetch_host arm64 "$to" "$work/aarch64-packages" "${modules[@]}"
    fetch_ext4_tools "$to/ext4" arm64 aarch64-linux-gnu ld-linux-aarch64.so.1
    rm -rf "$cache"/aarch64-*
    mv "$to" "$aarch64"
}

# The release and its backports, whatever releases the machine has. `--target-release` selects a backport.
use_backports() {
    local signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    printf "deb $signed http://deb.debian.org/debian %s main\n" bookworm bookworm-backports >"$work/backports.list"
    options+=(
        -o "Dir::Etc::SourceList=$work/backports.list"
        -o "Dir::Etc::SourceParts=/dev/null"
        -o "Dir::State::Lists=$work/backports-lists"
        -o "APT::Default-Release=bookworm-backports"
    )
    mkdir -p "$work/apt" "$work/backports-lists/partial"
    apt-get "${options[@]}" update
}

# The guest loads the modules too, whose files are compressed. An installation would replace the QEMU of the other hosts: unpack it here,
# with `qemu-system-aarch64` in the directory as a wrapper. Only the machine `virt` runs, which needs no file of firmware.
fetch_backports() (
    to=$work/backports from=$work/backports-packages
    use_backports
    kernel=$(dependency_of linux-image-cloud-arm64:arm64 'linux-image-[0-9][^:]*')
    version=${kernel#linux-image-}
    # Missing libraries, without the packages that the machine has in another version.
    libraries=$(apt-get "${options[@]}" --simulate --no-install-recommends install qemu-system-arm |
        sed -nE 's/^Inst ([^ ]+) \(.*/\1/p' | grep -vE '^(qemu-system-.*|seabios)$' || true)
    # shellcheck disable=SC2086 # one argument for each package
    unpack "$from" "$kernel:arm64" qemu-system-arm $libraries
    mkdir -p "$to/modules" "$to/usr/bin" "$to/usr/lib"
    cp "$from/boot/vmlinuz-$version" "$to/vmlinuz"
    for module in drivers/virtio/virtio_mmio drivers/block/virtio_blk net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
        xz -dc "$from/lib/modules/$version/kernel/$module.ko.xz" >"$to/modules/${module##*/}.ko"
    done
    cp "$from/usr/bin/qemu-system-aarch64" "$to/usr/bin/"
    find "$from/usr/lib" -maxdepth 1 -name '*-linux-gnu' -exec cp -r {} "$to/usr/lib/" ';'
    cat >"$to/qemu-system-aarch64" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/usr/lib/$(uname -m)-linux-gnu exec "$here/usr/bin/qemu-system-aarch64" "$@"
SCRIPT
    chmod +x "$to/qemu-system-aarch64"
    mv "$to" "$backports"
)

# One file of packages, from which debootstrap installs without a network. Only the installation needs root.
fetch_debian() {
    local to=$work/debian
    echo "setup: fetching a Debian system"
    mkdir -p "$to"
    PATH=$PATH:/usr/sbin debootstrap --variant=minbase --include=man-db "--make-tarball=$to/packages.tgz" bookworm "$work/bootstrap" \
        http://deb.debian.org/debian >"$work/bootstrap.log" 2>&1 || {
        tail -n 5 "$work/bootstrap.log" >&2
        return 1
    }
    mv "$to" "$debian"
}

# copy_needed FROM TO FILE: copies the libraries that FILE needs from the packages in FROM to TO, and those that they need.
copy_needed() {
    local name path
    for name in $(readelf -d "$3" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p'); do
        [ ! -e "$2/$name" ] || continue
        path=$(find "$1" -name "$name" -not -type d | head -n 1)
        cp -L "$path" "$2/$name"
        copy_needed "$1" "$2" "$2/$name"
    done
}

# fetch_gdb ARCHITECTURE DIRECTORY: fetches gdb without Python into DIRECTORY, which the emulated host has as /lib/gdb.
fetch_gdb() {
    local from=$work/gdb-$1 to=$work/gdb-$1-files packages
    packages=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "gdb-minimal:$1" | sed -nE "/-common/d; s/^(lib[^ :<]*|zlib1g)(:$1)?\$/\1:$1/p" | sort -u)
    # shellcheck disable=SC2086 # one argument for each package
    unpack "$from" "gdb-minimal:$1" $packages
    mkdir -p "$to"
    cp "$from/usr/bin/gdb" "$to/"
    copy_needed "$from" "$to" "$to/gdb"
    rm -rf "$2"
    mv "$to" "$2"
}

fetch_gdb_x86_64() {
    fetch_gdb amd64 "$gdb_x86_64"
}

fetch_gdb_aarch64() {
    fetch_gdb arm64 "$gdb_aarch64"
}

# Debian's rustc-web has an arm64 standard library. An installation would add a second rustc to PATH: unpack it here, with
# `rustc` in the directory as a wrapper.
fetch_rust() {
    local to=$work/rust architecture libraries
    architecture=$(dpkg --print-architecture)
    # Missing dependencies of the compiler, without the Rust packages themselves.
    libraries=$(apt-get "${options[@]}" --simulate --no-install-recommends install rustc-web |
        sed -nE 's/^Inst ([^ ]+) .*/\1/p' | grep -vE '^(rustc-web|libstd-rust-web.*)$' || true)
    # shellcheck disable=SC2086 # one argument for each package
    unpack "$to" rustc-web "libstd-rust-web-dev:$architecture" libstd-rust-web-dev:arm64 \
        "$(dependency_of libstd-rust-web-dev 'libstd-rust-web-[0-9.]+')" $libraries
    rm -rf "$to/usr/share" "$to/usr/libexec" "$to/usr/bin/rustdoc"
    cat >"$to/rustc" <<'SCRIPT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/usr/lib/$(uname -m)-linux-gnu exec "$here/usr/bin/rustc" "$@"
SCRIPT
    chmod +x "$to/rustc"
    mv "$to" "$rust"
}

update_lists
for part in "${missing[@]}"; do
    "fetch_$part"
done
