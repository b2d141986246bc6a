/* 64-bit Linux entry, and the common end of all entries. */
    .section .text.start, "ax"
    .globl _start
_start:
    pushq %rsi                  /* the VMM's stack must hold a word */
    popq boot_argument
    movl $1, boot_protocol
    movl $stack_top, %esp
    movq %cr3, %rax
    movq %rax, boot_tables
    .weak pml4                  /* guests without identity.S keep the page tables of the VMM */
    movl $pml4, %eax
    testl %eax, %eax
    jz run
    movq %rax, %cr3

    .globl run
run:
    call guest
    xorl %edi, %edi
    cmpl $0, failures
    setne %dil
    call finish

    .bss
    .globl boot_argument, boot_tables, boot_protocol, boot_magic, stack_top
    .balign 16
boot_argument:
    .skip 8
boot_tables:
    .skip 8
boot_protocol:
    .skip 4
boot_magic:
    .skip 4
    .skip 8192
stack_top:
