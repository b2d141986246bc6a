#include "record.h"

enum { WORDS = RECORD_END / 8 };
/* "MAYFLYID". */
#define SIGNATURE 0x4449594c4659414dul

void record_print(unsigned interrupts)
{
    u64 words[WORDS], counter, record = record_address();
    if (!record || AT(u64, record) != SIGNATURE) {
        print("no identity\n");
        return;
    }
    /* A snapshot may be taken between two reads: its clone finds another record after the first. */
    do {
        counter = AT(u64, record + RECORD_COUNTER);
        for (unsigned i = 0; i < WORDS; i++)
            words[i] = AT(u64, record + i * 8);
    } while (AT(u64, record + RECORD_COUNTER) != counter);
    print("identity %lu ", counter);
    for (unsigned i = 2; i < WORDS; i++)
        print(i == 4 ? " %016lx" : "%016lx", words[i]);
    print(" interrupts %u\n", interrupts);
}
