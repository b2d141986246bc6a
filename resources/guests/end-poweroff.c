/* Powers off. */
#include "guest.h"

void guest(void) { power_off(); }
