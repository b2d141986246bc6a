#include "net.h"

u16 ones_sum(u32 start, const u8 *bytes, u32 length)
{
    for (; length > 1; length -= 2, bytes += 2)
        start += get16(bytes);
    if (length)
        start += (u32)*bytes << 8;
    while (start >> 16)
        start = (start & 0xffff) + (start >> 16);
    return (u16)start;
}
