//! Profile of the guest: its samples by function.
//!
//! | module | contents |
//! |---|---|
//! | `slices` | samples over time, for a trace |

mod slices;

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;
use vmm::control::Control;
use vmm::sampling::{Moment, SampleSettings, SampledStack, Samples, StackCounts};

use crate::crash;
use crate::crash::symbols::{Function, Functions, Symbols};
use slices::Slices;

/// Number of functions in the summary.
const TOP: usize = 5;

/// First thread number of the samples in a trace, behind those of the vCPUs.
const FIRST_LANE: u32 = 1000;

/// Samples that may lack functions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Doubts {
    /// Number of samples.
    samples: u64,
    /// Samples per function that hides its caller.
    functions: Vec<u64>,
}

/// Profile of a guest.
pub struct Profile {
    settings: SampleSettings,
    /// Name of the image.
    root: String,
    functions: Functions,
    /// The image has symbols.
    has_symbols: bool,
    /// Addresses without a function, in ascending order. Their numbers follow those of the functions.
    unknown: Vec<u64>,
    /// Numbers of functions, the outermost first, in the order of the samples.
    stacks: Vec<SampledStack>,
    other: u64,
    moments: Vec<Moment>,
    dropped_moments: u64,
    doubts: Doubts,
}

impl Profile {
    /// Takes the samples of `control`, with the functions of the image. `None` without a profile, and before the start.
    #[inline(never)]
    pub fn take(control: &Control) -> Option<Self> {
        let sampler = control.timeline().sampler()?;
        let vm = control.vm()?;
        let samples = sampler.take();
        let addresses = lookup_addresses(&samples.stacks);
        let holds_code = |symbols: &Symbols<'_>| {
            let mut instructions = samples.instructions.iter();
            instructions.any(|instruction| symbols.holds(instruction.ip, &instruction.bytes))
        };
        let functions = crash::with_symbols(vm, holds_code, |symbols| symbols.functions(&addresses));
        let kernel = vm.config().kernel.file_name();
        let root = kernel.map_or_else(|| "guest".into(), |name| name.to_string_lossy().into_owned());
        Some(Self::new(
            sampler.settings(),
            root,
            &addresses,
            functions,
            samples,
        ))
    }

    /// Returns the profile of `samples`, whose `functions` are those of `addresses`; `None` without symbols.
    fn new(
        settings: SampleSettings,
        root: String,
        addresses: &[u64],
        functions: Option<Functions>,
        samples: Samples,
    ) -> Self {
        let has_symbols = functions.is_some();
        let functions = functions.unwrap_or_default();
        let known = Known {
            addresses,
            functions: &functions,
        };
        let mut unknown = Vec::new();
        for stack in &samples.stacks {
            let frames = known.frames(stack).into_iter();
            unknown.extend(frames.filter_map(|frame| frame.function.is_none().then_some(frame.address)));
        }
        unknown.sort_unstable();
        unknown.dedup();
        let mut doubts = Doubts {
            samples: 0,
            functions: vec![0; functions.functions.len()],
        };
        let mut stacks = samples.stacks;
        for stack in &mut stacks {
            let frames = known.frames(stack);
            doubts.add(&frames, &functions, stack.count);
            let number = |frame: &Frame| {
                let unknown = || unknown.binary_search(&frame.address).unwrap_or(0);
                let number = frame
                    .function
                    .unwrap_or_else(|| functions.functions.len() + unknown());
                number as u64
            };
            stack.addresses = frames.iter().rev().map(number).collect();
        }
        Self {
            settings,
            root,
            functions,
            has_symbols,
            stacks,
            unknown,
            other: samples.other,
            moments: samples.moments,
            dropped_moments: samples.dropped_moments,
            doubts,
        }
    }

    /// Writes one line for each stack, with the number of its samples: image and functions, the outermost first, separated by
    /// semicolons.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_folded(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut counts = StackCounts::default();
        for stack in &self.stacks {
            // There are no more stacks of functions than of addresses, and none is longer.
            counts.add(&stack.addresses, stack.count);
        }
        let root = frame_name(&self.root);
        for stack in counts.into_stacks() {
            out.write_all(root.as_bytes())?;
            for function in stack.addresses {
                write!(out, ";{}", self.name(function))?;
            }
            writeln!(out, " {}", stack.count)?;
        }
        if self.other > 0 {
            writeln!(out, "{root};[other] {}", self.other)?;
        }
        Ok(())
    }

    /// Returns the events of a trace: the functions over time, on a lane for each vCPU. Times advance by `offset`. Returns the number
    /// of samples or slices that do not fit, too.
    pub fn events(&self, offset: Duration) -> (impl Iterator<Item = String> + '_, u64) {
        let mut slices = Slices::new(self.settings.period());
        let mut vcpus: Vec<u8> = Vec::new();
        for moment in &self.moments {
            let stack = usize::try_from(moment.stack).ok();
            if let Some(stack) = stack.and_then(|number| self.stacks.get(number)) {
                slices.add(moment, &stack.addresses);
            }
            if !vcpus.contains(&moment.vcpu) {
                vcpus.push(moment.vcpu);
            }
        }
        let (slices, dropped) = slices.finish();
        let lane = |vcpu: u8| FIRST_LANE + u32::from(vcpu);
        let names = vcpus.into_iter().map(move |vcpu| {
            let lane = lane(vcpu);
            format!(
                r#"{{"name":"thread_name","ph":"M","pid":1,"tid":{lane},"args":{{"name":"vcpu {vcpu} samples"}}}}"#
            )
        });
        let slices = slices.into_iter().map(move |slice| {
            let (name, lane) = (Value::from(self.name(slice.function)), lane(slice.vcpu));
            // Integers: an inner slice must not end after the outer one by rounding.
            let [start, end] = [slice.start, slice.end].map(|time| (offset + time).as_micros());
            let length = end.saturating_sub(start);
            format!(r#"{{"name":{name},"ph":"X","pid":1,"tid":{lane},"ts":{start},"dur":{length}}}"#)
        });
        (names.chain(slices), dropped + self.dropped_moments)
    }

    /// Returns the number of samples, and the functions that had most of them.
    pub fn summary(&self) -> String {
        let mut own = vec![0; self.functions.functions.len() + self.unknown.len()];
        for stack in &self.stacks {
            if let Some(count) = stack
                .addresses
                .last()
                .and_then(|function| entry(&mut own, *function))
            {
                *count += stack.count;
            }
        }
        let total = own.iter().sum::<u64>() + self.other;
        let mut text = format!("{total} samples at {} Hz", self.settings.frequency);
        if total == 0 {
            text.push_str(": the guest used less processor time than one period");
        }
        // Writing to a String cannot fail.
        for _ in 0..TOP {
            let Some((function, count)) = most(&own) else {
                break;
            };
            let _ = write!(
                text,
                "\n  {:>5.1}% {}",
                percent(count, total),
                self.name(function)
            );
            if let Some(count) = entry(&mut own, function) {
                *count = 0;
            }
        }
        if self.other > 0 {
            let _ = write!(
                text,
                "\n  {:>5.1}% [other]: too many stacks",
                percent(self.other, total)
            );
        }
        if let Some((function, _)) = most(&self.doubts.functions) {
            let _ = write!(
                text,
                "\n  {:.1}% may lack functions: {} keeps no frame pointer; build the image with -fno-omit-frame-pointer",
                percent(self.doubts.samples, total),
                self.name(function)
            );
        }
        if total > 0 && !self.has_symbols {
            text.push_str(
                "\n  no symbols were found: use an ELF image with a symbol table; a restored guest needs the image of its snapshot, and \
                 --allow DIR to open it",
            );
        }
        text
    }

    /// Returns the name of a function, or else its address.
    fn name(&self, function: u64) -> String {
        let functions = &self.functions.functions;
        let number = usize::try_from(function).unwrap_or(usize::MAX);
        match functions.get(number) {
            Some(function) => frame_name(&function.name),
            None => {
                let address = self.unknown.get(number.wrapping_sub(functions.len()));
                format!("{:#x}", address.unwrap_or(&0))
            }
        }
    }
}

