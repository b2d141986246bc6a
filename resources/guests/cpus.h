/* CPUs of the machine. */
#ifndef CPUS_H
#define CPUS_H

#include "guest.h"

/* Returns the number of CPUs, and in `ids` the identifiers of the first `most`: those of the local APICs, or the affinities of MPIDR_EL1.
   `*source` is the place of the list. */
unsigned cpus_find(const char **source, u64 *ids, unsigned most);
/* Identifier of this CPU. */
u64 cpu_id(void);
/* Prepares the start of other CPUs. */
void cpus_start(void);
/* Starts the CPU `id`, which calls `other_cpu` on a stack of its own. */
void cpu_start(u64 id);
/* Defined by the guest. After its return the CPU halts. */
void other_cpu(void);
/* Waits until `*value` is `want`, for 5 * 10^9 cycles at most on x86_64, or for 5 s. Returns 0 if it is not. */
int await(const volatile u32 *value, u32 want);

#endif
