/* One-shot timer that has expired and was handled. Prints the number of ticks at each byte from the serial port. */
#include "interrupts.h"

void guest(void)
{
    u8 byte;
    interrupts_start();
    timer_start(ONCE, 1000000);
    wait_for(&timer_ticks, 1);
    print("ready\n");
    for (;;) {
        interrupts_accept();
        if (serial_take(&byte))
            print("ticks %u\n", timer_ticks);
    }
}