/// Function of a stack.
struct Frame {
    /// Address in the function: the instruction pointer or a return address.
    address: u64,
    /// Number of the function; `None` if no symbol contains the address.
    function: Option<usize>,
    /// The function is innermost, and its caller comes from `CpuStack::link`.
    has_link: bool,
}

/// Functions of addresses.
struct Known<'a> {
    /// The [lookups] of all stacks in ascending order.
    addresses: &'a [u64],
    functions: &'a Functions,
}

impl Known<'_> {
    /// Returns the functions of a sampled stack, the innermost first.
    fn frames(&self, stack: &SampledStack) -> Vec<Frame> {
        let mut frames: Vec<_> = stack
            .addresses
            .iter()
            .zip(lookups(stack))
            .map(|(address, lookup)| {
                let (address, function) = (*address, self.number(lookup));
                Frame {
                    address,
                    function,
                    has_link: false,
                }
            })
            .collect();
        if frames.len() > 1 {
            let link = frames.remove(1);
            if self.needs_link(&frames[0], &link) {
                frames[0].has_link = true;
                frames.insert(1, link);
            }
        }
        frames
    }

    fn number(&self, lookup: u64) -> Option<usize> {
        let index = self.addresses.binary_search(&lookup).ok()?;
        usize::try_from(self.functions.numbers.get(index).copied()??).ok()
    }

    /// Returns true if the `innermost` function has no frame, and `link` is in another function.
    fn needs_link(&self, innermost: &Frame, link: &Frame) -> bool {
        let function = innermost
            .function
            .and_then(|number| self.functions.functions.get(number));
        let has_frame = function
            .is_none_or(|function| has_frame(function, innermost.address.wrapping_sub(function.start)));
        !has_frame && link.function.is_some() && link.function != innermost.function
    }
}

