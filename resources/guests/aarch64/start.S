/* Entry of aarch64 images, the vectors, and the entry of the other CPUs. */
    .section .text.start, "ax"
    .globl _start
_start:
    mrs x20, sctlr_el1
    mrs x21, CurrentEL
    mrs x22, daif
    bl enable_mmu
    adrp x9, boot_registers
    add x9, x9, :lo12:boot_registers
    stp x0, x1, [x9]
    stp x2, x3, [x9, 16]
    stp x20, x21, [x9, 32]
    str x22, [x9, 48]
    adrp x9, stack_top
    add x9, x9, :lo12:stack_top
    mov sp, x9
    bl set_vectors
    bl guest
    adrp x9, failures
    ldr w9, [x9, :lo12:failures]
    cmp w9, 0
    cset w0, ne
    bl finish

/* PSCI passes the address of the stack in x0. */
    .globl cpu_entry
cpu_entry:
    bl enable_mmu
    mov sp, x0
    bl set_vectors
    bl other_cpu
    bl cpu_halt

/* Enables MMU and caches, without a store before: it would bypass the caches, as the loads of the VMM do not. */
enable_mmu:
    mov x9, 0x04ff              /* attribute 0: normal memory, write-back; 1: device memory, nGnRE */
    msr mair_el1, x9
    ldr x9, =0x200803519        /* 39 bits by TTBR0 alone, 4 KiB granule, cacheable inner shareable walks, 40-bit addresses */
    msr tcr_el1, x9
    adrp x9, translation_table
    msr ttbr0_el1, x9
    tlbi vmalle1
    dsb nsh
    isb
    mrs x9, sctlr_el1
    mov x10, 0x1005             /* M, C, I */
    orr x9, x9, x10
    msr sctlr_el1, x9
    isb
    ret

set_vectors:
    adrp x9, vectors
    add x9, x9, :lo12:vectors
    msr vbar_el1, x9
    isb
    ret

/* Blocks of 1 GiB: the devices, then the second GiB, of which the linker knows the use, then memory. */
    .section .rodata.table, "a"
    .balign 4096
translation_table:
    .quad 0x0060000000000405
    .quad second_gib
    .set address, 0x80000000
    .rept 510
    .quad address + 0x701
    .set address, address + 0x40000000
    .endr

/* Set by the linker. */
    .section .rodata.map, "a"
    .globl ram_address, serial_address, serial_is_pl011
    .balign 8
ram_address:
    .quad ram_base
serial_address:
    .quad serial_base
serial_is_pl011:
    .quad is_pl011

    .text
    .balign 2048
vectors:
    .rept 4                     /* SP_EL0 is not in use */
    .balign 128
    b unexpected
    .endr
    .balign 128
    b unexpected                /* synchronous exception at EL1 */
    .balign 128
    b interrupt
    .balign 128
    b interrupt                 /* FIQ, of group 0 */
    .rept 9                     /* SError, and EL0, which does not run */
    .balign 128
    b unexpected
    .endr

unexpected:
    mrs x0, esr_el1
    mrs x1, elr_el1
    mrs x2, far_el1
    bl exception

interrupt:
    sub sp, sp, 192
    stp x0, x1, [sp]
    stp x2, x3, [sp, 16]
    stp x4, x5, [sp, 32]
    stp x6, x7, [sp, 48]
    stp x8, x9, [sp, 64]
    stp x10, x11, [sp, 80]
    stp x12, x13, [sp, 96]
    stp x14, x15, [sp, 112]
    stp x16, x17, [sp, 128]
    stp x18, x30, [sp, 144]
    bl dispatch
    ldp x0, x1, [sp]
    ldp x2, x3, [sp, 16]
    ldp x4, x5, [sp, 32]
    ldp x6, x7, [sp, 48]
    ldp x8, x9, [sp, 64]
    ldp x10, x11, [sp, 80]
    ldp x12, x13, [sp, 96]
    ldp x14, x15, [sp, 112]
    ldp x16, x17, [sp, 128]
    ldp x18, x30, [sp, 144]
    add sp, sp, 192
    eret
/* Guests without interrupts, or without other CPUs. */
    .weak dispatch, other_cpu
dispatch:
other_cpu:
    b unexpected

    .bss
    .globl boot_registers, boot_sctlr, boot_level, boot_daif
    .balign 16
boot_registers:
    .skip 32
boot_sctlr:
    .skip 8
boot_level:
    .skip 8
boot_daif:
    .skip 8
    .balign 16
    .skip 8192
stack_top:
