/* IRQ 4 of the serial port through the IOAPIC: edge-triggered, or level-triggered with `level=1` on the command line. A
   level-triggered interrupt requires the EOI of the one before. */
#include "apic.h"
#include "boot.h"
#include "trap.h"
#include "uart.h"

enum { VECTOR = 0x44, TRANSMITTER_EMPTY = 2 };

static volatile unsigned seen, others;

static INTERRUPT serial(struct frame *frame)
{
    (void)frame;
    if ((inb(UART_IDENTIFY) & 0x0f) == TRANSMITTER_EMPTY)
        seen++;
    else
        others++;
    apic_done();
}

void guest(void)
{
    traps();
    gate(VECTOR, serial);
    pic_start(0x20); /* all masked: the line must arrive by the IOAPIC only */
    apic_start();
    u32 version = ioapic_read(1);
    print("version %x pins %u\n", version & 0xff, (version >> 16 & 0xff) + 1);
    require("24 pins", (version >> 16 & 0xff) + 1 >= 24);
    ioapic_write(0x10 + 9 * 2, 0x1a999); /* masked, level, low, lowest priority */
    expect("redirection entry of pin 9", ioapic_read(0x10 + 9 * 2) & ~0x5000u, 0x1a999);
    ioapic_route(UART_IRQ, VECTOR);
    if (option("level=", 0))
        ioapic_write(0x10 + UART_IRQ * 2, 0x8000 | VECTOR);
    expect("redirection entry of pin 4", ioapic_read(0x10 + UART_IRQ * 2) & ~0xd000u, VECTOR);

    uart_interrupts(TRANSMITTER_EMPTY); /* already empty: immediate interrupt */
    wait_for(&seen, 1);
    for (unsigned i = 0; i < 9; i++) {
        put((char)('0' + i)); /* empty again after every byte */
        wait_for(&seen, i + 2);
    }
    uart_interrupts(0);
    put('\n');
    expect("other interrupts", others, 0);
    if (!failures)
        print("ok ioapic %u interrupts\n", seen);
}
