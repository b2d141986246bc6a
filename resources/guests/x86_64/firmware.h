/* ACPI and MP tables, by a search of memory like that of an operating system. */
#ifndef FIRMWARE_H
#define FIRMWARE_H

#include "guest.h"

/* Returns the address of the RSDP in the first KiB of the EBDA or in 0xe0000..0x100000, or 0. */
u64 find_rsdp(void);
/* Returns the address of the MP floating pointer, or 0. */
u64 find_mp(void);
/* Returns the address of table `index` of the RSDP, or 0 after the last. */
u64 acpi_table(u64 rsdp, unsigned index);
/* Returns 1 if the table at `address` starts with this signature of four letters. */
int signed_as(u64 address, const char *signature);
/* Returns the sum of `size` bytes modulo 256. */
u8 sum(u64 address, u64 size);

/* Writes the APIC IDs of at most `room` enabled CPUs. Returns the number of enabled CPUs. */
unsigned madt_cpus(u64 madt, u8 *ids, unsigned room);
unsigned mp_cpus(u64 pointer, u8 *ids, unsigned room);
/* As above, from the MADT, else from the MP table, else from CPUID leaf 1; sets `*source` to its name. */
unsigned find_cpus(const char **source, u8 *ids, unsigned room);

#endif
