#include "virtio.h"

volatile unsigned interrupts;
static const struct device *notifying;
static int is_spurious_allowed;

void device_reset(const struct device *device)
{
    set(device, STATUS, 0);
    while (get(device, STATUS))
        ;
}

/* Section 3.1.1, steps 1 to 6. */
void device_start(struct device *device, u64 wanted)
{
    device_reset(device);
    set(device, STATUS, ACKNOWLEDGE);
    set(device, STATUS, ACKNOWLEDGE | DRIVER);
    u64 offered = 0;
    for (u32 half = 0; half < 2; half++) {
        set(device, DEVICE_FEATURES_SEL, half);
        offered |= (u64)get(device, DEVICE_FEATURES) << (32 * half);
    }
    require("VERSION_1 is offered", (offered & VERSION_1) != 0);
    device->features = offered & (wanted | (option("unversioned=", 0) ? 0 : VERSION_1));
    for (u32 half = 0; half < 2; half++) {
        set(device, DRIVER_FEATURES_SEL, half);
        set(device, DRIVER_FEATURES, (u32)(device->features >> (32 * half)));
    }
    set(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    expect("status with features", get(device, STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

static void used(void)
{
    u32 status = get(notifying, INTERRUPT_STATUS);
    /* The acknowledgement of the last interrupt may cover a notification that raised this one. */
    require("an interrupt has a reason", status != 0 || is_spurious_allowed);
    is_spurious_allowed = status != 0;
    set(notifying, INTERRUPT_ACK, status);
    interrupts++;
}

void device_enable_interrupts(const struct device *device)
{
    notifying = device;
    interrupts = 0;
    is_spurious_allowed = 0;
    interrupts_handle(device->irq, used);
}

static void set_address(const struct device *device, u64 offset, volatile void *area)
{
    set(device, offset, (u32)(u64)area);
    set(device, offset + 4, (u32)((u64)area >> 32));
}

int queue_start(struct queue *queue, const struct device *device, u16 number)
{
    for (u64 i = 0; i < sizeof *queue / sizeof(u16); i++)
        ((volatile u16 *)queue)[i] = 0;
    queue->device = device;
    queue->number = number;
    set(device, QUEUE_SEL, number);
    require("a queue is large enough", get(device, QUEUE_NUM_MAX) >= QUEUE_SIZE);
    expect("a queue before it is set up", get(device, QUEUE_READY), 0);
    set(device, QUEUE_NUM, QUEUE_SIZE);
    set_address(device, QUEUE_DESC, queue->table);
    set_address(device, QUEUE_DRIVER, &queue->available);
    set_address(device, QUEUE_DEVICE, &queue->used);
    set(device, QUEUE_READY, 1);
    return get(device, QUEUE_READY) == 1;
}

void descriptor_set(volatile struct descriptor *at, const void *buffer, u32 length, u16 flags, u16 next)
{
    at->address = (u64)buffer;
    at->length = length;
    at->flags = flags;
    at->next = next;
}

void queue_make_available(struct queue *queue, u16 head)
{
    queue->available.ring[queue->available.index % QUEUE_SIZE] = head;
    barrier(); /* the device sees the chain before the index, and the index before the notification */
    queue->available.index++;
    barrier();
    set(queue->device, QUEUE_NOTIFY, queue->number);
}

int queue_has_used(const struct queue *queue) { return queue->used.index != queue->seen; }

u16 queue_pop_used(struct queue *queue, u32 *length)
{
    int has_interrupts = notifying == queue->device;
    if (has_interrupts) /* accept a pending interrupt */
        interrupts_accept();
    /* Interrupts are enabled in the halt only, so that none is missed between the check and the halt. */
    while (!queue_has_used(queue))
        if (has_interrupts)
            interrupts_wait();
    barrier(); /* the index precedes its chain */
    unsigned slot = queue->seen++ % QUEUE_SIZE;
    *length = queue->used.ring[slot].length;
    return (u16)queue->used.ring[slot].id;
}
