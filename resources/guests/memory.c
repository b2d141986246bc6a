/* Prints and checks the memory map, and writes to both ends of every RAM entry. */
#include "boot.h"

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

/* Identity-maps the 2 MiB around an address that the VMM's page tables do not map. */
static void map(u64 address)
{
    u64 cr3;
    __asm__("movq %%cr3, %0" : "=r"(cr3));
    volatile u64 *table = (volatile u64 *)(cr3 & ~0xffful);
    for (unsigned shift = 39; table && shift > 21; shift -= 9)
        table = below(&table[address >> shift & 511]);
    if (table && !(table[address >> 21 & 511] & 1))
        table[address >> 21 & 511] = (address & ~0x1ffffful) | 0x83;
    __asm__ volatile("movq %0, %%cr3" ::"r"(cr3) : "memory");
}

static void touch(u64 address)
{
    if (address >= FOUR_GIB)
        map(address);
    if (address < PAGE || (address + 8 > (u64)image_start && address < (u64)image_end))
        return;
    volatile u64 *word = (volatile u64 *)address;
    u64 before = *word;
    *word = ~address;
    expect("word written to RAM", *word, ~address);
    *word = before;
}

static void check(const struct region *region, u64 previous_end)
{
    u64 end = region->base + region->size;
    print("e820 %lx-%lx %u\n", region->base, end, region->type);
    require("entry not empty", region->size > 0);
    require("entry does not wrap", end > region->base);
    require("entry after the one before", region->base >= previous_end);
    if (region->type != RAM)
        return;
    expect("RAM base in pages", region->base % PAGE, 0);
    require("no RAM in the hole", end <= HOLE || region->base >= FOUR_GIB);
    require("no RAM in 0xa0000..0x100000", end <= 0xa0000 || region->base >= 0x100000);
    touch(region->base);
    touch((end & ~(PAGE - 1ul)) - 8);
}

void guest(void)
{
    const struct boot *boot = boot_info();
    u64 ram = 0, previous_end = 0;
    require("memory map", boot->regions > 0);
    for (unsigned i = 0; i < boot->regions; i++) {
        const struct region *region = &boot->map[i];
        check(region, previous_end);
        previous_end = region->base + region->size;
        ram += region->type == RAM ? region->size : 0;
    }
    print("%s memory %lu KiB\n", failures ? "bad" : "ok", ram / 1024);
}
