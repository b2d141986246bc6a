/* Attacks of the guest `attack` that depend on the architecture. */
#ifndef ATTACK_H
#define ATTACK_H

#include "guest.h"

/* Address of 16 KiB without a device. */
extern const u64 unclaimed_address;
/* Writes to a register of the interrupt controller that depends on `count`, and unmasks no interrupt. */
void touch_controller(u32 count);
/* Both run without end. storm_ports returns where there are no ports. */
void storm_ports(void);
void storm_interrupts(void);

#endif
