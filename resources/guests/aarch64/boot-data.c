/* Boot data of the device tree (Linux Documentation/devicetree/bindings/chosen.txt). */
#include "boot.h"
#include "record.h"
#include "tree.h"

/* Linux takes addresses of the ramdisk with one or two cells. */
static u64 chosen_address(const struct node *chosen, const char *key)
{
    u32 length;
    if (!tree_property(chosen, key, &length))
        return 0;
    return length == 8 ? tree_pair(chosen, key, 0) : tree_cell(chosen, key, 0);
}

void boot_parse(struct boot *boot)
{
    struct node node;
    u32 length;
    boot->protocol = "device tree";
    boot_set_cmdline(boot, 0);
    if (tree_child("chosen", &node)) {
        const u8 *arguments = tree_property(&node, "bootargs", &length);
        boot_set_cmdline(boot, (u64)arguments);
        if (arguments)
            expect("length of bootargs", boot->cmdline_size + 1, length);
        boot->initrd = chosen_address(&node, "linux,initrd-start");
        boot->initrd_size = chosen_address(&node, "linux,initrd-end") - boot->initrd;
        boot->modules = boot->initrd_size != 0;
    }
    for (unsigned nth = 0; tree_find("device_type", "memory", nth, &node); nth++) {
        tree_property(&node, "reg", &length);
        for (unsigned i = 0; i < length / 16; i++)
            boot_add_region(boot, tree_pair(&node, "reg", i * 2), tree_pair(&node, "reg", i * 2 + 1), RAM);
    }
}

u64 record_address(void)
{
    struct node node;
    if (!tree_find("compatible", "microsoft,vmgenid", 0, &node))
        return 0;
    return tree_pair(&node, "reg", 0) - RECORD_ID;
}
