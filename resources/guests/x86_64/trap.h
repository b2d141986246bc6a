/* Interrupts and exceptions. */
#ifndef TRAP_H
#define TRAP_H

#include "interrupts.h"

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

#define INTERRUPT __attribute__((interrupt)) void

/* Loads an IDT in which invalid opcode, general protection and page fault print `FAIL exception` and exit. */
void traps(void);
/* Sets `handler`, declared with INTERRUPT, for vector `vector`. */
void gate(u8 vector, void (*handler)(struct frame *));

/* Initialises the two 8259s with all lines masked; IRQ 0 has vector `base`. */
void pic_start(u8 base);
void pic_unmask(unsigned irq);
void pic_done(unsigned irq);

#endif
