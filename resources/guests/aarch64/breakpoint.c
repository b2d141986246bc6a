/* Executes a breakpoint instruction of its own, which ends it, for a debugger with others. */
#include "guest.h"

void work(void);

__attribute__((noinline)) void work(void) { __asm__ volatile("brk 7"); }

void guest(void)
{
    print("breaking\n");
    work();
}
