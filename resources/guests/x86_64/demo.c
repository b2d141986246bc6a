/* Prints a description of the machine as the guest sees it. */
#include "boot.h"
#include "cmos.h"
#include "firmware.h"

static u64 ram(const struct boot *boot)
{
    u64 total = 0;
    for (unsigned i = 0; i < boot->regions; i++)
        total += boot->map[i].type == RAM ? boot->map[i].size : 0;
    return total;
}

void guest(void)
{
    static u8 ids[32];
    const struct boot *boot = boot_info();
    struct date date = {0};
    const char *source = "";
    print("Hello from a guest of mayfly: this program runs without an operating system.\n");
    print("Entry:    %s, 64-bit, image of %lu KiB at 0x%lx\n", boot->protocol,
        (u64)(image_end - image_start) / 1024, (u64)image_start);
    print("Memory:   %lu MiB in %u map entries\n", ram(boot) >> 20, boot->regions);
    unsigned cpus = find_cpus(&source, ids, COUNT(ids));
    print("CPUs:     %u, by %s\n", cpus, source);
    print("Command:  [%s]\n", boot->cmdline);
    if (cmos_date(&date))
        print("Clock:    %04u-%02u-%02u %02u:%02u:%02u UTC\n", date.year, date.month, date.day, date.hour,
             date.minute, date.second);
    print("Done:     resetting the machine, which ends the VM.\n");
    reset();
}
