/* Prints one line and resets. The first byte takes three instructions: the benchmarks use this guest. Data and transmit register of
   PL011 and 16550 are both at offset 0. */
    .section .text.start, "ax"
    .globl _start
_start:
    ldr x1, =serial_base
    mov w0, 'h'
    strb w0, [x1]
    adr x2, rest
1:  ldrb w0, [x2]
    strb w0, [x1]
    add x2, x2, 1
    cmp w0, '\n'
    b.ne 1b
    ldr w0, =0x84000009         /* SYSTEM_RESET of PSCI */
    hvc 0
2:  wfi
    b 2b
rest:
    .ascii "ello from mayfly\n"
    .balign 8
    .ltorg
