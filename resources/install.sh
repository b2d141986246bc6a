#!/bin/bash
# install.sh install|uninstall ARCH: copies the files of `make build` below $PREFIX, or removes them. With $DESTDIR, below that
# directory, for a package. $ZSHDIR is the directory of completions for zsh.
set -euo pipefail
# The files are for all users, also if root has a mask such as 077.
umask 022
cd "$(dirname "$0")/.."
action=$1
arch=$2
: "${PREFIX:=/usr/local}" "${DESTDIR:=}"
: "${ZSHDIR:=$PREFIX/share/zsh/site-functions}"

man=$PREFIX/share/man/man1
bash=$PREFIX/share/bash-completion/completions
fish=$PREFIX/share/fish/vendor_completions.d
doc=$PREFIX/share/doc/mayfly
units=$PREFIX/lib/systemd/system

case $PREFIX in
    /*) ;;
    *)
        echo "install: PREFIX is \"$PREFIX\"; name an absolute path" >&2
        exit 1
        ;;
esac

# Needs no build, and removes the files of other versions too.
if [ "$action" = uninstall ]; then
    rm -f "$DESTDIR$PREFIX"/bin/mayfly{,-standby,-tools,-jailer} \
        "$DESTDIR$man"/mayfly{,-*}.1 \
        "$DESTDIR$bash"/mayfly{,-jailer} "$DESTDIR$ZSHDIR"/_mayfly{,-jailer} "$DESTDIR$fish"/mayfly{,-jailer}.fish \
        "$DESTDIR$doc"/{README.md,CHANGELOG.md,LICENSE,docs/*.md,docs/*.svg,api/openapi.yaml,api/standby.yaml} \
        "$DESTDIR$units"/mayfly{@.service,-standby.service,-standby.socket}
    # Only directories that have no other files.
    rmdir "$DESTDIR$doc"/{docs,api,} 2>/dev/null || true
    echo "removed from $DESTDIR$PREFIX"
    exit
fi

# The units have the prefix, in which these characters have a meaning for systemd or sed.
case $PREFIX in
    *[[:space:]\"\'\\\$%\&\|]*)
        echo "install: PREFIX is \"$PREFIX\", which units of systemd cannot name; use a path without spaces, quotes and \\ \$ % & |" >&2
        exit 1
        ;;
esac

# place MODE FILE TARGET: installs FILE as TARGET.
place() {
    local target=$DESTDIR$3
    mkdir -p "${target%/*}"
    install -m "$1" "$2" "$target"
}

# place_all DIRECTORY FILE...: places files without execution under their names.
place_all() {
    local directory=$1 file
    shift
    for file in "$@"; do
        place 644 "$file" "$directory/${file##*/}"
    done
}

for file in "dist/$arch/mayfly" dist/share/man/man1/mayfly.1; do
    if [ ! -e "$file" ]; then
        echo "install: cannot find $file; run: make build ARCH=$arch" >&2
        exit 1
    fi
done

for program in mayfly mayfly-standby mayfly-tools mayfly-jailer; do
    place 755 "dist/$arch/$program" "$PREFIX/bin/$program"
done
place_all "$man" dist/share/man/man1/*.1
place_all "$bash" dist/share/bash-completion/completions/*
place_all "$ZSHDIR" dist/share/zsh/site-functions/_*
place_all "$fish" dist/share/fish/vendor_completions.d/*
place_all "$doc" README.md CHANGELOG.md LICENSE
place_all "$doc/docs" docs/*
place_all "$doc/api" resources/openapi.yaml resources/standby.yaml

# The units name the programs.
unit=$(mktemp)
trap 'rm -f "$unit"' EXIT
for template in resources/systemd/*; do
    sed "s|@PREFIX@|$PREFIX|g" "$template" >"$unit"
    place 644 "$unit" "$units/${template##*/}"
done
echo "installed below $DESTDIR$PREFIX"
