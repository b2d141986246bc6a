//! Samples of the guest's execution, for a profile of its functions.
//!
//! Memory is bounded: the first [`MAX_STACKS`] stacks, and of them those with [`MAX_TOTAL`] addresses, have counts of their own, and the
//! first [`MAX_MOMENTS`] samples their times.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use devices::lock;

/// Maximum addresses of a stack.
pub const MAX_ADDRESSES: usize = 64;
/// Maximum number of stacks.
pub const MAX_STACKS: usize = 65_536;
/// Maximum addresses of all stacks. The end of the VM waits until their functions are found and written.
pub const MAX_TOTAL: usize = 1 << 18;
/// Maximum number of samples with a time.
pub const MAX_MOMENTS: usize = 262_144;
/// Number of first samples with the bytes of their instructions.
pub const MAX_INSTRUCTIONS: usize = 4;

/// Frequency and content of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSettings {
    /// Samples per second of processor time of a vCPU thread.
    pub frequency: u32,
    /// Samples have times.
    pub has_moments: bool,
}

impl SampleSettings {
    /// Returns the processor time between two samples.
    pub fn period(&self) -> Duration {
        Duration::from_secs(1) / self.frequency.max(1)
    }
}

/// Stack of one or more samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampledStack {
    /// Instruction pointer, return address of a function without a frame or 0 (`CpuStack::link`), then return addresses by frame
    /// pointers, the innermost first.
    pub addresses: Box<[u64]>,
    /// Number of samples.
    pub count: u64,
}

/// Sample with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Number of the vCPU.
    pub vcpu: u8,
    /// Time from the start of the timeline.
    pub time: Duration,
    /// Number of the stack.
    pub stack: u32,
    /// Number of periods that ended together.
    pub count: u32,
}

/// Instruction of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampledInstruction {
    /// Instruction pointer.
    pub ip: u64,
    /// Bytes at this address, as many as could be read.
    pub bytes: Vec<u8>,
}

/// Samples of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// Stacks, in the order of their first samples.
    pub stacks: Vec<SampledStack>,
    /// Number of samples whose stacks exceed [`MAX_STACKS`] or [`MAX_TOTAL`].
    pub other: u64,
    /// Samples in the order of their ends; empty if the settings request no times.
    pub moments: Vec<Moment>,
    /// Number of samples whose times exceed [`MAX_MOMENTS`], or whose stacks have no number.
    pub dropped_moments: u64,
    /// Instructions of the first samples.
    pub instructions: Vec<SampledInstruction>,
}

/// Number and count of a stack.
#[derive(Debug)]
struct Entry {
    number: u32,
    count: u64,
}

/// Counts of stacks, each a list of numbers.
#[derive(Debug, Default)]
pub struct StackCounts {
    entries: HashMap<Box<[u64]>, Entry>,
    /// Sum of the lengths of the stacks.
    total: usize,
}

impl StackCounts {
    /// Returns no counts, with room for all stacks.
    fn with_room() -> Self {
        Self {
            entries: HashMap::with_capacity(MAX_STACKS),
            total: 0,
        }
    }

    /// Adds `count` samples of `stack`. Returns the number of the stack; `None`, without effect, if there are [`MAX_STACKS`] others, or
    /// if it exceeds [`MAX_TOTAL`].
    #[inline(never)]
    pub fn add(&mut self, stack: &[u64], count: u64) -> Option<u32> {
        if let Some(entry) = self.entries.get_mut(stack) {
            entry.count += count;
            return Some(entry.number);
        }
        let total = self.total + stack.len();
        let has_room = self.entries.len() < MAX_STACKS && total <= MAX_TOTAL;
        let number = u32::try_from(self.entries.len()).ok().filter(|_| has_room)?;
        self.total = total;
        self.entries.insert(stack.into(), Entry { number, count });
        Some(number)
    }

    /// Returns the stacks in the order of their numbers.
    #[inline(never)]
    pub fn into_stacks(self) -> Vec<SampledStack> {
        let empty = SampledStack {
            addresses: Box::default(),
            count: 0,
        };
        let mut stacks = vec![empty; self.entries.len()];
        for (addresses, Entry { number, count }) in self.entries {
            let stack = usize::try_from(number)
                .ok()
                .and_then(|number| stacks.get_mut(number));
            if let Some(stack) = stack {
                *stack = SampledStack { addresses, count };
            }
        }
        stacks
    }
}

#[derive(Debug)]
struct Store {
    stacks: StackCounts,
    /// Samples without stacks.
    rest: Samples,
}

/// Collector of the samples of all vCPUs.
#[derive(Debug)]
pub struct Sampler {
    settings: SampleSettings,
    started_at: Instant,
    /// `None` once the samples are taken.
    store: Mutex<Option<Store>>,
}

impl Sampler {
    /// Creates a sampler without samples, whose times count from `started_at`. Allocates the tables at full size: samples do not
    /// grow them.
    pub fn new(settings: SampleSettings, started_at: Instant) -> Self {
        let moments = if settings.has_moments { MAX_MOMENTS } else { 0 };
        let store = Store {
            stacks: StackCounts::with_room(),
            rest: Samples {
                moments: Vec::with_capacity(moments),
                ..Samples::default()
            },
        };
        Self {
            settings,
            started_at,
            store: Mutex::new(Some(store)),
        }
    }

