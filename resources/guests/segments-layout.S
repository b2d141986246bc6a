/* Handwritten ELF header with segments that no linker creates, and their contents. Each content is FIRST, then FILL, then
   LAST; the bytes 0xee after it in the file must not be loaded. Physical addresses are relative to `segments_origin`. */
#ifdef __x86_64__
    .set machine, 62            /* EM_X86_64 */
#else
    .set machine, 183           /* EM_AARCH64 */
#endif

    .macro content name, section, size, first, fill, last
    .section \section, "a"
    .globl \name
\name:
    .byte \first
    .fill \size - 2, 1, \fill
    .byte \last
    .fill 64, 1, 0xee
    .endm

    .macro load flags, offset, physical, file_size, memory_size, align, shift=0
    .long 1, \flags
    .quad \offset, segments_origin + \physical + \shift, segments_origin + \physical, \file_size, \memory_size, \align
    .endm

    .section .elf, "a"
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0
    .quad 0
    .2byte 2, machine           /* ET_EXEC */
    .long 1
    .quad _start, program_headers - elf, 0
    .long 0
    .2byte 64, 56, (program_headers_end - program_headers) / 56, 0, 0, 0
elf = . - 64
program_headers:
    .long 0x6474e551, 6         /* PT_GNU_STACK first: the order must not matter */
    .quad 0, 0, 0, 0, 0, 16
    load 7, text_offset, 0x100000, text_size, text_memory, 4096
    .long 4, 4                  /* PT_NOTE of another owner */
    .quad note - elf, 0, 0, note_end - note, note_end - note, 4
    load 4, 0, 0, 0, 0, 4096                                    /* empty */
    load 4, shared_low_offset, 0x200000, 0x2345, 0x2345, 4096   /* ends within a page ... */
    load 4, shared_high_offset, 0x202600, 0x1a00, 0x1a00, 4096  /* ... where this one begins */
    load 4, skewed_offset, 0x300040, 0x1801, 0x1801, 1          /* offset not congruent */
    load 6, large_offset, 0x500800, 0x20, 0x400333, 4096        /* 4 MiB of BSS */
    load 6, 0, 0xa00000, 0, 0x1000, 4096                        /* BSS only */
    load 4, high_offset, 0x400000, 0x1000, 0x1000, 0x200000, 0xffffffff80800000 /* load at the physical address */
program_headers_end:
note:
    .long 4, 4, 0x1234
    .asciz "abc"
    .long 0x100000
note_end:

    content shared_low, .shared_low, 0x2345, 0x11, 0xa1, 0x12
    content shared_high, .shared_high, 0x1a00, 0x21, 0xa2, 0x22
    content skewed, .skewed, 0x1801, 0x31, 0xa3, 0x32
    content high, .high, 0x1000, 0x41, 0xa4, 0x42
    content large, .large, 0x20, 0x51, 0xa5, 0x52
    .fill 0x2000, 1, 0xee
