//! Search tree over the numbers of system calls, from the linear programs of seccompiler.
//!
//! A linear program compares the number with each of its calls in turn. When the kernel installs a program, it evaluates it for each
//! number that exists, and later for each call whose result depends on arguments. A tree takes some eight comparisons. The build
//! script compiles the filters by this module.

use std::collections::{BTreeMap, HashMap};

/// One instruction, `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison is true.
    pub jt: u8,
    /// Instructions to skip if it is false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

// Operations of linux/bpf_common.h that seccompiler uses.
/// `BPF_LD | BPF_W | BPF_ABS`
pub const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
pub const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`
pub const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`
pub const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`
pub const GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`
pub const NOT_LESS: u16 = 0x35;
/// `BPF_RET | BPF_K`
pub const RETURN: u16 = 0x06;

/// Offset of the number in `struct seccomp_data`.
const NUMBER: u32 = 0;
/// Instructions of seccompiler before the first system call: the check of the architecture, and the load of the number.
const PROLOGUE: usize = 4;

/// Index of a node.
type Id = usize;

/// Node of a program. Equal nodes exist once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Node {
    Load(u32, Id),
    And(u32, Id),
    /// Operation, operand, next node if true, next node if false.
    Branch(u16, u32, Id, Id),
    Return(u32),
}

/// Nodes of a program. Each refers to earlier ones only.
#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    ids: HashMap<Node, Id>,
}

impl Graph {
    fn add(&mut self, node: Node) -> Id {
        if let Node::Branch(_, _, yes, no) = node
            && yes == no
        {
            return yes;
        }
        *self.ids.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }

    /// Adds the instructions from `first` on. Returns the node of `first`.
    fn add_program(&mut self, program: &[Instruction], first: usize) -> Id {
        let mut ids: Vec<Id> = vec![0; program.len()];
        for (index, instruction) in program.iter().enumerate().skip(first).rev() {
            let skip = |count: usize| ids[index + 1 + count];
            let k = instruction.k;
            let node = match instruction.code {
                LOAD => Node::Load(k, skip(0)),
                AND => Node::And(k, skip(0)),
                RETURN => Node::Return(k),
                JUMP => {
                    ids[index] = skip(k as usize);
                    continue;
                }
                code @ (EQUAL | GREATER | NOT_LESS) => {
                    Node::Branch(code, k, skip(instruction.jt.into()), skip(instruction.jf.into()))
                }
                code => panic!("unknown operation {code:#x}"),
            };
            ids[index] = self.add(node);
        }
        ids[first]
    }

    /// Returns `id` without loads of the word that is loaded already. `known` has the results of earlier calls.
    fn without_loads(
        &mut self,
        id: Id,
        loaded: Option<u32>,
        known: &mut HashMap<(Id, Option<u32>), Id>,
    ) -> Id {
        if let Some(known) = known.get(&(id, loaded)) {
            return *known;
        }
        let result = match self.nodes[id] {
            Node::Load(offset, next) if loaded == Some(offset) => self.without_loads(next, loaded, known),
            Node::Load(offset, next) => {
                let next = self.without_loads(next, Some(offset), known);
                self.add(Node::Load(offset, next))
            }
            Node::And(mask, next) => {
                let next = self.without_loads(next, None, known);
                self.add(Node::And(mask, next))
            }
            Node::Branch(code, k, yes, no) => {
                let yes = self.without_loads(yes, loaded, known);
                let no = self.without_loads(no, loaded, known);
                self.add(Node::Branch(code, k, yes, no))
            }
            Node::Return(_) => id,
        };
        known.insert((id, loaded), result);
        result
    }

    /// Adds a search for the range of a number. Each entry of `ranges` is the first number of a range and its node; the first range
    /// begins at 0.
    fn add_search(&mut self, ranges: &[(u32, Id)]) -> Id {
        if let [(_, id)] = ranges {
            return *id;
        }
        let (lower, upper) = ranges.split_at(ranges.len() / 2);
        let (no, yes) = (self.add_search(lower), self.add_search(upper));
        self.add(Node::Branch(NOT_LESS, upper[0].0, yes, no))
    }

    /// Returns the nodes that `first` reaches, each before those that it refers to.
    fn order(&self, first: Id) -> Vec<Id> {
        fn visit(graph: &Graph, id: Id, visited: &mut Vec<bool>, order: &mut Vec<Id>) {
            if std::mem::replace(&mut visited[id], true) {
                return;
            }
            match graph.nodes[id] {
                Node::Load(_, next) | Node::And(_, next) => visit(graph, next, visited, order),
                Node::Branch(_, _, yes, no) => {
                    visit(graph, yes, visited, order);
                    visit(graph, no, visited, order);
                }
                Node::Return(_) => {}
            }
            order.push(id);
        }
        let mut order = Vec::new();
        visit(self, first, &mut vec![false; self.nodes.len()], &mut order);
        order.reverse();
        order
    }

