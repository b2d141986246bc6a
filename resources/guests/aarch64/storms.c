#include "attack.h"
#include "gic.h"

enum { SOFTWARE = 3 };
/* 16550, and PL011 (Arm DDI 0183). */
enum { ENABLE = 1, IDENTIFY = 2, TRANSMITTED = 2 };
enum { MASK = 0x38, CLEAR = 0x44, TRANSMIT = 0x20, ALL = 0x7ff };

/* On both memory maps. */
const u64 unclaimed_address = 0x10000000;

void touch_controller(u32 count)
{
    if (!gic_version)
        interrupts_start();
    gic_set_priority(SHARED_BASE + count % SHARED_BASE, (u8)count);
}

void storm_ports(void) {}

static void own(void) {}

static void edge(void)
{
    if (serial_is_pl011)
        write32(serial_address + CLEAR, ALL);
    else
        read8(serial_address + IDENTIFY);
}

static void toggle_transmit_interrupt(void)
{
    if (serial_is_pl011) {
        write32(serial_address + MASK, 0);
        write32(serial_address + MASK, TRANSMIT);
    } else {
        write8(serial_address + ENABLE, 0);
        write8(serial_address + ENABLE, TRANSMITTED);
    }
}

void storm_interrupts(void)
{
    struct node node;
    interrupts_start();
    require("the device tree has the serial port",
        tree_find("compatible", serial_is_pl011 ? "arm,pl011" : "ns16550a", 0, &node));
    interrupts_handle(interrupt_of(&node, 0), edge);
    interrupts_handle(SOFTWARE, own);
    timer_start(PERIODIC, 1000);
    for (;;) {
        toggle_transmit_interrupt();
        gic_send(SOFTWARE, cpu_affinity());
        interrupts_accept();
    }
}
