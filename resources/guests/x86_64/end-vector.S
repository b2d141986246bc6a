/* Jumps to the reset vector, which must reset the machine in any CPU mode. */
    .globl _start
_start:
    movl $0xffff0, %eax
    jmp *%rax
