/* Ends by the i8042's reset line. */
    .globl _start
_start:
    movb $0xfe, %al
    outb %al, $0x64
1:  hlt
    jmp 1b
