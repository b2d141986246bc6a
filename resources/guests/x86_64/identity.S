/* Page tables that identity-map the first 4 GiB: the 64-bit Linux entry maps only the image. */
    .section .data.first, "aw" /* before other data: the bss guest needs data that ends within a page */
    .balign 4096
    .globl pml4
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad pd + 0x0003, pd + 0x1003, pd + 0x2003, pd + 0x3003
    .fill 508, 8, 0
pd:
    .set address, 0
    .rept 2048                  /* 2 MiB pages; a runtime loop would take milliseconds on an interpreting host */
    .quad address + 0x83
    .set address, address + 0x200000
    .endr
