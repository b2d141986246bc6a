/* A timer of the local APIC that has expired, once, and been served. Whatever comes by the serial port is answered with the number
   of its ticks. */
#include "apic.h"
#include "uart.h"

void guest(void)
{
    traps();
    apic_timer(ONCE, 1000000);
    wait_for(&apic_ticks, 1);
    say("ready\n");
    for (;;) {
        __asm__ volatile("sti" ::: "memory");
        int asked = inb(UART_LINE) & 1;
        __asm__ volatile("cli" ::: "memory");
        if (asked) {
            (void)inb(UART_DATA);
            say("ticks %u\n", apic_ticks);
        }
    }
}
