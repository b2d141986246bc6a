#include "guest.h"

/* PL011, Arm DDI 0183. The transmit register of a 16550 has the same offset. */
enum { DATA = 0, FLAGS = 0x18, TRANSMIT_FULL = 0x20 };
/* Line status of a 16550. */
enum { LINE = 5, TRANSMIT_EMPTY = 0x20 };

void put(char byte)
{
    u64 base = serial_address;
    if (serial_is_pl011) {
        while (read32(base + FLAGS) & TRANSMIT_FULL)
            cpu_pause();
        write32(base + DATA, (u8)byte);
    } else {
        while (!(read8(base + LINE) & TRANSMIT_EMPTY))
            cpu_pause();
        write8(base + DATA, (u8)byte);
    }
}

void put_all(const char *bytes, u64 length)
{
    for (u64 i = 0; i < length; i++)
        put(bytes[i]);
}

u64 psci(u64 function, u64 first, u64 second, u64 third)
{
    register u64 x0 __asm__("x0") = function;
    register u64 x1 __asm__("x1") = first;
    register u64 x2 __asm__("x2") = second;
    register u64 x3 __asm__("x3") = third;
    __asm__ volatile("hvc 0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)::"memory");
    return x0;
}

_Noreturn void cpu_halt(void)
{
    __asm__ volatile("msr daifset, 15");
    for (;;)
        __asm__ volatile("wfi");
}

void announce_ready(void) {}

_Noreturn void finish(u8 status)
{
    if (!status)
        power_off();
    print("exit %u\n", status);
    reset();
}

_Noreturn void reset(void)
{
    psci(PSCI_SYSTEM_RESET, 0, 0, 0);
    cpu_halt();
}

_Noreturn void power_off(void)
{
    psci(PSCI_SYSTEM_OFF, 0, 0, 0);
    cpu_halt();
}

/* Called by the vectors. */
_Noreturn void exception(u64 syndrome, u64 address, u64 fault_address);
_Noreturn void exception(u64 syndrome, u64 address, u64 fault_address)
{
    print("FAIL exception ESR %lx at %lx, FAR %lx\n", syndrome, address, fault_address);
    finish(1);
}
