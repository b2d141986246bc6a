/* Loads all registers of SVE, and checks them at each serial byte. */
#include "interrupts.h"

enum { VECTORS = 32, PREDICATES = 16, MAX_LENGTH = 256, SVE_SHIFT = 32 };

u64 sve_enable(void);
void sve_load(const u8 *vectors, const u8 *predicates, const u8 *first_fault);
void sve_store(u8 *vectors, u8 *predicates, u8 *first_fault);

struct registers {
    u8 vectors[VECTORS * MAX_LENGTH], predicates[PREDICATES * MAX_LENGTH / 8], first_fault[MAX_LENGTH / 8];
} __attribute__((aligned(16)));

static struct registers loaded, stored;
static volatile unsigned bytes;

static void receive(u8 byte)
{
    (void)byte;
    bytes++;
}

static void check(u64 length)
{
    const u8 *want = (const u8 *)&loaded, *got = (const u8 *)&stored;
    sve_store(stored.vectors, stored.predicates, stored.first_fault);
    for (unsigned i = 0; i < sizeof loaded; i++)
        if (got[i] != want[i]) {
            expect("byte of the registers", (u64)i << 8 | got[i], (u64)i << 8 | want[i]);
            break;
        }
    print("%s sve %lu bytes\n", failures ? "bad" : "ok", length);
}

void guest(void)
{
    if (!(READ_SYSTEM("id_aa64pfr0_el1") >> SVE_SHIFT & 0xf)) {
        print("no sve\n");
        return;
    }
    u64 length = sve_enable();
    require("the length is one of SVE", length >= 16 && length <= MAX_LENGTH && length % 16 == 0);
    for (unsigned i = 0; i < VECTORS * length; i++)
        loaded.vectors[i] = (u8)(i * 7 + i / 256 + 1);
    for (unsigned i = 0; i < PREDICATES * length / 8; i++)
        loaded.predicates[i] = (u8)(i * 11 + 3);
    /* FFR holds ones below zeros. */
    for (unsigned i = 0; i < length / 16; i++)
        loaded.first_fault[i] = 0xff;
    loaded.first_fault[length / 16] = length % 32 ? 0x0f : 0;
    interrupts_start();
    serial_start(receive);
    sve_load(loaded.vectors, loaded.predicates, loaded.first_fault);
    check(length);
    for (unsigned next = 1; !failures; next++) {
        wait_for(&bytes, next);
        next = bytes;
        check(length);
    }
}
