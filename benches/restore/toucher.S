/* Writes to 1,000 pages from 16 MiB on for each byte from '1' to '8' on the serial port, then prints a dot. The byte is the
   number of written pages of every eight. The writes run at level 3, where KVM does not emulate instructions, and an
   undefined instruction returns to level 0. */
    .globl _start
    .equ KERNEL_CODE, 0x10
    .equ USER_DATA, 0x1b
    .equ USER_CODE, 0x23
    .equ TASK, 0x28

_start:
    movl $pdpt + 7, pml4
    movl $directory + 7, pdpt
    movl $0x87, %eax                /* present, writable, level 3, 2 MiB */
    xorl %ecx, %ecx
1:  movl %eax, directory(, %rcx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    movl $pml4, %eax
    movq %rax, %cr3

    lgdt gdt_descriptor
    movl $task, %eax                /* base of the task state segment, which is below 16 MiB */
    movw %ax, gdt + TASK + 2
    shrl $16, %eax
    movb %al, gdt + TASK + 4
    movl $stack, task + 4           /* stack of level 0 */
    movl $TASK, %eax
    ltr %ax
    movl $ready, %eax               /* vector 6: undefined instruction */
    movw %ax, idt + 6 * 16
    movl $KERNEL_CODE, idt + 6 * 16 + 2
    movw $0x8e00, idt + 6 * 16 + 4
    shrl $16, %eax
    movw %ax, idt + 6 * 16 + 6
    lidt idt_descriptor
    movl $1, %ebx

wait:
    movl $stack, %esp
    movl $0x3fd, %edx
1:  inb %dx, %al
    testb $1, %al
    jz 1b
    movl $0x3f8, %edx
    inb %dx, %al
    movzbl %al, %esi
    subl $'0', %esi
    pushq $USER_DATA
    pushq $stack
    pushq $2
    pushq $USER_CODE
    pushq $touch
    iretq

touch:
    movl $0x1000000, %edi
    movl $1000, %ecx
    xorl %eax, %eax
1:  cmpl %esi, %eax
    jae 2f
    movl %ebx, 8(%rdi)
    decl %ecx
2:  addl $0x1000, %edi
    incl %eax
    andl $7, %eax
    testl %ecx, %ecx
    jnz 1b
    ud2

ready:
    incl %ebx
    movl $0x3f8, %edx
    movb $'.', %al
    outb %al, %dx
    jmp wait

    .data
    .balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff, 0x0000890000000067, 0
gdt_descriptor:
    .word . - gdt - 1
    .quad gdt
idt_descriptor:
    .word 7 * 16 - 1
    .quad idt

    .bss
    .balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
directory:
    .skip 4096
idt:
    .skip 256
task:
    .skip 112
    .balign 4096
    .skip 4096
stack:
