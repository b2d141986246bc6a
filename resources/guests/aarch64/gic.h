/* Interrupt controller, GICv2 or GICv3 by the device tree. */
#ifndef GIC_H
#define GIC_H

#include "interrupts.h"
#include "tree.h"

enum { SPURIOUS = 1020 };

/* Version of the controller, 2 or 3, after interrupts_start. */
extern unsigned gic_version;

/* Enables the distributor, and what belongs to the CPU that calls it, with all interrupts masked. */
void gic_start(void);
/* Unmasks an interrupt, for shared ones on this CPU. */
void gic_enable(unsigned id, int is_edge);
/* Sets the priority of a shared interrupt. */
void gic_set_priority(unsigned id, u8 priority);
/* Returns the ID of the pending interrupt, at least SPURIOUS if there is none. Ends with gic_done of the same value. */
u32 gic_acknowledge(void);
void gic_done(u32 id);
/* Sends software-generated interrupt `id` to the CPU with this affinity (MPIDR_EL1). */
void gic_send(unsigned id, u64 affinity);

/* Returns the ID of the `nth` interrupt of a node, for interrupts_handle, which takes its trigger mode from the node. */
unsigned interrupt_of(const struct node *node, unsigned nth);

#endif
