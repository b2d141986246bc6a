/* Executes one SSE instruction: KVM_EXIT_INTERNAL_ERROR on a host that interprets privilege level 0, otherwise ok. */
#include "guest.h"

void guest(void)
{
    u64 cr0, cr4;
    print("before\n");
    __asm__ volatile("movq %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("movq %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("movq %0, %%cr0" ::"r"((cr0 & ~0xcul) | 2)); /* no EM, no TS; MP */
    __asm__ volatile("movq %0, %%cr4" ::"r"(cr4 | 0x600));        /* OSFXSR, OSXMMEXCPT */
    __asm__ volatile("pxor %xmm0, %xmm0");
    print("ok sse\n");
}
