/* Jumps to itself without end, interrupts disabled. */
    .globl _start
_start:
    movl $line, %esi
    movl $0x3f8, %edx
1:  lodsb
    outb %al, %dx
    cmpb $'\n', %al
    jne 1b
2:  jmp 2b
line:
    .ascii "looping\n"
