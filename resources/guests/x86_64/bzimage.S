/* Setup sectors of a bzImage (Linux, Documentation/arch/x86/boot.rst), and the 64-bit entry of its kernel at 1 MiB. */
    .set kernel, 0x100000

    .section .text.header, "ax"
setup:
    .org setup + 0x1f1
    .byte 1                     /* setup_sects: the kernel follows the second sector */
    .word 0                     /* root_flags */
    .long 0x40                  /* syssize in paragraphs: at least the entry is in the file */
    .word 0, 0, 0               /* ram_size, vid_mode, root_dev */
    .word 0xaa55                /* boot_flag */
    .byte 0xeb, header_end - header
header:
    .ascii "HdrS"
    .word 0x020c                /* version: the first with xloadflags */
    .org setup + 0x211
    .byte 1                     /* loadflags: LOADED_HIGH */
    .org setup + 0x22c
    .long 0x7fffffff            /* initrd_addr_max */
    .long 0x1000                /* kernel_alignment */
    .byte 0, 12                 /* relocatable_kernel, min_alignment */
    .word 1                     /* xloadflags: XLF_KERNEL_64 */
    .long 2047                  /* cmdline_size */
    .org setup + 0x258
    .quad kernel                /* pref_address */
    .long image_end - kernel    /* init_size */
    .long 0                     /* handover_offset */
header_end:
    .org setup + 0x400 + 0x200
    jmp _start
