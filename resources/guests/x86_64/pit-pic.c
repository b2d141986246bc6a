/* Timer ticks of PIT channel 0 through the 8259, connected to LINT0 in virtual wire mode, as Unikraft uses it. */
#include "pit.h"
#include "trap.h"

static volatile unsigned ticks, in_service;

static INTERRUPT tick(struct frame *frame)
{
    (void)frame;
    outb(0x20, 0x0b); /* OCW3: the next read returns the in-service register */
    in_service |= inb(0x20);
    ticks++;
    pic_done(0);
}

void guest(void)
{
    traps();
    gate(0x20, tick);
    pic_start(0x20);
    expect("8259 mask", inb(0x21), 0xff);
    outb(PIT_MODE, 0x34); /* channel 0, low then high, mode 2 */
    pit_load(PIT_CHANNEL0, PIT_HERTZ / 1000);
    pic_unmask(0);
    expect("8259 mask", inb(0x21), 0xfe);
    u64 start = rdtsc();
    wait_for(&ticks, 20);
    print("periodic 20 ticks %lu cycles\n", rdtsc() - start);
    expect("in service", in_service, 1);

    /* Mode 0: the mode word stops the periodic ticks; a pending one is accepted before the count. */
    outb(PIT_MODE, 0x30);
    __asm__ volatile("sti; nop; nop; cli" ::: "memory");
    ticks = 0;
    start = rdtsc();
    pit_load(PIT_CHANNEL0, PIT_HERTZ / 1000);
    wait_for(&ticks, 1);
    print("one-shot %lu cycles\n", rdtsc() - start);
    if (!failures)
        print("ok pit-pic\n");
}
