/* Virtual timer, periodic and one-shot. */
#include "interrupts.h"

void guest(void)
{
    u64 start = cycles(), frequency = READ_SYSTEM("cntfrq_el0");
    require("the frequency of the counter is known", frequency >= 1000000);
    interrupts_start();
    timer_start(PERIODIC, 1000000);
    wait_for(&timer_ticks, 10);
    u64 periodic = cycles() - start;
    require("ten ticks take 10 ms at least", periodic >= frequency / 100);
    start = cycles();
    unsigned before = timer_ticks;
    timer_start(ONCE, 2000000);
    wait_for(&timer_ticks, before + 1);
    require("a tick takes 2 ms at least", cycles() - start >= frequency / 500);
    /* A one-shot timer is silent afterwards. */
    for (start = cycles(); cycles() - start < frequency / 100;)
        interrupts_accept();
    expect("ticks of the one-shot timer", timer_ticks, before + 1);
    if (!failures)
        print("ok timer %lu counts\n", periodic);
}
