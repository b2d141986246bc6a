#!/bin/sh
# Drives the fuzz targets: run.sh SECONDS [TARGET...]
#
# With a nightly compiler and a C++ compiler, libFuzzer drives them by coverage, with AddressSanitizer; new inputs go to the
# build directory. Otherwise the seeded mutator drives them on the installed compiler.
set -eu
cd "$(dirname "$0")/../.."
seconds=$1
shift
targets=${*:-$(ls tests/fuzz/corpus)}
build=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
triple=$(uname -m)-unknown-linux-gnu
case $(uname -m) in
    x86_64 | aarch64) ;;
    *)
        echo "fuzz: mayfly does not run on $(uname -m); use x86_64 or aarch64" >&2
        exit 1
        ;;
esac

if ! rustc +nightly --version >/dev/null 2>&1 || ! c++ --version >/dev/null 2>&1; then
    echo "== seeded mutator, without coverage: no nightly compiler (rustup toolchain install nightly) or no C++ compiler"
    for target in $targets; do
        FUZZ_SECONDS=$seconds cargo test --test fuzz -- --exact "$target"
    done
    exit
fi

echo "== libFuzzer, by coverage: $(rustc +nightly --version)"
# The flags of cargo-fuzz. They replace those of .cargo/config.toml: AddressSanitizer requires a dynamic executable.
flags='-Zsanitizer=address -Cpasses=sancov-module'
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -Cllvm-args=-sanitizer-coverage-$flag"
done
RUSTFLAGS=$flags cargo +nightly build --release --manifest-path tests/fuzz/libfuzzer/Cargo.toml \
    --target "$triple" --target-dir "$build"
for target in $targets; do
    mkdir -p "$build/corpus/$target" "$build/artifacts"
    echo "== $target"
    # Files are long: images and state files. Other inputs lose their effect with their length.
    case $target in
        image | state | load) length=32768 ;;
        *) length=2048 ;;
    esac
    # Leaks are not checked: statics keep files, and races keep guest memory.
    FUZZ_TARGET=$target ASAN_OPTIONS=detect_leaks=0 "$build/$triple/release/fuzz" -max_total_time="$seconds" \
        -len_control=0 -max_len=$length -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=64 -print_final_stats=1 \
        -verbosity=0 -artifact_prefix="$build/artifacts/$target-" "$build/corpus/$target" "tests/fuzz/corpus/$target"
done
