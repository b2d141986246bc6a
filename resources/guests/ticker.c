/* Prints `tick N` about every 10 ms by the local APIC timer, without end. A resumed VM continues its count. */
#include "apic.h"

void guest(void)
{
    traps();
    apic_timer(PERIODIC, 10000000);
    for (unsigned next = 1;; next++) {
        wait_for(&apic_ticks, next);
        print("tick %u\n", next);
    }
}
