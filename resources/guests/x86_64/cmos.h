/* CMOS clock. */
#ifndef CMOS_H
#define CMOS_H

#include "guest.h"

struct date {
    unsigned year, month, day, hour, minute, second;
};

u8 cmos(u8 reg);
/* Returns 0 if bit 7 of register A (update in progress) does not clear. */
int cmos_date(struct date *date);

#endif
