/* Prints the identity record of the VM at the start, at each input byte, and at each interrupt of a new record, by the IOAPIC
   with `ioapic=1`. Otherwise the 8259 passes its line, at which no interrupt must arrive. */
#include "apic.h"
#include "boot.h"
#include "trap.h"
#include "uart.h"

enum { RECORD = 0xff000, IDENTITY_IRQ = 13, BASE = 0x20, WORDS = 12 };
/* "MAYFLYID". */
#define SIGNATURE 0x4449594c4659414dul

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

static void report(void)
{
    u64 words[WORDS], counter;
    /* A snapshot may be taken between two reads: its clone finds another record after the first. */
    do {
        counter = AT(u64, RECORD + 8);
        for (unsigned i = 0; i < WORDS; i++)
            words[i] = AT(u64, RECORD + i * 8);
    } while (AT(u64, RECORD + 8) != counter);
    if (words[0] != SIGNATURE) {
        print("no identity\n");
        return;
    }
    print("identity %lu ", counter);
    for (unsigned i = 2; i < WORDS; i++)
        print(i == 4 ? " %016lx" : "%016lx", words[i]);
    print(" interrupts %u\n", interrupts);
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
        report();
        wait_for(&events, next);
        next = events;
    }
}
