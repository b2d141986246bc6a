/* Checks both ends of every segment of segments-layout.S, and BSS. */
#include "guest.h"

/* Set by the linker: origin of the addresses in both files. */
extern u8 segments_origin[];

static const struct {
    const char *name;
    u64 offset, size;
    u8 first, fill, last;
} segments[] = {
    {"shared low", 0x200000, 0x2345, 0x11, 0xa1, 0x12}, {"shared high", 0x202600, 0x1a00, 0x21, 0xa2, 0x22},
    {"skewed", 0x300040, 0x1801, 0x31, 0xa3, 0x32},     {"high", 0x400000, 0x1000, 0x41, 0xa4, 0x42},
    {"large", 0x500800, 0x20, 0x51, 0xa5, 0x52},
};

static u8 byte(u64 offset) { return AT(u8, (u64)segments_origin + offset); }

static void zeroes(const char *name, u64 from, u64 to, u64 stride)
{
    u8 found = byte(to - 1);
    for (u64 at = from; at < to; at += stride)
        found |= byte(at);
    expect(name, found, 0);
}

void guest(void)
{
    for (unsigned i = 0; i < COUNT(segments); i++) {
        u64 start = segments[i].offset, end = start + segments[i].size;
        expect(segments[i].name, byte(start), segments[i].first);
        expect(segments[i].name, byte(start + 1), segments[i].fill);
        expect(segments[i].name, byte(end - 2), segments[i].fill);
        expect(segments[i].name, byte(end - 1), segments[i].last);
    }
    zeroes("BSS beside the data", 0x500820, 0x501000, 1);
    zeroes("BSS of a page", 0x501000, 0x502000, 37);
    zeroes("BSS of 4 MiB", 0x502000, 0x500800 + 0x400333, 4093);
    zeroes("BSS alone", 0xa00000, 0xa01000, 37);
    if (!failures)
        print("ok segments\n");
}
