/* Crashes of x86_64. */
#ifndef CRASH_H
#define CRASH_H

#include "guest.h"

/* Triple fault: an invalid opcode with an empty IDT. */
static inline __attribute__((always_inline)) void end(void)
{
    struct __attribute__((packed)) {
        u16 limit;
        u64 base;
    } empty = {0, 0};
    __asm__ volatile("lidt %0\n\tud2" ::"m"(empty));
}

/* x87 load from an address of no device. */
static inline __attribute__((always_inline)) void fail_to_emulate(void)
{
    u64 cr0;
    __asm__ volatile("movq %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("movq %0, %%cr0" ::"r"(cr0 & ~0xcul)); /* no EM, no TS */
    __asm__ volatile("fldl (%0)" ::"r"(0xd8000000ul));
}

#endif
