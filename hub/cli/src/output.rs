//! Standard output: results for people or, with `--json`, for programs. Everything else goes to standard error.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::exit::{ExitCode, Failure};

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Shows a result: as one JSON document, or as `text` puts it.
    pub(crate) fn show<T: Serialize>(self, result: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let text = if self.json { to_json(result) } else { text(result) };
        print(&text)
    }
}

/// A result as it goes into files and onto standard output.
pub(crate) fn to_json<T: Serialize>(result: &T) -> String {
    let mut text = serde_json::to_string_pretty(result).expect("results have text keys and finite numbers");
    text.push('\n');
    text
}

/// Writes to standard output. A reader that went away (`| head`) wants no more: that is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitCode::Internal, format!("could not write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Text in columns two spaces apart; the first `texts` columns to the left, the others (numbers) to the right.
pub(crate) fn table(header: &[&str], texts: usize, rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|&title| title.to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < texts { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `1 episode`, `2 episodes`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A size for people: `813 B`, `1.2 MB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if number < 1000 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_text_left_and_numbers_right() {
        let rows = [vec!["push".to_owned(), "7".to_owned()], vec!["pick-place".to_owned(), "120".to_owned()]];
        assert_eq!(table(&["task", "steps"], 1, &rows), "task        steps\npush            7\npick-place    120\n");
    }

    #[test]
    fn sizes_are_short() {
        let check = |number, expect| assert_eq!(bytes(number), expect);
        check(813, "813 B");
        check(1_234, "1.2 kB");
        check(999_999, "1.0 MB");
        check(23_400_000, "23 MB");
    }
}
