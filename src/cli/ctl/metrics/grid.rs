//! Values by what they are of and what they measure.

use std::collections::HashMap;
use std::fmt;

use crate::ctl::table::{NOTHING, Table};

/// Names in the order in which they came.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    indices: HashMap<String, usize>,
}

impl Names {
    fn index(&mut self, name: String) -> usize {
        let next = self.names.len();
        let index = *self.indices.entry(name.clone()).or_insert(next);
        if index == next {
            self.names.push(name);
        }
        index
    }
}

/// A table of which the longer side goes down.
pub struct Grid {
    heading: &'static str,
    subjects: Names,
    measures: Names,
    values: HashMap<(usize, usize), String>,
}

impl Grid {
    pub fn new(heading: &'static str) -> Self {
        Self {
            heading,
            subjects: Names::default(),
            measures: Names::default(),
            values: HashMap::new(),
        }
    }

    pub fn put(&mut self, subject: String, measure: String, value: String) {
        let place = (self.subjects.index(subject), self.measures.index(measure));
        self.values.insert(place, value);
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subjects = self.subjects.names.len();
        let turned = subjects > 1 && subjects >= self.measures.names.len();
        let (rows, columns) = if turned {
            (&self.subjects.names, &self.measures.names)
        } else {
            (&self.measures.names, &self.subjects.names)
        };
        let mut table = Table::numbers();
        // What is of the machine as a whole needs no name.
        if columns.iter().any(|column| !column.is_empty()) {
            let heading = [String::new()].into_iter().chain(columns.iter().cloned());
            table.row(heading.collect());
        }
        for (row, name) in rows.iter().enumerate() {
            let mut cells = vec![name.clone()];
            for column in 0..columns.len() {
                let place = if turned { (row, column) } else { (column, row) };
                let value = self.values.get(&place).map_or(NOTHING, String::as_str);
                cells.push(value.to_owned());
            }
            table.row(cells);
        }
        writeln!(formatter, "{}", self.heading)?;
        for line in table.to_string().lines() {
            writeln!(formatter, "  {line}")?;
        }
        Ok(())
    }
}
