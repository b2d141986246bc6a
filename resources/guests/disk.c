/* For every drive: writes a pattern from several buffers, reads it back, and sends requests that the device must reject.
   `irq=1` selects interrupts. A read-only drive must hold the pattern. */
#include "virtio.h"

#define READ_ONLY (1ul << 5)
#define FLUSHES (1ul << 9)

/* Types and status values of requests, section 5.2.6. */
enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, UNKNOWN = 77 };
enum { OK = 0, IO_ERROR = 1, UNSUPPORTED = 2 };

enum { SECTOR = 512, SECTORS = 4, LENGTH = SECTORS * SECTOR };

static struct queue queue;
static u8 area[8192];
static int by_interrupt;
static unsigned requests; /* of this drive, with interrupts */

/* Buffers in the area for the data of one request, LENGTH bytes in total. */
static const struct {
    u32 offset, length;
} buffers[] = {{1, 1}, {100, 511}, {1000, 1000}, {5000, 536}};

/* Returns byte `i` of the pattern for `sector`. */
static u8 pattern(u64 sector, u32 i) { return (u8)(sector * 31 + i + (i >> 8)); }

/* Executes a request with `count` of the buffers, or with the first 20 bytes of the area for GET_ID. */
static u8 request(u32 type, u64 sector, unsigned count, u32 *used)
{
    static struct {
        u32 type, reserved;
        u64 sector;
    } header;
    static volatile u8 status;
    u16 writes = type == OUT ? 0 : WRITE, next = 1;
    header.type = type;
    header.sector = sector;
    status = 0xee;
    descriptor_set(&queue.table[0], &header, sizeof header, NEXT, 1);
    for (unsigned i = 0; i < count; i++, next++)
        descriptor_set(&queue.table[next], area + buffers[i].offset, buffers[i].length, NEXT | writes, next + 1);
    if (type == GET_ID) {
        descriptor_set(&queue.table[next], area, 20, NEXT | WRITE, next + 1);
        next++;
    }
    descriptor_set(&queue.table[next], (const void *)&status, 1, WRITE, 0);
    queue_make_available(&queue, 0);
    if (by_interrupt) {
        wait_for(&interrupts, ++requests);
        require("an interrupt comes after the used chain", queue_has_used(&queue));
    }
    expect("head of the used chain", queue_pop_used(&queue, used), 0);
    return status;
}

static void fill(u64 sector)
{
    u32 i = 0;
    for (unsigned buffer = 0; buffer < COUNT(buffers); buffer++)
        for (u32 at = 0; at < buffers[buffer].length; at++)
            area[buffers[buffer].offset + at] = pattern(sector, i++);
}

static void check(u64 sector)
{
    u32 i = 0;
    for (unsigned buffer = 0; buffer < COUNT(buffers) && !failures; buffer++)
        for (u32 at = 0; at < buffers[buffer].length && !failures; at++)
            expect("byte of the disk", area[buffers[buffer].offset + at], pattern(sector, i++));
}

static void write(u64 sector, int read_only)
{
    u32 used;
    fill(sector);
    expect("status of a write", request(OUT, sector, COUNT(buffers), &used), read_only ? IO_ERROR : OK);
    expect("length of a write", used, 1);
}

static void read(u64 sector)
{
    u32 used;
    for (unsigned i = 0; i < sizeof area; i += 8)
        AT(u64, area + i) = 0;
    expect("status of a read", request(IN, sector, COUNT(buffers), &used), OK);
    expect("length of a read", used, LENGTH + 1);
    check(sector);
}

static void refused(u64 capacity)
{
    u32 used;
    expect("a read over the end", request(IN, capacity - 1, COUNT(buffers), &used), IO_ERROR);
    expect("a read behind the end", request(IN, capacity, COUNT(buffers), &used), IO_ERROR);
    expect("a read of a sector that wraps", request(IN, ~0ul, COUNT(buffers), &used), IO_ERROR);
    expect("a read of half a sector", request(IN, 0, 1, &used), IO_ERROR);
    expect("an unknown type", request(UNKNOWN, 0, COUNT(buffers), &used), UNSUPPORTED);
}

static void try(struct device *device)
{
    device_start(device, READ_ONLY | FLUSHES);
    require("the queue is taken", queue_start(&queue, device, 0));
    set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    expect("status", get(device, STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    u64 capacity = get(device, CONFIG) | (u64)get(device, CONFIG + 4) << 32;
    int read_only = (device->features & READ_ONLY) != 0, flushes = (device->features & FLUSHES) != 0;
    u64 places[] = {0, capacity / 2, capacity - SECTORS};

    u32 used;
    expect("status of the ID", request(GET_ID, 0, 0, &used), OK);
    expect("length of the ID", used, 21);
    area[20] = 0;
    print("disk [%s]%s%s\n", (const char *)area, read_only ? " ro" : "", flushes ? " flush" : "");
    for (unsigned i = 0; i < COUNT(places); i++)
        write(places[i], read_only);
    if (flushes)
        expect("status of a flush", request(FLUSH, 0, 0, &used), OK);
    refused(capacity);
    for (unsigned i = 0; i < COUNT(places); i++)
        read(places[i]);
    if (!failures)
        print("ok disk %lu sectors\n", capacity);
}

void guest(void)
{
    struct device device;
    unsigned disks = 0;
    interrupts_start();
    by_interrupt = option("irq=", 0) != 0;
    for (unsigned nth = 0; device_find(nth, &device); nth++) {
        if (device.kind != BLOCK)
            continue;
        disks++;
        requests = 0;
        if (by_interrupt)
            device_enable_interrupts(&device);
        try(&device);
    }
    require("there is a disk", disks);
}
