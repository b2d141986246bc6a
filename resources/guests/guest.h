/* Common code of the guests: serial output, checks, and exits. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

enum { PAGE = 4096 };

/* Object of type `type` at a physical address, which is mapped to itself. Registers of devices: read32, write32 and the like. */
#define AT(type, address) (*(volatile type *)(uintptr_t)(address))

/* Registers of the CPU and its devices, and RAM_BASE, the start of the first MiB of RAM. */
#include "arch.h"

/* First byte of the image, and first byte after its BSS. */
extern u8 image_start[], image_end[];

void put(char byte);
/* Prints `length` bytes as fast as the machine can. */
void put_all(const char *bytes, u64 length);
/* Prints by a printf format of %s %c %% and %u %x %lu %lx with a zero-padded width. */
__attribute__((format(printf, 1, 2))) void print(const char *format, ...);

/* Prints `FAIL what: got X want Y` if the values differ; the guest then exits with status 1. */
void expect(const char *what, u64 got, u64 want);
/* Prints `FAIL what` if `holds` is 0; the guest then exits with status 1. */
void require(const char *what, int holds);
/* Number of failed checks. */
extern unsigned failures;

/* Announces to the VMM that the guest is ready: x86_64 by the port behind the debug-exit port. Without effect on aarch64. */
void announce_ready(void);
/* Exits with this status: x86_64 by the debug-exit port. On aarch64 it powers off, and resets after the line `exit STATUS` if
   the status is not 0. */
_Noreturn void finish(u8 status);
/* Exits by a reset: x86_64 by the reset line of the i8042, aarch64 by PSCI. */
_Noreturn void reset(void);
/* Exits by a power-off: x86_64 by the ACPI port 0x604 of QEMU's `pc`, aarch64 by PSCI. */
_Noreturn void power_off(void);
/* Halts without end, interrupts disabled. */
_Noreturn void cpu_halt(void);

/* Main function of a guest. After its return the guest exits with status 0, or 1 if a check failed. */
void guest(void);

#endif
