use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use snapshot::persist::Error;

use super::{
    PHYSICAL_COUNTER, RegisterFile, VECTOR_LENGTHS, VIRTUAL_COUNTER, core_register, is_vcpu_state, name,
    restore, size, system_register,
};
use crate::arch::CpuCheck;

/// Numbers as KVM lists them: include/uapi/asm/kvm.h of arm64.
const X0: u64 = 0x6030_0000_0010_0000;
const V0: u64 = 0x6040_0000_0010_0054;
const V31: u64 = 0x6040_0000_0010_00d0;
const FPSR: u64 = 0x6020_0000_0010_00d4;
const FPCR: u64 = 0x6020_0000_0010_00d5;
const Z0: u64 = 0x6080_0000_0015_0000;
const Z31: u64 = 0x6080_0000_0015_03e0;
const P0: u64 = 0x6050_0000_0015_0400;
const P15: u64 = 0x6050_0000_0015_05e0;
const FFR: u64 = 0x6050_0000_0015_0600;
const MIDR: u64 = 0x6030_0000_0013_c000;
const PFR0: u64 = 0x6030_0000_0013_c020;
const KEY: u64 = 0x6030_0000_0013_c108;

/// Registers of a vCPU with recorded numbers. KVM does not change those of `read_only`.
struct Recorded {
    values: RefCell<BTreeMap<u64, Vec<u8>>>,
    read_only: Vec<u64>,
}

impl Recorded {
    fn new(numbers: &[u64], read_only: &[u64]) -> Self {
        let values = numbers.iter().map(|number| (*number, vec![0; size(*number)]));
        Self {
            values: RefCell::new(values.collect()),
            read_only: read_only.to_vec(),
        }
    }

    fn value(&self, register: u64) -> Vec<u8> {
        self.values.borrow()[&register].clone()
    }
}

impl RegisterFile for Recorded {
    fn list(&self) -> Result<Vec<u64>, Error> {
        Ok(self.values.borrow().keys().copied().collect())
    }

    fn get(&self, register: u64, value: &mut [u8]) -> io::Result<()> {
        value.copy_from_slice(&self.value(register));
        Ok(())
    }

    fn set(&self, register: u64, value: &[u8]) -> io::Result<()> {
        if self.read_only.contains(&register) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.values.borrow_mut().insert(register, value.to_vec());
        Ok(())
    }
}

/// vCPU with SVE: no V registers.
const WITH_SVE: [u64; 8] = [X0, FPSR, FPCR, Z0, Z31, P0, P15, FFR];
const WITHOUT_SVE: [u64; 5] = [X0, V0, V31, FPSR, FPCR];

/// Returns values of `registers`, whose bytes all differ from 0.
fn values(registers: &[u64]) -> Vec<u8> {
    let length = registers.iter().copied().map(size).sum();
    (1..=250).cycle().take(length).collect()
}

