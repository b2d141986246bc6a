//! Breakpoints and watchpoints of a session, and their places.

use gdb::PointKind;

use crate::arch::{DebugCpu, HardwarePoint, Native, Platform, PointLimits};

type NativeCpu = <Native as Platform>::Cpu;

/// Maximum number of points. gdb sets one for each place of a breakpoint.
const MAX_POINTS: usize = 1024;

/// Place of a breakpoint or watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Debug registers.
    Hardware,
    /// Instruction at this guest-physical address.
    Memory(u64),
    /// None: the vCPUs run by single steps.
    Step,
}

/// Breakpoint or watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    kind: PointKind,
    address: u64,
    length: u64,
    place: Place,
}

/// Instructions in guest memory.
pub trait PointMemory {
    /// Writes a breakpoint instruction to a linear address. Returns its guest-physical address, or `None` without memory or without the
    /// ability.
    fn add(&mut self, address: u64) -> Option<u64>;

    /// Removes the instruction at a guest-physical address.
    fn remove(&mut self, physical: u64);
}

/// Breakpoints and watchpoints of a session.
#[derive(Debug, Default)]
pub struct Points {
    points: Vec<Point>,
    limits: PointLimits,
    /// Breakpoints without another place are reached by single steps.
    can_step: bool,
}

impl Points {
    /// Returns no points, for debug registers within `limits`. `can_step` permits breakpoints that are reached by single steps, which
    /// slow the guest: it is for hosts without breakpoints in memory.
    pub fn new(limits: PointLimits, can_step: bool) -> Self {
        Self {
            points: Vec::new(),
            limits,
            can_step,
        }
    }

    /// Adds a point. A breakpoint of [`PointKind::Software`] takes a debug register if one is free, and leaves it to a point that needs
    /// it. A breakpoint on a host without registers is reached by single steps. Returns false without a place.
    pub fn add(
        &mut self,
        (kind, address, length): (PointKind, u64, u64),
        memory: &mut dyn PointMemory,
    ) -> bool {
        let new = HardwarePoint {
            kind: match kind {
                PointKind::Software => PointKind::Hardware,
                other => other,
            },
            address,
            length,
        };
        let is_same = |point: &Point| (point.kind, point.address, point.length) == (kind, address, length);
        if self.points.iter().any(is_same) {
            // gdb may repeat a packet.
            return true;
        }
        let mut place = None;
        if self.points.len() >= MAX_POINTS {
            return false;
        }
        if self.fits(new) {
            place = Some(Place::Hardware);
        } else if kind == PointKind::Software {
            place = self.place_elsewhere(address, memory);
        } else if kind == PointKind::Hardware && self.limits.breakpoints == 0 {
            place = Some(Place::Step);
        } else if NativeCpu::fit(&[new], self.limits) && self.free_register(memory) && self.fits(new) {
            place = Some(Place::Hardware);
        }
        let Some(place) = place else { return false };
        self.points.push(Point {
            kind,
            address,
            length,
            place,
        });
        true
    }

    /// Removes a point. Returns false if there is none.
    pub fn remove(
        &mut self,
        (kind, address, length): (PointKind, u64, u64),
        memory: &mut dyn PointMemory,
    ) -> bool {
        let is_same = |point: &Point| (point.kind, point.address, point.length) == (kind, address, length);
        let Some(index) = self.points.iter().position(is_same) else {
            return false;
        };
        // In order: an exit names a register by its number until the next resume.
        if let Place::Memory(physical) = self.points.remove(index).place {
            memory.remove(physical);
        }
        true
    }

    /// Removes all points.
    pub fn clear(&mut self, memory: &mut dyn PointMemory) {
        for point in self.points.drain(..) {
            if let Place::Memory(physical) = point.place {
                memory.remove(physical);
            }
        }
    }

    /// Returns the points in debug registers.
    pub fn hardware(&self) -> Vec<HardwarePoint> {
        let in_hardware = self.points.iter().filter(|point| point.place == Place::Hardware);
        in_hardware
            .map(|point| HardwarePoint {
                kind: match point.kind {
                    PointKind::Software => PointKind::Hardware,
                    other => other,
                },
                address: point.address,
                length: point.length,
            })
            .collect()
    }

