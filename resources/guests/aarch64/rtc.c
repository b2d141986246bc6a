/* Prints the time of the PL031 (Arm DDI 0224). */
#include "tree.h"

enum { DATA = 0, CONTROL = 0xc, PERIPHERAL_ID = 0xfe0 };

void guest(void)
{
    struct node node;
    require("the device tree has a clock", tree_find("compatible", "arm,pl031", 0, &node));
    if (failures)
        return;
    u64 base = tree_pair(&node, "reg", 0);
    u32 time = read32(base + DATA);
    /* Linux binds a driver of AMBA devices by the identification. */
    expect("identification of the clock", (read32(base + PERIPHERAL_ID) & 0xff) | (read32(base + PERIPHERAL_ID + 4) & 0xf) << 8, 0x031);
    expect("the clock runs", read32(base + CONTROL) & 1, 1);
    require("the time is after 2020", time > 1577836800);
    print("%s rtc %u s\n", failures ? "bad" : "ok", time);
}
