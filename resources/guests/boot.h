/* Boot data, independent of the boot protocol. */
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
    const char *cmdline;   /* "" if absent */
    u64 cmdline_size;      /* bytes without the NUL, which counts in boot_params */
    u64 initrd, initrd_size;
    u64 rsdp;              /* 0 if absent */
    unsigned modules;
    unsigned regions;
    struct region map[64];
};

/* Returns the boot data, which the first call parses. */
const struct boot *boot_info(void);

/* Parses the boot data of this architecture into `boot`, which is zero. */
void boot_parse(struct boot *boot);
void boot_add_region(struct boot *boot, u64 base, u64 size, u32 type);
void boot_set_cmdline(struct boot *boot, u64 address);

/* Returns the decimal number after `key` (such as "code=") in the command line, or `otherwise` if the key is absent. */
u64 option(const char *key, u64 otherwise);

/* Returns the text after the `nth` (from 0) `key` in the command line, or NULL. */
const char *argument(const char *key, unsigned nth);

u64 length(const char *text);

#endif
