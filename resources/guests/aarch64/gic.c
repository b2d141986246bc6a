/* Arm IHI 0048 (version 2) and IHI 0069 (version 3). */
#include "gic.h"
#include "tree.h"

/* Distributor. */
enum { CONTROL = 0, GROUP = 0x80, ENABLE = 0x100, PRIORITY = 0x400, TARGET = 0x800, CONFIGURATION = 0xc00, GENERATE = 0xf00, ROUTER = 0x6000 };
/* Bits of its control register in version 3: group 1, routing by affinity, write pending. */
#define GROUP_1 2u
#define AFFINITY_ROUTING 0x10u
#define WRITE_PENDING (1u << 31)
/* CPU interface of version 2. */
enum { INTERFACE_CONTROL = 0, INTERFACE_MASK = 4, ACKNOWLEDGE = 0xc, END = 0x10 };
/* Redistributor of version 3: registers, size of its two frames, the last one of a region. */
enum { TYPE = 8, WAKER = 0x14, PRIVATE_FRAME = 0x10000, STRIDE = 0x20000, LAST = 0x10, SLEEP = 2, ASLEEP = 4 };

#define ICC_PMR "s3_0_c4_c6_0"
#define ICC_SRE "s3_0_c12_c12_5"
#define ICC_GROUP1_ENABLE "s3_0_c12_c12_7"
#define ICC_IAR1 "s3_0_c12_c12_0"
#define ICC_EOIR1 "s3_0_c12_c12_1"
#define ICC_SGI1R "s3_0_c12_c11_5"

unsigned gic_version;
static u64 distributor, interface, redistributors, redistributors_size;

static void find(void)
{
    static const char *const version_2[] = {"arm,cortex-a15-gic", "arm,gic-400"};
    struct node node;
    if (tree_find("compatible", "arm,gic-v3", 0, &node)) {
        gic_version = 3;
        redistributors = tree_pair(&node, "reg", 2);
        redistributors_size = tree_pair(&node, "reg", 3);
    }
    for (unsigned i = 0; i < COUNT(version_2) && !gic_version; i++)
        if (tree_find("compatible", version_2[i], 0, &node)) {
            gic_version = 2;
            interface = tree_pair(&node, "reg", 2);
        }
    require("the device tree has a GIC", gic_version);
    if (!gic_version)
        finish(1);
    distributor = tree_pair(&node, "reg", 0);
}

/* Redistributor of this CPU. */
static u64 redistributor(void)
{
    u64 mpidr = cpu_affinity();
    u64 wanted = (mpidr & 0xffffff) | mpidr >> 32 << 24;
    for (u64 at = redistributors; at < redistributors + redistributors_size; at += STRIDE) {
        u64 type = read64(at + TYPE);
        if (type >> 32 == wanted)
            return at;
        if (type & LAST)
            break;
    }
    print("FAIL no redistributor of CPU %lx\n", mpidr);
    finish(1);
}

static void wait_for_distributor(void)
{
    while (read32(distributor + CONTROL) & WRITE_PENDING)
        cpu_pause();
}

static void start_cpu(void)
{
    if (gic_version == 2) {
        write32(interface + INTERFACE_MASK, 0xff);
        write32(interface + INTERFACE_CONTROL, 1);
        return;
    }
    u64 frame = redistributor();
    write32(frame + WAKER, read32(frame + WAKER) & ~(u32)SLEEP);
    while (read32(frame + WAKER) & ASLEEP)
        cpu_pause();
    write32(frame + PRIVATE_FRAME + GROUP, ~0u);
    WRITE_SYSTEM(ICC_SRE, READ_SYSTEM(ICC_SRE) | 1);
    expect("system registers of the GIC are enabled", READ_SYSTEM(ICC_SRE) & 1, 1);
    WRITE_SYSTEM(ICC_PMR, 0xff);
    WRITE_SYSTEM(ICC_GROUP1_ENABLE, 1);
}

void gic_start(void)
{
    find();
    if (gic_version == 2) {
        write32(distributor + CONTROL, 1);
    } else {
        write32(distributor + CONTROL, AFFINITY_ROUTING | GROUP_1);
        wait_for_distributor();
    }
    start_cpu();
}

void gic_enable(unsigned id, int is_edge)
{
    u64 base = id < SHARED_BASE && gic_version == 3 ? redistributor() + PRIVATE_FRAME : distributor;
    u64 word = id / 32 * 4;
    u32 bit = 1u << id % 32;
    if (id >= SHARED_BASE) {
        u64 at = base + CONFIGURATION + id / 16 * 4;
        u32 edge = 2u << id % 16 * 2;
        write32(at, is_edge ? read32(at) | edge : read32(at) & ~edge);
        if (gic_version == 3) {
            write32(base + GROUP + word, read32(base + GROUP + word) | bit);
            write64(base + ROUTER + id * 8, cpu_affinity());
        } else {
            write8(base + TARGET + id, 1);
        }
    }
    write32(base + ENABLE + word, bit);
    if (gic_version == 3)
        wait_for_distributor();
}

void gic_set_priority(unsigned id, u8 priority) { write8(distributor + PRIORITY + id, priority); }

u32 gic_acknowledge(void)
{
    return gic_version == 2 ? read32(interface + ACKNOWLEDGE) : (u32)READ_SYSTEM(ICC_IAR1);
}

void gic_done(u32 id)
{
    if (gic_version == 2)
        write32(interface + END, id);
    else
        WRITE_SYSTEM(ICC_EOIR1, id);
}

void gic_send(unsigned id, u64 affinity)
{
    barrier();
    if (gic_version == 2) {
        write32(distributor + GENERATE, 0x10000u << (affinity & 7) | id);
        return;
    }
    WRITE_SYSTEM(ICC_SGI1R, (affinity >> 32 & 0xff) << 48 | (affinity >> 16 & 0xff) << 32 | (u64)id << 24
        | (affinity >> 8 & 0xff) << 16 | (1ul << (affinity & 0xf)));
}
