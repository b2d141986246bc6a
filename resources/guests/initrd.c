/* Prints size and checksum of the ramdisk: the byte sum of its first 4 KiB and its last 4 KiB. */
#include "boot.h"

static u64 total(u64 from, u64 size)
{
    u64 sum = 0;
    for (u64 at = from; at < from + size; at++)
        sum += AT(u8, at);
    return sum;
}

static int in_ram(const struct boot *boot)
{
    for (unsigned i = 0; i < boot->regions; i++) {
        const struct region *region = &boot->map[i];
        if (region->type == RAM && boot->initrd >= region->base
            && boot->initrd + boot->initrd_size <= region->base + region->size)
            return 1;
    }
    return 0;
}

void guest(void)
{
    const struct boot *boot = boot_info();
    u64 size = boot->initrd_size, part = size < PAGE ? size : PAGE;
    if (!boot->modules) {
        print("no initrd\n");
        return;
    }
    require("initrd in RAM", in_ram(boot));
    require("initrd beside the image", boot->initrd >= (u64)image_end || boot->initrd + size <= (u64)image_start);
    expect("initrd on a page", boot->initrd % PAGE, 0);
    if (!failures)
        print("ok initrd %lu bytes sum %lu\n", size, total(boot->initrd, part) + total(boot->initrd + size - part, part));
}