/// Returns true if `function` has its frame at `offset`.
fn has_frame(function: &Function, offset: u64) -> bool {
    function.frame.is_some_and(|frame| offset >= frame)
}

impl Doubts {
    /// Adds `count` samples of `frames` if a function may be missing.
    fn add(&mut self, frames: &[Frame], functions: &Functions, count: u64) {
        // The outermost function has no caller to be found.
        let inner = frames.len().saturating_sub(1).max(1);
        for (index, frame) in frames.iter().enumerate().take(inner) {
            let function = frame
                .function
                .and_then(|number| Some((number, functions.functions.get(number)?)));
            let Some((number, function)) = function else {
                continue;
            };
            // A function that has called another one has its frame, or none.
            let offset = if index == 0 {
                frame.address.wrapping_sub(function.start)
            } else {
                u64::MAX
            };
            if !frame.has_link && !has_frame(function, offset) {
                self.samples += count;
                if function.frame.is_none() {
                    self.functions[number] += count;
                }
                return;
            }
        }
    }
}

/// Returns the count of the function with this number.
fn entry(counts: &mut [u64], number: u64) -> Option<&mut u64> {
    counts.get_mut(usize::try_from(number).ok()?)
}

/// Returns the number and the count of the function with the highest count above 0.
fn most(counts: &[u64]) -> Option<(u64, u64)> {
    let counts = (0..).zip(counts.iter().copied()).filter(|(_, count)| *count > 0);
    counts.max_by_key(|(number, count)| (*count, Reverse(*number)))
}

/// Returns the addresses by which the functions of a stack are found, the innermost first. The byte before a return address belongs to
/// the call: the last instruction of a function may be a call.
fn lookups(stack: &SampledStack) -> impl Iterator<Item = u64> {
    let addresses = stack.addresses.iter().enumerate();
    addresses.map(|(index, address)| address.wrapping_sub(u64::from(index > 0)))
}

