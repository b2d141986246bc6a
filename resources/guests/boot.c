#include "boot.h"

static struct boot boot;

u64 length(const char *text)
{
    u64 count = 0;
    while (text[count])
        count++;
    return count;
}

void boot_add_region(struct boot *to, u64 base, u64 size, u32 type)
{
    if (to->regions < COUNT(to->map))
        to->map[to->regions++] = (struct region){base, size, type};
}

void boot_set_cmdline(struct boot *to, u64 address)
{
    to->cmdline = address ? (const char *)address : "";
    to->cmdline_size = length(to->cmdline);
}

const struct boot *boot_info(void)
{
    if (!boot.protocol)
        boot_parse(&boot);
    return &boot;
}

const char *argument(const char *key, unsigned nth)
{
    for (const char *at = boot_info()->cmdline; *at; at++) {
        u64 i = 0;
        while (key[i] && at[i] == key[i])
            i++;
        if (!key[i] && !nth--)
            return at + i;
    }
    return NULL;
}

u64 option(const char *key, u64 otherwise)
{
    const char *at = argument(key, 0);
    if (!at)
        return otherwise;
    u64 value = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (u64)(*at - '0');
    return value;
}
