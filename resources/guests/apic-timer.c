/* Ticks of the local APIC's timer: periodic, then by TSC deadline where there is one. */
#include "apic.h"

enum { TSC_DEADLINE = 0x6e0, CYCLES = 1000000 };

void guest(void)
{
    u32 leaf[4];
    traps();
    u64 start = rdtsc();
    apic_timer(PERIODIC, 1000000);
    wait_for(&apic_ticks, 10);
    say("periodic 10 ticks %lu cycles\n", rdtsc() - start);
    APIC(APIC_INITIAL_COUNT) = 0;
    APIC(APIC_LVT_TIMER) = MASKED | TIMER_VECTOR;
    __asm__ volatile("sti; nop; nop; cli" ::: "memory");

    cpuid(1, 0, leaf);
    if (leaf[2] >> 24 & 1) {
        APIC(APIC_LVT_TIMER) = DEADLINE | TIMER_VECTOR;
        __asm__ volatile("mfence" ::: "memory"); /* between the mode and the first deadline: SDM vol. 3, 11.5.4.1 */
        /* A periodic tick may have come in just before the mode changed. */
        __asm__ volatile("sti; nop; nop; cli" ::: "memory");
        start = rdtsc();
        for (unsigned i = 0; i < 10; i++) {
            apic_ticks = 0;
            wrmsr(TSC_DEADLINE, rdtsc() + CYCLES);
            wait_for(&apic_ticks, 1);
        }
        /* Single ticks may come early: KVM starts before the deadline to be in time, and not everywhere waits for the rest. */
        require("ticks at their deadlines", rdtsc() - start >= 5 * CYCLES);
        say("deadline 10 ticks %lu cycles\n", rdtsc() - start);
    }
    if (!failures)
        say("ok apic-timer\n");
}
