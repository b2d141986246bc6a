/* Writes to `mib=` (2) MiB from 16 MiB of RAM on, then checks the pages at each serial byte until `q`. A `w` rewrites them before
   the check. With `ready=1` it announces that it is ready. */
#include "boot.h"
#include "interrupts.h"

#define FROM (RAM_BASE + 0x1000000)

static volatile unsigned bytes, rewrite, over;

static void receive(u8 byte)
{
    rewrite |= byte == 'w';
    over |= byte == 'q';
    bytes++;
}

/* Returns the content of a page: its scrambled address. */
static u64 content(u64 address) { return address * 0x9e3779b97f4a7c15; }

static void fill(u64 end)
{
    for (u64 at = FROM; at < end; at += PAGE)
        AT(u64, at + 8) = content(at);
}

void guest(void)
{
    u64 end = FROM + (option("mib=", 2) << 20);
    fill(end);
    interrupts_start();
    print("touched %lu pages\n", (end - FROM) / PAGE);
    serial_start(receive);
    if (option("ready=", 0))
        announce_ready();
    for (unsigned next = 1; !over; next = bytes + 1) {
        wait_for(&bytes, next);
        if (rewrite)
            fill(end);
        rewrite = 0;
        u64 wrong = 0;
        for (u64 at = FROM; at < end; at += PAGE)
            wrong += AT(u64, at + 8) != content(at);
        expect("pages that changed", wrong, 0);
        print("%s touch %lu pages\n", failures ? "bad" : "ok", (end - FROM) / PAGE);
    }
}
