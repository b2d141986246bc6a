/* Jumps to itself without end, interrupts disabled. */
#include "guest.h"

void guest(void)
{
    print("looping\n");
    for (;;)
        __asm__ volatile("");
}
