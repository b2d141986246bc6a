/* A timer of the local APIC that has expired, once, and been served. Whatever comes by the serial port is answered with the number
   of its ticks. */
#include "apic.h"
#include "trap.h"
#include "uart.h"

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
    APIC(APIC_LVT_TIMER) = VECTOR;
    APIC(APIC_INITIAL_COUNT) = 1000000; /* KVM's local APIC counts nanoseconds */
    wait_for(&ticks, 1);
    say("ready\n");
    for (;;) {
        __asm__ volatile("sti" ::: "memory");
        int asked = inb(UART_LINE) & 1;
        __asm__ volatile("cli" ::: "memory");
        if (asked) {
            (void)inb(UART_DATA);
            say("ticks %u\n", ticks);
        }
    }
}
