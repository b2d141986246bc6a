/* Ports of the 8254. */
#ifndef PIT_H
#define PIT_H

#include "guest.h"

enum { PIT_CHANNEL0 = 0x40, PIT_CHANNEL2 = 0x42, PIT_MODE = 0x43, PIT_GATE = 0x61, PIT_HERTZ = 1193182 };

/* Writes a count; the mode must select access to the low byte, then the high byte. */
static inline void pit_load(u16 channel, u16 count)
{
    outb(channel, (u8)count);
    outb(channel, (u8)(count >> 8));
}

#endif
