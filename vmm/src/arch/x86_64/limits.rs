//! CPUID entries and MSRs of a saved vCPU beyond the limits of this host.
//!
//! KVM accepts nearly every CPUID entry and many MSRs that it does not announce. A state file may come from another host or from an
//! attacker: the guest would use features that KVM does not provide, or reach parts of KVM that no other guest reaches. The limits come
//! from KVM, never from the state file.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Bits that KVM computes itself at run time: MONITOR from `IA32_MISC_ENABLE`, OSXSAVE from CR4.
const LEAF1_ECX_COMPUTED: u32 = 1 << 3 | 1 << 27;
/// HTT: belongs to the topology of the guest.
const LEAF1_EDX_TOPOLOGY: u32 = 1 << 28;
/// OSPKE: KVM computes it from CR4.
const LEAF7_ECX_COMPUTED: u32 = 1 << 4;
const ALL: u32 = u32::MAX;

/// Maximum number of names in a message.
const MAX_NAMES: usize = 16;

pub const EAX: usize = 0;
pub const EBX: usize = 1;
pub const ECX: usize = 2;
pub const EDX: usize = 3;
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Registers EAX to EDX of a CPUID entry.
pub type Registers = [u32; 4];

/// Register of a saved CPUID entry that exceeds the limits.
#[derive(Debug)]
pub struct Excess {
    /// Position among the saved entries.
    position: usize,
    entry: kvm_cpuid_entry2,
    register: usize,
    limit: u32,
    /// Features beyond the limit.
    bits: u32,
    /// Fields with numbers beyond the limit.
    numbers: u32,
}

impl Excess {
    /// Reduces the register in the saved `entries` to the limit.
    pub fn remove_from(&self, entries: &mut [kvm_cpuid_entry2]) {
        let Some(entry) = entries.get_mut(self.position) else {
            return;
        };
        let value = (self.saved() & !self.bits & !self.numbers) | (self.limit & self.numbers);
        *match self.register {
            EAX => &mut entry.eax,
            EBX => &mut entry.ebx,
            ECX => &mut entry.ecx,
            _ => &mut entry.edx,
        } = value;
    }

    /// Forgets the features and numbers that KVM has set in `entries` although they were [removed](Self::remove_from). Returns true if
    /// some remain. KVM without hardware virtualisation cannot intercept CPUID: it shows each guest those of the processor.
    pub fn drop_imposed(&mut self, entries: &[kvm_cpuid_entry2]) -> bool {
        let is_same = |entry: &&kvm_cpuid_entry2| {
            (entry.function, entry.index) == (self.entry.function, self.entry.index)
        };
        if let Some(entry) = entries.get(self.position).filter(is_same) {
            let set = registers(entry)[self.register];
            self.bits &= !set;
            let fields = number_fields(self.entry.function, self.register).iter();
            let imposed = fields.filter(|field| (set ^ self.saved()) & **field == 0);
            self.numbers &= !imposed.fold(0, |fields, field| fields | field);
        }
        self.bits | self.numbers != 0
    }

    /// Returns the names of the features and numbers.
    pub fn names(&self) -> Vec<String> {
        let mut place = format!("CPUID leaf {:#x}", self.entry.function);
        if is_indexed(&self.entry) {
            place += &format!(" index {:#x}", self.entry.index);
        }
        place += &format!(" {}", REGISTERS[self.register]);
        let bits = (0..u32::BITS).filter(|bit| self.bits & 1 << bit != 0);
        let bits = bits.map(|bit| match bit_name(&self.entry, self.register, bit) {
            Some(name) => format!("{place} bit {bit} ({name})"),
            None => format!("{place} bit {bit}"),
        });
        let fields = number_fields(self.entry.function, self.register).iter();
        let numbers = fields.filter(|field| self.numbers & **field != 0).map(|field| {
            let low = field.trailing_zeros();
            let number = |register: u32| (register & field) >> low;
            let (saved, limit) = (number(self.saved()), number(self.limit));
            format!("{place} from bit {low}: {saved} above {limit}")
        });
        bits.chain(numbers).collect()
    }

