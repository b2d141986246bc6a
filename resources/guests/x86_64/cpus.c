#include "cpus.h"
#include "apic.h"
#include "firmware.h"

enum { TRAMPOLINE = 0x8000, INIT = 0x4500, STARTUP = 0x4600, SENT = 0x1000 };

extern u8 trampoline[], trampoline_end[];
extern u32 trampoline_cr3, trampoline_cr4, trampoline_efer, arrivals;

static int await_within(const volatile u32 *value, u32 want, u64 limit)
{
    for (u64 start = cycles(); cycles() - start < limit;)
        if (*value == want)
            return 1;
    return *value == want;
}

int await(const volatile u32 *value, u32 want) { return await_within(value, want, 5000000000); }

u64 cpu_id(void) { return apic_id(); }

unsigned cpus_find(const char **source, u64 *ids, unsigned most)
{
    static u8 apic_ids[256];
    unsigned count = find_cpus(source, apic_ids, COUNT(apic_ids));
    for (unsigned i = 0; i < count && i < most; i++)
        ids[i] = apic_ids[i];
    return count;
}

void cpus_start(void)
{
    u64 cr3, cr4;
    apic_start();
    __asm__("movq %%cr3, %0" : "=r"(cr3));
    __asm__("movq %%cr4, %0" : "=r"(cr4));
    require("page tables below 4 GiB", cr3 < 0x100000000);
    trampoline_cr3 = (u32)cr3;
    trampoline_cr4 = (u32)cr4;
    trampoline_efer = (u32)rdmsr(0xc0000080) & ~0x400u; /* LMA is read-only for software */
    for (unsigned i = 0; i < trampoline_end - trampoline; i++)
        AT(u8, TRAMPOLINE + i) = trampoline[i];
}

static void send(u64 id, u32 command)
{
    APIC(APIC_ICR_HIGH) = (u32)id << 24;
    APIC(APIC_ICR_LOW) = command;
    for (unsigned i = 0; i < 1000 && APIC(APIC_ICR_LOW) & SENT; i++)
        cpu_pause();
}

void cpu_start(u64 id)
{
    u32 before = AT(u32, &arrivals);
    send(id, INIT);
    send(id, STARTUP | TRAMPOLINE >> 12);
    /* The second start-up IPI starts a CPU that missed the first; a running CPU ignores it. */
    if (!await_within(&arrivals, before + 1, 10000000))
        send(id, STARTUP | TRAMPOLINE >> 12);
}