/// Returns the [lookups] of all stacks in ascending order, each once.
fn lookup_addresses(stacks: &[SampledStack]) -> Vec<u64> {
    let mut addresses: Vec<_> = stacks.iter().flat_map(lookups).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Returns `name` without the separators of folded stacks.
fn frame_name(name: &str) -> String {
    let replace = |character: char| match character {
        ';' => ':',
        other if other.is_whitespace() || other.is_control() => '_',
        other => other,
    };
    name.chars().map(replace).collect()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "the text has one digit after the point"
)]
fn percent(count: u64, total: u64) -> f64 {
    count as f64 * 100.0 / total.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmm::sampling::{Moment, SampleSettings, SampledStack, Samples};

    use super::{Profile, lookup_addresses};
    use crate::crash::symbols::{Function, Functions};

    fn stack(addresses: &[u64], count: u64) -> SampledStack {
        linked_stack(addresses, 0, count)
    }

    fn linked_stack(addresses: &[u64], link: u64, count: u64) -> SampledStack {
        let addresses = [&addresses[..1], &[link], &addresses[1..]].concat().into();
        SampledStack { addresses, count }
    }

    /// Returns the profile of `stacks` with the functions `outer` from 0x100, `inner` from 0x200, and `bare` from 0x300 without a frame
    /// pointer, 0x100 bytes each.
    fn profile(stacks: Vec<SampledStack>, moments: Vec<Moment>, other: u64) -> Profile {
        let addresses = lookup_addresses(&stacks);
        let function = |name: &str, start, frame| Function {
            name: name.into(),
            start,
            frame,
        };
        let functions = Functions {
            functions: vec![
                function("outer", 0x100, Some(4)),
                function("in ner;<T>", 0x200, Some(4)),
                function("bare", 0x300, None),
            ],
            numbers: addresses
                .iter()
                .map(|address| u32::try_from(address >> 8).ok()?.checked_sub(1))
                .map(|number| number.filter(|number| *number < 3))
                .collect(),
        };
        let samples = Samples {
            stacks,
            other,
            moments,
            ..Samples::default()
        };
        let settings = SampleSettings {
            frequency: 100,
            has_moments: true,
        };
        Profile::new(
            settings,
            "ima ge.elf".into(),
            &addresses,
            Some(functions),
            samples,
        )
    }

    fn folded(profile: &Profile) -> String {
        let mut text = Vec::new();
        profile.write_folded(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn stacks_of_equal_functions_are_one_line() {
        let stacks = vec![
            stack(&[0x210, 0x180], 3),
            stack(&[0x220, 0x190], 4),
            stack(&[0x110], 5),
            // The return address behind a call at the end of `outer`, and addresses without a function.
            stack(&[0x230, 0x200, 0x900, 0x8000_0000_0000_0000], 6),
        ];
        let text = folded(&profile(stacks, Vec::new(), 2));
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "ima_ge.elf;0x8000000000000000;0x900;outer;in_ner:<T> 6",
                "ima_ge.elf;[other] 2",
                "ima_ge.elf;outer 5",
                "ima_ge.elf;outer;in_ner:<T> 7",
            ]
        );
    }

    #[test]
    fn summary_has_functions_by_own_samples() {
        let stacks = vec![stack(&[0x210, 0x180], 60), stack(&[0x110], 30)];
        assert_eq!(
            profile(stacks, Vec::new(), 10).summary(),
            "100 samples at 100 Hz\n   60.0% in_ner:<T>\n   30.0% outer\n   10.0% [other]: too many stacks"
        );
        let empty = profile(Vec::new(), Vec::new(), 0).summary();
        assert_eq!(
            empty,
            "0 samples at 100 Hz: the guest used less processor time than one period"
        );
    }

    #[test]
    fn missing_symbols_are_named_for_image_without_them() {
        for (functions, is_named) in [(Some(Functions::default()), false), (None, true)] {
            let samples = Samples {
                stacks: vec![stack(&[0x900], 1)],
                ..Samples::default()
            };
            let settings = SampleSettings {
                frequency: 100,
                has_moments: false,
            };
            let profile = Profile::new(settings, "image".into(), &[], functions, samples);
            assert_eq!(profile.summary().contains("no symbols were found"), is_named);
        }
    }

    #[test]
    fn samples_without_frame_are_counted() {
        // Within `bare`, before the frame of `inner` exists, and with complete frames. The outermost function needs no frame pointer.
        let stacks = vec![
            stack(&[0x310, 0x180], 20),
            stack(&[0x203, 0x180], 10),
            stack(&[0x204, 0x380], 70),
        ];
        let profile = profile(stacks, Vec::new(), 0);
        assert_eq!(profile.doubts.samples, 30);
        let text = profile.summary();
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            "  30.0% may lack functions: bare keeps no frame pointer; build the image with -fno-omit-frame-pointer"
        );
    }

    #[test]
    fn caller_of_function_without_frame_comes_from_link() {
        let stacks = vec![
            linked_stack(&[0x310, 0x180], 0x210, 3),
            // At the first instruction of `inner`.
            linked_stack(&[0x200, 0x180], 0x320, 2),
            // With its frame, with a return address in itself, and with one of no function.
            linked_stack(&[0x210, 0x180], 0x320, 10),
            linked_stack(&[0x310, 0x180], 0x350, 20),
            linked_stack(&[0x311, 0x180], 0x900, 30),
        ];
        let profile = profile(stacks, Vec::new(), 0);
        let text = folded(&profile);
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "ima_ge.elf;outer;bare 50",
                "ima_ge.elf;outer;bare;in_ner:<T> 2",
                "ima_ge.elf;outer;in_ner:<T> 10",
                "ima_ge.elf;outer;in_ner:<T>;bare 3",
            ]
        );
        // `bare` hides a caller as the innermost function, and once as the caller of `inner`.
        assert_eq!(
            (profile.doubts.samples, &profile.doubts.functions[..]),
            (52, &[0, 0, 52][..])
        );
    }

    #[test]
    fn events_are_slices_on_lane_of_vcpu() {
        let moment = |stack, milliseconds| Moment {
            vcpu: 1,
            time: Duration::from_millis(milliseconds),
            stack,
            count: 1,
        };
        let stacks = vec![stack(&[0x210, 0x180], 1), stack(&[0x110], 1)];
        let profile = profile(stacks, vec![moment(0, 50), moment(1, 60)], 0);
        let (events, dropped) = profile.events(Duration::from_nanos(1_000_999));
        let events: Vec<String> = events.collect();
        let slice = |name: &str, start, length| {
            format!(r#"{{"name":"{name}","ph":"X","pid":1,"tid":1001,"ts":{start},"dur":{length}}}"#)
        };
        assert_eq!(
            events,
            [
                r#"{"name":"thread_name","ph":"M","pid":1,"tid":1001,"args":{"name":"vcpu 1 samples"}}"#
                    .to_owned(),
                slice("outer", 41_000, 20_000),
                slice("in_ner:<T>", 41_000, 10_000),
            ]
        );
        assert_eq!(dropped, 0);
    }
}
