/* Prints the time of KVM's paravirtual clock in nanoseconds, and the time stamp counter, at each Ctrl-Alt-Del. */
#include "trap.h"

enum { SYSTEM_TIME = 0x4b564d01, DATA = 0x60, FULL = 1, LAST_CODE = 0x9d };

/* struct pvclock_vcpu_time_info, Linux Documentation/virt/kvm/x86/msr.rst. */
static volatile struct {
    u32 version, padding;
    u64 tsc_timestamp, system_time;
    u32 multiplier;
    int8_t shift;
    u8 flags, reserved[2];
} _Alignas(64) clock;

static u64 now(void)
{
    u64 time;
    u32 version;
    do {
        version = clock.version;
        u64 passed = rdtsc() - clock.tsc_timestamp;
        passed = clock.shift < 0 ? passed >> -clock.shift : passed << clock.shift;
        time = clock.system_time + (u64)((unsigned __int128)passed * clock.multiplier >> 32);
    } while (version & 1 || version != clock.version);
    return time;
}

void guest(void)
{
    traps();
    wrmsr(SYSTEM_TIME, (u64)&clock | 1);
    print("ready\n");
    for (;;)
        if (inb(I8042_COMMAND) & FULL && inb(DATA) == LAST_CODE)
            print("time %lu\ncounter %lu\n", now(), rdtsc());
}