    fn saved(&self) -> u32 {
        registers(&self.entry)[self.register]
    }
}

/// Returns all in the CPUID entries `saved` that exceeds those of this host, `host`.
pub fn find_excess(host: &[kvm_cpuid_entry2], saved: &[kvm_cpuid_entry2]) -> Vec<Excess> {
    let mut found = Vec::new();
    for (position, entry) in saved.iter().enumerate() {
        compare(host, position, entry, &mut found);
    }
    found
}

/// Compares the MSRs `saved` with those that are saved on this host, `host`. With `mask`, removes all others. Returns their names.
pub fn limit_msrs(host: &[u32], saved: &mut Vec<(u32, u64)>, mask: bool) -> Vec<String> {
    // A state of this host has the order of the list.
    let mut rest = host.iter();
    let mut is_known = |index: &u32| {
        if rest.any(|known| known == index) {
            return true;
        }
        rest = host.iter();
        rest.any(|known| known == index)
    };
    let mut names = Vec::new();
    saved.retain(|(index, _)| {
        let known = is_known(index);
        if !known {
            names.push(msr_name(*index));
        }
        known || !mask
    });
    names
}

/// Joins `names` for a message.
pub fn join(names: &[String]) -> String {
    let (shown, more) = names.split_at(names.len().min(MAX_NAMES));
    match more.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Returns number and name of an MSR.
pub fn msr_name(index: u32) -> String {
    match MSR_NAMES.iter().find(|(known, _)| *known == index) {
        Some((_, name)) => format!("MSR {index:#x} ({name})"),
        None => format!("MSR {index:#x}"),
    }
}

pub fn registers(entry: &kvm_cpuid_entry2) -> Registers {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn is_indexed(entry: &kvm_cpuid_entry2) -> bool {
    entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0
}

/// Returns the entry of `host` to which KVM leads the same CPUID instructions as to `entry`, which is at `position` on the host that
/// saved it.
fn find<'a>(
    host: &'a [kvm_cpuid_entry2],
    position: usize,
    entry: &kvm_cpuid_entry2,
) -> Option<&'a kvm_cpuid_entry2> {
    let is_same = |other: &&kvm_cpuid_entry2| {
        other.function == entry.function
            && is_indexed(other) == is_indexed(entry)
            && (!is_indexed(entry) || other.index == entry.index)
    };
    // A state of this host has the same order.
    let expected = host.get(position).filter(is_same);
    expected.or_else(|| host.iter().find(is_same))
}

/// Adds all in `entry` at `position` that exceeds `host` to `found`.
fn compare(host: &[kvm_cpuid_entry2], position: usize, entry: &kvm_cpuid_entry2, found: &mut Vec<Excess>) {
    let known = find(host, position, entry);
    // An entry without index stands for all indexes of its leaf.
    let has_leaf =
        |other: &kvm_cpuid_entry2| other.function == entry.function && is_indexed(other) == is_indexed(entry);
    // The bits of an unknown leaf are named, and no numbers.
    let is_known = known.is_some() || host.iter().any(has_leaf);
    let checked = if is_known { feature_bits(entry) } else { [ALL; 4] };
    let limits = known.map_or([0; 4], registers);
    for (register, (saved, limit)) in registers(entry).into_iter().zip(limits).enumerate() {
        let bits = saved & !limit & checked[register];
        let fields = number_fields(entry.function, register).iter();
        let exceeding = fields.filter(|field| is_known && saved & **field > limit & **field);
        let numbers = exceeding.fold(0, |fields, field| fields | field);
        if bits | numbers != 0 {
            found.push(Excess {
                position,
                entry: *entry,
                register,
                limit,
                bits,
                numbers,
            });
        }
    }
}

