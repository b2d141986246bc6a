/* Registers of SVE and pointer authentication, which no other code of a guest uses. */
    .arch armv8.3-a+sve
    .text

    .macro each_vector instruction, base
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    \instruction z\n, [\base, \n, mul vl]
    .endr
    .endm

    .macro each_predicate instruction, base
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    \instruction p\n, [\base, \n, mul vl]
    .endr
    .endm

/* u64 sve_enable(void): enables the longest vectors. Returns their length in bytes. */
    .globl sve_enable
sve_enable:
    mrs x0, cpacr_el1
    orr x0, x0, 0x300000        /* FPEN */
    orr x0, x0, 0x30000         /* ZEN */
    msr cpacr_el1, x0
    isb
    mov x0, 15
    msr s3_0_c1_c2_0, x0        /* ZCR_EL1 */
    isb
    rdvl x0, 1
    ret

/* void sve_load(const u8 *vectors, const u8 *predicates, const u8 *first_fault) */
    .globl sve_load
sve_load:
    ldr p0, [x2]
    wrffr p0.b
    each_vector ldr, x0
    each_predicate ldr, x1
    ret

/* void sve_store(u8 *vectors, u8 *predicates, u8 *first_fault) */
    .globl sve_store
sve_store:
    each_vector str, x0
    each_predicate str, x1
    rdffr p0.b
    str p0, [x2]
    ldr p0, [x1]
    ret

/* void pauth_enable(const u64 keys[10]): sets the keys IA, IB, DA, DB and GA, and enables the instructions that use the first four. */
    .globl pauth_enable
pauth_enable:
    .irp name, s3_0_c2_c1_0, s3_0_c2_c1_1, s3_0_c2_c1_2, s3_0_c2_c1_3, s3_0_c2_c2_0, s3_0_c2_c2_1, s3_0_c2_c2_2, s3_0_c2_c2_3, s3_0_c2_c3_0, s3_0_c2_c3_1
    ldr x1, [x0], 8
    msr \name, x1
    .endr
    mrs x0, sctlr_el1
    orr x0, x0, 0xc0000000      /* EnIA, EnIB */
    orr x0, x0, 0x8000000       /* EnDA */
    orr x0, x0, 0x2000          /* EnDB */
    msr sctlr_el1, x0
    isb
    ret

/* void pauth_sign(u64 pointer, u64 modifier, u64 codes[5]): signs the pointer by each key. */
    .globl pauth_sign
pauth_sign:
    mov x3, x0
    pacia x3, x1
    mov x4, x0
    pacib x4, x1
    stp x3, x4, [x2]
    mov x3, x0
    pacda x3, x1
    mov x4, x0
    pacdb x4, x1
    stp x3, x4, [x2, 16]
    pacga x3, x0, x1
    str x3, [x2, 32]
    ret
