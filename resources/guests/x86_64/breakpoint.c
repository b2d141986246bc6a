/* Executes and handles breakpoint instructions of its own, for a debugger with others. */
#include "guest.h"
#include "trap.h"

static volatile unsigned handled;

static INTERRUPT breakpoint(struct frame *frame)
{
    (void)frame;
    handled++;
}

void work(void);

__attribute__((noinline)) void work(void) { __asm__ volatile("int3"); }

void guest(void)
{
    traps();
    gate(3, breakpoint);
    for (unsigned round = 0; round < 3; round++)
        work();
    print("ok breakpoint %u handled\n", handled);
}
