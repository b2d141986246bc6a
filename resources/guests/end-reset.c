/* Resets. */
#include "guest.h"

void guest(void) { reset(); }
