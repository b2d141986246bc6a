/* Prints CPUID leaves; the test checks their values. */
#include "guest.h"

static const u32 leaves[][2] = {
    {0, 0}, {1, 0}, {7, 0}, {0xa, 0}, {0xb, 0}, {0xb, 1}, {0xd, 0}, {0x15, 0}, {0x16, 0}, {0x40000000, 0},
    {0x40000001, 0}, {0x40000010, 0}, {0x80000000, 0}, {0x80000001, 0}, {0x80000007, 0}, {0x80000008, 0},
    {0x8000000a, 0},
};

void guest(void)
{
    for (unsigned i = 0; i < COUNT(leaves); i++) {
        u32 out[4];
        cpuid(leaves[i][0], leaves[i][1], out);
        print("cpuid %08x.%u = %08x %08x %08x %08x\n", leaves[i][0], leaves[i][1], out[0], out[1], out[2], out[3]);
    }
    print("ok cpuid\n");
}
