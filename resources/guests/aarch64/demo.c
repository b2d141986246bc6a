/* Prints a description of the machine as the guest sees it. */
#include "boot.h"
#include "cpus.h"
#include "tree.h"

void other_cpu(void) {}

static u64 ram(const struct boot *boot)
{
    u64 total = 0;
    for (unsigned i = 0; i < boot->regions; i++)
        total += boot->map[i].size;
    return total;
}

static u64 clock(void)
{
    struct node node;
    return tree_find("compatible", "arm,pl031", 0, &node) ? read32(tree_pair(&node, "reg", 0)) : 0;
}

void guest(void)
{
    const struct boot *boot = boot_info();
    const char *source = "";
    u64 ids[1];
    print("Hello from a guest of mayfly: this program runs without an operating system.\n");
    print("Entry:    device tree at 0x%lx, image of %lu KiB at 0x%lx\n", tree_address(),
        (u64)(image_end - image_start) / 1024, (u64)image_start);
    print("Memory:   %lu MiB in %u map entries\n", ram(boot) >> 20, boot->regions);
    unsigned cpus = cpus_find(&source, ids, COUNT(ids));
    print("CPUs:     %u, by %s\n", cpus, source);
    print("Command:  [%s]\n", boot->cmdline);
    if (clock())
        print("Clock:    %lu s since 1970\n", clock());
    print("Done:     resetting the machine, which ends the VM.\n");
    reset();
}
