/* Echoes serial input until `q` or Ctrl-D. */
#include "interrupts.h"

enum { CONTROL_D = 4 };

static volatile unsigned over;

static void receive(u8 byte)
{
    if (byte == 'q' || byte == CONTROL_D)
        over = 1;
    else
        put((char)byte);
}

void guest(void)
{
    interrupts_start();
    print("ready\n");
    serial_start(receive);
    wait_for(&over, 1);
    print("\nbye\n");
    power_off();
}
