/* Writes to 256 pages from 16 MiB on for each byte on the serial port, then prints a dot. */
    .globl _start
_start:
    movl $0x3fd, %edx
    movl $1, %ebx
1:  inb %dx, %al
    testb $1, %al
    jz 1b
    movl $0x3f8, %edx
    inb %dx, %al
    movl $0x1000000, %edi
    movl $256, %ecx
2:  movl %ebx, 8(%rdi)
    addl $0x1000, %edi
    decl %ecx
    jnz 2b
    incl %ebx
    movb $'.', %al
    outb %al, %dx
    movl $0x3fd, %edx
    jmp 1b
