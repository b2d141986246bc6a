/* Echoes serial input until `q` or Ctrl-D, with interrupts by the 8259 or, with IOAPIC defined, by the IOAPIC. */
#include "apic.h"
#include "trap.h"
#include "uart.h"

enum { VECTOR = 0x24, RECEIVED = 1, CONTROL_D = 4 };

static volatile unsigned arrivals, over;

static INTERRUPT serial(struct frame *frame)
{
    (void)frame;
    (void)inb(UART_IDENTIFY);
    /* One edge covers all pending bytes: the line stays high, without a new edge, until every byte is read. */
    while (inb(UART_LINE) & 1) {
        u8 byte = inb(UART_DATA);
        if (byte == 'q' || byte == CONTROL_D)
            over = 1;
        else
            put((char)byte);
    }
    arrivals++;
#ifdef IOAPIC
    apic_done();
#else
    pic_done(UART_IRQ);
#endif
}

void guest(void)
{
    traps();
    gate(VECTOR, serial);
    pic_start(0x20);
#ifdef IOAPIC
    apic_start();
    ioapic_route(UART_IRQ, VECTOR);
#else
    pic_unmask(UART_IRQ);
#endif
    print("ready\n");
    uart_interrupts(RECEIVED);
    for (unsigned i = 1; !over; i++)
        wait_for(&arrivals, i);
    print("\nbye\n");
    power_off();
}
