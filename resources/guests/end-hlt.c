/* Halts without end, interrupts disabled. */
#include "guest.h"

void guest(void)
{
    print("halting\n");
    cpu_halt();
}
