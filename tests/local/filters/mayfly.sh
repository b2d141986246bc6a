#!/bin/sh
# mayfly for a test of tests/local in a process of its own: MAYFLY_PROGRAM with the seccomp filters of the file MAYFLY_FILTERS, and with
# MAYFLY_TRACE under strace, which writes the calls of each thread to the file MAYFLY_TRACE/PROCESS.THREAD.
# The processes of a test that is killed end with it.
program() {
    exec setpriv --pdeathsig KILL "$@"
}
for argument in "$@"; do
    case $argument in
        # Without filters, or with those of another process.
        --no-seccomp | --shell) program "$MAYFLY_PROGRAM" "$@" ;;
        # Arguments of the guest.
        --) break ;;
    esac
done
case ${1-} in
    run | restore | shell)
        command=$1
        shift
        ;;
    -*) command= ;;
    *) program "$MAYFLY_PROGRAM" "$@" ;;
esac
set -- "$MAYFLY_PROGRAM" $command --seccomp-filter "$MAYFLY_FILTERS" "$@"
if [ -n "${MAYFLY_TRACE-}" ]; then
    # strace is a grandchild (-D): the process is that of the test.
    program strace -D -ff -q -e raw=\!seccomp -o "$MAYFLY_TRACE/$$" "$@"
fi
program "$@"
