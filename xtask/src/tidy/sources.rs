//! Single source files: the module doc, the size, the purity of pure crates, and words that must not be there.

use super::{Complaint, arrows::PURE};

/// Longer files hold more than one idea.
const LONGEST: usize = 600;

/// From here on a note is printed, so that nobody is surprised.
const LONG: usize = 500;

/// Files that may be longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];

/// What a pure crate does not say, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("std::time::Instant", "take gnomon_terms::Instant as an argument"),
    ("std::time::SystemTime", "take the time as an argument"),
    ("Instant::now", "take the time as an argument"),
    ("SystemTime", "take the time as an argument"),
    ("std::net", "return what is to be sent; link sends it"),
    ("std::thread", "be called; threads belong to the callers"),
    ("thread_local!", "keep the state in a value"),
    ("std::fs", "take bytes or a reader; files belong to the callers"),
    ("std::env", "take a setting as an argument"),
    ("tokio", "be synchronous; runtimes belong to the callers"),
    ("rand::", "take a seeded generator as an argument"),
    ("static mut", "keep the state in a value"),
    ("OnceLock", "keep the state in a value"),
    ("LazyLock", "keep the state in a value"),
];

/// Words for no file of the checkout. Split, so that this list does not complain about itself.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("/work", "/", "a folder of one machine: take it as an argument"),
    ("crates", ".io", "a registry: cargo's configuration knows it, the source need not"),
    ("pypi", ".org", "a registry: name the package instead"),
];

/// All complaints about one file.
pub(super) fn check(file: &str, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    complaints.extend(module_doc(file, text));
    complaints.extend(size(file, text.lines().count()));
    complaints.extend(words(file, text));
    if PURE.iter().any(|name| file.starts_with(&format!("crates/{name}/src/"))) {
        complaints.extend(purity(file, text));
    }
    complaints
}

fn module_doc(file: &str, text: &str) -> Option<Complaint> {
    let told = text.lines().next().is_some_and(|line| line.starts_with("//! "));
    (!told).then(|| Complaint::new(file, 1, "no module doc: begin with `//! ` and what the file is, in a sentence"))
}

fn size(file: &str, lines: usize) -> Option<Complaint> {
    if LONGER.iter().any(|(name, _)| *name == file) {
        return None;
    }
    if lines > LONG {
        println!("note: {file} has {lines} lines; {LONGEST} is the most");
    }
    let text =
        format!("{lines} lines, {LONGEST} is the most: a file is one idea. Give its owner small helpers beside it");
    (lines > LONGEST).then(|| Complaint::new(file, 0, text))
}

fn words(file: &str, text: &str) -> Vec<Complaint> {
    let forbidden: Vec<(String, &str)> =
        FORBIDDEN.iter().map(|(head, tail, reason)| (format!("{head}{tail}"), *reason)).collect();
    let mut complaints = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for (word, reason) in forbidden.iter().filter(|(word, _)| line.contains(word)) {
            complaints.push(Complaint::new(file, at + 1, format!("`{word}` is {reason}")));
        }
    }
    complaints
}

/// Code outside comments and outside the tests, which come last in a file of ours.
fn purity(file: &str, text: &str) -> Vec<Complaint> {
    if file.ends_with("/tests.rs") {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (at, line) in text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]") {
        let code = line.split("//").next().unwrap_or_default();
        let code = unfold(code);
        for (word, instead) in IMPURE {
            if code.iter().any(|path| contains_word(path, word)) {
                let text = format!("`{word}` in a pure crate (no clock, thread, socket, file, global): {instead}");
                complaints.push(Complaint::new(file, at + 1, text));
            }
        }
    }
    complaints
}

/// `use std::{fmt, time::Instant};` also says `std::fmt` and `std::time::Instant`: one level of braces is enough for
/// lines, because rustfmt breaks deeper ones.
fn unfold(code: &str) -> Vec<String> {
    let mut paths = vec![code.to_owned()];
    if let Some((head, tail)) = code.split_once("::{") {
        let head = head.trim().trim_start_matches("pub ").trim_start_matches("use ");
        let members = tail.trim_end_matches([';', '}', ' ']).split([',', '{', '}']);
        paths.extend(members.map(|member| format!("{head}::{}", member.trim())));
    }
    paths
}

/// Whether `word` stands in `text` and is not the tail of a longer name.
fn contains_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let in_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !in_name(before) && (word.ends_with("::") || word.ends_with('!') || !in_name(after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE_FILE: &str = "crates/gnomon-cycle/src/lib.rs";

    fn complaints(text: &str) -> Vec<String> {
        check(PURE_FILE, text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_file_has_no_complaint() {
        let text = "//! The loop.\nuse gnomon_terms::Instant; // not std::time::Instant\nfn operand::x() {}\n#[cfg(test)]\nuse std::fs;\n";
        assert_eq!(complaints(text), Vec::<String>::new());
    }

    #[test]
    fn each_impurity_is_found_with_its_line() {
        for bad in [
            "use std::time::Instant;",
            "let t = Instant::now();",
            "use std::{fmt, net::TcpStream};",
            "use std::{fs, io};",
            "std::thread::spawn(f);",
            "static mut X: u8 = 0;",
            "let x = rand::random();",
            "use tokio::net;",
        ] {
            let found = complaints(&format!("//! Doc.\n{bad}\n"));
            assert!(found.iter().any(|text| text.starts_with(&format!("{PURE_FILE}:2: "))), "{bad}: {found:?}");
        }
    }

    #[test]
    fn impurity_is_fine_elsewhere() {
        assert_eq!(check("crates/gnomon-link/src/lib.rs", "//! Link.\nuse std::net::TcpStream;\n"), []);
    }

    #[test]
    fn doc_size_and_words() {
        assert!(complaints("use x;\n")[0].contains("no module doc"));
        assert!(complaints(&format!("//! Long.\n{}", "\n".repeat(LONGEST)))[0].contains("601 lines"));
        let path = ["/work", "/x"].concat();
        assert!(complaints(&format!("//! Doc.\nlet p = \"{path}\";\n"))[0].contains(":2: "));
    }
}
