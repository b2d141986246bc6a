/* Prints the date after a wait for the end of an update. */
#include "cmos.h"

void guest(void)
{
    struct date date = {0};
    require("end of the update", cmos_date(&date));
    require("date", date.month >= 1 && date.month <= 12 && date.day >= 1 && date.day <= 31);
    require("time", date.hour < 24 && date.minute < 60 && date.second < 60);
    u8 b = cmos(0x0b), d = cmos(0x0d);
    expect("register D (battery good)", d, 0x80);
    print("%s cmos %04u-%02u-%02u %02u:%02u B %02x D %02x\n", failures ? "bad" : "ok", date.year, date.month, date.day,
        date.hour, date.minute, b, d);
}
