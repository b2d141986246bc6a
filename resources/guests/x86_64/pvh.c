/* Prints its entry, PVH or Linux; at the PVH entry, checks the CPU state. */
#include "boot.h"

extern u32 pvh_pushed, pvh_popped, pvh_flags, pvh_stack, pvh_cr0;

void guest(void)
{
    const struct boot *boot = boot_info();
    print("entered by %s\n", boot->protocol);
    if (boot_protocol == PVH) {
        expect("word called onto the stack", pvh_popped, pvh_pushed);
        require("ESP in low memory", pvh_stack >= 16 && pvh_stack < 0x100000);
        expect("EFLAGS.IF, TF and DF", pvh_flags & 0x700, 0);
        expect("CR0.PG and PE", pvh_cr0 & 0x80000001, 1);
        require("version with a memory map", AT(u32, boot_argument + 4) >= 1);
    }
    require("memory map", boot->regions > 0);
    print("[%s]\n", boot->cmdline);
    if (!failures)
        print("ok pvh %u entries\n", boot->regions);
}
