/* Prints the virtual and the physical counter, and their frequency, at each serial byte. */
#include "interrupts.h"

static volatile unsigned bytes;

static void receive(u8 byte)
{
    (void)byte;
    bytes++;
}

void guest(void)
{
    interrupts_start();
    serial_start(receive);
    print("ready\n");
    for (unsigned next = 1;; next++) {
        wait_for(&bytes, next);
        next = bytes;
        u64 virtual = cycles();
        print("counters %lu %lu %lu end\n", virtual, READ_SYSTEM("cntpct_el0"), READ_SYSTEM("cntfrq_el0"));
    }
}
