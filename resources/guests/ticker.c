/* Prints `tick N` every 10 ms or so by the local APIC's timer, for ever: a resumed VM
   goes on with its count. */
#include "apic.h"

void guest(void)
{
    traps();
    apic_timer(PERIODIC, 10000000);
    for (unsigned next = 1;; next++) {
        wait_for(&apic_ticks, next);
        say("tick %u\n", next);
    }
}
