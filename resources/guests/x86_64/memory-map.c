#include "memory.h"

#define HOLE 0xc0000000ul
#define FOUR_GIB 0x100000000ul

static u64 tables[8][512] __attribute__((aligned(4096)));
static unsigned tables_used;

/* Returns the table of `entry`, creating it if absent, or 0 if the entry maps a large page. */
static volatile u64 *below(volatile u64 *entry)
{
    if (!(*entry & 1)) {
        require("page tables left", tables_used < COUNT(tables));
        *entry = (u64)tables[tables_used++ % COUNT(tables)] | 3;
    }
    return *entry & 0x80 ? 0 : (volatile u64 *)(*entry & 0xffffffffff000);
}

/* Maps the 2 MiB around an address that the VMM's page tables do not map. identity.S maps the first 4 GiB. */
void memory_map(u64 address)
{
    if (address < FOUR_GIB)
        return;
    u64 cr3;
    __asm__("movq %%cr3, %0" : "=r"(cr3));
    volatile u64 *table = (volatile u64 *)(cr3 & ~0xffful);
    for (unsigned shift = 39; table && shift > 21; shift -= 9)
        table = below(&table[address >> shift & 511]);
    if (table && !(table[address >> 21 & 511] & 1))
        table[address >> 21 & 511] = (address & ~0x1ffffful) | 0x83;
    __asm__ volatile("movq %0, %%cr3" ::"r"(cr3) : "memory");
}

void memory_check(u64 base, u64 end)
{
    require("no RAM in the hole", end <= HOLE || base >= FOUR_GIB);
    require("no RAM in 0xa0000..0x100000", end <= 0xa0000 || base >= 0x100000);
}
