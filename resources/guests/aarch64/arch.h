/* Registers and barriers of aarch64. */
#ifndef ARCH_H
#define ARCH_H

/* Of the memory map that the image is linked for: start of RAM, and the serial port, with 1 for a PL011 and 0 for a 16550. */
extern const u64 ram_address, serial_address, serial_is_pl011;
#define RAM_BASE ram_address

/* An access to device memory must be aligned. */
#define UNALIGNED_REGISTERS 0

/* The hypervisor decodes only loads and stores without writeback, which a compiler may emit for volatile objects. */
#define ACCESS(bits, size, register)                                                   \
    static inline u##bits read##bits(u64 address)                                      \
    {                                                                                  \
        u##bits value;                                                                 \
        __asm__ volatile("ldr" size " %" register "0, [%1]" : "=r"(value) : "r"(address) : "memory"); \
        return value;                                                                  \
    }                                                                                  \
    static inline void write##bits(u64 address, u##bits value)                         \
    {                                                                                  \
        __asm__ volatile("str" size " %" register "0, [%1]" ::"r"(value), "r"(address) : "memory"); \
    }
ACCESS(8, "b", "w")
ACCESS(16, "h", "w")
ACCESS(32, "", "w")
ACCESS(64, "", "x")

#define READ_SYSTEM(name)                                          \
    ({                                                             \
        u64 value_;                                                \
        __asm__ volatile("mrs %0, " name : "=r"(value_)::"memory"); \
        value_;                                                    \
    })
#define WRITE_SYSTEM(name, value) __asm__ volatile("msr " name ", %0; isb" ::"r"((u64)(value)) : "memory")

/* Orders accesses to memory and to devices. */
static inline void barrier(void) { __asm__ volatile("dsb sy" ::: "memory"); }
static inline void cpu_pause(void) { __asm__ volatile("yield"); }

/* Affinity of this CPU, from MPIDR_EL1. */
static inline u64 cpu_affinity(void) { return READ_SYSTEM("mpidr_el1") & 0xff00fffffful; }

/* Virtual counter. */
static inline u64 cycles(void)
{
    __asm__ volatile("isb");
    return READ_SYSTEM("cntvct_el0");
}

static inline u64 cycles_per_second(void) { return READ_SYSTEM("cntfrq_el0"); }

/* Set by start.S: registers x0 (the device tree) to x3 at the entry, and SCTLR_EL1, CurrentEL and DAIF. */
extern u64 boot_registers[4], boot_sctlr, boot_level, boot_daif;

/* Calls a function of PSCI (Arm DEN 0022) by HVC. */
u64 psci(u64 function, u64 first, u64 second, u64 third);
enum { PSCI_VERSION = 0x84000000, PSCI_SYSTEM_OFF = 0x84000008, PSCI_SYSTEM_RESET = 0x84000009 };
#define PSCI_CPU_ON 0xc4000003ul

#endif
