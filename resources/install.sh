#!/bin/bash
# install.sh install|uninstall ARCH: copies the files of `make build` below $PREFIX, or removes them. With $DESTDIR, below that
# directory, for a package. $ZSHDIR is the directory of completions for zsh.
set -euo pipefail
cd "$(dirname "$0")/.."
action=$1
arch=$2
: "${PREFIX:=/usr/local}" "${DESTDIR:=}"
: "${ZSHDIR:=$PREFIX/share/zsh/site-functions}"

case $PREFIX in
    /*) ;;
    *)
        echo "install: PREFIX is \"$PREFIX\"; name an absolute path" >&2
        exit 1
        ;;
esac

# place MODE FILE TARGET: installs FILE as TARGET, or removes TARGET.
place() {
    local target=$DESTDIR$3
    if [ "$action" = uninstall ]; then
        rm -f "$target"
    else
        mkdir -p "${target%/*}"
        install -m "$1" "$2" "$target"
    fi
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
place_all "$PREFIX/share/man/man1" dist/share/man/man1/*.1
place_all "$PREFIX/share/bash-completion/completions" dist/share/bash-completion/completions/*
place_all "$ZSHDIR" dist/share/zsh/site-functions/_*
place_all "$PREFIX/share/fish/vendor_completions.d" dist/share/fish/vendor_completions.d/*
place_all "$PREFIX/share/doc/mayfly" README.md CHANGELOG.md LICENSE
place_all "$PREFIX/share/doc/mayfly/docs" docs/*
place_all "$PREFIX/share/doc/mayfly/api" resources/openapi.yaml resources/standby.yaml

# The units name the programs.
unit=$(mktemp)
trap 'rm -f "$unit"' EXIT
for template in resources/systemd/*; do
    sed "s|@PREFIX@|$PREFIX|g" "$template" >"$unit"
    place 644 "$unit" "$PREFIX/lib/systemd/system/${template##*/}"
done
if [ "$action" = uninstall ]; then
    # Only directories that have no other files.
    rmdir "$DESTDIR$PREFIX"/share/doc/mayfly/{docs,api,} 2>/dev/null || true
    echo "removed from $DESTDIR$PREFIX"
else
    echo "installed below $DESTDIR$PREFIX"
fi
