/* Devices of the command line, or of Firecracker's constant addresses. */
#include "virtio.h"

static u64 parse(const char **text, unsigned base)
{
    u64 value = 0;
    for (;; (*text)++) {
        unsigned digit = (unsigned)(**text - '0');
        if (digit > 9)
            digit = (unsigned)(**text - 'a') + 10;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

/* Finds the first two devices of Firecracker at their constant addresses, without the command line. */
static int find_fixed(unsigned nth, struct device *device)
{
    device->base = 0xc0001000 + nth * 0x1000;
    device->irq = 5 + nth;
    if (nth >= 2 || get(device, MAGIC_VALUE) != 0x74726976)
        return 0;
    device->kind = get(device, DEVICE_ID);
    return 1;
}

/* Format of an argument: 4K@0xc0001000:5 */
int device_find(unsigned nth, struct device *device)
{
    if (option("fixed=", 0))
        return find_fixed(nth, device);
    const char *at = argument("virtio_mmio.device=4K@0x", nth);
    if (!at)
        return 0;
    device->base = parse(&at, 16);
    at++;
    device->irq = (unsigned)parse(&at, 10);
    device->kind = get(device, DEVICE_ID);
    expect("magic", get(device, MAGIC_VALUE), 0x74726976);
    expect("version", get(device, VERSION), 2);
    return 1;
}
