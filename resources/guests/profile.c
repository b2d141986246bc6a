/* Spends 3 of 4 rounds in `heavy_inner`, three functions deep, and one in `light_inner`, two deep, until a serial byte comes, or for
   `rounds=`. Then exits, or with `crash=1` ends by an access that KVM cannot emulate. With `others=1` all other CPUs work too; with `idle=1`
   none does. */
#include "boot.h"
#include "cpus.h"
#include "crash.h"
#include "interrupts.h"

/* Steps of a round, and rounds between two looks for a serial byte, which take as long as some rounds where a virtual machine is the host. */
enum { STEPS = 4000, ROUNDS = 64 };

u64 heavy_inner(u64 value);
u64 heavy_middle(u64 value);
u64 heavy(u64 value);
u64 light_inner(u64 value);
u64 light(u64 value);

/* One step is few instructions on all architectures. */
static inline __attribute__((always_inline)) u64 work(u64 value)
{
    for (unsigned step = 0; step < STEPS; step++) {
        value = value * 5 + 1;
        __asm__ volatile("" : "+r"(value));
    }
    return value;
}

u64 heavy_inner(u64 value) { return work(value) + 1; }
u64 heavy_middle(u64 value) { return heavy_inner(value) * 2; }
u64 heavy(u64 value) { return heavy_middle(value + 1) + 1; }

u64 light_inner(u64 value) { return work(value) + 2; }
u64 light(u64 value) { return light_inner(value) * 3; }

static u64 round_number(u64 round, u64 value) { return round % 4 ? heavy(value) : light(value); }

void other_cpu(void)
{
    print("cpu %lu up\n", cpu_id());
    for (u64 round = 0, value = 0;; round++)
        value = round_number(round, value);
}

static void start_others(void)
{
    static u64 ids[32];
    const char *source;
    cpus_start();
    unsigned count = cpus_find(&source, ids, COUNT(ids));
    for (unsigned i = 0; i < count && i < COUNT(ids); i++)
        if (ids[i] != cpu_id())
            cpu_start(ids[i]);
}

void guest(void)
{
    u64 rounds = option("rounds=", 0), value = 0;
    u8 byte;
    print("profiling\n");
    if (option("idle=", 0))
        cpu_halt();
    if (option("others=", 0))
        start_others();
    for (u64 round = 0; rounds ? round < rounds : round % ROUNDS || !serial_take(&byte); round++)
        value = round_number(round, value);
    if (option("crash=", 0))
        fail_to_emulate();
    print("ok profile\n");
}
