/* Writes a disk of 64 blocks of 8 sectors in endless rounds, with as many requests in flight as the queue holds, and reads
   it back after each round. Sector I of the Nth written block, both from 0, starts and ends with N and I in 64 bits each,
   little-endian. Uses interrupts. */
#include "virtio.h"

/* Types of requests, section 5.2.6. */
enum { IN = 0, OUT = 1 };
enum { SECTOR = 512, SECTORS = 8, BLOCKS = 64 };
/* Descriptors of a request: header, data and status. */
enum { DESCRIPTORS = 3, SLOTS = QUEUE_SIZE / DESCRIPTORS };

static struct queue queue;
static struct slot {
    struct {
        u32 type, reserved;
        u64 sector;
    } header;
    u64 number;
    u8 status, busy;
    _Alignas(8) u8 data[SECTORS * SECTOR];
} slots[SLOTS];

static void fill(struct slot *slot)
{
    for (u64 sector = 0; sector < SECTORS; sector++)
        for (unsigned end = 0; end < 2; end++) {
            u8 *data = slot->data + sector * SECTOR + end * (SECTOR - 16);
            AT(u64, data) = slot->number;
            AT(u64, data + 8) = sector;
        }
}

static void check(const struct slot *slot)
{
    for (u64 sector = 0; sector < SECTORS; sector++)
        for (unsigned end = 0; end < 2; end++) {
            const u8 *data = slot->data + sector * SECTOR + end * (SECTOR - 16);
            expect("number of a sector", AT(u64, data), slot->number);
            expect("place of a sector", AT(u64, data + 8), sector);
        }
}

static void begin(u16 index, u32 type, u64 number)
{
    struct slot *slot = &slots[index];
    volatile struct descriptor *table = queue.table + index * DESCRIPTORS;
    u16 first = (u16)(index * DESCRIPTORS);
    slot->header.type = type;
    slot->header.sector = number % BLOCKS * SECTORS;
    slot->number = number;
    slot->status = 0xee;
    slot->busy = 1;
    if (type == OUT)
        fill(slot);
    else
        slot->data[0] = slot->data[SECTOR - 16] = 0xee; /* data of an earlier write must not pass as the result of the read */
    descriptor_set(&table[0], &slot->header, sizeof slot->header, NEXT, first + 1);
    descriptor_set(&table[1], slot->data, sizeof slot->data, type == OUT ? NEXT : NEXT | WRITE, first + 2);
    descriptor_set(&table[2], &slot->status, 1, WRITE, 0);
    queue_make_available(&queue, first);
}

static u16 end(u32 type)
{
    u32 used;
    u16 head = queue_pop_used(&queue, &used), index = head / DESCRIPTORS;
    require("what is done was begun", head % DESCRIPTORS == 0 && index < SLOTS && slots[index].busy);
    slots[index].busy = 0;
    expect("status of a request", slots[index].status, 0);
    expect("length of a request", used, type == OUT ? 1 : 1 + SECTORS * SECTOR);
    if (type == IN)
        check(&slots[index]);
    return index;
}

static void pass(u32 type, u64 first)
{
    unsigned begun = 0, done = 0;
    for (; begun < SLOTS; begun++)
        begin((u16)begun, type, first + begun);
    for (; done < BLOCKS && !failures; done++) {
        u16 free = end(type);
        if (begun < BLOCKS)
            begin(free, type, first + begun++);
    }
}

void guest(void)
{
    struct device device;
    expect("a device", (u64)device_find(0, &device), 1);
    expect("a drive", device.kind, BLOCK);
    interrupts_start();
    device_start(&device, 0);
    require("the queue is taken", queue_start(&queue, &device, 0));
    set(&device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    device_enable_interrupts(&device);
    print("ready\n");
    for (u64 round = 0; !failures; round++) {
        pass(OUT, round * BLOCKS);
        pass(IN, round * BLOCKS);
        if (!failures)
            print("round %lu\n", round);
    }
}
