/* Sends one request to the first drive that may take the host long: a discard of the complete drive in 16 segments, or a
   flush with `flush=1`. Prints `begin` before the request and `end STATUS` after it. Never exits with `stay=1`. */
#include "virtio.h"

#define FLUSHES (1ul << 9)
#define DISCARDS (1ul << 13)

/* Types of requests, section 5.2.6. */
enum { FLUSH = 4, DISCARD = 11 };
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
    header.type = option("flush=", 0) ? FLUSH : DISCARD;
    descriptor_set(&queue.table[0], &header, sizeof header, NEXT, header.type == FLUSH ? 2 : 1);
    descriptor_set(&queue.table[1], segments, sizeof segments, NEXT, 2);
    descriptor_set(&queue.table[2], (const void *)&status, 1, WRITE, 0);
    print("begin\n");
    queue_make_available(&queue, 0);
    expect("head of the used chain", queue_pop_used(&queue, &used), 0);
    print("end %u\n", status);
    while (option("stay=", 0))
        __asm__ volatile("pause");
}
