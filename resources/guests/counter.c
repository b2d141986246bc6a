/* Prints the time by the counter of the CPU, and the number of ticks of a timer, at each byte from the serial port. The one tick is due
   500 s after the start by the same counter: only a counter that is moved reaches it. */
#include "interrupts.h"

void guest(void)
{
    u8 byte;
    interrupts_start();
    timer_start(DEADLINE, 500000000000);
    print("ready\n");
    for (;;) {
        interrupts_accept();
        if (serial_take(&byte))
            print("counter %lu ms ticks %u\n", cycles() / (cycles_per_second() / 1000), timer_ticks);
    }
}
