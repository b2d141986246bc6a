/* Driver of virtio-mmio devices with split virtqueues, polled or with interrupts. Sections refer to virtio 1.2. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "boot.h"
#include "interrupts.h"

/* Registers, section 4.2.2. */
enum {
    MAGIC_VALUE = 0x00,
    VERSION = 0x04,
    DEVICE_ID = 0x08,
    DEVICE_FEATURES = 0x10,
    DEVICE_FEATURES_SEL = 0x14,
    DRIVER_FEATURES = 0x20,
    DRIVER_FEATURES_SEL = 0x24,
    QUEUE_SEL = 0x30,
    QUEUE_NUM_MAX = 0x34,
    QUEUE_NUM = 0x38,
    QUEUE_READY = 0x44,
    QUEUE_NOTIFY = 0x50,
    INTERRUPT_STATUS = 0x60,
    INTERRUPT_ACK = 0x64,
    STATUS = 0x70,
    QUEUE_DESC = 0x80,
    QUEUE_DRIVER = 0x90,
    QUEUE_DEVICE = 0xa0,
    CONFIG = 0x100,
};

/* Bits of STATUS. */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40 };

/* Values of DEVICE_ID. */
enum { NET = 1, BLOCK = 2 };

/* Feature bits of every device. */
#define INDIRECT_DESC (1ul << 28)
#define VERSION_1 (1ul << 32)

/* Bits of a descriptor's flags. */
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

enum { QUEUE_SIZE = 16 };

struct device {
    u64 base;     /* of its registers */
    u32 kind;     /* DEVICE_ID */
    unsigned irq;
    u64 features; /* negotiated */
};

struct descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};

/* Virtqueue in the layout of section 2.7, with the state of the driver. */
struct queue {
    _Alignas(16) volatile struct descriptor table[QUEUE_SIZE];
    volatile struct {
        u16 flags, index, ring[QUEUE_SIZE], used_event;
    } available;
    _Alignas(4) volatile struct {
        u16 flags, index;
        struct {
            u32 id, length;
        } ring[QUEUE_SIZE];
        u16 available_event;
    } used;
    const struct device *device;
    u16 number, seen;
};

static inline u32 get(const struct device *device, u64 offset) { return read32(device->base + offset); }
static inline void set(const struct device *device, u64 offset, u32 value) { write32(device->base + offset, value); }

/* Fills in the `nth` device, from 0: of the command line on x86_64, of the device tree on aarch64. Returns 0 if there are fewer. */
int device_find(unsigned nth, struct device *device);
/* Resets the device and negotiates the offered features of `wanted`, and VERSION_1 unless the command line has unversioned=1. */
void device_start(struct device *device, u64 wanted);
void device_reset(const struct device *device);
/* Enables used buffer notifications . Requires interrupts_start. */
void device_enable_interrupts(const struct device *device);
/* Number of interrupts since then. */
extern volatile unsigned interrupts;

/* Clears `queue` and sets it up as virtqueue `number`. Returns 1 if the device accepts it. */
int queue_start(struct queue *queue, const struct device *device, u16 number);
void descriptor_set(volatile struct descriptor *at, const void *buffer, u32 length, u16 flags, u16 next);
/* Makes the chain at descriptor `head` available and sends the available buffer notification. */
void queue_make_available(struct queue *queue, u16 head);
/* Returns 1 if a used chain is pending. */
int queue_has_used(const struct queue *queue);
/* Waits for a used chain. Returns its head, and its length in `*length`. */
u16 queue_pop_used(struct queue *queue, u32 *length);

#endif
