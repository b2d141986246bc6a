/* One-shot timer of the local APIC that has expired and was handled. Prints the number of ticks at each byte from the serial
   port. */
#include "apic.h"
#include "uart.h"

void guest(void)
{
    traps();
    apic_timer(ONCE, 1000000);
    wait_for(&apic_ticks, 1);
    print("ready\n");
    for (;;) {
        __asm__ volatile("sti" ::: "memory");
        int has_input = inb(UART_LINE) & 1;
        __asm__ volatile("cli" ::: "memory");
        if (has_input) {
            (void)inb(UART_DATA);
            print("ticks %u\n", apic_ticks);
        }
    }
}