    /// Returns the instructions of the program that begins at `first`.
    fn emit(&self, first: Id) -> Vec<Instruction> {
        let order = self.order(first);
        // Jumps behind each instruction, to nodes that its offset or the fall-through does not reach.
        let mut jumps: Vec<Vec<Id>> = vec![Vec::new(); order.len()];
        loop {
            let mut position = 0;
            let mut positions = vec![0; self.nodes.len()];
            for (id, jumps) in order.iter().zip(&jumps) {
                positions[*id] = position;
                position += 1 + jumps.len();
            }
            let mut is_complete = true;
            for (id, jumps) in order.iter().zip(&mut jumps) {
                let end = positions[*id] + 1 + jumps.len();
                let far: Vec<Id> = match self.nodes[*id] {
                    Node::Load(_, next) | Node::And(_, next) if positions[next] != end => vec![next],
                    Node::Branch(_, _, yes, no) => [yes, no]
                        .into_iter()
                        .filter(|next| positions[*next] - positions[*id] > usize::from(u8::MAX))
                        .collect(),
                    _ => continue,
                };
                for next in far {
                    if !jumps.contains(&next) {
                        jumps.push(next);
                        is_complete = false;
                    }
                }
            }
            if is_complete {
                return self.assemble(&order, &jumps, &positions);
            }
        }
    }

    fn assemble(&self, order: &[Id], jumps: &[Vec<Id>], positions: &[usize]) -> Vec<Instruction> {
        let mut program = Vec::new();
        for (id, jumps) in order.iter().zip(jumps) {
            let offset = |next: Id| {
                let slot = jumps.iter().position(|jump| *jump == next);
                let offset = slot.unwrap_or_else(|| positions[next] - positions[*id] - 1);
                u8::try_from(offset).expect("a far node has a jump")
            };
            let (code, k, jt, jf) = match self.nodes[*id] {
                Node::Load(k, _) => (LOAD, k, 0, 0),
                Node::And(k, _) => (AND, k, 0, 0),
                Node::Return(k) => (RETURN, k, 0, 0),
                Node::Branch(code, k, yes, no) => (code, k, offset(yes), offset(no)),
            };
            program.push(Instruction { code, jt, jf, k });
            for jump in jumps {
                let skipped = positions[*jump] - program.len() - 1;
                program.push(Instruction {
                    code: JUMP,
                    jt: 0,
                    jf: 0,
                    k: u32::try_from(skipped).expect("a program has at most 4096 instructions"),
                });
            }
        }
        program
    }
}

/// Returns the number of the first system call of a linear program.
///
/// # Panics
/// Panics if the program is none of seccompiler.
pub fn first_number(program: &[Instruction]) -> u32 {
    let [check, call] = [program[PROLOGUE - 1], program[PROLOGUE]];
    assert_eq!((check.code, check.k, call.code), (LOAD, NUMBER, EQUAL));
    call.k
}

/// Returns a program with the meaning of all `filters`: linear programs of seccompiler, each for one system call, by its number. Other
/// numbers have the result `other`. Numbers in `results` have these results.
///
/// # Panics
/// Panics if a program is none of seccompiler.
pub fn compile(
    filters: &BTreeMap<u32, Vec<Instruction>>,
    results: &BTreeMap<u32, u32>,
    other: u32,
) -> Vec<Instruction> {
    let mut graph = Graph::default();
    let mut calls: BTreeMap<u32, Id> = BTreeMap::new();
    for (number, filter) in filters {
        // The comparison with the number precedes the conditions.
        let conditions = graph.add_program(filter, PROLOGUE + 1);
        calls.insert(
            *number,
            graph.without_loads(conditions, Some(NUMBER), &mut HashMap::new()),
        );
    }
    for (number, result) in results {
        calls.insert(*number, graph.add(Node::Return(*result)));
    }
    let other = graph.add(Node::Return(other));
    let mut ranges = vec![(0, other)];
    for (number, id) in calls {
        ranges.extend([(number, id), (number + 1, other)]);
    }
    // Of ranges with the same first number, the last one is not empty. Neighbours with one node are one range.
    let mut merged: Vec<(u32, Id)> = Vec::new();
    for (first, id) in ranges {
        if merged.last().is_some_and(|(last, _)| *last == first) {
            merged.pop();
        }
        if merged.last().is_none_or(|(_, last)| *last != id) {
            merged.push((first, id));
        }
    }
    let search = graph.add_search(&merged);
    let search = graph.add(Node::Load(NUMBER, search));
    let Some(filter) = filters.values().next() else {
        return graph.emit(search);
    };
    // All filters begin with the same check of the architecture, which returns unless it skips the return.
    let [load, check, fail] = [filter[0], filter[1], filter[2]];
    assert_eq!(
        (load.code, check.code, check.jt, fail.code),
        (LOAD, EQUAL, 1, RETURN)
    );
    let fail = graph.add(Node::Return(fail.k));
    let check = graph.add(Node::Branch(EQUAL, check.k, search, fail));
    let first = graph.add(Node::Load(load.k, check));
    graph.emit(first)
}
