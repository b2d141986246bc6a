/* Prints `tick N` about every 10 ms by the timer, without end. A resumed VM continues its count. */
#include "interrupts.h"

void guest(void)
{
    interrupts_start();
    timer_start(PERIODIC, 10000000);
    for (unsigned next = 1;; next++) {
        wait_for(&timer_ticks, next);
        print("tick %u\n", next);
    }
}
