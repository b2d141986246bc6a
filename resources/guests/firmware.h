/* ACPI and MP tables, found in memory as an operating system finds them. */
#ifndef FIRMWARE_H
#define FIRMWARE_H

#include "guest.h"

/* Address of the RSDP, in the EBDA's first KiB or 0xe0000..0x100000; 0 when there is none. */
u64 find_rsdp(void);
/* Address of the MP floating pointer; 0 when there is none. */
u64 find_mp(void);
/* Address of table `index` that the RSDP lists; 0 past the last. */
u64 acpi_table(u64 rsdp, unsigned index);
/* 1 when the table at `address` begins with these four letters. */
int signed_as(u64 address, const char *signature);
/* Sum of `size` bytes, modulo 256. */
u8 sum(u64 address, u64 size);

/* APIC ids of the enabled CPUs; how many there are is returned, at most `room` are written. */
unsigned madt_cpus(u64 madt, u8 *ids, unsigned room);
unsigned mp_cpus(u64 pointer, u8 *ids, unsigned room);
/* The same from the MADT, or the MP table, or CPUID leaf 1, whichever is there; `*source` is its name. */
unsigned find_cpus(const char **source, u8 *ids, unsigned room);

#endif
