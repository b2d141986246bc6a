//! Text in columns.

use std::fmt;

use serde_json::Value;

/// What stands for nothing.
pub(super) const NOTHING: &str = "-";

/// Rows of cells, printed so that each column is as wide as its widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of numbers, which end at the same place; the first column is none.
    numbers: bool,
}

impl Table {
    /// A table without a heading, of texts.
    pub(super) fn new() -> Self {
        Self {
            rows: Vec::new(),
            numbers: false,
        }
    }

    /// A table of texts with a heading.
    pub(super) fn headed<const N: usize>(heading: [&str; N]) -> Self {
        let mut table = Self::new();
        table.row(heading.map(str::to_owned).to_vec());
        table
    }

    /// A table of numbers, but for the first column.
    pub(super) fn numbers() -> Self {
        Self {
            numbers: true,
            ..Self::new()
        }
    }

    /// Adds a row. What is not printable is shown, and not sent to the terminal.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The table, or nothing where there is only a heading.
    pub(super) fn or_empty(self) -> Self {
        if self.rows.len() > 1 { self } else { Self::new() }
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |row: &Vec<String>, column| row.get(column).map_or(0, |cell: &String| cell.chars().count());
        let widest = |column| self.rows.iter().map(|row| width(row, column)).max();
        (0..columns).map(|column| widest(column).unwrap_or(0)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                line.push_str(&if self.numbers && column > 0 {
                    format!("{gap}{cell:>width$}")
                } else {
                    format!("{gap}{cell:<width$}")
                });
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `text` with its control characters escaped, so that it is one line and moves no cursor.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => printable.push(' '),
            control if control.is_control() => printable.extend(control.escape_default()),
            other => printable.push(other),
        }
    }
    printable
}

/// A value of a JSON text as a cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, cell, printable};

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::headed(["id", "path", "ro"]);
        table.row(vec!["rootfs".into(), "/é".into(), "yes".into()]);
        table.row(vec!["a".into(), "/long path".into(), "no".into()]);
        assert_eq!(
            table.to_string(),
            "id      path        ro\nrootfs  /é          yes\na       /long path  no\n"
        );
        let mut numbers = Table::numbers();
        numbers.row(vec![String::new(), "0".into(), "1".into()]);
        numbers.row(vec!["halt".into(), "1000".into()]);
        assert_eq!(numbers.to_string(), "         0  1\nhalt  1000\n");
        assert_eq!(Table::new().to_string(), "");
    }

    #[test]
    fn nothing_in_a_cell_moves_the_cursor() {
        assert_eq!(printable("a\u{1b}[2J\r\nb\u{9b}ü"), "a\\u{1b}[2J\\r b\\u{9b}ü");
        assert_eq!(cell(&serde_json::json!("")), "-");
        assert_eq!(cell(&serde_json::json!(null)), "-");
        assert_eq!(cell(&serde_json::json!(true)), "yes");
        assert_eq!(cell(&serde_json::json!(["x", 1])), "[\"x\",1]");
    }
}
