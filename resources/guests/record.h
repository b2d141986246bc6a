/* Identity record of the VM. */
#ifndef RECORD_H
#define RECORD_H

#include "guest.h"

/* Offsets: "MAYFLYID", counter of loads, generation ID, randomness. */
enum { RECORD_COUNTER = 8, RECORD_ID = 16, ID_LENGTH = 16, RECORD_END = 96 };

/* Returns the address of the record, or 0 if nothing describes one. */
u64 record_address(void);
/* Prints the record, with a number of interrupts. */
void record_print(unsigned interrupts);

#endif
