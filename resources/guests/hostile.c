/* Misuses every virtio device, then sets it up correctly and executes one request. */
#include "virtio.h"

enum { GARBAGE = 0x200 /* registers and the start of the configuration space */, GET_ID = 8, OUT_OF_MEMORY = 0xc0000000 };

static struct queue queue, other;
static u8 buffer[64];
static _Alignas(16) volatile struct descriptor indirect[2];

/* Returns a number whose use as an address is above guest memory, so that a device that accepts it does not overwrite
   the guest. */
static u32 random(void)
{
    static u32 state = 2463534242;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state | 0x80000000;
}

static void garbage(const struct device *device)
{
    for (u64 offset = 0; offset < GARBAGE; offset += 4) {
        u64 at = device->base + offset, wide = UNALIGNED_REGISTERS ? at : at & ~7ul;
        write32(at, random());
        write64(wide, (u64)random() << 32 | random());
        write8(at, (u8)random());
        write16(at + 2 - UNALIGNED_REGISTERS, (u16)random());
        (void)read64(wide);
        (void)read32(at);
        (void)read16(at + 2);
        (void)read8(at);
        if (UNALIGNED_REGISTERS) {
            write32(at + 2, random());
            (void)read32(at + 3);
        }
    }
    /* Every status value, in an invalid order. */
    for (u32 status = 255; status; status -= 5)
        set(device, STATUS, status);
    set(device, QUEUE_NOTIFY, ~0u);
    if (UNALIGNED_REGISTERS) {
        (void)read64(device->base + PAGE - 4);
        write64(device->base + PAGE - 4, ~0ul);
    }
    expect("magic afterwards", get(device, MAGIC_VALUE), 0x74726976);
}

/* Returns the queue whose chains the device processes without external events: requests or transmit. */
static u16 busy(const struct device *device) { return device->kind == NET ? 1 : 0; }

static void begin(struct device *device, u64 features)
{
    device_start(device, features);
    if (device->kind == NET)
        require("the receive queue is taken", queue_start(&other, device, 0));
    require("the queue is taken", queue_start(&queue, device, busy(device)));
    set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    expect("status", get(device, STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/* Checks that the device needs a reset, then sends another notification and resets it. */
static void expect_broken(struct device *device, const char *what)
{
    expect(what, get(device, STATUS) & NEEDS_RESET, NEEDS_RESET);
    set(device, QUEUE_NOTIFY, busy(device));
    expect("chains used by a broken device", queue_has_used(&queue), 0);
    device_reset(device);
}

static void chains(struct device *device)
{
    begin(device, 0);
    descriptor_set(&queue.table[0], buffer, 16, NEXT, 1);
    descriptor_set(&queue.table[1], buffer, 16, NEXT, 0);
    queue_make_available(&queue, 0);
    expect_broken(device, "after a chain that loops");

    begin(device, 0);
    descriptor_set(&queue.table[0], buffer, 16, NEXT, QUEUE_SIZE);
    queue_make_available(&queue, 0);
    expect_broken(device, "after a chain that leaves the table");

    begin(device, 0);
    queue_make_available(&queue, 0xffff);
    expect_broken(device, "after a head that is none");

    begin(device, 0);
    descriptor_set(&queue.table[0], (const void *)OUT_OF_MEMORY, 64, 0, 0);
    queue_make_available(&queue, 0);
    expect_broken(device, "after a buffer out of memory");

    begin(device, 0);
    descriptor_set(&queue.table[0], (const void *)~15ul, 64, 0, 0);
    queue_make_available(&queue, 0);
    expect_broken(device, "after a buffer that wraps");

    begin(device, 0);
    queue.available.index = 1000;
    set(device, QUEUE_NOTIFY, busy(device));
    expect_broken(device, "after an index too far");

    begin(device, INDIRECT_DESC);
    require("indirect descriptors are offered", (device->features & INDIRECT_DESC) != 0);
    descriptor_set(&indirect[0], (const void *)indirect, sizeof indirect, INDIRECT, 0);
    descriptor_set(&queue.table[0], (const void *)indirect, sizeof indirect, INDIRECT, 0);
    queue_make_available(&queue, 0);
    expect_broken(device, "after a table in a table");
}

static void rings(struct device *device)
{
    for (u64 area = QUEUE_DESC; area <= QUEUE_DEVICE; area += 0x10) {
        device_start(device, 0);
        require("the queue is taken", queue_start(&queue, device, 0));
        set(device, QUEUE_READY, 0);
        set(device, area, OUT_OF_MEMORY);
        set(device, QUEUE_READY, 1);
        expect("a ring out of memory is ready", get(device, QUEUE_READY), 0);
        set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        expect("started without a queue", get(device, STATUS) & NEEDS_RESET, NEEDS_RESET);
        set(device, QUEUE_NOTIFY, 0);
        device_reset(device);
    }
    static const u32 sizes[] = {0, 3, 0x8000, 0x10000, ~0u};
    for (unsigned i = 0; i < COUNT(sizes); i++) {
        device_start(device, 0);
        queue_start(&queue, device, 0);
        set(device, QUEUE_READY, 0);
        set(device, QUEUE_NUM, sizes[i]);
        set(device, QUEUE_READY, 1);
        expect("a queue of that size is ready", get(device, QUEUE_READY), 0);
    }
}

static void proper(struct device *device)
{
    static struct {
        u32 type, reserved;
        u64 sector;
    } header = {GET_ID, 0, 0};
    static volatile u8 status = 0xee;
    u32 used;
    begin(device, 0);
    if (device->kind == NET) {
        /* A zero header, and a broadcast frame of an experimental EtherType (IEEE 802, 0x88b5). */
        for (unsigned i = 0; i < 6; i++)
            buffer[12 + i] = 0xff;
        buffer[24] = 0x88;
        buffer[25] = 0xb5;
        descriptor_set(&queue.table[0], buffer, sizeof buffer, 0, 0);
    } else {
        descriptor_set(&queue.table[0], &header, sizeof header, NEXT, 1);
        descriptor_set(&queue.table[1], buffer, 20, NEXT | WRITE, 2);
        descriptor_set(&queue.table[2], (const void *)&status, 1, WRITE, 0);
    }
    queue_make_available(&queue, 0);
    expect("head of the proper request", queue_pop_used(&queue, &used), 0);
    if (device->kind == BLOCK)
        expect("status of the proper request", status, 0);
    expect("status of the device", get(device, STATUS) & NEEDS_RESET, 0);
}

void guest(void)
{
    struct device device;
    unsigned nth;
    interrupts_start();
    for (nth = 0; !failures && device_find(nth, &device); nth++) {
        garbage(&device);
        rings(&device);
        chains(&device);
        proper(&device);
    }
    if (!failures)
        print("ok hostile %u devices\n", nth);
}
