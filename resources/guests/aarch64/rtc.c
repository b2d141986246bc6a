/* Prints the time of the PL031 (Arm DDI 0224). With `ahead=SECONDS` it sets the time first, and checks it at a serial byte. */
#include "boot.h"
#include "interrupts.h"
#include "tree.h"

enum { DATA = 0, LOAD = 8, CONTROL = 0xc, PERIPHERAL_ID = 0xfe0 };

static volatile unsigned bytes;

static void receive(u8 byte)
{
    (void)byte;
    bytes++;
}

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
    u32 ahead = option("ahead=", 0);
    if (ahead) {
        u32 set = time + ahead;
        write32(base + LOAD, set);
        interrupts_start();
        print("set rtc %u s\n", set);
        serial_start(receive);
        wait_for(&bytes, 1);
        time = read32(base + DATA);
        require("the clock keeps the time that was set", time >= set && time - set < ahead);
    }
    print("%s rtc %u s\n", failures ? "bad" : "ok", time);
}