fn reason(result: Result<(), Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn numbers_are_those_of_kvm() {
    assert_eq!(core_register(0), X0);
    assert_eq!(system_register(3, 0, 0, 0, 0), MIDR);
    assert_eq!(VIRTUAL_COUNTER, 0x6030_0000_0013_df1a);
    assert_eq!(PHYSICAL_COUNTER, 0x6030_0000_0013_df01);
    assert_eq!(VECTOR_LENGTHS, 0x6060_0000_0015_ffff);
    for (register, bytes) in [
        (FPSR, 4),
        (X0, 8),
        (V0, 16),
        (P0, 32),
        (FFR, 32),
        (VECTOR_LENGTHS, 64),
        (Z31, 256),
    ] {
        assert_eq!(size(register), bytes, "{register:#x}");
    }
}

#[test]
fn counters_and_vector_lengths_are_in_other_sections() {
    for register in [VIRTUAL_COUNTER, PHYSICAL_COUNTER, VECTOR_LENGTHS] {
        assert!(!is_vcpu_state(register));
    }
    assert!(
        WITH_SVE
            .iter()
            .chain(&[MIDR, KEY])
            .all(|register| is_vcpu_state(*register))
    );
}

#[test]
fn registers_have_architectural_names() {
    for (register, expected) in [
        (X0, "X0"),
        (X0 + 60, "X30"),
        (X0 + 62, "SP"),
        (X0 + 66, "PSTATE"),
        (X0 + 82 - 2, "SPSR_fiq"),
        (V0, "V0"),
        (V31, "V31"),
        (FPSR, "FPSR"),
        (FPCR, "FPCR"),
        (Z0, "Z0 of SVE"),
        (Z31, "Z31 of SVE"),
        (P15, "P15 of SVE"),
        (FFR, "FFR of SVE"),
        (MIDR, "MIDR_EL1"),
        (system_register(3, 0, 0, 0, 5), "MPIDR_EL1"),
        (system_register(3, 0, 0, 0, 6), "REVIDR_EL1"),
        (system_register(3, 0, 0, 2, 7), "ID_ISAR6_EL1"),
        (system_register(3, 0, 0, 3, 6), "ID_MMFR5_EL1"),
        (PFR0, "ID_AA64PFR0_EL1"),
        (system_register(3, 0, 0, 4, 4), "ID_AA64ZFR0_EL1"),
        (system_register(3, 0, 0, 6, 1), "ID_AA64ISAR1_EL1"),
        (system_register(3, 0, 0, 7, 4), "ID_AA64MMFR4_EL1"),
        (system_register(3, 1, 0, 0, 1), "CLIDR_EL1"),
        (system_register(3, 1, 0, 0, 7), "AIDR_EL1"),
        (system_register(3, 2, 0, 0, 0), "CSSELR_EL1"),
        (system_register(3, 3, 0, 0, 1), "CTR_EL0"),
        (KEY, "APIAKeyLo_EL1"),
        (system_register(3, 0, 2, 3, 1), "APGAKeyHi_EL1"),
        // Without a name of its own.
        (system_register(3, 0, 0, 4, 3), "system register S3_0_C0_C4_3"),
        (system_register(3, 0, 1, 0, 0), "system register S3_0_C1_C0_0"),
        (system_register(2, 0, 0, 0, 5), "system register S2_0_C0_C0_5"),
        (0x6020_0000_0011_0002, "CCSIDR_EL1 of cache 2"),
        (0x6030_0000_0014_0000, "firmware register 0"),
        (0x6030_0000_0016_0001, "firmware feature register 1"),
    ] {
        assert_eq!(name(register), expected, "{register:#x}");
    }
}

#[test]
fn registers_of_each_size_are_restored() {
    for numbers in [&WITH_SVE[..], &WITHOUT_SVE] {
        let vcpu = Recorded::new(numbers, &[]);
        let saved = values(numbers);
        restore(&vcpu, numbers, &saved, CpuCheck::Quick).unwrap();
        let restored: Vec<u8> = numbers.iter().flat_map(|number| vcpu.value(*number)).collect();
        assert_eq!(restored, saved);
        let error = reason(restore(&vcpu, numbers, &saved[1..], CpuCheck::Quick));
        assert!(error.contains("and its values"), "{error}");
    }
}

#[test]
fn register_that_host_lacks_is_refused_by_name() {
    for (saved, own, missing) in [
        (&WITH_SVE[..], &WITHOUT_SVE[..], "this host lacks Z0 of SVE"),
        (&WITHOUT_SVE, &WITH_SVE, "this host lacks V0"),
        (&[X0, KEY], &[X0], "this host lacks APIAKeyLo_EL1"),
    ] {
        for check in [CpuCheck::Quick, CpuCheck::Strict] {
            let result = restore(&Recorded::new(own, &[]), saved, &values(saved), check);
            assert!(matches!(result, Err(Error::Unsupported { .. })), "{result:?}");
            let error = reason(result);
            assert!(error.ends_with(missing), "{error}");
        }
        let vcpu = Recorded::new(own, &[]);
        restore(&vcpu, saved, &values(saved), CpuCheck::Mask).unwrap();
        // The present ones are restored.
        assert_eq!(vcpu.value(X0), values(&[X0]));
        assert_eq!(vcpu.list().unwrap().len(), own.len());
    }
}

#[test]
fn identification_register_is_written_or_refused_by_name() {
    let numbers = [X0, MIDR, PFR0];
    let saved = values(&numbers);
    // Linux before 6.15 does not change MIDR_EL1, and before 6.6 no other.
    let vcpu = Recorded::new(&numbers, &[]);
    restore(&vcpu, &numbers, &saved, CpuCheck::Quick).unwrap();
    assert_eq!(vcpu.value(MIDR), saved[8..16]);
    for (fixed, expected) in [
        (
            MIDR,
            "MIDR_EL1 is 0x100f0e0d0c0b0a09 in the snapshot and 0x0000000000000000 on this host, which KVM does not change: ",
        ),
        (
            PFR0,
            "ID_AA64PFR0_EL1 is 0x1817161514131211 in the snapshot and 0x0000000000000000 on this host, which KVM does not change: ",
        ),
    ] {
        // An omitted register would leave the guest with features that it does not have.
        for check in [CpuCheck::Quick, CpuCheck::Mask] {
            let vcpu = Recorded::new(&numbers, &[fixed]);
            let error = reason(restore(&vcpu, &numbers, &saved, check));
            assert!(error.contains(expected), "{error}");
        }
    }
    // With the same value it may be read-only.
    let vcpu = Recorded::new(&numbers, &[PFR0]);
    vcpu.values.borrow_mut().insert(PFR0, saved[16..].to_vec());
    restore(&vcpu, &numbers, &saved, CpuCheck::Quick).unwrap();
}

/// The ten registers of the five keys, and the identification register with the algorithm of their addresses, APA.
#[test]
fn pointer_authentication_that_host_lacks_is_refused_by_name() {
    let keys: Vec<u64> = (0..10)
        .map(|number| system_register(3, 0, 2, 1 + number / 4, number % 4))
        .collect();
    let isar1 = system_register(3, 0, 0, 6, 1);
    let saved: Vec<u64> = [X0, isar1].into_iter().chain(keys).collect();
    let own = [X0, isar1];
    let values = values(&saved);
    for check in [CpuCheck::Quick, CpuCheck::Strict] {
        let error = reason(restore(&Recorded::new(&own, &[]), &saved, &values, check));
        assert!(error.ends_with("this host lacks APIAKeyLo_EL1"), "{error}");
    }
    // Without the keys, the guest must not read that it has the feature: KVM rejects the value.
    for check in [CpuCheck::Quick, CpuCheck::Strict, CpuCheck::Mask] {
        let error = reason(restore(&Recorded::new(&own, &[isar1]), &saved, &values, check));
        let expected =
            "ID_AA64ISAR1_EL1 is 0x100f0e0d0c0b0a09 in the snapshot and 0x0000000000000000 on this host";
        assert!(error.contains(expected), "{error}");
    }
    // Keys of this host alone keep their values.
    let vcpu = Recorded::new(&saved, &[]);
    restore(&vcpu, &own, &values[..16], CpuCheck::Strict).unwrap();
    assert!(saved[2..].iter().all(|key| vcpu.value(*key) == [0; 8]));
}

/// Cache registers of a Cortex-A72, and of a Neoverse N1, whose caches need no maintenance for instructions (IDC and DIC of `CTR_EL0`). Other
/// maintenance, such as that for processors without FWB, is KVM's, and the device tree states that devices are coherent.
#[test]
fn caches_of_other_processor_are_refused_by_name() {
    const A72: [u64; 2] = [0x8444_c004, 0x0a20_0023];
    const N1: [u64; 2] = [0xb444_c004, 0x0400_0004];
    let ctr = system_register(3, 3, 0, 0, 1);
    let clidr = system_register(3, 1, 0, 0, 1);
    let bytes = |values: [u64; 2]| values.map(u64::to_le_bytes).concat();
    let host = |values: [u64; 2]| {
        let vcpu = Recorded::new(&[ctr, clidr], &[ctr, clidr]);
        let recorded = [ctr, clidr].into_iter().zip(values);
        vcpu.values
            .borrow_mut()
            .extend(recorded.map(|(register, value)| (register, value.to_le_bytes().to_vec())));
        vcpu
    };
    for check in [CpuCheck::Quick, CpuCheck::Strict, CpuCheck::Mask] {
        for same in [A72, N1] {
            restore(&host(same), &[ctr, clidr], &bytes(same), check).unwrap();
        }
        for (saved, own) in [(A72, N1), (N1, A72)] {
            let error = reason(restore(&host(own), &[ctr, clidr], &bytes(saved), check));
            let values = format!(
                "{:#018x} in the snapshot and {:#018x} on this host",
                saved[0], own[0]
            );
            assert!(error.contains(&format!("CTR_EL0 is {values}")), "{error}");
            let error = reason(restore(&host(own), &[clidr], &bytes(saved)[8..], check));
            assert!(error.contains("CLIDR_EL1 is 0x"), "{error}");
        }
    }
}
