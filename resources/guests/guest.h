/* Common code of the guests: ports, serial output, checks, and exits. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

enum {
    COM1 = 0x3f8,       /* 16550 */
    I8042_COMMAND = 0x64,
    DEBUG_EXIT = 0x501, /* a written byte is the exit status of the VMM */
    ACPI_CONTROL = 0x604,
    PAGE = 4096,
};

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }

static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u16 inw(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 inl(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static inline u64 rdmsr(u32 msr)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)));
}

static inline void cpuid(u32 leaf, u32 sub, u32 out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub));
}

/* Object of type `type` at a physical address; identity.S maps the first 4 GiB. */
#define AT(type, address) (*(volatile type *)(uintptr_t)(address))

/* Set by start.S: entry of the guest, its boot data pointer and magic number, and CR3 at the Linux entry. */
enum { LINUX = 1, PVH = 2, MULTIBOOT = 3 };
extern u32 boot_protocol, boot_magic;
extern u64 boot_argument, boot_tables;

/* First byte of the image, and first byte after its BSS. */
extern u8 image_start[], image_end[];

void put(char byte);
/* Prints by a printf format of %s %c %% and %u %x %lu %lx with a zero-padded width. */
__attribute__((format(printf, 1, 2))) void print(const char *format, ...);

/* Prints `FAIL what: got X want Y` if the values differ; the guest then exits with status 1. */
void expect(const char *what, u64 got, u64 want);
/* Prints `FAIL what` if `holds` is 0; the guest then exits with status 1. */
void require(const char *what, int holds);
/* Number of failed checks. */
extern unsigned failures;

/* Exits with this status by the debug-exit port. */
_Noreturn void finish(u8 status);
/* Exits by the reset line of the i8042. */
_Noreturn void reset(void);
/* Exits by the ACPI power-off port 0x604 of QEMU's `pc`. */
_Noreturn void power_off(void);

/* Main function of a guest. After its return the guest exits with status 0, or 1 if a check failed. */
void guest(void);

#endif
