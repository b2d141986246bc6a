/* hello with a handwritten ELF header and a second, unread segment of SIZE bytes at 16 MiB. The Makefile extends the file
   without a write, so that the segment is sparse. */
    .section .text.start, "ax"
    .set base, 0x100000
file:
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0
    .quad 0
    .word 2, 62                 /* ET_EXEC, EM_X86_64 */
    .long 1
    .quad _start, 64, 0
    .long 0
    .word 64, 56, 2, 0, 0, 0
    .long 1, 5                  /* PT_LOAD of the first page */
    .quad 0, base, base, 4096, 4096, 4096
    .long 1, 6                  /* PT_LOAD of the data */
    .quad 4096, 0x1000000, 0x1000000, SIZE, SIZE, 4096

#include "hello.S"
    .org 4096
