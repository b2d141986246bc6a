/* Sends one request to the first drive that may take the host long: a discard of the complete drive in 16 segments, or with
   `flush=1`, `read=1` or `write=1` a flush, or a transfer of the first 4 KiB. Prints `begin` before the request and `end STATUS`
   after it. With `reset=1`, resets the drive at a serial byte instead of the end, and prints `reset`. Never exits with `stay=1`. */
#include "virtio.h"

#define FLUSHES (1ul << 9)
#define DISCARDS (1ul << 13)

/* Types of requests, section 5.2.6. */
enum { IN = 0, OUT = 1, FLUSH = 4, DISCARD = 11 };
enum { SEGMENTS = 16 };

static struct queue queue;
static struct {
    u32 type, reserved;
    u64 sector;
} header;
static struct {
    u64 sector;
    u32 sectors, flags;
} segments[SEGMENTS];
static _Alignas(4096) u8 data[4096];
static volatile u8 status = 0xee;

void guest(void)
{
    struct device device;
    unsigned nth = 0;
    u32 used;
    do
        require("there is a disk", device_find(nth++, &device));
    while (device.kind != BLOCK);
    device_start(&device, FLUSHES | DISCARDS);
    require("the queue is taken", queue_start(&queue, &device, 0));
    set(&device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    u64 capacity = get(&device, CONFIG) | (u64)get(&device, CONFIG + 4) << 32;
    for (unsigned i = 0; i < SEGMENTS; i++) {
        segments[i].sector = capacity / SEGMENTS * i;
        segments[i].sectors = (u32)(capacity / SEGMENTS);
    }
    header.type = option("flush=", 0) ? FLUSH : option("read=", 0) ? IN : option("write=", 0) ? OUT : DISCARD;
    descriptor_set(&queue.table[0], &header, sizeof header, NEXT, header.type == FLUSH ? 2 : 1);
    if (header.type == DISCARD)
        descriptor_set(&queue.table[1], segments, sizeof segments, NEXT, 2);
    else
        descriptor_set(&queue.table[1], data, sizeof data, header.type == IN ? NEXT | WRITE : NEXT, 2);
    descriptor_set(&queue.table[2], (const void *)&status, 1, WRITE, 0);
    print("begin\n");
    queue_make_available(&queue, 0);
    if (option("reset=", 0)) {
        u8 byte;
        while (!serial_take(&byte))
            cpu_pause();
        device_reset(&device);
        print("reset\n");
        for (;;)
            cpu_pause();
    }
    expect("head of the used chain", queue_pop_used(&queue, &used), 0);
    print("end %u\n", status);
    while (option("stay=", 0))
        cpu_pause();
}
