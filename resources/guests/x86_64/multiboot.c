/* Checks the multiboot information. */
#include "boot.h"

void guest(void)
{
    const struct boot *boot = boot_info();
    u32 flags = AT(u32, boot_argument);
    print("entered by %s\n", boot->protocol);
    require("mem_lower and mem_upper", flags & 1);
    if (flags & 1) {
        u64 lower = AT(u32, boot_argument + 4), upper = AT(u32, boot_argument + 8);
        require("mem_lower at most 640", lower <= 640);
        print("lower %lu upper %lu KiB\n", lower, upper);
    }
    require("memory map", boot->regions > 0);
    print("[%s]\n", boot->cmdline);
    if (boot->modules) {
        u32 string = AT(u32, AT(u32, boot_argument + 24) + 8);
        expect("module on a page", boot->initrd % PAGE, 0);
        /* Hermit's loader takes all memory behind its module as free, so that none may lie below. */
        expect("module right behind the image", boot->initrd, ((u64)image_end + PAGE - 1) & ~(PAGE - 1ul));
        print("module %lu bytes [%s]\n", boot->initrd_size, string ? (const char *)(u64)string : "");
    }
    if (!failures)
        print("ok multiboot %u entries\n", boot->regions);
}