    /// Returns the settings.
    pub fn settings(&self) -> SampleSettings {
        self.settings
    }

    /// Adds the instruction of a sample.
    pub fn add_instruction(&self, instruction: SampledInstruction) {
        if let Some(store) = &mut *lock(&self.store)
            && store.rest.instructions.len() < MAX_INSTRUCTIONS
        {
            store.rest.instructions.push(instruction);
        }
    }

    /// Adds `count` samples of `vcpu` with the stack `addresses`, of which the first [`MAX_ADDRESSES`] count. Returns true if the
    /// instruction of the sample is needed, too.
    pub fn add(&self, vcpu: u8, now: Instant, addresses: &[u64], count: u32) -> bool {
        let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
        let mut store = lock(&self.store);
        let Some(Store { stacks, rest }) = &mut *store else {
            return false;
        };
        let number = stacks.add(addresses, count.into());
        if number.is_none() {
            rest.other += u64::from(count);
        }
        match number {
            _ if !self.settings.has_moments => {}
            Some(stack) if rest.moments.len() < MAX_MOMENTS => rest.moments.push(Moment {
                vcpu,
                time: now.saturating_duration_since(self.started_at),
                stack,
                count,
            }),
            _ => rest.dropped_moments += u64::from(count),
        }
        rest.instructions.len() < MAX_INSTRUCTIONS
    }

    /// Takes all samples so far; later ones are dropped.
    pub fn take(&self) -> Samples {
        let Some(Store { stacks, mut rest }) = lock(&self.store).take() else {
            return Samples::default();
        };
        rest.stacks = stacks.into_stacks();
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        MAX_ADDRESSES, MAX_INSTRUCTIONS, MAX_MOMENTS, MAX_STACKS, MAX_TOTAL, Moment, SampleSettings,
        SampledInstruction, Sampler,
    };

    fn sampler(has_moments: bool) -> (Sampler, Instant) {
        let (frequency, start) = (100, Instant::now());
        let settings = SampleSettings {
            frequency,
            has_moments,
        };
        assert_eq!(settings.period(), Duration::from_millis(10));
        (Sampler::new(settings, start), start)
    }

    #[test]
    fn equal_stacks_are_counted_together() {
        let (sampler, start) = sampler(true);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        sampler.add(0, at(10), &[1, 2], 1);
        sampler.add(1, at(15), &[3], 2);
        sampler.add(0, at(20), &[1, 2], 3);
        let samples = sampler.take();
        let stacks: Vec<_> = samples
            .stacks
            .iter()
            .map(|stack| (&*stack.addresses, stack.count))
            .collect();
        assert_eq!(stacks, [(&[1, 2][..], 4), (&[3][..], 2)]);
        let moment = |vcpu, milliseconds, stack, count| Moment {
            vcpu,
            time: Duration::from_millis(milliseconds),
            stack,
            count,
        };
        assert_eq!(
            samples.moments,
            [moment(0, 10, 0, 1), moment(1, 15, 1, 2), moment(0, 20, 0, 3)]
        );
        assert!(sampler.take().stacks.is_empty());
    }

    #[test]
    fn numbers_of_stacks_and_moments_are_bounded() {
        let (sampler, start) = sampler(true);
        let stacks = u64::try_from(MAX_STACKS).unwrap();
        for address in 0..stacks + 5 {
            sampler.add(0, start, &[address], 1);
        }
        for _ in 0..MAX_MOMENTS - MAX_STACKS + 2 {
            sampler.add(0, start, &[0], 1);
        }
        sampler.add(0, start, &[stacks + 5], 4);
        let samples = sampler.take();
        assert_eq!((samples.stacks.len(), samples.other), (MAX_STACKS, 9));
        assert_eq!(
            (samples.moments.len(), samples.dropped_moments),
            (MAX_MOMENTS, 11)
        );
        let total: u64 = samples.stacks.iter().map(|stack| stack.count).sum();
        assert_eq!(total, u64::try_from(MAX_MOMENTS + 2).unwrap());
    }

    #[test]
    fn total_of_addresses_is_bounded() {
        let (sampler, start) = sampler(false);
        let stacks = MAX_TOTAL / MAX_ADDRESSES;
        for address in 0..u64::try_from(stacks).unwrap() + 3 {
            sampler.add(0, start, &[address; MAX_ADDRESSES], 2);
        }
        // A known stack has room.
        sampler.add(0, start, &[0; MAX_ADDRESSES], 1);
        let samples = sampler.take();
        assert_eq!((samples.stacks.len(), samples.other), (stacks, 6));
        assert_eq!(samples.stacks[0].count, 3);
    }

    #[test]
    fn stack_and_instructions_are_bounded() {
        let (sampler, start) = sampler(false);
        sampler.add(0, start, &[7; MAX_ADDRESSES + 1], 1);
        for ip in 0..10 {
            assert_eq!(sampler.add(0, start, &[7; MAX_ADDRESSES], 1), ip < 4);
            let bytes = vec![0x90];
            sampler.add_instruction(SampledInstruction { ip, bytes });
        }
        let samples = sampler.take();
        assert_eq!(*samples.stacks[0].addresses, [7; MAX_ADDRESSES]);
        assert_eq!(samples.instructions.len(), MAX_INSTRUCTIONS);
        assert!(samples.moments.is_empty() && samples.dropped_moments == 0);
    }
}