/// Returns the bits of `entry` that announce features. The others are numbers, such as sizes, topology and frequencies.
pub fn feature_bits(entry: &kvm_cpuid_entry2) -> Registers {
    // EAX, EBX, ECX, EDX. Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.
    match (entry.function, entry.index) {
        (0x1, _) => [0, 0, !LEAF1_ECX_COMPUTED, !LEAF1_EDX_TOPOLOGY],
        (0x6, _) => [ALL, 0, ALL, 0],
        (0x7, 0) => [0, ALL, !LEAF7_ECX_COMPUTED, ALL],
        (0x14, 0) => [0, ALL, ALL, ALL],
        (0x7 | 0x12 | 0x14, _) => [ALL; 4],
        (0xd, 0) => [ALL, 0, 0, ALL],
        (0xd, 1) => [ALL, 0, ALL, ALL],
        (0x19, _) => [ALL, ALL, ALL, 0],
        (0x24, 0) => [0, 7 << 16, 0, 0],
        (0x4000_0001, _) => [ALL, 0, 0, ALL],
        (0x8000_0001, _) => [0, 0, ALL, ALL],
        (0x8000_0007, _) => [0, ALL, 0, ALL],
        (0x8000_0008, _) => [0, ALL, 0, 0],
        (0x8000_000a, _) => [0, 0, 0, ALL],
        (0x8000_001a | 0x8000_001b | 0x8000_001f | 0x8000_0022, _) => [ALL, 0, 0, 0],
        (0x8000_0020, 0) => [0, ALL, 0, 0],
        (0x8000_0021, _) => [ALL, 0, ALL, 0],
        (0xc000_0001, _) => [0, 0, 0, ALL],
        _ => [0; 4],
    }
}

/// Returns the fields of a register with numbers that are limited: sizes of the PMU, widths of addresses, version of AVX10.
pub fn number_fields(function: u32, register: usize) -> &'static [u32] {
    match (function, register) {
        (0xa | 0x8000_0008, EAX) => &[0xff, 0xff00, 0xff_0000],
        (0xa, EDX) => &[0x1f, 0x1fe0],
        (0x24, EBX) => &[0xff],
        _ => &[],
    }
}

/// Returns the name of a bit in `/proc/cpuinfo`.
fn bit_name(entry: &kvm_cpuid_entry2, register: usize, bit: u32) -> Option<&'static str> {
    let key = (entry.function, entry.index, register);
    let (_, names) = BIT_NAMES.iter().find(|(known, _)| *known == key)?;
    let name = names.split_whitespace().nth(usize::try_from(bit).ok()?)?;
    (name != "-").then_some(name)
}

