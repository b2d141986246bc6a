/* Ticks of the local APIC's timer: periodic, then by TSC deadline if supported. */
#include "apic.h"

enum { CYCLES = 1000000 };

void guest(void)
{
    u32 leaf[4];
    traps();
    u64 start = rdtsc();
    apic_timer(APIC_PERIODIC, 1000000);
    wait_for(&timer_ticks, 10);
    print("periodic 10 ticks %lu cycles\n", rdtsc() - start);
    APIC(APIC_INITIAL_COUNT) = 0;
    APIC(APIC_LVT_TIMER) = MASKED | TIMER_VECTOR;
    __asm__ volatile("sti; nop; nop; cli" ::: "memory");

    cpuid(1, 0, leaf);
    if (leaf[2] >> 24 & 1) {
        APIC(APIC_LVT_TIMER) = APIC_DEADLINE | TIMER_VECTOR;
        __asm__ volatile("mfence" ::: "memory"); /* between the mode and the first deadline: SDM vol. 3, 11.5.4.1 */
        /* A periodic tick may be pending from just before the mode change. */
        __asm__ volatile("sti; nop; nop; cli" ::: "memory");
        start = rdtsc();
        for (unsigned i = 0; i < 10; i++) {
            timer_ticks = 0;
            wrmsr(TSC_DEADLINE, rdtsc() + CYCLES);
            wait_for(&timer_ticks, 1);
        }
        /* Single ticks may be early: KVM fires its timer in advance, and does not wait for the deadline on every host. */
        require("ticks at their deadlines", rdtsc() - start >= 5 * CYCLES);
        print("deadline 10 ticks %lu cycles\n", rdtsc() - start);
    }
    if (!failures)
        print("ok apic-timer\n");
}
