/* Switch from 32-bit protected mode without paging to long mode, with the page tables of identity.S. */
    .text
    .code32
    .globl enter_long
enter_long:
    lgdt gdt_pointer
    movl %cr4, %eax
    orl $0x20, %eax             /* PAE */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x100, %eax            /* LME */
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       /* PG, PE */
    movl %eax, %cr0
    ljmp $0x10, $1f

    .code64
1:  movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movl $stack_top, %esp
    jmp run

    .data
    .balign 8
    .globl gdt_pointer
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    /* 0x10: 64-bit code, as in the Linux boot protocol */
    .quad 0x00cf93000000ffff    /* 0x18: data */
gdt_pointer:
    .word . - gdt - 1
    .long gdt
