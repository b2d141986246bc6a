#!/bin/bash
# build.sh ARCH: packages the present build of ARCH as dist/mayfly_VERSION_ARCHITECTURE.deb. Needs only dpkg-deb, for any architecture.
set -euo pipefail
cd "$(dirname "$0")/../.."
arch=$1
sources=resources/debian
case $arch in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
esac
version=$(sed -nE '1s/^mayfly \(([^)]*)\).*/\1/p' $sources/changelog)
program=$(sed -nE 's/^version = "(.*)"$/\1/p' Cargo.toml | head -n 1)
if [ "${version%-*}" != "$program" ]; then
    echo "deb: $sources/changelog has version $version, and Cargo.toml has $program; add an entry to the changelog" >&2
    exit 1
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
umask 022
PREFIX=/usr DESTDIR=$stage ZSHDIR=/usr/share/zsh/vendor-completions resources/install.sh install "$arch" >/dev/null

doc=$stage/usr/share/doc/mayfly
rm "$doc/LICENSE" # /usr/share/common-licenses has it
mv "$doc/CHANGELOG.md" "$doc/changelog"
install -m 644 $sources/copyright "$doc/copyright"
install -m 644 $sources/changelog "$doc/changelog.Debian"
gzip -9n "$doc/changelog" "$doc/changelog.Debian" "$stage"/usr/share/man/man1/*.1
mkdir -p "$stage/usr/share/lintian/overrides" "$stage/DEBIAN"
install -m 644 $sources/lintian-overrides "$stage/usr/share/lintian/overrides/mayfly"

size=$(du -k -s --apparent-size "$stage/usr" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" $sources/control >"$stage/DEBIAN/control"
for script in postinst prerm postrm; do
    install -m 755 $sources/$script "$stage/DEBIAN/$script"
done
(cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)

# The same build gives the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
package=dist/mayfly_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$stage" "$package.$$" >/dev/null
mv -f "$package.$$" "$package"
echo "$package"
