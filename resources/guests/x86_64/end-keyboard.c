/* Resets half a second after Ctrl-Alt-Del, and halts until then. A client expects an operating system, which takes longer to
   shut down than a response to the client. */
#include "apic.h"

enum {
    DATA = 0x60,
    FULL = 1, /* status: a byte can be read */
    WRITE_CONFIG = 0x60,
    INTERRUPT_ON = 0x01, SYSTEM = 0x04, TRANSLATE = 0x40,
    /* The make code of Delete, in set 1 and in set 2: the key may be pressed before the translation is on. */
    DELETE_1 = 0x53, DELETE_2 = 0x71,
    DELAY = 500000000, /* nanoseconds */
    IRQ = 1, VECTOR = 0x21,
};

static volatile unsigned interrupts;

static INTERRUPT by_pic(struct frame *frame)
{
    (void)frame;
    interrupts++;
    pic_done(IRQ);
}

static int is_delete_pressed(void)
{
    while (inb(I8042_COMMAND) & FULL) {
        u8 code = inb(DATA);
        if (code == DELETE_1 || code == DELETE_2)
            return 1;
    }
    return 0;
}

void guest(void)
{
    traps();
    pic_start(0x20);
    gate(VECTOR, by_pic);
    outb(I8042_COMMAND, WRITE_CONFIG);
    outb(DATA, SYSTEM | TRANSLATE | INTERRUPT_ON);
    pic_unmask(IRQ);
    print("ready\n");
    /* Without an interrupt between the look at the keyboard and the halt: wait_for enables them. */
    for (unsigned next = 1; !is_delete_pressed(); next = interrupts + 1)
        wait_for(&interrupts, next);
    apic_timer(APIC_ONCE, DELAY);
    wait_for(&timer_ticks, 1);
    reset();
}
