/* Jumps to the reset vector, which resets the machine in any mode. */
    .globl _start
_start:
    movl $0xffff0, %eax
    jmp *%rax
