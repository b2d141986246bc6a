/* Reads and writes unclaimed addresses below RAM: reads must return all ones, writes must have no effect. With `stay=1`, halts at the
   end instead of the exit. */
#include "boot.h"

static unsigned addresses;

static void poke_address(u64 address)
{
    expect("byte of memory", read8(address), 0xff);
    expect("word of memory", read16(address), 0xffff);
    expect("long of memory", read32(address), 0xffffffff);
    expect("quad of memory", read64(address), ~0ul);
    write8(address, 0x5a);
    write16(address, 0x5a5a);
    write32(address, 0x5a5a5a5a);
    write64(address, 0x5a5a5a5a5a5a5a5a);
    addresses++;
}

void guest(void)
{
    /* Devices are in the first MiB of this range on the memory map fc, below it on virt. */
    u64 first = RAM_BASE == 0x80000000 ? 0x40100000 : 0x10000000;
    for (u64 at = first; at < RAM_BASE && !failures; at += 0x1000000)
        poke_address(at);
    print("%s poke %u addresses\n", failures ? "bad" : "ok", addresses);
    if (option("stay=", 0))
        cpu_halt();
}
