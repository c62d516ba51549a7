//! How results are printed: for people, or as JSON.

use serde::Serialize;

use crate::{
    api::{ApiError, types::JobView},
    progress::Reporter,
};

/// Where and how results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON, or words.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether results are JSON, for programs; then nothing else is said.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: as JSON, or as what `words` makes of it.
    pub fn result<T: Serialize>(self, value: &T, words: impl FnOnce(&T) -> String) {
        match (self.json, serde_json::to_string_pretty(value)) {
            (true, Ok(text)) => println!("{text}"),
            _ => println!("{}", words(value)),
        }
    }

    /// Prints an error on the error output.
    pub fn error(self, error: &ApiError) {
        if self.json {
            eprintln!("{}", serde_json::json!({ "error": error }));
            return;
        }
        eprintln!("gnomon: {}", error.message);
        if let Some(next) = &error.next {
            eprintln!("  next: {next}");
        }
    }

    /// Shows the progress of a job.
    pub fn reporter(self) -> Reporter {
        Reporter::new(self.json)
    }

    /// Prints how a job ended.
    pub fn job(self, view: &JobView) {
        self.result(view, |view| {
            let message = &view.progress.message;
            match message.is_empty() {
                true => format!("{} of {} done", view.kind, view.subject),
                false => message.clone(),
            }
        });
    }
}

/// Rows in columns, each as wide as its widest cell.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_string()
    };
    let mut lines = vec![line(head)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// Names and values, one pair a line; pairs without a value are left out.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = shown().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_string(), "1".to_string()], ["long".to_string(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME  N\na     1\nlong");
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        assert_eq!(
            facts(&[("size", "1".into()), ("job", String::new()), ("epoch", "e1".into())]),
            "size   1\nepoch  e1"
        );
    }
}
