/* Local APIC and IOAPIC, accessed by MMIO. */
#ifndef APIC_H
#define APIC_H

#include "interrupts.h"
#include "trap.h"

enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_EOI = 0xb0,
    APIC_SPURIOUS = 0xf0,
    APIC_ICR_LOW = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_INITIAL_COUNT = 0x380,
    APIC_CURRENT_COUNT = 0x390,
    APIC_DIVIDE = 0x3e0,
};

#define APIC(reg) AT(u32, 0xfee00000 + (reg))

enum { TSC_DEADLINE = 0x6e0 };

/* Timer modes in APIC_LVT_TIMER, which also holds the vector. */
enum { APIC_ONCE = 0, APIC_PERIODIC = 0x20000, APIC_DEADLINE = 0x40000, MASKED = 0x10000, TIMER_VECTOR = 0x40 };

/* Software-enables the local APIC with spurious vector 0xff. */
void apic_start(void);
/* Starts the local APIC and its timer in mode APIC_ONCE or APIC_PERIODIC with `ns` nanoseconds per tick: KVM's timer counts
   nanoseconds. A tick raises TIMER_VECTOR and increments `timer_ticks`. */
void apic_timer(u32 mode, u32 ns);
/* As apic_timer, for one tick at a TSC deadline. */
void apic_deadline(u64 ns);
static inline u32 apic_id(void) { return APIC(APIC_ID) >> 24; }
static inline void apic_done(void) { APIC(APIC_EOI) = 0; }

u32 ioapic_read(u32 reg);
void ioapic_write(u32 reg, u32 value);
/* Routes a pin to a vector of this CPU: edge-triggered, active high, unmasked. */
void ioapic_route(unsigned pin, u8 vector);

#endif
