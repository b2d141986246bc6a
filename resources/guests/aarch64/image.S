/* Header of an `Image` (Linux Documentation/arm64/booting.rst), before the entry. The code does not move itself: link.ld has the address
   to which this header leads. */
    .section .text.header, "ax"
    b _start
    .long 0
    .quad 0                     /* text_offset */
    .quad image_size
    .quad 0x0a                  /* little-endian, pages of 4 KiB, anywhere in memory */
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0
