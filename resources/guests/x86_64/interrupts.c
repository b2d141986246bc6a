/* Interrupts by the 8259, or with IOAPIC defined by the IOAPIC. */
#include "apic.h"
#include "interrupts.h"
#include "trap.h"
#include "uart.h"

enum { BASE = 0x20, LINES = 16, RECEIVED = 1 };

static void (*handlers[LINES])(void);
static void (*on_byte)(u8 byte);

static void dispatch(unsigned irq)
{
    handlers[irq]();
#ifdef IOAPIC
    apic_done();
#else
    pic_done(irq);
#endif
}

#define STUB(irq)                              \
    static INTERRUPT line_##irq(struct frame *frame) \
    {                                          \
        (void)frame;                           \
        dispatch(irq);                         \
    }
STUB(0) STUB(1) STUB(2) STUB(3) STUB(4) STUB(5) STUB(6) STUB(7)
STUB(8) STUB(9) STUB(10) STUB(11) STUB(12) STUB(13) STUB(14) STUB(15)

static void (*const stubs[LINES])(struct frame *) = {
    line_0, line_1, line_2, line_3, line_4, line_5, line_6, line_7,
    line_8, line_9, line_10, line_11, line_12, line_13, line_14, line_15,
};

void interrupts_start(void)
{
    traps();
    pic_start(BASE);
#ifdef IOAPIC
    apic_start();
#endif
}

void interrupts_handle(unsigned irq, void (*handler)(void))
{
    handlers[irq] = handler;
    gate((u8)(BASE + irq), stubs[irq]);
#ifdef IOAPIC
    ioapic_route(irq, (u8)(BASE + irq));
#else
    pic_unmask(irq);
#endif
}

/* sti takes effect after the next instruction, so that no interrupt is missed between a check and the halt. */
void interrupts_wait(void) { __asm__ volatile("sti; hlt; cli" ::: "memory"); }

void interrupts_accept(void) { __asm__ volatile("sti; nop; nop; cli" ::: "memory"); }

void timer_start(enum timer_mode mode, u64 ns)
{
    if (mode == DEADLINE)
        apic_deadline(ns);
    else
        apic_timer(mode == PERIODIC ? APIC_PERIODIC : APIC_ONCE, (u32)ns);
}

int serial_take(u8 *byte)
{
    if (!(inb(UART_LINE) & 1))
        return 0;
    *byte = inb(UART_DATA);
    return 1;
}

/* One edge covers all pending bytes: the line stays high, without a new edge, until every byte is read. */
static void receive(void)
{
    u8 byte;
    (void)inb(UART_IDENTIFY);
    while (serial_take(&byte))
        on_byte(byte);
}

void serial_start(void (*handler)(u8 byte))
{
    on_byte = handler;
    interrupts_handle(UART_IRQ, receive);
    uart_interrupts(RECEIVED);
}
