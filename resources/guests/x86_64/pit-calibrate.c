/* Measures the TSC against PIT channel 2, polled through port 0x61, as Linux does. */
#include "pit.h"

static unsigned latched(void)
{
    outb(PIT_MODE, 0x80); /* latch channel 2 */
    unsigned low = inb(PIT_CHANNEL2);
    return low | (unsigned)inb(PIT_CHANNEL2) << 8;
}

void guest(void)
{
    outb(PIT_GATE, (inb(PIT_GATE) & ~2u) | 1); /* gate on, speaker off */
    outb(PIT_MODE, 0xb0);                      /* channel 2, low then high, mode 0 */
    pit_load(PIT_CHANNEL2, PIT_HERTZ / 100);
    u64 start = rdtsc();
    expect("output at the start", inb(PIT_GATE) & 0x20, 0);
    unsigned previous = latched(), first = previous, falls = 0;
    require("count at the start", first <= PIT_HERTZ / 100);
    for (unsigned i = 0; i < 5; i++) {
        unsigned now = latched();
        require("count not rising", now <= previous || inb(PIT_GATE) & 0x20);
        falls += now < previous;
        previous = now;
    }
    require("count falling", falls > 0);
    unsigned polls = 0;
    while (!(inb(PIT_GATE) & 0x20) && polls < 1000000)
        polls++;
    u64 cycles = rdtsc() - start;
    require("output after the count", inb(PIT_GATE) & 0x20);
    print("%s pit-calibrate %lu cycles in 10 ms\n", failures ? "bad" : "ok", cycles);
}
