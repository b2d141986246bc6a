/* Sets the keys of pointer authentication, signs a pointer by each, and checks the codes at each serial byte. */
#include "interrupts.h"

enum { KEYS = 5, API = 8, APA = 4 };
#define POINTER 0x12345678ul
#define MODIFIER 0xfedcba9876543210ul

void pauth_enable(const u64 keys[2 * KEYS]);
void pauth_sign(u64 pointer, u64 modifier, u64 codes[KEYS]);

static u64 codes[KEYS];
static volatile unsigned bytes;

static void receive(u8 byte)
{
    (void)byte;
    bytes++;
}

static void check(void)
{
    u64 again[KEYS];
    pauth_sign(POINTER, MODIFIER, again);
    for (unsigned i = 0; i < KEYS; i++)
        expect("code of a key", again[i], codes[i]);
    print("%s pauth %u keys\n", failures ? "bad" : "ok", KEYS);
}

void guest(void)
{
    u64 keys[2 * KEYS], features = READ_SYSTEM("id_aa64isar1_el1");
    /* ID_AA64ISAR2_EL1 has the third algorithm. */
    if (!(features >> API & 0xf) && !(features >> APA & 0xf) && !(READ_SYSTEM("s3_0_c0_c6_2") >> 12 & 0xf)) {
        print("no pauth\n");
        return;
    }
    for (unsigned i = 0; i < COUNT(keys); i++)
        keys[i] = 0x0123456789abcdeful * (2 * i + 1);
    pauth_enable(keys);
    pauth_sign(POINTER, MODIFIER, codes);
    for (unsigned i = 0; i < KEYS; i++) {
        require("a key changes the pointer", codes[i] != POINTER);
        for (unsigned other = 0; other < i; other++)
            require("two keys have different codes", codes[i] != codes[other]);
    }
    interrupts_start();
    serial_start(receive);
    check();
    for (unsigned next = 1; !failures; next++) {
        wait_for(&bytes, next);
        next = bytes;
        check();
    }
}
