/* Powers off by a 16-bit write of 0x2000 to port 0x604. */
    .globl _start
_start:
    movl $0x604, %edx
    movw $0x2000, %ax
    outw %ax, %dx
1:  hlt
    jmp 1b
