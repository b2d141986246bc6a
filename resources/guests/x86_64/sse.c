/* Executes one instruction that KVM cannot emulate: of SSE, which hosts that interpret privilege level 0 cannot run, or with
   `mmio=1` an x87 load from an address of no device, which no host can. */
#include "boot.h"

void guest(void)
{
    u64 cr0, cr4;
    print("before\n");
    __asm__ volatile("movq %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("movq %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("movq %0, %%cr0" ::"r"((cr0 & ~0xcul) | 2)); /* no EM, no TS; MP */
    __asm__ volatile("movq %0, %%cr4" ::"r"(cr4 | 0x600));        /* OSFXSR, OSXMMEXCPT */
    if (option("mmio=", 0))
        __asm__ volatile("fldl (%0)" ::"a"(0xd8000000ul));
    else
        __asm__ volatile("pxor %xmm0, %xmm0");
    print("ok sse\n");
}
