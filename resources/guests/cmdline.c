/* Prints the command line with the length of the boot data. */
#include "boot.h"

void guest(void)
{
    const struct boot *boot = boot_info();
    put('[');
    for (u64 i = 0; i < boot->cmdline_size && boot->cmdline[i]; i++)
        put(boot->cmdline[i]);
    print("]\n");
    /* Hermit panics unless the NUL is the last of the cmd_line_size bytes. */
    expect("cmd_line_size without the NUL", boot->cmdline_size, length(boot->cmdline));
    if (!failures)
        print("ok cmdline %lu bytes\n", boot->cmdline_size);
}
