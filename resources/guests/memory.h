/* Memory map of the architecture, for the guest `memory`. */
#ifndef MEMORY_H
#define MEMORY_H

#include "guest.h"

/* Maps the page at an address in RAM to itself, if it is not. */
void memory_map(u64 address);
/* Checks that RAM from `base` to `end` leaves out the addresses of devices. */
void memory_check(u64 base, u64 end);

#endif
