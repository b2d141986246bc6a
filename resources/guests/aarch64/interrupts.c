#include "interrupts.h"
#include "gic.h"
#include "tree.h"

enum { LINES = 256 };

volatile unsigned timer_ticks;
static void (*handlers[LINES])(void);
static u8 is_edge[LINES];

/* Called by the vectors, with interrupts disabled. */
void dispatch(void);
void dispatch(void)
{
    u32 value = gic_acknowledge(), id = value & 0x3ff;
    if (id >= SPURIOUS)
        return;
    if (id < LINES && handlers[id])
        handlers[id]();
    else
        print("FAIL interrupt %u\n", id), finish(1);
    gic_done(value);
}

void interrupts_start(void) { gic_start(); }

void interrupts_handle(unsigned irq, void (*handler)(void))
{
    require("the interrupt has a place in the table", irq < LINES);
    handlers[irq] = handler;
    barrier();
    gic_enable(irq, is_edge[irq]);
}

/* An interrupt ends the wait although it is disabled, so that none is missed between a check and the wait. */
void interrupts_wait(void) { __asm__ volatile("dsb sy; wfi; msr daifclr, 2; isb; msr daifset, 2" ::: "memory"); }

void interrupts_accept(void) { __asm__ volatile("msr daifclr, 2; isb; msr daifset, 2" ::: "memory"); }

unsigned interrupt_of(const struct node *node, unsigned nth)
{
    int edge;
    unsigned id = tree_interrupt(node, nth, &edge);
    require("the interrupt has a place in the table", id < LINES);
    is_edge[id % LINES] = (u8)edge;
    return id % LINES;
}

/* Virtual timer: the third interrupt of its node. */
enum { VIRTUAL = 2, ENABLED = 1, FIRED = 4 };
static u64 period;

static void tick(void)
{
    /* The line may fall between the interrupt and its handler. */
    if (!(READ_SYSTEM("cntv_ctl_el0") & FIRED))
        return;
    timer_ticks++;
    if (period)
        WRITE_SYSTEM("cntv_cval_el0", READ_SYSTEM("cntv_cval_el0") + period);
    else
        WRITE_SYSTEM("cntv_ctl_el0", 0);
}

void timer_start(enum timer_mode mode, u64 ns)
{
    static int is_enabled;
    struct node node;
    u64 counts = ns / 1000 * cycles_per_second() / 1000000;
    period = mode == PERIODIC ? counts : 0;
    if (!is_enabled) {
        require("the device tree has a timer", tree_find("compatible", "arm,armv8-timer", 0, &node));
        interrupts_handle(interrupt_of(&node, VIRTUAL), tick);
        is_enabled = 1;
    }
    WRITE_SYSTEM("cntv_cval_el0", cycles() + counts);
    WRITE_SYSTEM("cntv_ctl_el0", ENABLED);
}

/* PL011, Arm DDI 0183. */
enum { DATA = 0, FLAGS = 0x18, LINE_CONTROL = 0x2c, CONTROL = 0x30, MASK = 0x38, CLEAR = 0x44, RECEIVE_EMPTY = 0x10 };
enum { FIFOS = 0x10, WORD_8 = 0x60, ALL_ON = 0x301, RECEIVED = 0x50 };
/* 16550. */
enum { ENABLE = 1, IDENTIFY = 2, MODEM = 4, LINE = 5, READY = 1, OUT2 = 0x0b };

static void (*on_byte)(u8 byte);

int serial_take(u8 *byte)
{
    u64 base = serial_address;
    if (serial_is_pl011 ? read32(base + FLAGS) & RECEIVE_EMPTY : !(read8(base + LINE) & READY))
        return 0;
    *byte = serial_is_pl011 ? (u8)read32(base + DATA) : read8(base + DATA);
    return 1;
}

static void receive(void)
{
    u8 byte;
    if (serial_is_pl011)
        write32(serial_address + CLEAR, RECEIVED);
    else
        (void)read8(serial_address + IDENTIFY);
    while (serial_take(&byte))
        on_byte(byte);
}

void serial_start(void (*handler)(u8 byte))
{
    u64 base = serial_address;
    struct node node;
    require("the device tree has the serial port",
        tree_find("compatible", serial_is_pl011 ? "arm,pl011" : "ns16550a", 0, &node));
    expect("address of the serial port", tree_pair(&node, "reg", 0), base);
    on_byte = handler;
    interrupts_handle(interrupt_of(&node, 0), receive);
    if (serial_is_pl011) {
        write32(base + LINE_CONTROL, WORD_8 | FIFOS);
        write32(base + CONTROL, ALL_ON);
        write32(base + MASK, RECEIVED);
    } else {
        write8(base + MODEM, OUT2);
        write8(base + ENABLE, 1);
    }
    /* Bytes that arrived before, without an edge since. */
    receive();
}
