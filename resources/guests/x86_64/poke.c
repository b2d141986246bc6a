/* Reads and writes unclaimed ports and addresses: reads must return all ones, writes must have no effect. With `stay=1`, halts at the
   end instead of the exit. */
#include "boot.h"

static unsigned ports, addresses;

/* First and last ports of devices in this kind of VMM. */
static const u16 claimed[][2] = {
    {0x20, 0x21}, {0x40, 0x43}, {0x60, 0x64}, {0x70, 0x71}, {0x80, 0x80},     {0xa0, 0xa1},
    {COM1, 0x3ff}, {0x4d0, 0x4d1}, {0x501, 0x501}, {0x604, 0x605}, {0xcf8, 0xcff},
};

static int is_claimed(unsigned port, unsigned width)
{
    for (unsigned i = 0; i < COUNT(claimed); i++)
        if (port <= claimed[i][1] && port + width > claimed[i][0])
            return 1;
    return 0;
}

static void poke_port(u16 port)
{
    if (is_claimed(port, 4))
        return;
    expect("byte of a port", inb(port), 0xff);
    expect("word of a port", inw(port), 0xffff);
    expect("long of a port", inl(port), 0xffffffff);
    outb(port, 0x5a);
    outw(port, 0x5a5a);
    outl(port, 0x5a5a5a5a);
    ports++;
}

static void poke_address(u64 address)
{
    expect("byte of memory", AT(u8, address), 0xff);
    expect("word of memory", AT(u16, address), 0xffff);
    expect("long of memory", AT(u32, address), 0xffffffff);
    expect("quad of memory", AT(u64, address), ~0ul);
    AT(u8, address) = 0x5a;
    AT(u16, address) = 0x5a5a;
    AT(u32, address) = 0x5a5a5a5a;
    AT(u64, address) = 0x5a5a5a5a5a5a5a5a;
    addresses++;
}

void guest(void)
{
    const struct boot *boot = boot_info();
    u64 hole = 0xc0000000, end = 0;
    for (unsigned i = 0; i < boot->regions; i++) {
        u64 region_end = boot->map[i].base + boot->map[i].size;
        if (boot->map[i].base < hole && region_end > end)
            end = region_end;
    }
    for (unsigned port = 0; port < 0x10000 && !failures; port += 16)
        poke_port((u16)(port + 8));
    expect("PCI address port", inl(0xcf8), 0xffffffff); /* there is no PCI bus */
    expect("PCI data port", inl(0xcfc), 0xffffffff);
    for (u64 at = (end + PAGE - 1) & ~(PAGE - 1ul); at < hole && !failures; at += 0x4000000)
        poke_address(at);
    /* The registers of virtio devices are in the first MiB of the hole, the IOAPIC at its end. */
    for (u64 at = hole + 0x100000; at < 0xfec00000 && !failures; at += 0x1000000)
        poke_address(at);
    print("%s poke %u ports %u addresses\n", failures ? "bad" : "ok", ports, addresses);
    while (option("stay=", 0))
        __asm__ volatile("hlt");
}
