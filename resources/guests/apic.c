#include "apic.h"

void apic_start(void) { APIC(APIC_SPURIOUS) = 0x1ff; }

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
