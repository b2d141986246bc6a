#!/bin/sh
# mayfly for a test of tests/local in a process of its own: MAYFLY_PROGRAM with the seccomp filters of the file MAYFLY_FILTERS, and with
# MAYFLY_TRACE under strace, which writes the calls of each thread to the file MAYFLY_TRACE/PROCESS.THREAD.
for argument in "$@"; do
    case $argument in
        # Without filters, or with those of another process.
        --no-seccomp | --shell) exec "$MAYFLY_PROGRAM" "$@" ;;
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
    *) exec "$MAYFLY_PROGRAM" "$@" ;;
esac
set -- "$MAYFLY_PROGRAM" $command --seccomp-filter "$MAYFLY_FILTERS" "$@"
if [ -n "${MAYFLY_TRACE-}" ]; then
    # strace is a grandchild (-D): the process is that of the test.
    exec strace -D -ff -q -e raw=\!seccomp -o "$MAYFLY_TRACE/$$" "$@"
fi
exec "$@"
