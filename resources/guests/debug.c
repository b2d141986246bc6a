/* Calls functions three deep in rounds and changes data, for a debugger. */
#include "guest.h"

static volatile u64 watched;
static volatile u64 rounds = 4;

u64 inner(u64 value);
u64 middle(u64 value);
u64 outer(u64 value);
u64 second(u64 value);

__attribute__((noinline)) u64 inner(u64 value)
{
    u64 tripled = value * 3;
    watched = tripled;
    return tripled + 1;
}

__attribute__((noinline)) u64 middle(u64 value)
{
    return inner(value + 1) * 2;
}

__attribute__((noinline)) u64 outer(u64 value)
{
    return middle(value) + watched;
}

__attribute__((noinline)) u64 second(u64 value)
{
    return outer(value) + 1;
}

void guest(void)
{
    for (u64 round = 0; round < rounds; round++)
        print("round %lu: %lu\n", round, second(round));
    print("ok debug\n");
}
