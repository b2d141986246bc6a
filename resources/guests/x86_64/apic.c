#include "apic.h"

volatile unsigned timer_ticks;

static INTERRUPT tick(struct frame *frame)
{
    (void)frame;
    timer_ticks++;
    apic_done();
}

void apic_start(void) { APIC(APIC_SPURIOUS) = 0x1ff; }

void apic_timer(u32 mode, u32 ns)
{
    gate(TIMER_VECTOR, tick);
    apic_start();
    APIC(APIC_DIVIDE) = 0xb; /* by 1 */
    APIC(APIC_LVT_TIMER) = mode | TIMER_VECTOR;
    APIC(APIC_INITIAL_COUNT) = ns;
}

u32 ioapic_read(u32 reg)
{
    AT(u32, 0xfec00000) = reg;
    return AT(u32, 0xfec00010);
}

void ioapic_write(u32 reg, u32 value)
{
    AT(u32, 0xfec00000) = reg;
    AT(u32, 0xfec00010) = value;
}

void ioapic_route(unsigned pin, u8 vector)
{
    ioapic_write(0x11 + pin * 2, apic_id() << 24);
    ioapic_write(0x10 + pin * 2, vector);
}
