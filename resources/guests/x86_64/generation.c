/* Prints the identity record of the VM at the start, at each input byte, and at each interrupt of a new record, by the IOAPIC
   with `ioapic=1`. Otherwise the 8259 passes its line, at which no interrupt must arrive. */
#include "apic.h"
#include "boot.h"
#include "record.h"
#include "trap.h"
#include "uart.h"

enum { IDENTITY_IRQ = 13, BASE = 0x20 };

static volatile unsigned events, interrupts;
static int has_ioapic;

static void done(unsigned irq)
{
    if (has_ioapic)
        apic_done();
    else
        pic_done(irq);
}

static INTERRUPT serial(struct frame *frame)
{
    (void)frame;
    (void)inb(UART_IDENTIFY);
    while (inb(UART_LINE) & 1)
        (void)inb(UART_DATA);
    events++;
    done(UART_IRQ);
}

static INTERRUPT changed(struct frame *frame)
{
    (void)frame;
    interrupts++;
    events++;
    done(IDENTITY_IRQ);
}

static void enable(unsigned irq, void (*handler)(struct frame *))
{
    gate((u8)(BASE + irq), handler);
    if (has_ioapic)
        ioapic_route(irq, (u8)(BASE + irq));
    else
        pic_unmask(irq);
}

void guest(void)
{
    traps();
    has_ioapic = option("ioapic=", 0) != 0;
    pic_start(BASE);
    if (has_ioapic)
        apic_start();
    enable(UART_IRQ, serial);
    enable(IDENTITY_IRQ, changed);
    uart_interrupts(1);
    for (unsigned next = 1;; next++) {
        record_print(interrupts);
        wait_for(&events, next);
        next = events;
    }
}
