/* Interrupts and exceptions. */
#ifndef TRAP_H
#define TRAP_H

#include "guest.h"

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

#define INTERRUPT __attribute__((interrupt)) void

/* Loads an IDT in which invalid opcode, general protection and page fault print `FAIL exception` and end. */
void traps(void);
/* Vector `vector` calls `handler`, which was declared with INTERRUPT. */
void gate(u8 vector, void (*handler)(struct frame *));
/* Halts, interrupts on, until `*counter` is at least `count`; leaves interrupts off. */
void wait_for(volatile unsigned *counter, unsigned count);

/* The two 8259s, all lines masked, the first's interrupts from vector `base` on. */
void pic_start(u8 base);
void pic_unmask(unsigned irq);
void pic_done(unsigned irq);

#endif
