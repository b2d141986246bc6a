/* Software-generated interrupts of this CPU to itself, by the GIC. */
#include "gic.h"

enum { SOFTWARE = 3, ROUNDS = 10 };

static volatile unsigned software;

static void receive_software(void) { software++; }

void guest(void)
{
    interrupts_start();
    print("version %u\n", gic_version);
    interrupts_handle(SOFTWARE, receive_software);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        gic_send(SOFTWARE, cpu_affinity());
        wait_for(&software, i);
    }
    interrupts_accept();
    expect("software-generated interrupts", software, ROUNDS);
    expect("pending interrupts", gic_acknowledge() & 0x3ff, 1023);
    if (!failures)
        print("ok sgi %u interrupts\n", software);
}
