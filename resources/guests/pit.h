/* The 8254's ports. */
#ifndef PIT_H
#define PIT_H

#include "guest.h"

enum { PIT_CHANNEL0 = 0x40, PIT_CHANNEL2 = 0x42, PIT_MODE = 0x43, PIT_GATE = 0x61, PIT_HERTZ = 1193182 };

/* Both bytes of a count; the mode was set with access to low, then high. */
static inline void pit_load(u16 channel, u16 count)
{
    outb(channel, (u8)count);
    outb(channel, (u8)(count >> 8));
}

#endif
