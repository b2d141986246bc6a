/* Resets by the reset line of the i8042. */
    .globl _start
_start:
    movb $0xfe, %al
    outb %al, $0x64
1:  hlt
    jmp 1b
