//! Samples over time as slices: a function from its first to its last sample.

use std::time::Duration;

use vmm::sampling::Moment;

/// Maximum number of slices.
const MAX_SLICES: usize = 500_000;

/// Function on a vCPU for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Number of the vCPU.
    pub vcpu: u8,
    /// Number of the function.
    pub function: u64,
    /// Start.
    pub start: Duration,
    /// End.
    pub end: Duration,
}

/// Functions of the last sample of a vCPU.
#[derive(Clone, Default)]
struct Open {
    /// Function, and the index of its slice if that fits, the outermost first.
    functions: Vec<(u64, Option<usize>)>,
    /// Time of the sample.
    end: Duration,
}

/// Slices so far.
pub struct Slices {
    period: Duration,
    /// By number.
    vcpus: Vec<Open>,
    slices: Vec<Slice>,
    dropped: u64,
}

impl Slices {
    /// Returns no slices, for samples with `period`.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            vcpus: Vec::new(),
            slices: Vec::new(),
            dropped: 0,
        }
    }

    /// Adds a sample with its `functions`, the outermost first. It stands for its periods, and for the time since the last one unless
    /// the vCPU has waited meanwhile.
    pub fn add(&mut self, moment: &Moment, functions: &[u64]) {
        let (vcpu, time) = (moment.vcpu, moment.time);
        let count = self.vcpus.len().max(usize::from(vcpu) + 1);
        self.vcpus.resize(count, Open::default());
        let open = &mut self.vcpus[usize::from(vcpu)];
        let periods = self.period.saturating_mul(moment.count);
        let since = time.saturating_sub(open.end);
        // The kernel checks the timer at its tick, so that the time between two samples varies.
        let is_adjacent = !open.functions.is_empty() && since < periods.saturating_mul(2);
        let (kept, start) = if is_adjacent {
            let pairs = open.functions.iter().zip(functions);
            let kept = pairs.take_while(|((open, _), function)| open == *function);
            (kept.count(), open.end)
        } else {
            (0, time.saturating_sub(periods).max(open.end))
        };
        open.functions.truncate(kept);
        open.end = time;
        for (_, slice) in &open.functions {
            if let Some(slice) = slice.and_then(|slice| self.slices.get_mut(slice)) {
                slice.end = time;
            }
        }
        for function in functions.iter().skip(kept) {
            let slice = (self.slices.len() < MAX_SLICES).then_some(self.slices.len());
            open.functions.push((*function, slice));
            if slice.is_none() {
                self.dropped += 1;
                continue;
            }
            self.slices.push(Slice {
                vcpu,
                function: *function,
                start,
                end: time,
            });
        }
    }

    /// Returns the slices of each vCPU in the order of their starts, outer before inner ones, and the number of those that did not fit.
    pub fn finish(self) -> (Vec<Slice>, u64) {
        (self.slices, self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmm::sampling::Moment;

    use super::{MAX_SLICES, Slices};

    fn moment(vcpu: u8, milliseconds: u64, count: u32) -> Moment {
        Moment {
            vcpu,
            time: Duration::from_millis(milliseconds),
            stack: 0,
            count,
        }
    }

    /// Returns vCPU, function, start and end in milliseconds of the slices of `samples`.
    fn slices(samples: &[(Moment, &[u64])]) -> Vec<(u8, u64, u128, u128)> {
        let mut slices = Slices::new(Duration::from_millis(10));
        for (moment, functions) in samples {
            slices.add(moment, functions);
        }
        let (slices, dropped) = slices.finish();
        assert_eq!(dropped, 0);
        let row = |slice: &super::Slice| {
            (
                slice.vcpu,
                slice.function,
                slice.start.as_millis(),
                slice.end.as_millis(),
            )
        };
        slices.iter().map(row).collect()
    }

    #[test]
    fn adjacent_samples_of_same_function_are_one_slice() {
        let samples: [(Moment, &[u64]); 4] = [
            (moment(0, 30, 1), &[1, 2]),
            (moment(0, 42, 1), &[1, 2]),
            (moment(0, 52, 1), &[1, 3]),
            (moment(0, 62, 1), &[4, 2]),
        ];
        assert_eq!(
            slices(&samples),
            [
                (0, 1, 20, 52),
                (0, 2, 20, 42),
                (0, 3, 42, 52),
                (0, 4, 52, 62),
                (0, 2, 52, 62)
            ]
        );
    }

    #[test]
    fn idle_time_is_no_part_of_slice() {
        let samples: [(Moment, &[u64]); 3] = [
            (moment(0, 30, 1), &[1]),
            (moment(0, 50, 1), &[1]),
            (moment(0, 120, 3), &[1]),
        ];
        assert_eq!(
            slices(&samples),
            [(0, 1, 20, 30), (0, 1, 40, 50), (0, 1, 90, 120)]
        );
    }

    #[test]
    fn vcpus_have_own_slices() {
        let samples: [(Moment, &[u64]); 4] = [
            (moment(1, 20, 1), &[1]),
            (moment(0, 21, 1), &[2]),
            (moment(1, 30, 1), &[1]),
            (moment(0, 31, 1), &[2]),
        ];
        assert_eq!(slices(&samples), [(1, 1, 10, 30), (0, 2, 11, 31)]);
    }

    #[test]
    fn number_of_slices_is_bounded() {
        let mut slices = Slices::new(Duration::from_millis(10));
        for sample in 0..MAX_SLICES as u64 + 3 {
            slices.add(&moment(0, 10 * sample, 1), &[sample]);
        }
        let (slices, dropped) = slices.finish();
        assert_eq!((slices.len(), dropped), (MAX_SLICES, 3));
    }
}
