#include "trap.h"

static struct {
    u16 offset_low, selector, flags, offset_middle;
    u32 offset_high, reserved;
} idt[256];

static void set(u8 vector, u64 handler)
{
    u16 selector;
    __asm__("movw %%cs, %0" : "=r"(selector));
    idt[vector].offset_low = (u16)handler;
    idt[vector].selector = selector;
    idt[vector].flags = 0x8e00;
    idt[vector].offset_middle = (u16)(handler >> 16);
    idt[vector].offset_high = (u32)(handler >> 32);
}

static _Noreturn void exception(const char *name, u64 code, u64 rip)
{
    print("FAIL exception %s code %lx at %lx\n", name, code, rip);
    finish(1);
}

static INTERRUPT invalid_opcode(struct frame *frame) { exception("#UD", 0, frame->rip); }
static INTERRUPT general_protection(struct frame *frame, u64 code) { exception("#GP", code, frame->rip); }
static INTERRUPT page_fault(struct frame *frame, u64 code) { exception("#PF", code, frame->rip); }

void traps(void)
{
    struct __attribute__((packed)) {
        u16 limit;
        void *base;
    } pointer = {sizeof idt - 1, idt};
    set(6, (u64)invalid_opcode);
    set(13, (u64)general_protection);
    set(14, (u64)page_fault);
    __asm__ volatile("lidt %0" ::"m"(pointer));
}

void gate(u8 vector, void (*handler)(struct frame *)) { set(vector, (u64)handler); }

enum { MASTER = 0x20, SLAVE = 0xa0, END_OF_INTERRUPT = 0x20 };

void pic_start(u8 base)
{
    outb(MASTER, 0x11); /* ICW1: edge, cascade, ICW4 follows */
    outb(SLAVE, 0x11);
    outb(MASTER + 1, base);
    outb(SLAVE + 1, base + 8);
    outb(MASTER + 1, 4); /* ICW3: the slave is at line 2 */
    outb(SLAVE + 1, 2);
    outb(MASTER + 1, 1); /* ICW4: 8086 */
    outb(SLAVE + 1, 1);
    outb(MASTER + 1, 0xff);
    outb(SLAVE + 1, 0xff);
}

void pic_unmask(unsigned irq)
{
    u16 port = irq < 8 ? MASTER + 1 : SLAVE + 1;
    outb(port, inb(port) & (u8)~(1u << (irq & 7)));
    if (irq >= 8)
        outb(MASTER + 1, inb(MASTER + 1) & (u8)~4u);
}

void pic_done(unsigned irq)
{
    if (irq >= 8)
        outb(SLAVE, END_OF_INTERRUPT);
    outb(MASTER, END_OF_INTERRUPT);
}
