/* BSS must be zero from the first byte after the data, although other bytes follow the data in the file. */
#include "guest.h"

__asm__(".section .after, \"\", @progbits\n .fill 8192, 1, 0xee\n .text\n");

static volatile u8 data[101] = {1};
static u8 zero[3 * PAGE + 123] __attribute__((section(".bss.first"), aligned(1)));
extern u8 data_end[];

void guest(void)
{
    u64 first = (u64)data_end, edge = (first + PAGE - 1) & ~(PAGE - 1ul), end = (u64)zero + sizeof zero, found = 0;
    expect("data", data[0], 1);
    require("data ends within a page", first != edge);
    /* A VMM may map the file by pages: check every byte of the page shared with the data, then one in 97. */
    for (u64 at = first; at < edge; at++)
        found |= AT(u8, at);
    for (u64 at = edge; at < end; at += 97)
        found |= AT(u8, at);
    expect("bytes of BSS", found | zero[sizeof zero - 1], 0);
    if (!failures)
        print("ok bss\n");
}
