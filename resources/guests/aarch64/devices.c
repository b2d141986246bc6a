/* Devices of the device tree, in the order of their addresses: QEMU lists them downwards. */
#include "gic.h"
#include "virtio.h"

/* Finds the node with the lowest address above `above`. */
static int find_above(u64 above, struct node *lowest)
{
    struct node node;
    u64 least = ~0ul;
    for (unsigned nth = 0; tree_find("compatible", "virtio,mmio", nth, &node); nth++) {
        u64 base = tree_pair(&node, "reg", 0);
        if (base > above && base < least) {
            least = base;
            *lowest = node;
        }
    }
    return least != ~0ul;
}

int device_find(unsigned nth, struct device *device)
{
    struct node node;
    u64 above = 0;
    while (find_above(above, &node)) {
        above = tree_pair(&node, "reg", 0);
        /* QEMU has a node for each place, most without a device. */
        if (!read32(above + DEVICE_ID) || nth--)
            continue;
        device->base = above;
        device->irq = interrupt_of(&node, 0);
        device->kind = get(device, DEVICE_ID);
        expect("size of the registers", tree_pair(&node, "reg", 1), 0x200);
        expect("magic", get(device, MAGIC_VALUE), 0x74726976);
        expect("version", get(device, VERSION), 2);
        return 1;
    }
    return 0;
}