    /// Returns true if there is an instruction in memory.
    pub fn has_software(&self) -> bool {
        let is_in_memory = |point: &Point| matches!(point.place, Place::Memory(_));
        self.points.iter().any(is_in_memory)
    }

    /// Returns true if a breakpoint is reached by single steps.
    pub fn has_stepped(&self) -> bool {
        self.points.iter().any(|point| point.place == Place::Step)
    }

    /// Returns the kind of the breakpoint at `address` that is reached by single steps.
    pub fn stepped_at(&self, address: u64) -> Option<PointKind> {
        let is_here = |point: &&Point| point.address == address && point.place == Place::Step;
        self.points.iter().find(is_here).map(|point| point.kind)
    }

    /// Returns the kind of the breakpoint at `address`.
    pub fn breakpoint_at(&self, address: u64) -> Option<PointKind> {
        let is_breakpoint = |kind| matches!(kind, PointKind::Software | PointKind::Hardware);
        let found = self
            .points
            .iter()
            .find(|point| point.address == address && is_breakpoint(point.kind));
        found.map(|point| point.kind)
    }

    /// Returns kind and address of the watchpoint that contains `address`, or else of the nearest one: an access may begin before its
    /// watchpoint.
    pub fn watchpoint_near(&self, address: u64) -> Option<(PointKind, u64)> {
        let is_watchpoint = |point: &&Point| !matches!(point.kind, PointKind::Software | PointKind::Hardware);
        let distance = |point: &&Point| {
            let last = point.address.saturating_add(point.length.saturating_sub(1));
            address.abs_diff(address.clamp(point.address, last.max(point.address)))
        };
        let found = self.points.iter().filter(is_watchpoint).min_by_key(distance);
        found.map(|point| (point.kind, point.address))
    }

    fn fits(&self, new: HardwarePoint) -> bool {
        let mut points = self.hardware();
        points.push(new);
        NativeCpu::fit(&points, self.limits)
    }

    /// Returns a place outside debug registers for a breakpoint of [`PointKind::Software`].
    fn place_elsewhere(&self, address: u64, memory: &mut dyn PointMemory) -> Option<Place> {
        let in_memory = memory.add(address).map(Place::Memory);
        in_memory.or(self.can_step.then_some(Place::Step))
    }

