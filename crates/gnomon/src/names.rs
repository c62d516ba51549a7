//! Names of nodes, volumes, VMs and ports: they become file names, NBD export names and certificate names, so one
//! narrow rule holds for all of them.

use std::fmt;

/// Fits a DNS label (63) and leaves room in a unix socket's path (108).
pub const LONGEST_NAME: usize = 63;

/// Why a name cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    /// What was written.
    pub text: String,
    /// What a name looks like.
    pub expected: &'static str,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not a name: {}", self.text, self.expected)
    }
}

impl std::error::Error for NameError {}

/// Accepts letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most [`LONGEST_NAME`] of them.
pub fn check(text: &str) -> Result<(), NameError> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    match starts_well && text.len() <= LONGEST_NAME && text.chars().all(is_allowed) {
        true => Ok(()),
        false => Err(NameError {
            text: text.to_string(),
            expected: "write letters, digits, '-', '_' and '.', beginning with a letter or digit, 63 at most",
        }),
    }
}

/// The same, as a parser of command line arguments.
pub fn parse(text: &str) -> Result<String, NameError> {
    check(text).map(|()| text.to_string())
}

/// The nearest allowed name to a host's name; `node` when nothing of it can be used.
pub fn made_from(host: &str) -> String {
    let kept: String = host.chars().filter(|c| is_allowed(*c)).take(LONGEST_NAME).collect();
    let kept = kept.trim_start_matches(['-', '_', '.']);
    match kept.is_empty() {
        true => "node".to_string(),
        false => kept.to_string(),
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for good in ["a", "web-1", "9.x_y", &"n".repeat(63)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "-a", "a b", "ü", "a\0", &"n".repeat(64)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_name_becomes_a_name() {
        for (host, name) in [("web 1", "web1"), ("..", "node"), ("", "node"), ("a.b", "a.b")] {
            assert_eq!(made_from(host), name);
        }
    }
}
