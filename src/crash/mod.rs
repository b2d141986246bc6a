//! Report of a crash of the guest: the functions that led to it, and the snapshot of it.
//!
//! | module | contents |
//! |---|---|
//! | `symbols` | symbols of an ELF image |

pub mod symbols;

use std::fmt::Write as _;

use vmm::boot::file::RegularFile;
use vmm::control::Control;
use vmm::event_loop::ExitReason;
use vmm::vcpu::Location;
use vmm::vm::{GuestImage, Vm};

use crate::logging::print_message;
use symbols::{Symbol, Symbols};

/// Adds the symbols of the image to the location of a crash, if `end` is one, and prints the result of the snapshot of it.
pub fn report(control: &mut Control, end: &mut ExitReason) {
    let ExitReason::Guest(reason) = end else { return };
    let Some(at) = reason.location_mut() else { return };
    let symbols = control.vm().map(|vm| find_symbols(vm, at));
    describe(at, &symbols.unwrap_or_default());
    match control.take_crash_snapshot() {
        None => {}
        Some(Ok(directory)) => print_message(&format!(
            "snapshot of the crash created in {}; run mayfly core {0} FILE for an ELF core of it",
            directory.display()
        )),
        Some(Err(error)) => print_message(&error),
    }
}

/// Calls `find` with the symbols of the image. An image that may differ from that of the guest counts only if `holds_code`. Returns
/// `None` if there is no image with symbols.
pub fn with_symbols<T>(
    vm: &Vm,
    holds_code: impl FnOnce(&Symbols<'_>) -> bool,
    find: impl FnOnce(&Symbols<'_>) -> T,
) -> Option<T> {
    match vm.image() {
        GuestImage::Open(file) => Symbols::open(file).as_ref().map(find),
        GuestImage::Named => {
            let path = &vm.config().kernel;
            log::info!("opening {} for its symbols", path.display());
            let image = RegularFile::open(path, 1).ok()?;
            let symbols = Symbols::open(image.file()).filter(holds_code);
            symbols.as_ref().map(find)
        }
        GuestImage::Untrusted => None,
    }
}

/// Finds the symbols of the instruction pointer and of the callers. Returns none if the image cannot be used.
fn find_symbols(vm: &Vm, at: &Location) -> Vec<Option<Symbol>> {
    let find = |symbols: &Symbols<'_>| {
        // The byte before the return address belongs to the call: the last instruction of a function may be a call.
        let mut addresses = vec![at.ip];
        addresses.extend(at.callers.iter().map(|address| address.wrapping_sub(1)));
        let mut found = symbols.find(&addresses);
        for symbol in found.iter_mut().skip(1).flatten() {
            symbol.offset += 1;
        }
        found
    };
    with_symbols(vm, |symbols| symbols.holds(at.ip, &at.bytes), find).unwrap_or_default()
}

/// Adds symbol and backtrace to the location. `symbols` are those of the instruction pointer and of the callers.
fn describe(at: &mut Location, symbols: &[Option<Symbol>]) {
    let symbol = |index: usize| symbols.get(index)?.as_ref();
    at.symbol = symbol(0).map(Symbol::to_string);
    if at.callers.is_empty() && at.symbol.is_none() {
        return;
    }
    let mut text = format!("backtrace of vCPU {} by frame pointers", at.vcpu);
    // Writing to a String cannot fail.
    if let Some(doubt) = doubt(at, symbols) {
        let _ = write!(text, ", unreliable: {doubt}");
    }
    for (index, address) in [at.ip].iter().chain(&at.callers).enumerate() {
        let _ = write!(text, "\n  #{index} {address:#x}");
        if let Some(symbol) = symbol(index) {
            let _ = write!(text, " {symbol}");
        }
    }
    at.backtrace = Some(text);
}

/// Returns the reason why functions may be missing or wrong in the backtrace.
fn doubt(at: &Location, symbols: &[Option<Symbol>]) -> Option<String> {
    if symbols.iter().all(Option::is_none) {
        return Some("no symbols were found".into());
    }
    // The outermost function has no caller to be found.
    for index in 0..at.callers.len().max(1) {
        let Some(Some(symbol)) = symbols.get(index) else {
            return Some(format!("no symbol contains the address of #{index}"));
        };
        match symbol.frame {
            None => {
                return Some(format!(
                    "{} keeps no frame pointer; build the image with -fno-omit-frame-pointer",
                    symbol.name
                ));
            }
            Some(frame) if index == 0 && symbol.offset < frame => {
                return Some(format!(
                    "{} had no frame yet, and its caller is missing",
                    symbol.name
                ));
            }
            Some(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use vmm::vcpu::Location;

    use super::{Symbol, describe};

    fn symbol(name: &str, offset: u64, frame: Option<u64>) -> Option<Symbol> {
        let name = name.to_owned();
        Some(Symbol { name, offset, frame })
    }

    fn described(symbols: &[Option<Symbol>]) -> Location {
        let mut location = Location {
            vcpu: 1,
            ip: 0x1008,
            callers: vec![0x2005, 0x3007],
            ..Location::default()
        };
        describe(&mut location, symbols);
        location
    }

    #[test]
    fn backtrace_names_functions() {
        let location = described(&[
            symbol("third", 8, Some(4)),
            symbol("second", 5, Some(4)),
            symbol("start", 7, None),
        ]);
        assert_eq!(location.symbol.unwrap(), "third+0x8");
        assert_eq!(
            location.backtrace.unwrap(),
            "backtrace of vCPU 1 by frame pointers\n  #0 0x1008 third+0x8\n  #1 0x2005 second+0x5\n  #2 0x3007 start+0x7"
        );
    }

    #[test]
    fn doubtful_backtrace_is_marked_with_reason() {
        let second = || symbol("second", 5, Some(4));
        for (symbols, reason) in [
            (vec![], "no symbols were found"),
            (vec![None, second(), None], "no symbol contains the address of #0"),
            (
                vec![symbol("third", 8, None), second(), None],
                "third keeps no frame pointer; build the image with -fno-omit-frame-pointer",
            ),
            (
                vec![symbol("third", 3, Some(4)), second(), None],
                "third had no frame yet, and its caller is missing",
            ),
        ] {
            let text = described(&symbols).backtrace.unwrap();
            let expected = format!("backtrace of vCPU 1 by frame pointers, unreliable: {reason}");
            assert_eq!(text.lines().next().unwrap(), expected);
        }
    }

    #[test]
    fn unknown_location_has_no_backtrace() {
        let mut location = Location::default();
        describe(&mut location, &[]);
        assert_eq!(location, Location::default());
    }
}
