/* Waits for Ctrl-Alt-Del on the AT keyboard and prints its scan codes: polled, with interrupts by the 8259 (`irq=1` on the
   command line) or by the IOAPIC (`irq=2`). `raw=1` disables the translation in the controller. */
#include "apic.h"
#include "boot.h"
#include "trap.h"

enum {
    DATA = 0x60,
    FULL = 1,           /* status: a byte can be read */
    WRITE_CONFIG = 0x60,
    INTERRUPT_ON = 0x01, SYSTEM = 0x04, TRANSLATE = 0x40,
    ENABLE = 0xf4, ACKNOWLEDGED = 0xfa,
    IRQ = 1, VECTOR = 0x21, IOAPIC_VECTOR = 0x45,
};

static u8 codes[64];
static volatile unsigned seen, interrupts;

static void take(void)
{
    u8 code = inb(DATA);
    if (seen < COUNT(codes))
        codes[seen++] = code;
}

static INTERRUPT by_pic(struct frame *frame)
{
    (void)frame;
    interrupts++;
    take();
    pic_done(IRQ);
}

static INTERRUPT by_ioapic(struct frame *frame)
{
    (void)frame;
    interrupts++;
    take();
    apic_done();
}

void guest(void)
{
    unsigned irq = (unsigned)option("irq=", 0);
    unsigned raw = (unsigned)option("raw=", 0);
    unsigned expected = raw ? 11 : 8;
    traps();
    pic_start(0x20);
    gate(VECTOR, by_pic);
    gate(IOAPIC_VECTOR, by_ioapic);

    outb(DATA, ENABLE);
    expect("answer to enable", inb(DATA), ACKNOWLEDGED);
    outb(I8042_COMMAND, WRITE_CONFIG);
    outb(DATA, (u8)(SYSTEM | (raw ? 0 : TRANSLATE) | (irq ? INTERRUPT_ON : 0)));
    if (irq == 1) {
        pic_unmask(IRQ);
    } else if (irq == 2) {
        apic_start();
        ioapic_route(IRQ, IOAPIC_VECTOR);
    }
    print("ready\n");
    while (!irq && seen < expected)
        if (inb(I8042_COMMAND) & FULL)
            take();
    if (irq)
        wait_for(&seen, expected);
    for (unsigned i = 0; i < seen; i++)
        print("%02x ", codes[i]);
    print("\n");
    expect("last code", codes[seen - 1], raw ? 0x14 : 0x9d);
    expect("interrupts", interrupts, irq ? expected : 0);
    expect("left over", inb(I8042_COMMAND) & FULL, 0);
    if (!failures)
        print("ok keyboard %u codes\n", seen);
}
