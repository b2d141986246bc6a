/* Crashes of aarch64. */
#ifndef CRASH_H
#define CRASH_H

#include "guest.h"

/* Load of two registers from an address of no device: the syndrome does not describe it. */
static inline __attribute__((always_inline)) void fail_to_emulate(void)
{
    u64 low, high;
    __asm__ volatile("ldp %0, %1, [%2]" : "=r"(low), "=r"(high) : "r"(0x30000000ul));
}

static inline __attribute__((always_inline)) void end(void) { fail_to_emulate(); }

#endif
