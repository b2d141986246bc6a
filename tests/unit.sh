#!/bin/bash
# Runs `cargo test ARGUMENT...`, and prints the number of skipped tests.
#
#     tests/unit.sh [ARGUMENT...]
#
# The tests of the API, of consoles and of clients depend on many processes, which a busy machine may delay. Up to MAX_REPEATS failed
# tests run once more, alone, and must pass then. They are counted and printed: each is a defect to be found. More failures, a failed
# build, and the early end of a test program are final.
set -u

MAX_REPEATS=2

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
log=$directory/log
export MAYFLY_SKIPPED=$directory/skipped
: >"$MAYFLY_SKIPPED"

# can_repeat: succeeds if the failures in the log are those of `names`, and these may run once more.
can_repeat() {
    [ ${#names[@]} -ge 1 ] && [ ${#names[@]} -le "$MAX_REPEATS" ] &&
        [ ${#names[@]} -eq "$(grep -c '^test .* \.\.\. FAILED$' "$log")" ] &&
        [ ${#targets[@]} -eq "$(grep -c '^test result: FAILED' "$log")" ]
}

# repeat: runs the tests `names` of the programs `targets`, which must all pass.
repeat() {
    local target passed=0
    for target in "${targets[@]}"; do
        # The options of a target contain no spaces.
        cargo test --workspace $target -- --exact "${names[@]}" --test-threads 1 2>&1 | tee "$log"
        [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
        while read -r count; do
            passed=$((passed + count))
        done < <(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$log")
    done
    [ "$passed" -ge ${#names[@]} ]
}

cargo test --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
if [ "$status" -ne 0 ]; then
    mapfile -t names < <(sed -n 's/^test \([[:alnum:]_:]*\) \.\.\. FAILED$/\1/p' "$log")
    # Without the package: another selection of packages would build them with other features.
    mapfile -t targets < <(sed -n 's/^ *`-p [^ ]* \(.*\)`$/\1/p' "$log")
    if can_repeat; then
        echo "== repeated after a failure: ${#names[@]} of at most $MAX_REPEATS: ${names[*]}"
        if repeat; then status=0; fi
        echo "== repeated after a failure: ${#names[@]} of at most $MAX_REPEATS: ${names[*]}: status $status"
    fi
fi
echo "== skipped for lack of a requirement: $(wc -l <"$MAYFLY_SKIPPED")"
cat "$MAYFLY_SKIPPED"
exit "$status"
