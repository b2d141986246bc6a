/* Maps a page at 1 GiB by the page tables of the Linux entry, as Nanos does for its programs. */
#include "guest.h"

#define GIB 0x40000000ul
#define ADDRESS 0xffffffffff000ul

static u64 tables[2][512] __attribute__((aligned(PAGE)));
static u64 page[512] __attribute__((aligned(PAGE)));
static unsigned tables_used;

/* Returns the table of `entry`, new if the entry is absent. A present entry counts as a table, even if it maps a large page. */
static volatile u64 *below(volatile u64 *entry)
{
    if (!(*entry & 1))
        *entry = (u64)tables[tables_used++ % COUNT(tables)] | 3;
    return (volatile u64 *)(*entry & ADDRESS);
}

static void load(u64 cr3) { __asm__ volatile("movq %0, %%cr3" ::"r"(cr3) : "memory"); }

void guest(void)
{
    const u64 at = GIB + 5 * PAGE, want = 0x1122334455667788;
    u64 own;
    __asm__("movq %%cr3, %0" : "=r"(own));
    expect("protocol", boot_protocol, LINUX);
    volatile u64 *table = (volatile u64 *)(boot_tables & ADDRESS);
    for (unsigned shift = 39; shift > 12; shift -= 9)
        table = below(&table[at >> shift & 511]);
    table[at >> 12 & 511] = (u64)page | 3;
    page[0] = want;
    load(boot_tables);
    u64 found = AT(u64, at);
    load(own);
    expect("word at 1 GiB", found, want);
    print("%s paging\n", failures ? "bad" : "ok");
}
