/* Prints the identity record of the VM at the start, at each input byte, and at each interrupt of a new record. */
#include "gic.h"
#include "interrupts.h"
#include "record.h"
#include "tree.h"

static volatile unsigned events, interrupts;

static void receive(u8 byte)
{
    (void)byte;
    events++;
}

static void changed(void)
{
    interrupts++;
    events++;
}

void guest(void)
{
    struct node node;
    interrupts_start();
    serial_start(receive);
    if (tree_find("compatible", "microsoft,vmgenid", 0, &node)) {
        int is_edge;
        tree_interrupt(&node, 0, &is_edge);
        require("the interrupt is edge-triggered", is_edge);
        expect("alignment of the generation ID", tree_pair(&node, "reg", 0) % 8, 0);
        expect("length of the generation ID", tree_pair(&node, "reg", 1), ID_LENGTH);
        interrupts_handle(interrupt_of(&node, 0), changed);
    }
    for (unsigned next = 1; !failures; next++) {
        record_print(interrupts);
        wait_for(&events, next);
        next = events;
    }
}