    /// Moves a breakpoint of [`PointKind::Software`] from its register to another place. Returns false if there is none.
    fn free_register(&mut self, memory: &mut dyn PointMemory) -> bool {
        let is_movable = |point: &Point| (point.kind, point.place) == (PointKind::Software, Place::Hardware);
        let Some(index) = self.points.iter().position(is_movable) else {
            return false;
        };
        match self.place_elsewhere(self.points[index].address, memory) {
            Some(place) => {
                self.points[index].place = place;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use gdb::PointKind;

    use super::{PointMemory, Points};
    use crate::arch::PointLimits;

    const LIMITS: PointLimits = PointLimits {
        breakpoints: 4,
        watchpoints: 4,
    };

    /// Memory whose physical addresses are higher by 1.
    #[derive(Default)]
    struct Memory {
        is_denied: bool,
        instructions: Vec<u64>,
    }

    impl PointMemory for Memory {
        fn add(&mut self, address: u64) -> Option<u64> {
            if self.is_denied {
                return None;
            }
            self.instructions.push(address + 1);
            Some(address + 1)
        }

        fn remove(&mut self, physical: u64) {
            self.instructions.retain(|known| *known != physical);
        }
    }

    #[test]
    fn software_breakpoints_take_registers_first() {
        let (mut points, mut memory) = (Points::new(LIMITS, false), Memory::default());
        for address in (0x1000..0x1018).step_by(4) {
            assert!(points.add((PointKind::Software, address, 4), &mut memory));
        }
        assert_eq!((points.hardware().len(), points.has_software()), (4, true));
        assert_eq!(memory.instructions, [0x1011, 0x1015]);
        assert_eq!(points.breakpoint_at(0x1014), Some(PointKind::Software));
        assert!(points.remove((PointKind::Software, 0x1010, 4), &mut memory));
        assert!(!points.remove((PointKind::Software, 0x1010, 4), &mut memory));
        assert_eq!(memory.instructions, [0x1015]);
        points.clear(&mut memory);
        assert!(memory.instructions.is_empty() && points.hardware().is_empty());
    }

    #[test]
    fn repeated_point_is_one_point() {
        let (mut points, mut memory) = (Points::new(LIMITS, false), Memory::default());
        for address in [0x1000, 0x1004, 0x1008, 0x100c, 0x1010, 0x1010] {
            assert!(points.add((PointKind::Software, address, 4), &mut memory));
        }
        assert_eq!(memory.instructions, [0x1011]);
        assert!(points.remove((PointKind::Software, 0x1010, 4), &mut memory));
        assert!(!points.has_software() && memory.instructions.is_empty());
        assert!(!points.remove((PointKind::Software, 0x1010, 4), &mut memory));
    }

    #[test]
    fn hardware_breakpoint_moves_software_one_to_memory() {
        let (mut points, mut memory) = (Points::new(LIMITS, false), Memory::default());
        for address in [0x1000, 0x1004, 0x1008, 0x100c] {
            assert!(points.add((PointKind::Software, address, 4), &mut memory));
        }
        assert!(points.add((PointKind::Hardware, 0x2000, 4), &mut memory));
        assert_eq!(memory.instructions, [0x1001]);
        assert_eq!(points.hardware().len(), 4);
        assert_eq!(points.breakpoint_at(0x2000), Some(PointKind::Hardware));
    }

    #[test]
    fn points_without_place_are_rejected() {
        let (mut points, mut memory) = (Points::new(LIMITS, false), Memory::default());
        memory.is_denied = true;
        for address in [0x1000, 0x1004, 0x1008, 0x100c] {
            assert!(points.add((PointKind::Software, address, 4), &mut memory));
        }
        for kind in [PointKind::Software, PointKind::Hardware] {
            assert!(!points.add((kind, 0x2000, 4), &mut memory));
        }
        assert!(points.remove((PointKind::Software, 0x1004, 4), &mut memory));
        assert!(points.add((PointKind::Hardware, 0x2000, 4), &mut memory));
    }

    #[test]
    fn breakpoints_without_memory_are_stepped_to() {
        let (mut points, mut memory) = (Points::new(LIMITS, true), Memory::default());
        memory.is_denied = true;
        for address in [0x1000, 0x1004, 0x1008, 0x100c] {
            assert!(points.add((PointKind::Software, address, 4), &mut memory));
        }
        assert!(!points.has_stepped());
        assert!(points.add((PointKind::Software, 0x1010, 4), &mut memory));
        assert!(points.add((PointKind::Hardware, 0x2000, 4), &mut memory));
        // The first one has left its register.
        for address in [0x1000, 0x1010] {
            assert_eq!(points.stepped_at(address), Some(PointKind::Software));
        }
        assert_eq!(
            (points.stepped_at(0x1004), points.stepped_at(0x2000)),
            (None, None)
        );
        assert_eq!((points.hardware().len(), points.has_software()), (4, false));
        for address in [0x1000, 0x1010] {
            assert!(points.remove((PointKind::Software, address, 4), &mut memory));
        }
        assert!(!points.has_stepped());
    }

    #[test]
    fn host_without_registers_steps_to_hardware_breakpoints() {
        let limits = PointLimits {
            breakpoints: 0,
            watchpoints: 4,
        };
        let (mut points, mut memory) = (Points::new(limits, true), Memory::default());
        memory.is_denied = true;
        assert!(points.add((PointKind::Hardware, 0x1000, 4), &mut memory));
        assert_eq!(points.stepped_at(0x1000), Some(PointKind::Hardware));
        assert!(points.hardware().is_empty());
    }
}
