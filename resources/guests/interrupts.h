/* Interrupts, the timer and serial input, independent of the architecture. */
#ifndef INTERRUPTS_H
#define INTERRUPTS_H

#include "guest.h"

/* Sets up the vectors, so that an exception prints `FAIL exception` and exits, and the interrupt controller with all lines masked. */
void interrupts_start(void);
/* Unmasks line `irq`, whose interrupts call `handler`. */
void interrupts_handle(unsigned irq, void (*handler)(void));
/* Halts with interrupts enabled until the next one, then disables them. */
void interrupts_wait(void);
/* Handles pending interrupts. */
void interrupts_accept(void);
/* Halts with interrupts enabled until `*counter` is at least `count`, then disables interrupts. */
static inline void wait_for(volatile unsigned *counter, unsigned count)
{
    while (*counter < count)
        interrupts_wait();
}

/* Starts the timer of this CPU with `ns` nanoseconds per tick, less than 2^32 unless the mode is DEADLINE: the local APIC timer, or the virtual timer of aarch64. Each tick is an
   interrupt that increments `timer_ticks`. DEADLINE is once, at a time of the counter, as each tick is on aarch64: by TSC deadline. Requires
   interrupts_start. */
enum timer_mode { ONCE, PERIODIC, DEADLINE };
void timer_start(enum timer_mode mode, u64 ns);
extern volatile unsigned timer_ticks;

/* Enables interrupts of the serial port, which call `handler` for each received byte. Requires interrupts_start. */
void serial_start(void (*handler)(u8 byte));
/* Returns 1 and takes a received byte, or returns 0 if there is none. Requires no interrupts_start. */
int serial_take(u8 *byte);

#endif
