/* Ends with the status that `code=` on the command line says, 42 without. */
#include "boot.h"

void guest(void) { finish((u8)option("code=", 42)); }
