/* Checks the CPU state at the entry (Linux Documentation/arm64/booting.rst) and the place of the device tree. */
#include "boot.h"
#include "tree.h"

enum { EL1 = 4, MASKED = 0x3c0, MMU = 1, CACHES = 4 };

void guest(void)
{
    u64 tree = tree_address();
    if (!serial_is_pl011 || boot_registers[0])
        expect("x0", boot_registers[0], tree);
    for (unsigned i = 1; i < COUNT(boot_registers); i++)
        expect("x1 to x3", boot_registers[i], 0);
    expect("CurrentEL", boot_level, EL1);
    expect("DAIF", boot_daif, MASKED);
    expect("MMU and caches in SCTLR_EL1", boot_sctlr & (MMU | CACHES), 0);
    expect("alignment of the device tree", tree % 8, 0);
    require("the device tree takes at most 64 KiB", tree_size() <= 0x10000);
    require("the device tree is beside the image", tree + tree_size() <= (u64)image_start || tree >= (u64)image_end);
    /* The memory map of QEMU's virt: its images find the device tree without x0. */
    if (serial_is_pl011)
        expect("address of the device tree", tree, RAM_BASE);
    boot_info();
    print("%s entry\n", failures ? "bad" : "ok");
}
