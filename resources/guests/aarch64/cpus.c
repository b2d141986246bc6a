#include "cpus.h"
#include "tree.h"

enum { STACK = 4096, STACKS = 32 };

void cpu_entry(void);

static u8 stacks[STACKS][STACK] __attribute__((aligned(16)));
static unsigned started;

int await(const volatile u32 *value, u32 want)
{
    u64 limit = READ_SYSTEM("cntfrq_el0") * 5;
    for (u64 start = cycles(); cycles() - start < limit;)
        if (*value == want)
            return 1;
    return *value == want;
}

u64 cpu_id(void) { return cpu_affinity(); }

unsigned cpus_find(const char **source, u64 *ids, unsigned most)
{
    struct node node;
    unsigned nth = 0;
    u32 length;
    *source = "device tree";
    for (; tree_find("device_type", "cpu", nth, &node); nth++)
        if (nth < most && tree_property(&node, "reg", &length))
            ids[nth] = length == 8 ? tree_pair(&node, "reg", 0) : tree_cell(&node, "reg", 0);
    return nth;
}

void cpus_start(void)
{
    struct node node;
    require("the device tree has PSCI", tree_child("psci", &node));
    u64 version = psci(PSCI_VERSION, 0, 0, 0);
    require("PSCI has version 0.2 at least", version >= 2 && version < 0x20000);
}

void cpu_start(u64 id)
{
    require("there are stacks", started < STACKS);
    u64 stack = (u64)stacks[started++ % STACKS] + STACK;
    /* The other CPU reads before it enables its caches. */
    barrier();
    expect("result of CPU_ON", psci(PSCI_CPU_ON, id, (u64)cpu_entry, stack), 0);
}