/// Names of the bits of a register, lowest first; `-` is unnamed.
const BIT_NAMES: [((u32, u32, usize), &str); 8] = [
    (
        (0x1, 0, ECX),
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe \
         popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (
        (0x1, 0, EDX),
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm \
         ia64 pbe",
    ),
    (
        (0x7, 0, EBX),
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a avx512f avx512dq \
         rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        (0x7, 0, ECX),
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme \
         avx512_vpopcntdq - la57 - - - - - rdpid key_locker bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    (
        (0x7, 0, EDX),
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
         rtm_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl \
         intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    ),
    (
        (0x4000_0001, 0, EAX),
        "kvmclock nop_io_delay mmu_op kvmclock2 async_pf steal_time pv_eoi pv_unhalt - pv_tlb_flush async_pf_vmexit pv_send_ipi \
         poll_control pv_sched_yield async_pf_int msi_ext_dest_id hc_map_gpa_range migration_control - - - - - - \
         clocksource_stable - - - - - - -",
    ),
    (
        (0x8000_0001, 0, ECX),
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - \
         nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx - -",
    ),
    (
        (0x8000_0001, 0, EDX),
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb \
         rdtscp - lm 3dnowext 3dnow",
    ),
];

/// Names of MSRs, as in arch/x86/include/asm/msr-index.h.
const MSR_NAMES: [(u32, &str); 43] = [
    (0x10, "IA32_TSC"),
    (0x11, "KVM_WALL_CLOCK"),
    (0x12, "KVM_SYSTEM_TIME"),
    (0x1b, "IA32_APICBASE"),
    (0x3a, "IA32_FEAT_CTL"),
    (0x3b, "IA32_TSC_ADJUST"),
    (0x48, "IA32_SPEC_CTRL"),
    (0x49, "IA32_PRED_CMD"),
    (0x8b, "IA32_UCODE_REV"),
    (0xce, "PLATFORM_INFO"),
    (0x10a, "IA32_ARCH_CAPABILITIES"),
    (0x122, "IA32_TSX_CTRL"),
    (0x140, "MISC_FEATURES_ENABLES"),
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0x179, "IA32_MCG_CAP"),
    (0x17a, "IA32_MCG_STATUS"),
    (0x1a0, "IA32_MISC_ENABLE"),
    (0x1c4, "IA32_XFD"),
    (0x1d9, "IA32_DEBUGCTLMSR"),
    (0x277, "IA32_CR_PAT"),
    (0x2ff, "MTRRdefType"),
    (0x345, "IA32_PERF_CAPABILITIES"),
    (0x480, "IA32_VMX_BASIC"),
    (0x6e0, "IA32_TSC_DEADLINE"),
    (0xda0, "IA32_XSS"),
    (0x4000_0000, "HV_X64_MSR_GUEST_OS_ID"),
    (0x4000_0001, "HV_X64_MSR_HYPERCALL"),
    (0x4b56_4d00, "KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "KVM_SYSTEM_TIME_NEW"),
    (0x4b56_4d02, "KVM_ASYNC_PF_EN"),
    (0x4b56_4d03, "KVM_STEAL_TIME"),
    (0x4b56_4d04, "KVM_PV_EOI_EN"),
    (0x4b56_4d05, "KVM_POLL_CONTROL"),
    (0x4b56_4d06, "KVM_ASYNC_PF_INT"),
    (0xc000_0080, "EFER"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0103, "TSC_AUX"),
    (0xc000_0104, "AMD64_TSC_RATIO"),
    (0xc001_0015, "K7_HWCR"),
    (0xc001_011f, "AMD64_VIRT_SPEC_CTRL"),
];

#[cfg(test)]
pub(super) mod tests {
    use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

    use super::{BIT_NAMES, Registers, find_excess, join, limit_msrs, registers};

    pub fn entry(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: Registers) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index: index.unwrap_or(0),
            flags: index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn host() -> [kvm_cpuid_entry2; 6] {
        [
            entry(0, None, [0xd, 1, 2, 3]),
            entry(1, None, [0xa20f10, 0x800, 0x200, 0x10]),
            entry(7, Some(0), [1, 1 << 7, 0, 0]),
            entry(7, Some(1), [1, 0, 0, 0]),
            entry(0x4000_0001, None, [1, 0, 0, 0]),
            entry(0x8000_0008, None, [0x3030, 0, 0, 0]),
        ]
    }

    /// Returns the names of all in `saved` that exceeds the host, and removes it.
    fn limit(saved: &mut [kvm_cpuid_entry2]) -> Vec<String> {
        let found = find_excess(&host(), saved);
        found.iter().for_each(|excess| excess.remove_from(saved));
        found.iter().flat_map(|excess| excess.names()).collect()
    }

    #[test]
    fn state_of_this_host_is_within_limits() {
        let mut saved = host();
        // Topology, sizes, and bits that KVM computes.
        saved[0].eax = 0x20;
        saved[1].ebx = 0x0502_0800;
        saved[1].ecx |= 1 << 27 | 1 << 3;
        saved[1].edx |= 1 << 28;
        saved[2].ecx |= 1 << 4;
        saved.swap(0, 3);
        let before = saved;
        assert!(limit(&mut saved).is_empty());
        assert_eq!(
            saved.map(|entry| registers(&entry)),
            before.map(|entry| registers(&entry))
        );
    }

    #[test]
    fn each_bit_beyond_host_is_named_and_masked() {
        for (at, changed, name) in [
            (
                1,
                [0xa20f10, 0x800, 0x220, 0x10],
                "CPUID leaf 0x1 ECX bit 5 (vmx)",
            ),
            (
                2,
                [1, 1 << 7, 1 << 16, 0],
                "CPUID leaf 0x7 index 0x0 ECX bit 16 (la57)",
            ),
            (3, [1, 1, 0, 0], "CPUID leaf 0x7 index 0x1 EBX bit 0"),
            (4, [3, 0, 0, 0], "CPUID leaf 0x40000001 EAX bit 1 (nop_io_delay)"),
            (
                5,
                [0x3034, 0, 0, 0],
                "CPUID leaf 0x80000008 EAX from bit 0: 52 above 48",
            ),
        ] {
            let mut saved = host();
            let [eax, ebx, ecx, edx] = changed;
            saved[at] = kvm_cpuid_entry2 {
                eax,
                ebx,
                ecx,
                edx,
                ..saved[at]
            };
            let names = limit(&mut saved);
            assert!(join(&names).starts_with(name), "{names:?}");
            assert_eq!(registers(&saved[at]), registers(&host()[at]), "{name}");
        }
    }

    #[test]
    fn features_that_kvm_sets_itself_are_imposed() {
        let mut saved = host();
        saved[1].ecx |= 0b110;
        saved[5].eax = 0x3034;
        let remaining = |set: &[kvm_cpuid_entry2]| {
            let mut found = find_excess(&host(), &saved);
            found.retain_mut(|excess| excess.drop_imposed(set));
            join(&found.iter().flat_map(|excess| excess.names()).collect::<Vec<_>>())
        };
        let number = "CPUID leaf 0x80000008 EAX from bit 0: 52 above 48";
        assert_eq!(remaining(&saved), "");
        let mut set = saved;
        set[1].ecx &= !0b100;
        assert_eq!(remaining(&set), "CPUID leaf 0x1 ECX bit 2 (dtes64)");
        set[5].eax = 0x3030;
        assert_eq!(
            remaining(&set),
            format!("CPUID leaf 0x1 ECX bit 2 (dtes64), {number}")
        );
        set.swap(0, 1);
        let all =
            format!("CPUID leaf 0x1 ECX bit 1 (pclmulqdq), CPUID leaf 0x1 ECX bit 2 (dtes64), {number}");
        assert_eq!([remaining(&set), remaining(&[])], [all.clone(), all]);
    }

    #[test]
    fn leaves_beyond_host_are_rejected() {
        for (added, bits) in [
            // Absent leaf, and Hyper-V.
            (entry(0x14, Some(0), [0, 3, 0, 0]), 2),
            (entry(0x4000_0003, None, [4, 0, 0, 0]), 1),
            // KVM takes an entry without index for every index.
            (entry(7, None, [1, 1 << 7, 0, 0]), 2),
            // Index without significance.
            (entry(1, Some(0), [0, 0, 0x200, 0]), 1),
            (entry(7, Some(2), [0, 0, 0, 1]), 1),
            // A second entry of a leaf.
            (entry(7, Some(0), [1, 1 << 2, 0, 0]), 1),
            (entry(0x14, Some(0), [0; 4]), 0),
        ] {
            let mut saved = host().to_vec();
            saved.push(added);
            assert_eq!(limit(&mut saved).len(), bits, "{added:x?}");
            assert!(limit(&mut saved).is_empty(), "{added:x?}");
        }
    }

    #[test]
    fn msrs_beyond_host_are_named_and_masked() {
        let host = [0x174, 0x175, 0x3b, 0x10];
        let saved = vec![(0x175, 1), (0x174, 2), (0x4000_0000, 3), (0x10, 4), (0x666, 5)];
        let mut kept = saved.clone();
        let names = ["MSR 0x40000000 (HV_X64_MSR_GUEST_OS_ID)", "MSR 0x666"];
        assert_eq!(limit_msrs(&host, &mut kept, false), names);
        assert_eq!(kept, saved);
        assert_eq!(limit_msrs(&host, &mut kept, true), names);
        assert_eq!(kept, [(0x175, 1), (0x174, 2), (0x10, 4)]);
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(join(&names[..2]), "0, 1");
        assert!(join(&names).ends_with("14, 15 and 4 more"));
    }

    #[test]
    fn each_bit_has_a_place_in_the_names() {
        for ((leaf, _, _), names) in BIT_NAMES {
            assert_eq!(names.split_whitespace().count(), 32, "{leaf:#x}");
        }
    }
}
