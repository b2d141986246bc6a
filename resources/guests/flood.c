/* Prints `kib=` (256) KiB in numbered lines of 64 bytes at full speed. */
#include "boot.h"

static char page[64][64];

/* Increments the decimal number whose last digit is at `last`. */
static void increment(char *last)
{
    while (++*last > '9')
        *last-- = '0';
}

void guest(void)
{
    char digits[] = "00000000";
    u64 chunks = option("kib=", 256) / 4;
    for (unsigned line = 0; line < 64; line++) {
        for (unsigned i = 8; i < 63; i++)
            page[line][i] = (char)('a' + (i - 9) % 26);
        page[line][8] = ':';
        page[line][63] = '\n';
    }
    for (; chunks; chunks--) {
        for (unsigned line = 0; line < 64; line++) {
            *(u64 *)page[line] = *(u64 *)digits;
            increment(&digits[7]);
        }
        put_all(page[0], sizeof page);
    }
}
