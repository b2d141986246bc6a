/* Causes a triple fault: an invalid opcode with an empty IDT. */
    .globl _start
_start:
    lidt empty
    ud2
1:  hlt
    jmp 1b
empty:
    .word 0
    .quad 0
