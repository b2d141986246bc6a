/* Entry of the other CPUs, copied to 0x8000: switches from real mode to long mode in one step, then calls `other_cpu` in C. */
    .set TRAMPOLINE, 0x8000
    .data
    .globl trampoline, trampoline_end, trampoline_cr3, trampoline_cr4, trampoline_efer, arrivals
    .code16
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl pointer - trampoline
    movl trampoline_cr4 - trampoline, %eax
    movl %eax, %cr4
    movl trampoline_cr3 - trampoline, %eax
    movl %eax, %cr3
    movl trampoline_efer - trampoline, %eax
    xorl %edx, %edx
    movl $0xc0000080, %ecx
    wrmsr
    movl $0x80000011, %eax      /* PG, ET, PE */
    movl %eax, %cr0
    ljmpl $0x10, $other_start
    .balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
pointer:
    .word 31
    .long TRAMPOLINE + gdt - trampoline
trampoline_cr3:  .long 0        /* values of the first CPU, set before the copy */
trampoline_cr4:  .long 0
trampoline_efer: .long 0
trampoline_end:

    .text
    .code64
other_start:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %edi
    lock xaddl %edi, arrivals   /* number of this CPU, from 0 */
    leal 1(%rdi), %esp
    shll $11, %esp
    addl $stacks, %esp
    call other_cpu
1:  cli
    hlt
    jmp 1b

    .bss
    .balign 16
stacks:
    .skip 32 * 2048
arrivals:
    .skip 4
