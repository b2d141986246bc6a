/* Prints and checks the memory map, and writes to both ends of every RAM entry. */
#include "boot.h"
#include "memory.h"

static void touch(u64 address)
{
    memory_map(address);
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
    print("region %lx-%lx %u\n", region->base, end, region->type);
    require("entry not empty", region->size > 0);
    require("entry does not wrap", end > region->base);
    require("entry after the one before", region->base >= previous_end);
    if (region->type != RAM)
        return;
    expect("RAM base in pages", region->base % PAGE, 0);
    memory_check(region->base, end);
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
