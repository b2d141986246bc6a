/* Powers off by ACPI as Nanos does: the length of \_S5_ selects the register. */
#include "firmware.h"

enum {
    PACKAGE_OP = 0x12, /* ACPI 6.5, section 20.2.5.4 */
    BYTE_PREFIX = 0x0a,
    SLEEP_ENABLE = 1 << 5,
    PM1_SLEEP_ENABLE = 1 << 13,
};

static u64 find_table(const char *signature)
{
    u64 rsdp = find_rsdp(), table = 0;
    for (unsigned i = 0; rsdp && (table = acpi_table(rsdp, i)); i++)
        if (signed_as(table, signature))
            return table;
    return 0;
}

/* Returns the address of the package in `Name (_S5_, Package ...)`, or 0. */
static u64 find_s5(u64 dsdt)
{
    for (u64 at = dsdt + 36, end = dsdt + AT(u32, dsdt + 4); at + 5 < end; at++)
        if (signed_as(at, "_S5_") && AT(u8, at + 4) == PACKAGE_OP)
            return at + 4;
    return 0;
}

/* Returns the integer of one element: Zero, One or a byte constant. */
static u8 integer(u64 at)
{
    return AT(u8, at) == BYTE_PREFIX ? AT(u8, at + 1) : AT(u8, at);
}

void guest(void)
{
    u64 fadt = find_table("FACP");
    require("FADT", fadt != 0);
    u64 package = fadt ? find_s5(AT(u64, fadt + 140)) : 0;
    require("package _S5_", package != 0);
    if (failures)
        return;
    /* The package is short, so that its length is one byte. */
    u8 count = AT(u8, package + 2), type = integer(package + 3);
    print("elements of _S5_: %u\n", count);
    if (count == 1)
        outb((u16)AT(u64, fadt + 244 + 4), (u8)(SLEEP_ENABLE | type << 2));
    else
        outw((u16)AT(u32, fadt + 64), (u16)(PM1_SLEEP_ENABLE | type << 10));
    require("power-off", 0);
}
