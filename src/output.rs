//! How commands print: tables for eyes, JSON for programs, nothing else on standard output.
//!
//! Logs, progress and errors go to standard error, so that `-o json | jq` always works.

use std::io::Write;

use serde::Serialize;

use crate::error::CliError;

/// Form of a command's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, made for reading; may change between versions.
    #[default]
    Table,
    /// One JSON document; fields are only ever added.
    Json,
    /// The same document as YAML.
    Yaml,
}

/// Rows of text under a heading, aligned when printed.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub fn new(titles: &[&str]) -> Table {
        Table {
            rows: vec![titles.iter().map(|t| t.to_uppercase()).collect()],
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The text: columns two spaces apart, numbers to the right.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |r: &[String], c: usize| r.get(c).cloned().unwrap_or_default();
        let shape: Vec<(usize, bool)> = (0..columns)
            .map(|c| {
                let width = self.rows.iter().map(|r| cell(r, c).chars().count()).max();
                let number = self.rows.iter().skip(1).all(|r| is_number(&cell(r, c)));
                (width.unwrap_or(0), number)
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (c, (width, number)) in shape.iter().enumerate() {
                let text = cell(row, c);
                let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                let (before, after) = if *number { (&*pad, "") } else { ("", &*pad) };
                line.push_str(&format!("{before}{text}{after}  "));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn is_number(text: &str) -> bool {
    text == "-" || text.parse::<f64>().is_ok()
}

/// Prints a result in the form that was asked for. `table` is only called for that form.
///
/// # Errors
/// Standard output is closed or full.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value)
                .map_err(|e| CliError::failed(format_args!("cannot make JSON: {e}")))?;
            text.push('\n');
            text
        }
        Format::Yaml => {
            let value = serde_json::to_value(value)
                .map_err(|e| CliError::failed(format_args!("cannot make YAML: {e}")))?;
            // Several of them, as `-w` prints, are one stream.
            format!("---\n{}", crate::yaml::document(&value))
        }
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| CliError::output(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_words_left() {
        let mut t = Table::new(&["name", "per second"]);
        t.row(["a", "12"]);
        t.row(["long", "3"]);
        assert_eq!(
            t.render(),
            "NAME  PER SECOND\na             12\nlong           3\n"
        );
    }
}
