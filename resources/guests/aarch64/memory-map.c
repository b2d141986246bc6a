#include "memory.h"

/* The table of start.S maps all of it. */
void memory_map(u64 address) { (void)address; }

void memory_check(u64 base, u64 end)
{
    (void)end;
    require("no RAM below the memory map's", base >= RAM_BASE);
}
