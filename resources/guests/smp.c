/* Starts all other CPUs: by INIT and start-up IPI, or by PSCI. */
#include "cpus.h"

static u32 printing;
static volatile u32 up;
static volatile u64 wanted;

void other_cpu(void)
{
    while (__atomic_exchange_n(&printing, 1, __ATOMIC_ACQUIRE))
        cpu_pause();
    expect("identifier of the CPU that came up", cpu_id(), wanted);
    print("cpu %lu up\n", cpu_id());
    __atomic_store_n(&printing, 0, __ATOMIC_RELEASE);
    __atomic_fetch_add(&up, 1, __ATOMIC_SEQ_CST);
}

void guest(void)
{
    static u64 ids[32];
    const char *source;
    cpus_start();
    unsigned count = cpus_find(&source, ids, COUNT(ids)), started = 0;
    require("at most 32 CPUs", count <= COUNT(ids));
    print("%u cpus by %s\n", count, source);
    for (unsigned i = 0; i < count && i < COUNT(ids) && !failures; i++) {
        if (ids[i] == cpu_id())
            continue;
        wanted = ids[i];
        cpu_start(ids[i]);
        require("CPU comes up", await(&up, ++started));
    }
    expect("CPUs up", up + 1, count);
    if (!failures)
        print("ok smp %u cpus\n", count);
}
