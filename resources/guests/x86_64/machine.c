#include "guest.h"

void put(char byte) { outb(COM1, (u8)byte); }

void put_all(const char *bytes, u64 length)
{
    __asm__ volatile("rep outsb" : "+S"(bytes), "+c"(length) : "d"(COM1) : "memory");
}

_Noreturn void cpu_halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

void announce_ready(void) { outb(DEBUG_EXIT + 1, 1); }

_Noreturn void finish(u8 status)
{
    outb(DEBUG_EXIT, status);
    cpu_halt();
}

_Noreturn void reset(void)
{
    outb(I8042_COMMAND, 0xfe);
    cpu_halt();
}

_Noreturn void power_off(void)
{
    outw(ACPI_CONTROL, 0x2000);
    cpu_halt();
}
