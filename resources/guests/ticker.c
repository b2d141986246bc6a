/* Prints `tick N` every 10 ms or so by the local APIC's timer, for ever: a resumed VM
   goes on with its count. */
#include "apic.h"
#include "trap.h"

enum { VECTOR = 0x40 };

static volatile unsigned ticks;

static INTERRUPT tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    apic_done();
}

void guest(void)
{
    traps();
    gate(VECTOR, tick);
    apic_start();
    APIC(APIC_DIVIDE) = 0xb; /* by 1 */
    APIC(APIC_LVT_TIMER) = 0x20000 | VECTOR;
    APIC(APIC_INITIAL_COUNT) = 10000000; /* KVM's local APIC counts nanoseconds */
    for (unsigned next = 1;; next++) {
        wait_for(&ticks, next);
        say("tick %u\n", next);
    }
}
