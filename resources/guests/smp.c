/* Starts all other CPUs by INIT and start-up IPI. */
#include "apic.h"
#include "firmware.h"

enum { TRAMPOLINE = 0x8000, INIT = 0x4500, STARTUP = 0x4600, SENT = 0x1000 };

extern u8 trampoline[], trampoline_end[];
extern u32 trampoline_cr3, trampoline_cr4, trampoline_efer, arrivals;

static u32 printing;
static volatile u32 up, wanted;

/* Main function of a started CPU. */
void other_cpu(void);
void other_cpu(void)
{
    while (__atomic_exchange_n(&printing, 1, __ATOMIC_ACQUIRE))
        __asm__ volatile("pause");
    expect("APIC id of the CPU that came up", apic_id(), wanted);
    print("cpu %u up\n", apic_id());
    __atomic_store_n(&printing, 0, __ATOMIC_RELEASE);
    __atomic_fetch_add(&up, 1, __ATOMIC_SEQ_CST);
}

static void send(u8 id, u32 command)
{
    APIC(APIC_ICR_HIGH) = (u32)id << 24;
    APIC(APIC_ICR_LOW) = command;
    for (unsigned i = 0; i < 1000 && APIC(APIC_ICR_LOW) & SENT; i++)
        __asm__ volatile("pause");
}

static int await(const volatile u32 *value, u32 want, u64 cycles)
{
    for (u64 start = rdtsc(); rdtsc() - start < cycles;)
        if (*value == want)
            return 1;
    return *value == want;
}

static void copy_trampoline(void)
{
    u64 cr3, cr4;
    __asm__("movq %%cr3, %0" : "=r"(cr3));
    __asm__("movq %%cr4, %0" : "=r"(cr4));
    require("page tables below 4 GiB", cr3 < 0x100000000);
    trampoline_cr3 = (u32)cr3;
    trampoline_cr4 = (u32)cr4;
    trampoline_efer = (u32)rdmsr(0xc0000080) & ~0x400u; /* LMA is read-only for software */
    for (unsigned i = 0; i < trampoline_end - trampoline; i++)
        AT(u8, TRAMPOLINE + i) = trampoline[i];
}

void guest(void)
{
    static u8 ids[32];
    const char *source;
    apic_start();
    copy_trampoline();
    unsigned count = find_cpus(&source, ids, COUNT(ids)), started = 0;
    require("at most 32 CPUs", count <= COUNT(ids));
    print("%u cpus by %s\n", count, source);
    for (unsigned i = 0; i < count && i < COUNT(ids) && !failures; i++) {
        if (ids[i] == apic_id())
            continue;
        wanted = ids[i];
        send(ids[i], INIT);
        send(ids[i], STARTUP | TRAMPOLINE >> 12);
        /* The second start-up IPI starts a CPU that missed the first; a running CPU ignores it. */
        if (!await(&arrivals, started + 1, 10000000))
            send(ids[i], STARTUP | TRAMPOLINE >> 12);
        require("CPU comes up", await(&up, ++started, 5000000000));
    }
    expect("CPUs up", up + 1, count);
    if (!failures)
        print("ok smp %u cpus\n", count);
}
