#include "apic.h"
#include "attack.h"
#include "pit.h"
#include "uart.h"

/* Delivery mode fixed, destination this CPU. */
enum { SELF = 0x40000 };

const u64 unclaimed_address = 0xd8000000;

void touch_controller(u32 count) { ioapic_write(0x10 + count % 48, 0x10000 | (count & 0xff)); }

void storm_ports(void)
{
    /* 8259s, 8254, port B, CMOS, serial port, i8042 status, PCI, and ports of no device. No write here prints or ends the VM. */
    static const u16 ports[] = {0x20, 0x21, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, 0xa1, 0x3f9, 0x3fd, 0x64, 0xcf8, 0x1234, 0xffff};
    for (;;)
        for (unsigned i = 0; i < COUNT(ports); i++) {
            u8 value = inb(ports[i]);
            if (ports[i] != 0x64)
                outb(ports[i], value);
        }
}

static INTERRUPT edge(struct frame *frame)
{
    (void)frame;
    (void)inb(UART_IDENTIFY);
    pic_done(0);
}

static INTERRUPT own(struct frame *frame)
{
    (void)frame;
    apic_done();
}

void storm_interrupts(void)
{
    traps();
    gate(0x20, edge);
    gate(0x20 + UART_IRQ, edge);
    gate(TIMER_VECTOR + 1, own);
    pic_start(0x20);
    outb(PIT_MODE, 0x34); /* channel 0, low then high, mode 2 */
    pit_load(PIT_CHANNEL0, 2);
    pic_unmask(0);
    pic_unmask(UART_IRQ);
    apic_timer(APIC_PERIODIC, 1000);
    for (;;) {
        uart_interrupts(0);
        uart_interrupts(2);
        APIC(APIC_ICR_LOW) = SELF | (TIMER_VECTOR + 1);
        __asm__ volatile("sti; nop; nop; cli" ::: "memory");
    }
}
