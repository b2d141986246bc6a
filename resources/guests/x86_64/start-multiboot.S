/* Multiboot 1 entry. With FLAT the header holds the load addresses, for images that are not ELF. */
#ifdef FLAT
#define FLAGS 0x10003
#else
#define FLAGS 0x00003           /* modules page-aligned; memory information */
#endif
    .section .text.header, "a"
    .balign 4
header:
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
#ifdef FLAT
    .long header, image_start, data_end, image_end, multiboot_start
#endif

    .section .text.start, "ax"
    .code32
    .globl multiboot_start
multiboot_start:
    movl %eax, boot_magic
    movl %ebx, boot_argument
    movl $3, boot_protocol
    jmp enter_long
