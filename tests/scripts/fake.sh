#!/bin/bash
# Stands for the programs that tests/scripts.rs must not run: records its name and arguments in $FAKE_LOG, and creates the files that
# the caller expects. Each created program runs this script, too.
set -eu
name=${0##*/}
echo "$name $*" >>"$FAKE_LOG"

# find_value OPTION ARGUMENT...: sets `found` to the argument after OPTION.
find_value() {
    local option=$1
    found=
    while [ $# -gt 2 ]; do
        shift
        if [ "$1" = "$option" ]; then found=$2; fi
    done
}

# create FILE: creates a program. Without processes where possible: the guests have some hundred files.
create() {
    local directory=${1%/*}
    if [ "$directory" != "$1" ] && [ ! -d "$directory" ]; then mkdir -p "$directory"; fi
    printf '#!/bin/bash\nsource "$FAKE_PROGRAM"\n' >"$1"
    case $1 in
        *.o.* | *.a.*) ;;
        *) chmod +x "$1" ;;
    esac
}

last=${!#}
case $name in
    uname) echo "$FAKE_MACHINE" ;;
    id) echo 0 ;;
    cc | *gcc)
        case "$*" in
            -print-file-name=*) echo "$FAKE_PROGRAM" ;;
            *)
                find_value -o "$@"
                create "$found"
                find_value -MF "$@"
                if [ -n "$found" ]; then : >"$found"; fi
                ;;
        esac
        ;;
    ar) create "$2" ;;
    dpkg-deb) create "$last" ;;
    gzip | git | md5sum) ;;
    *objcopy) create "$last" ;;
    rustc | c++) echo fake ;;
    cargo)
        find_value --target "$@"
        triple=$found
        find_value --target-dir "$@"
        directory=$found
        output=${directory:-target}/${triple:-$FAKE_MACHINE-unknown-linux-gnu}
        case "$*" in
            *"--package manual"*)
                for page in man/man1/mayfly.1 bash-completion/completions/mayfly zsh/site-functions/_mayfly \
                    fish/vendor_completions.d/mayfly.fish; do
                    create "dist/share/$page"
                done
                ;;
            *--message-format*)
                for test in hosts local; do
                    create "$output/debug/deps/$test-0"
                    echo "{\"executable\":\"$PWD/$output/debug/deps/$test-0\"}"
                done
                ;;
            *libfuzzer*) create "${directory:-target}/$triple/release/fuzz" ;;
            *--release*) for program in mayfly mayfly-standby mayfly-tools mayfly-jailer mayfly.map; do create "$output/release/$program"; done ;;
        esac
        ;;
    apt-get)
        case "$*" in
            *\ download\ *) : >package.deb ;;
        esac
        ;;
    dpkg)
        case "$*" in
            "-x "*) mkdir -p "$last/usr/lib" ;;
        esac
        ;;
    # A dependency of each kind that fetch.sh looks for.
    apt-cache) printf '  Depends: %s\n' linux-image-0-cloud libstd-rust-web-0 ;;
    python3)
        case "$*" in
            *venv*) create "$last/bin/pip" ;;
        esac
        ;;
    # The guest of clones.sh waits for its input.
    mayfly) if [ "$1" = run ]; then echo ready && exec sleep 60; fi ;;
esac
