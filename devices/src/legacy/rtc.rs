//! Real-time clock PL031, by `vm_superio::Rtc`: the time of the host in seconds, without an alarm.

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};
use vm_superio::RtcState;
use vm_superio::rtc_pl031::NoEvents;

use crate::bus::BusDevice;

/// Length of the registers in bytes.
pub const LENGTH: u64 = 0x1000;

/// State of an [`Rtc`], by the names of the PL031 data sheet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl031State {
    load: u32,
    /// Offset of the guest's time from the host's, in seconds.
    offset: i64,
    match_value: u32,
    interrupt_mask: u32,
    raw_interrupt: u32,
}

impl Schema for Pl031State {
    const NAME: &'static str = "pl031";
    const VERSION: u32 = 1;
}

/// Real-time clock. Its registers have 32 bits; an access of another width or alignment reads as zero and has no effect.
#[derive(Default)]
pub struct Rtc(vm_superio::Rtc<NoEvents>);

impl Rtc {
    /// Creates a clock with the time of the host.
    pub fn new() -> Self {
        Self::default()
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (<&mut [u8; 4]>::try_from(&mut *data), u16::try_from(offset)) {
            (Ok(data), Ok(offset)) if offset % 4 == 0 => self.0.read(offset, data),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(data), Ok(offset)) = (data.try_into(), u16::try_from(offset)) {
            self.0.write(offset, data);
        }
    }
}

impl Persist for Rtc {
    type State = Pl031State;

    fn save(&self) -> Result<Pl031State, Error> {
        let state = self.0.state();
        Ok(Pl031State {
            load: state.lr,
            offset: state.offset,
            match_value: state.mr,
            interrupt_mask: state.imsc,
            raw_interrupt: state.ris,
        })
    }

    fn restore(&mut self, state: Pl031State) -> Result<(), Error> {
        let state = RtcState {
            lr: state.load,
            offset: state.offset,
            mr: state.match_value,
            imsc: state.interrupt_mask,
            ris: state.raw_interrupt,
        };
        self.0 = vm_superio::Rtc::from_state(&state, NoEvents);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use proptest::prelude::proptest;

    use super::{LENGTH, Rtc};
    use crate::bus::BusDevice;
    use crate::testing::{accesses, check_round_trip, replay};

    fn read(rtc: &mut Rtc, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn seconds() -> u32 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs().try_into().unwrap()
    }

    #[test]
    fn time_is_that_of_the_host_until_set() {
        let mut rtc = Rtc::new();
        let before = seconds();
        let time = read(&mut rtc, 0);
        assert!((before..=seconds()).contains(&time), "{time}");
        rtc.write(8, &1000_u32.to_le_bytes());
        let passed = seconds() - before;
        assert!((1000..=1001 + passed).contains(&read(&mut rtc, 0)));
        check_round_trip(&rtc, Rtc::new);
    }

    #[test]
    fn identification_is_that_of_a_pl031() {
        let mut rtc = Rtc::new();
        assert_eq!((read(&mut rtc, 0xfe0), read(&mut rtc, 0xffc)), (0x31, 0xb1));
    }

    #[test]
    fn other_widths_and_alignments_have_no_effect() {
        let mut rtc = Rtc::new();
        rtc.write(4, &[1]);
        rtc.write(4, &[1; 8]);
        assert_eq!(read(&mut rtc, 4), 0);
        let mut data = [0xff; 2];
        rtc.read(0, &mut data);
        assert_eq!(data, [0; 2]);
        assert_eq!(read(&mut rtc, 0xfe1), 0);
    }

    proptest! {
        #[test]
        fn any_access_is_safe(accesses in accesses(LENGTH)) {
            replay(&mut Rtc::new(), &accesses);
        }
    }
}
