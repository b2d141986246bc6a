/* What the VMM said about the machine, by whichever protocol. */
#ifndef BOOT_H
#define BOOT_H

#include "guest.h"

enum { RAM = 1 };

struct region {
    u64 base, size; /* bytes */
    u32 type;       /* of e820 */
};

struct boot {
    const char *protocol;
    const char *cmdline;   /* "" when there is none */
    u64 cmdline_size;      /* bytes without the NUL, as told where the protocol tells it */
    u64 initrd, initrd_size;
    u64 rsdp;              /* 0 where not told */
    unsigned modules;
    unsigned regions;
    struct region map[64];
};

/* Read on the first call. */
const struct boot *boot_info(void);

/* The number after `key` (such as "code=") in the command line, decimal; `otherwise` when it is not there. */
u64 option(const char *key, u64 otherwise);

/* What follows the `nth` (from 0) `key` in the command line, or NULL. */
const char *argument(const char *key, unsigned nth);

u64 length(const char *text);

#endif
