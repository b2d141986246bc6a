/* Crashes three functions deep: by `end()` of the architecture, or with `mmio=1` by an access that KVM cannot emulate. With `wait=1`
   loops there instead. */
#include "boot.h"
#include "crash.h"

u64 first(u64 value);
u64 second(u64 value);
u64 third(u64 value);

volatile u64 rounds;

u64 third(u64 value)
{
    if (option("wait=", 0))
        for (;;)
            rounds += value;
    if (option("mmio=", 0))
        fail_to_emulate();
    end();
    return value * 3;
}

u64 second(u64 value) { return third(value + 1) * 2; }

u64 first(u64 value) { return second(value + 2) + 1; }

void guest(void)
{
    print("crashing\n");
    print("not reached %lu\n", first(40));
}
