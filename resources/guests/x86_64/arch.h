/* Ports, registers and barriers of x86_64. */
#ifndef ARCH_H
#define ARCH_H

#define RAM_BASE 0ul
/* A device accepts accesses at any address. */
#define UNALIGNED_REGISTERS 1

enum {
    COM1 = 0x3f8,       /* 16550 */
    I8042_COMMAND = 0x64,
    DEBUG_EXIT = 0x501, /* a written byte is the exit status of the VMM */
    ACPI_CONTROL = 0x604,
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

/* Rate of the TSC, 0 if it is unknown: the leaf of the hypervisor has kHz. */
static inline u64 cycles_per_second(void)
{
    u32 leaf[4];
    cpuid(0x40000010, 0, leaf);
    return leaf[0] * 1000ul;
}

static inline u8 read8(u64 address) { return *(volatile u8 *)address; }
static inline u16 read16(u64 address) { return *(volatile u16 *)address; }
static inline u32 read32(u64 address) { return *(volatile u32 *)address; }
static inline u64 read64(u64 address) { return *(volatile u64 *)address; }
static inline void write8(u64 address, u8 value) { *(volatile u8 *)address = value; }
static inline void write16(u64 address, u16 value) { *(volatile u16 *)address = value; }
static inline void write32(u64 address, u32 value) { *(volatile u32 *)address = value; }
static inline void write64(u64 address, u64 value) { *(volatile u64 *)address = value; }

/* The CPU does not reorder loads or stores, and an access to a device is an exit: only the compiler may not reorder. */
static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void cpu_pause(void) { __asm__ volatile("pause"); }
static inline u64 cycles(void) { return rdtsc(); }

/* Set by start.S: entry of the guest, its boot data pointer and magic number, and CR3 at the Linux entry. */
enum { LINUX = 1, PVH = 2, MULTIBOOT = 3 };
extern u32 boot_protocol, boot_magic;
extern u64 boot_argument, boot_tables;

#endif
