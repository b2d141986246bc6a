/* Finds and checks the ACPI tables and the MP table. */
#include "boot.h"
#include "firmware.h"

static u8 ids[32];

/* Counts the bytes LNRO0005 (_HID of virtio-mmio). */
static unsigned virtio_devices(u64 table, u64 size)
{
    unsigned count = 0;
    for (u64 at = table; at + 8 <= table + size; at++)
        count += AT(u8, at) == 'L' && AT(u64, at) == 0x353030304f524e4c;
    return count;
}

static u32 check_table(u64 table)
{
    u32 size = AT(u32, table + 4);
    for (unsigned i = 0; i < 4; i++)
        put(AT(char, table + i));
    print(" at %lx size %u revision %u\n", table, size, AT(u8, table + 8));
    expect("checksum", sum(table, size), 0);
    return size;
}

static void check_fadt(u64 fadt, u32 size)
{
    u32 flags = AT(u32, fadt + 112);
    u64 dsdt = size >= 148 ? AT(u64, fadt + 140) : 0;
    dsdt = dsdt ? dsdt : AT(u32, fadt + 40);
    print("  hardware-reduced %u boot flags %x\n", flags >> 20 & 1, AT(u16, fadt + 109));
    require("DSDT", dsdt && signed_as(dsdt, "DSDT"));
    if (!failures)
        print("  virtio devices %u\n", virtio_devices(dsdt, check_table(dsdt)));
}

static void check_madt(u64 madt, u32 size)
{
    unsigned ioapics = 0, overrides = 0;
    u64 entry = madt + 44, end = madt + size;
    for (; entry < end && AT(u8, entry + 1); entry += AT(u8, entry + 1)) {
        ioapics += AT(u8, entry) == 1;
        overrides += AT(u8, entry) == 2;
    }
    expect("end of the last MADT entry", entry, end);
    expect("local APIC", AT(u32, madt + 36), 0xfee00000);
    print("  cpus %u ioapics %u overrides %u pcat %u\n",
        madt_cpus(madt, ids, COUNT(ids)), ioapics, overrides, AT(u32, madt + 40) & 1);
}

static void check_acpi(void)
{
    u64 rsdp = find_rsdp(), told = boot_info()->rsdp, table;
    if (!rsdp) {
        print("no acpi\n");
        expect("RSDP told", told, 0);
        return;
    }
    print("rsdp at %lx revision %u\n", rsdp, AT(u8, rsdp + 15));
    expect("RSDP checksum", sum(rsdp, 20), 0);
    if (told)
        expect("RSDP told", told, rsdp);
    if (AT(u8, rsdp + 15) >= 2) {
        expect("RSDP extended checksum", sum(rsdp, AT(u32, rsdp + 20)), 0);
        check_table(AT(u64, rsdp + 24));
    }
    for (unsigned i = 0; (table = acpi_table(rsdp, i)); i++) {
        u32 size = check_table(table);
        if (signed_as(table, "FACP"))
            check_fadt(table, size);
        if (signed_as(table, "APIC"))
            check_madt(table, size);
    }
}

static void check_mp(void)
{
    u64 pointer = find_mp();
    if (!pointer) {
        print("no mptable\n");
        return;
    }
    u64 table = AT(u32, pointer + 4);
    print("mp pointer at %lx table at %lx\n", pointer, table);
    expect("MP pointer checksum", sum(pointer, AT(u8, pointer + 8) * 16u), 0);
    require("MP table", signed_as(table, "PCMP"));
    if (failures)
        return;
    expect("MP table checksum", sum(table, AT(u16, table + 4)), 0);
    unsigned kinds[5] = {0};
    u64 entry = table + 44;
    for (unsigned left = AT(u16, table + 34); left; left--) {
        u8 type = AT(u8, entry);
        kinds[type < 5 ? type : 4]++;
        entry += type == 0 ? 20 : 8;
    }
    expect("end of the last MP entry", entry, table + AT(u16, table + 4));
    print("  cpus %u buses %u ioapics %u interrupts %u local %u\n",
        mp_cpus(pointer, ids, COUNT(ids)), kinds[1], kinds[2], kinds[3], kinds[4]);
}

void guest(void)
{
    check_acpi();
    check_mp();
    print("%s tables\n", failures ? "bad" : "ok");
}
