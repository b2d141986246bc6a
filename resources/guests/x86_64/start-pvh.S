/* PVH entry: 32-bit protected mode, EBX points to hvm_start_info. */
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18              /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

    .section .text.start, "ax"
    .code32
    .globl pvh_start
pvh_start:
    call 1f                     /* as in Nanos: requires an ESP set by the VMM */
1:  popl pvh_popped
    movl $1b, pvh_pushed
    pushfl
    popl pvh_flags
    movl %esp, pvh_stack
    movl %cr0, %eax
    movl %eax, pvh_cr0
    movl %ebx, boot_argument
    movl $2, boot_protocol
    jmp enter_long

    .bss
    .balign 4
    .globl pvh_pushed, pvh_popped, pvh_flags, pvh_stack, pvh_cr0
pvh_pushed: .skip 4             /* pushed by the call, and popped */
pvh_popped: .skip 4
pvh_flags:  .skip 4
pvh_stack:  .skip 4
pvh_cr0:    .skip 4
