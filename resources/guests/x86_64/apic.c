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

void apic_deadline(u64 ns)
{
    static u64 rate;
    if (!rate) {
        rate = cycles_per_second();
        require("the rate of the TSC is known", rate != 0);
        gate(TIMER_VECTOR, tick);
        apic_start();
        APIC(APIC_LVT_TIMER) = APIC_DEADLINE | TIMER_VECTOR;
        __asm__ volatile("mfence" ::: "memory"); /* between the mode and the first deadline: SDM vol. 3, 11.5.4.1 */
    }
    wrmsr(TSC_DEADLINE, rdtsc() + ns / 1000 * (rate / 1000) / 1000);
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
