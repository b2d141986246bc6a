#include "firmware.h"

static u64 ebda(void) { return (u64)AT(u16, 0x40e) << 4; }

static u64 scan(u64 from, u64 to, u64 magic, u64 mask)
{
    for (; from < to; from += 16)
        if ((AT(u64, from) & mask) == magic)
            return from;
    return 0;
}

u64 find_rsdp(void)
{
    const u64 magic = 0x2052545020445352; /* "RSD PTR " */
    u64 found = ebda() ? scan(ebda(), ebda() + 1024, magic, ~0ul) : 0;
    return found ? found : scan(0xe0000, 0x100000, magic, ~0ul);
}

/* MultiProcessor Specification 1.4, section 4: the EBDA, the end of base memory, then the BIOS ROM. */
u64 find_mp(void)
{
    const u64 magic = 0x5f504d5f; /* "_MP_" */
    u64 found = ebda() ? scan(ebda(), ebda() + 1024, magic, 0xffffffff) : 0;
    if (!found)
        found = scan(0x9fc00, 0xa0000, magic, 0xffffffff);
    return found ? found : scan(0xf0000, 0x100000, magic, 0xffffffff);
}

u64 acpi_table(u64 rsdp, unsigned index)
{
    int wide = AT(u8, rsdp + 15) >= 2;
    u64 root = wide ? AT(u64, rsdp + 24) : AT(u32, rsdp + 16);
    u64 entry = root + 36 + index * (wide ? 8 : 4);
    if (entry >= root + AT(u32, root + 4))
        return 0;
    return wide ? AT(u64, entry) : AT(u32, entry);
}

int signed_as(u64 address, const char *signature)
{
    for (unsigned i = 0; i < 4; i++)
        if (AT(char, address + i) != signature[i])
            return 0;
    return 1;
}

u8 sum(u64 address, u64 size)
{
    u8 total = 0;
    for (u64 end = address + size; address < end; address++)
        total += AT(u8, address);
    return total;
}

unsigned madt_cpus(u64 madt, u8 *ids, unsigned room)
{
    unsigned count = 0;
    u64 end = madt + AT(u32, madt + 4);
    for (u64 entry = madt + 44; entry < end && AT(u8, entry + 1); entry += AT(u8, entry + 1)) {
        u8 type = AT(u8, entry);
        if ((type != 0 || !(AT(u32, entry + 4) & 1)) && (type != 9 || !(AT(u32, entry + 8) & 1)))
            continue;
        if (count < room)
            ids[count] = type ? AT(u8, entry + 4) : AT(u8, entry + 3);
        count++;
    }
    return count;
}

unsigned mp_cpus(u64 pointer, u8 *ids, unsigned room)
{
    u64 table = AT(u32, pointer + 4), entry = table + 44;
    unsigned count = 0;
    for (unsigned left = AT(u16, table + 34); left; left--) {
        u8 type = AT(u8, entry);
        if (type == 0 && AT(u8, entry + 3) & 1) {
            if (count < room)
                ids[count] = AT(u8, entry + 1);
            count++;
        }
        entry += type == 0 ? 20 : 8;
    }
    return count;
}

unsigned find_cpus(const char **source, u8 *ids, unsigned room)
{
    u64 rsdp = find_rsdp(), table;
    for (unsigned i = 0; rsdp && (table = acpi_table(rsdp, i)); i++) {
        *source = "madt";
        if (signed_as(table, "APIC"))
            return madt_cpus(table, ids, room);
    }
    u64 mp = find_mp();
    if (mp) {
        *source = "mptable";
        return mp_cpus(mp, ids, room);
    }
    u32 leaf[4];
    cpuid(1, 0, leaf);
    unsigned count = leaf[3] >> 28 & 1 ? leaf[1] >> 16 & 0xff : 1;
    for (unsigned i = 0; i < count && i < room; i++)
        ids[i] = (u8)i;
    *source = "cpuid";
    return count;
}
