#include "cmos.h"

u8 cmos(u8 reg)
{
    outb(0x70, reg);
    return inb(0x71);
}

static unsigned field(u8 reg)
{
    unsigned value = cmos(reg);
    return cmos(0x0b) & 4 ? value : (value >> 4) * 10 + (value & 15);
}

int cmos_date(struct date *date)
{
    unsigned tries = 20000; /* an update takes at most 2 ms, a read at least 1 us */
    while (cmos(0x0a) & 0x80)
        if (!tries--)
            return 0;
    /* The data sheet has no century register; 0x32 holds the century by convention, but not in every VMM. */
    date->year = 2000 + field(9);
    date->month = field(8);
    date->day = field(7);
    u8 hour = cmos(4);
    date->hour = field(4);
    if (!(cmos(0x0b) & 2)) {
        /* 12-hour clock: bit 7 is PM */
        unsigned value = hour & 0x7f;
        value = cmos(0x0b) & 4 ? value : (value >> 4) * 10u + (value & 15u);
        date->hour = value % 12 + (hour & 0x80 ? 12 : 0);
    }
    date->minute = field(2);
    date->second = field(0);
    return 1;
}
