/* Checks the CPU state at the 64-bit Linux entry. */
#include "boot.h"

static u64 rflags(void)
{
    u64 value;
    __asm__ volatile("pushfq; popq %0" : "=r"(value));
    return value;
}

/* Bits of a descriptor, SDM vol. 3, 3.4.5. */
#define PRESENT (1ul << 47)
#define NOT_SYSTEM (1ul << 44)
#define CODE (1ul << 43)
#define WRITABLE (1ul << 41)
#define LONG (1ul << 53)
#define DEFAULT_32 (1ul << 54)
#define BASE 0xff0000ffffff0000ul

/* Checks the bits of `mask` in a descriptor of the VMM's GDT. */
static void descriptor(const char *name, u16 selector, u64 mask, u64 want)
{
    struct __attribute__((packed)) {
        u16 limit;
        u64 base;
    } gdt;
    __asm__("sgdt %0" : "=m"(gdt));
    require("selector in the GDT", (selector | 7) <= gdt.limit);
    expect(name, AT(u64, gdt.base + (selector & ~7u)) & mask, want);
}

void guest(void)
{
    u64 cr0, cr4;
    u16 cs, ds, es, ss;
    __asm__("movq %%cr0, %0" : "=r"(cr0));
    __asm__("movq %%cr4, %0" : "=r"(cr4));
    __asm__("movw %%cs, %0" : "=r"(cs));
    __asm__("movw %%ds, %0" : "=r"(ds));
    __asm__("movw %%es, %0" : "=r"(es));
    __asm__("movw %%ss, %0" : "=r"(ss));
    expect("protocol", boot_protocol, LINUX);
    expect("RFLAGS.IF, TF and DF", rflags() & 0x700, 0);
    expect("CR0.PG and PE", cr0 & 0x80000001, 0x80000001);
    expect("CR4.PAE", cr4 & 0x20, 0x20);
    expect("EFER.LME and LMA", rdmsr(0xc0000080) & 0x500, 0x500);
    expect("CS", cs, 0x10);
    expect("DS", ds, 0x18);
    expect("ES", es, 0x18);
    expect("SS", ss, 0x18);
    descriptor("code descriptor", cs, PRESENT | NOT_SYSTEM | CODE | LONG | DEFAULT_32 | BASE,
               PRESENT | NOT_SYSTEM | CODE | LONG);
    descriptor("data descriptor", ds, PRESENT | NOT_SYSTEM | CODE | WRITABLE | BASE,
               PRESENT | NOT_SYSTEM | WRITABLE);
    /* A reload checks that the GDT in memory equals the hidden parts of the segment registers. */
    __asm__ volatile("movw %0, %%ds; movw %0, %%es; movw %0, %%ss" ::"r"(ds) : "memory");
    boot_info();
    print("%s entry\n", failures ? "bad" : "ok");
}
