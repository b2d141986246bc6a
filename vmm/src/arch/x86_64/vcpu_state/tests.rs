use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_vcpu_events};
use snapshot::{ArchiveReader, ArchiveWriter};

use super::sregs::SregsState;
use super::xsave::XsaveState;
use super::{VcpuState, is_within_tolerance};

fn state() -> VcpuState {
    VcpuState {
        tsc_khz: 2_500_000,
        cpuid: vec![kvm_cpuid_entry2::default(); 3],
        mp_state: kvm_bindings::kvm_mp_state::default(),
        registers: kvm_bindings::kvm_regs {
            rip: 0x10_0000,
            ..Default::default()
        },
        sregs: SregsState::default(),
        xsave: XsaveState::with_rest(vec![7; 5]),
        xcrs: kvm_bindings::kvm_xcrs::default(),
        debug_registers: kvm_bindings::kvm_debugregs::default(),
        lapic: Box::default(),
        msrs: vec![(0x174, 1), (0x10, u64::MAX)],
        events: kvm_vcpu_events::default(),
    }
}

fn bytes(state: &VcpuState) -> Vec<u8> {
    let mut archive = ArchiveWriter::new();
    archive.write("vcpu/0", state).unwrap();
    archive.into_bytes()
}

#[test]
fn state_round_trip() {
    let saved = bytes(&state());
    let back: VcpuState = ArchiveReader::parse(&saved).unwrap().read("vcpu/0").unwrap();
    assert_eq!(bytes(&back), saved);
    assert_eq!((back.registers.rip, back.msrs[1]), (0x10_0000, (0x10, u64::MAX)));
}

#[test]
fn truncated_state_is_rejected() {
    let complete = bytes(&state());
    for length in 0..complete.len() {
        let cut = ArchiveReader::parse(&complete[..length])
            .and_then(|mut archive| archive.read::<VcpuState>("vcpu/0"));
        assert!(cut.is_err(), "{length} bytes of {} are accepted", complete.len());
    }
}

#[test]
fn lengths_outside_limits_are_rejected() {
    state().check().unwrap();
    for (entries, ok) in [
        (0, false),
        (KVM_MAX_CPUID_ENTRIES, true),
        (KVM_MAX_CPUID_ENTRIES + 1, false),
    ] {
        let mut state = state();
        state.cpuid = vec![kvm_cpuid_entry2::default(); entries];
        assert_eq!(state.check().is_ok(), ok, "{entries} entries");
    }
    let mut stopped = state();
    stopped.tsc_khz = 0;
    assert!(stopped.check().is_err());
    let mut many = state();
    many.msrs = vec![(0x174, 1); 1025];
    assert!(many.check().is_err());
}

#[test]
fn xsave_area_larger_than_host_is_rejected() {
    let xsave = XsaveState::with_rest(vec![1; 4]);
    xsave.check(4).unwrap();
    let error = xsave.check(3).unwrap_err().to_string();
    assert!(
        error.contains("4112 bytes") && error.contains("exceed 4108"),
        "{error}"
    );
}

#[test]
fn frequencies_within_tolerance_are_equal() {
    assert!(is_within_tolerance(2_500_000, 2_500_000));
    assert!(is_within_tolerance(2_500_624, 2_500_000) && is_within_tolerance(2_499_376, 2_500_000));
    assert!(!is_within_tolerance(2_500_626, 2_500_000) && !is_within_tolerance(2_499_374, 2_500_000));
    assert!(!is_within_tolerance(u32::MAX, 1) && !is_within_tolerance(1, u32::MAX));
}
